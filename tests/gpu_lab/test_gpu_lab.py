"""Measurements, experiments and archives of the lab, on a CPU at a tiny size."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import TINY
from toy import train_run

from jestcli.config import ConfigError
from jestcli.paper.experiment import jobs, read_experiment
from jestcli.utils.errors import DataError
from tools.gpu_lab import measure, run
from tools.gpu_lab.archive import ARCHIVE, load_archive, read_measurements, save_archive
from tools.gpu_lab.collect import collect
from tools.gpu_lab.run import LATER, Task, known_experiments, parse


def task(words: list[str], folder: Path, **more: Any) -> Task:
    told = {"minutes": 60.0, "tiny": True, "device": "cpu", "workers": 1} | more
    out, work = folder / "out", told.pop("work", folder / "work")
    return Task(*parse(words), out=out, work=work, **told)


def go(given: Task) -> int:
    return run.run(given, say=lambda line: None)


@pytest.mark.parametrize("name", [n for n in measure.MEASUREMENTS if "compiled" not in n])
def test_every_measurement_measures_on_a_cpu(name: str) -> None:
    found = measure.MEASUREMENTS[name][0](torch.device("cpu"), True)
    assert json.loads(json.dumps(found)) == found
    if name == "selection.oracle":
        assert found["sigmoid"]["overlap"] == found["softmax"]["overlap"] == 1
    if name == "selection.listing":
        assert found["overlap"] > 0.95
    if name == "selection.kernel":
        check = {"state": "done", "result": found}
        assert measure.is_right(check)
        found["float32"]["log_sum_exp_error"] = 1e-3
        assert not measure.is_right(check) and not measure.is_right({"state": "failed"})
    if name == "train.eager":
        assert [row["name"] for row in found["rows"]] == ["uniform", "jest", "flexi", "open_clip"]
        assert all(row["mfu"] > 0 for row in found["rows"])


def test_what_crashes_or_hangs_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interpreter").write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys, time\n"
        "name, path = sys.argv[3:5]\n"
        "if name.endswith('paper'): os.kill(os.getpid(), 11)\n"
        "if name.endswith('picks'): time.sleep(600)\n"
        "if name.endswith('energy'): raise ValueError('no such counter')\n"
        "part, _, name = name.partition('.')\n"
        "found = {'part': part, 'name': name, 'state': 'done', 'seconds': 1.0, 'result': {}}\n"
        "os.makedirs(os.path.dirname(path), exist_ok=True)\n"
        "open(path, 'w').write(json.dumps(found))\n"
    )
    (tmp_path / "interpreter").chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(tmp_path / "interpreter"))
    monkeypatch.setattr(run, "LIMIT", 1.0)
    assert go(task(["selection"], tmp_path)) == 0
    states = {m["name"]: m for m in read_measurements(tmp_path / "work" / "state")}
    failed = {name for name, found in states.items() if found["state"] == "failed"}
    assert failed == {"paper", "picks", "energy"} and len(states) == 9
    assert "-11" in states["paper"]["error"] and "took over" in states["picks"]["error"]
    assert "no such counter" in states["energy"]["error"]
    assert "took over 1 s" in (tmp_path / "out" / "summary.md").read_text()
    monkeypatch.setattr(run.sys, "executable", "/nowhere")
    assert go(task(["selection"], tmp_path)) == 0  # nothing is measured again


def test_the_minutes_are_kept_and_nothing_unfinished_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "interpreter").write_text("#!/bin/sh\nsleep 60\n")
    (tmp_path / "interpreter").chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(tmp_path / "interpreter"))
    assert go(task(["selection"], tmp_path, minutes=0.01)) == LATER
    assert (tmp_path / "out" / ARCHIVE).exists()
    assert read_measurements(tmp_path / "work" / "state") == []


YAML = {
    "title": "A tiny experiment",
    "claim": "none",
    "refuted_if": "never",
    "base": TINY,
    "references": {"tiny": {}},
    "runs": {"uniform": {"method": "uniform"}, "jest": {"method": "jest", "reference": "tiny"}},
    "seeds": [0],
    "figure": {"kind": "grid", "panels": []},
}


def write_experiment(folder: Path) -> Path:
    (folder / "tiny.yaml").write_text(json.dumps(YAML))
    return folder / "tiny.yaml"


def test_an_experiment_is_told_to_save_and_goes_on_elsewhere(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script plays `jest run`: it saves when it is stopped, and goes on from what it saved."""
    (tmp_path / "interpreter").write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "assert sys.argv[2:4] == ['jestcli', 'run'] and sys.argv[5:] == ['--workers', '14']\n"
        "folder = Path(os.environ['JEST_RUNS'], '0123456789ab')\n"
        "def save(*_):\n"
        "    (folder / 'checkpoint.safetensors').write_text('half')\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "if not folder.exists():\n"
        "    folder.mkdir(parents=True)\n"
        "    time.sleep(60)\n"
        "assert (folder / 'checkpoint.safetensors').read_text() == 'half'\n"
        "(folder / 'done.json').write_text('{}')\n"
    )
    (tmp_path / "interpreter").chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(tmp_path / "interpreter"))
    monkeypatch.setenv("JEST_DATA", str(data_root))
    words, one, two = [str(write_experiment(tmp_path))], tmp_path / "one", tmp_path / "two"
    assert go(task(words, one, work=one, minutes=0.01, workers=14)) == LATER
    (note,) = read_measurements(one / "state")
    assert note["state"] == "interrupted" and len(note["sittings"]) == 1
    given = one / "out" / ARCHIVE
    assert go(task(words, two, work=two, given=given, workers=14)) == 0
    (note,) = read_measurements(two / "state")
    assert note["state"] == "done" and len(note["sittings"]) == 2
    assert (two / "state" / "runs" / "0123456789ab" / "done.json").exists()
    with pytest.raises(DataError, match="tiny failed"):
        go(task(words, tmp_path, workers=13))  # which the script refuses
    (note,) = read_measurements(tmp_path / "work" / "state")
    assert note["state"] == "failed" and (tmp_path / "out" / ARCHIVE).exists()
    run._note(tmp_path / "work" / "state" / "measurements" / "selection.kernel.json", "failed")
    with pytest.raises(DataError, match="kernel failed its check"):
        go(task(words, tmp_path, workers=14))


def test_finished_runs_are_collected_and_drawn(data_root: Path, tmp_path: Path, quiet: Any) -> None:
    state, file = tmp_path / "state", write_experiment(tmp_path)
    work = jobs(read_experiment(file), {}, ["uniform"])
    for job in work:
        train_run(job.run, run.Workspace(data_root, state / "runs"), job.label, quiet)
    run._note(state / "measurements" / "experiment.tiny.json", "done", sittings=[])
    save_archive(state, tmp_path)
    written = collect([tmp_path / ARCHIVE], tmp_path / "g", Console(quiet=True), {"tiny": file})
    assert {path.name for path in written} >= {"summary.md", "measurements.json", "table.md"}
    records = json.loads((tmp_path / "g" / "tiny" / "records.json").read_text())
    assert [(r["name"], r["steps"]) for r in records["records"]] == [("uniform", 4)]
    assert run._is_all_done(work, state) and not run._is_all_done(
        jobs(read_experiment(file), {}), state
    )


def test_references_without_weights_are_trained_again(tmp_path: Path) -> None:
    work = jobs(read_experiment(write_experiment(tmp_path)), {})
    workspace = run.Workspace(tmp_path / "data", tmp_path / "runs")
    folders = {job.name: workspace.folder(job.run) for job in work}
    reference = folders["reference tiny"]
    for folder in (reference, folders["uniform"]):
        folder.mkdir(parents=True)
        (folder / "done.json").write_text("{}")
    (reference / "model.safetensors").write_bytes(b"weights")
    run._forget_references(work, workspace)
    assert reference.exists()
    (reference / "model.safetensors").unlink()
    run._forget_references(work, workspace)
    assert not reference.exists() and folders["uniform"].exists()


def test_an_archive_writes_nothing_outside(tmp_path: Path) -> None:
    for name in ("../evil", "runs/../../evil", "runs/0123456789ab/evil.py", "/etc/evil"):
        path = tmp_path / "bad.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"{}"))
        with pytest.raises(DataError, match="not the lab's archive"):
            load_archive(path, tmp_path / "state")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "state").exists()


def test_weights_are_left_out_where_they_do_not_fit(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for name, done, size in (("a" * 12, False, 900), ("b" * 12, True, 300), ("c" * 12, True, 500)):
        folder = state / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        if done:
            (folder / "done.json").write_text("{}")
        path = folder / ("model.safetensors" if done else "checkpoint.safetensors")
        path.write_bytes(os.urandom(size))
    left_out = save_archive(state, tmp_path / "out", 0.0013)  # 1,300 bytes: a's and b's
    assert left_out == [f"runs/{'c' * 12}/model.safetensors"]
    assert load_archive(tmp_path / "out" / ARCHIVE, tmp_path / "again") == 7
    assert not (tmp_path / "again" / "runs" / ("c" * 12) / "model.safetensors").exists()


def test_a_wrong_word_or_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean figure3"):
        parse(["figur3"])
    with pytest.raises(ConfigError, match="did you mean selection"):
        parse(["selectoin"])
    with pytest.raises(ConfigError, match="takes up to 60 s"):
        go(task(["selection"], tmp_path, minutes=1, tiny=False))
    with pytest.raises(ConfigError, match="expected numbers"):
        go(task([str(write_experiment(tmp_path))], tmp_path, seeds="zero"))
    with pytest.raises(DataError, match="no file"):
        go(task(["selection"], tmp_path, given=tmp_path / "none.tar.gz"))


def test_the_labs_own_experiments_are_whole() -> None:
    for name in ("figure1-64px", "figure3-64px"):
        work = jobs(read_experiment(known_experiments()[name]), {})
        assert {job.run.data.image_size for job in work} == {64}
        assert {job.run.model.width for job in work} == {256}
        assert {job.run.optim.batch_size for job in work} <= {512, 1024, 2048}
