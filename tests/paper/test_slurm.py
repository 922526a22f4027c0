"""Stages as jobs of a cluster; submitit's local executor stands for Slurm."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import tiny_run

from jestcli.config import ConfigError
from jestcli.paper import slurm
from jestcli.paper.experiment import Job
from jestcli.paper.scheduler import plan, run_stages
from jestcli.paper.slurm import OnCluster, launcher, parse_options
from jestcli.runs.workspace import Workspace, is_done


def test_options_are_words_or_numbers() -> None:
    assert parse_options("partition=gpu,timeout_min=60") == {"partition": "gpu", "timeout_min": 60}
    for wrong, message in (
        ("partition", "expected key=value"),
        ("=1", "expected key=value"),
        ("cluster=slrum", "did you mean slurm?"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_options(wrong)
        assert message in str(caught.value)


def test_without_slurm_it_says_so_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match="--slurm: "):
        launcher({"cluster": "slurm", "partition": "cpu"}, tmp_path)


class FakeJob:
    """submitit's Job as the scheduler uses it."""

    def __init__(self, result: Any) -> None:
        self.answer, self.cancelled, self.finished = result, False, False

    def done(self) -> bool:
        return self.finished

    def exception(self) -> Any:
        return self.answer if isinstance(self.answer, Exception) else None

    def result(self) -> Any:
        return self.answer

    def cancel(self, check: bool = True) -> None:
        self.cancelled = self.finished = True


def test_a_job_looks_like_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "POLL", 0.0)
    job = FakeJob(0)
    stage = OnCluster(job)
    assert stage.poll() is None
    job.finished = True
    assert stage.poll() == 0
    stage.terminate()
    assert not job.cancelled, "what is over is not cancelled"
    lost = FakeJob(RuntimeError("node failed"))
    lost.finished = True
    assert OnCluster(lost).poll() == 1
    waiting = FakeJob(0)
    OnCluster(waiting).terminate()
    assert waiting.cancelled


def test_an_experiment_runs_on_a_local_cluster(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage as a job of its own, its worker's progress followed from the run directory."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "POLL", 0.1)
    launch = launcher({"cluster": "local"}, workspace.runs / "slurm")
    run = tiny_run("uniform", seed=5)
    console = Console(file=io.StringIO())
    run_stages(plan([Job("uniform", 5, run)], workspace), workspace, 2, console, "off", launch)
    assert is_done(workspace.folder(run))
    assert (workspace.folder(run) / "progress.jsonl").read_text().count('"done"') >= 1
