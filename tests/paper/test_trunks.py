"""Lengths of one trunk as stages: what they share, in which order they run, what is left."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import forked
import pytest
from tiny import tiny_run, without_seconds
from toy import train_run

from jestcli.config import Run
from jestcli.paper.experiment import Job
from jestcli.paper.scheduler import Stage, _heard, plan, urgency
from jestcli.runs.workspace import Workspace
from jestcli.training.trunk import steps_there
from jestcli.utils.progress import Row


def wsd(steps: int, method: str = "uniform", points: int = 1, **more: Any) -> Run:
    optim = {"schedule": "wsd", "decay": 0.25, "steps": steps}
    return tiny_run(method, optim=optim, evaluation={"points": points}, **more)


def test_only_length_decay_and_evaluation_are_left_out_of_a_trunks_name(
    workspace: Workspace,
) -> None:
    trunk = workspace.trunk(wsd(8))
    assert trunk is not None and trunk.parent == workspace.runs / "trunks"
    assert trunk == workspace.trunk(wsd(80)) == workspace.trunk(wsd(8, points=3))
    assert workspace.trunk(tiny_run(optim={"steps": 80})) is None
    others = [
        wsd(8, seed=1),
        wsd(8, source={"noise_share": 0.5}),
        wsd(8, "jest"),
        wsd(8, "jest", selection={"filter_ratio": 0.75}),
    ]
    assert len({trunk, *map(workspace.trunk, others)}) == 5


def test_no_length_goes_on_from_what_other_pairs_have_trained(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Shards written anew within their size are the same run by name, but not the same trunk."""
    (shard := tmp_path / "pool.tar").write_bytes(b"1" * 1024)
    run = wsd(8, data={"train": [str(shard)]})
    trunk, folder = workspace.trunk(run), workspace.folder(run)
    assert workspace.trunk(wsd(80, data={"train": [str(shard)]})) == trunk
    shard.write_bytes(b"2" * 1024)
    os.utime(shard, (1, 1))
    assert workspace.trunk(run) != trunk and workspace.folder(run) == folder


def test_lengths_of_one_trunk_wait_for_one_another(workspace: Workspace) -> None:
    lengths = [32, 8, 16]
    jobs = [
        Job(f"{method}@{n}", 0, wsd(n, method)) for method in ("uniform", "jest") for n in lengths
    ]
    stages = {s.label: s for s in plan(jobs, workspace)}
    found = {n: stages[f"jest@{n} (seed 0)"] for n in lengths}
    assert found[8].needs == [str(workspace.folder(r)) for r in [found[8].run.reference] if r]
    assert found[16].needs[-1] == stages["jest@8 (seed 0)"].key
    assert found[32].needs[-1] == stages["jest@16 (seed 0)"].key
    assert (found[8].before, found[16].before, found[32].before) == (0, 6 / 16, 12 / 32)
    one = found[8].work / 8
    assert found[32].work == pytest.approx(20 * one), "counted from where the shorter one left"
    urgent = urgency(list(stages.values()))
    assert urgent[found[32].key] == found[32].work
    assert urgent[found[8].key] == pytest.approx((8 + 10 + 20) * one)
    row = Row("jest@32", 1.0, 0.0, percent=True)
    embedding = {"done": 30, "total": 84, "line": "jest@32 · reference embeddings"}
    _heard(found[32], json.dumps(embedding), row, 0.5)
    assert found[32].done == 0 and row.words(0.5) == "0 % · reference embeddings 36 %"
    _heard(found[32], json.dumps({"done": 12, "total": 32, "line": "x"}), row, 1.0)
    assert found[32].done == 0 and (row.first, row.total) == (12, 32)
    _heard(found[32], json.dumps({"done": 22, "total": 32, "line": "x"}), row, 2.0)
    assert found[32].done == pytest.approx(0.5) and row.done == 22


def test_what_cannot_share_does_not_wait(workspace: Workspace) -> None:
    curves = [Job(str(n), 0, wsd(n, points=4)) for n in (40, 80)]
    assert [(s.needs, s.before) for s in plan(curves, workspace)] == [([], 0), ([], 0)]
    cosine = [Job(str(n), 0, tiny_run(optim={"steps": n})) for n in (40, 80)]
    assert [(s.needs, s.before) for s in plan(cosine, workspace)] == [([], 0), ([], 0)]


def test_work_that_is_done_is_not_counted_again(workspace: Workspace) -> None:
    def left(run: Run) -> Stage:
        (stage,) = plan([Job("x", 0, run)], workspace)
        return stage

    whole = left(wsd(40)).work
    train_run(wsd(16), workspace, "short", lambda *_: None)
    assert left(wsd(40)).before == 12 / 40
    assert left(wsd(40)).work == pytest.approx(whole * 28 / 40)
    begun = wsd(40)
    folder = train_run(begun, workspace, "long", lambda *_: None)
    (folder / "done.json").unlink()
    assert left(begun).before == 1 and left(begun).work == 0, "its own checkpoint goes before"


def train_here(run: Run, workspace: Workspace) -> None:
    train_run(run, workspace, "run", lambda *_: None)


@pytest.mark.parametrize("method", ["jest", "uniform"])
def test_lengths_that_run_at_once_are_the_runs_they_are_alone(
    method: str, data_root: Path, tmp_path: Path
) -> None:
    together, alone = (Workspace(data_root, tmp_path / name) for name in ("together", "alone"))
    runs = [wsd(n, method) for n in (20, 24, 24, 40)]
    runs[2] = wsd(24, method, points=2)  # leaves the same checkpoint as the one before
    if runs[0].reference is not None:
        train_run(runs[0].reference, together, "reference", lambda *_: None)
        train_here(tiny_run(method), together)  # the pool's embeddings
    processes = [forked.start(train_here, run, together) for run in runs]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    trunk = together.trunk(runs[0])
    assert trunk is not None and steps_there(trunk, 99) == [30, 18, 15]
    assert len(list(trunk.iterdir())) == 3, "no file is left half-written"
    for run in runs:
        folder = train_run(run, alone, "run", lambda *_: None)
        there = together.folder(run)
        assert without_seconds(folder / "metrics.jsonl") == without_seconds(there / "metrics.jsonl")
        assert (folder / "model.safetensors").read_bytes() == (
            there / "model.safetensors"
        ).read_bytes()
        for path in (alone.runs / "trunks").rglob("*.safetensors"):
            path.unlink()


def test_a_shorter_length_that_a_longer_one_waits_for_is_worth_as_much(
    workspace: Workspace,
) -> None:
    jobs = [Job(str(n), 0, wsd(n), tier=tier) for n, tier in ((8, 2), (16, 3), (32, 1), (64, 2))]
    found = {s.run.optim.steps: s.tier for s in plan(jobs, workspace)}
    assert found == {8: 1, 16: 1, 32: 1, 64: 2}
