from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_pack import tarballs
from tiny import without_seconds

from jestcli.config import ConfigError
from jestcli.gpu import child, figures, record
from jestcli.gpu.pack import pack
from jestcli.gpu.record import Budget, Fatal, Notes, OutOfTime, load_archive, save_archive
from jestcli.stages import gpu
from jestcli.utils.errors import DataError


@pytest.fixture(scope="module")
def sources(miniature: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources") / "sources.tar"
    pack(tarballs(miniature), path, 1.0, miniature.world, workers=1)
    return path


def run(parts: str, folder: Path, **more: Any) -> int:
    told = {"sources": None, "given": None, "minutes": 60.0, "tiny": True, "device": "cpu"} | more
    work = told.pop("work", folder / "work")
    return gpu.run(
        gpu.Task(gpu.parts_of(parts), out=folder / "out", work=work, workers=1, **told),
        say=lambda line: None,
    )


def states(folder: Path) -> dict[str, str]:
    found = record.read_measurements(folder / "work" / "state")
    return {f"{m['part']}.{m['name']}": m["state"] for m in found}


def measure(sources: Path, work: Path) -> None:
    """Part figure1 in this process."""
    task = {
        "state": str(work / "state"), "work": str(work), "sources": str(sources), "tiny": True,
        "device": "cpu", "workers": 1, "seconds_a_seed": 1.0,
    }  # fmt: skip
    (work / "state").mkdir(parents=True, exist_ok=True)
    plan = {"factor": 0.3, "step_seconds": {}, "seconds_a_seed": 1.0, "decided": "for the test"}
    (work / "state" / "plan.json").write_text(json.dumps({"figure1": plan}))
    child._part("figure1", task, Budget(time.time() + 1000))


def test_figure1_in_halves_equals_figure1_in_one_and_is_drawn(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a run, then gone on with on a "fresh machine" from the archive."""
    steps = 0

    def left(budget: Budget) -> float:  # the minutes end at the seventh step
        nonlocal steps
        steps += sys._getframe(1).f_code.co_name == "report"
        return 1000.0 if steps < 7 else -1.0

    with monkeypatch.context() as patch:
        patch.setattr(Budget, "left", property(left))
        with pytest.raises(OutOfTime):
            measure(sources, tmp_path / "half")
    state = tmp_path / "half" / "state"
    assert Notes(state, "figure1").read("run.uniform-long.0")["state"] == "interrupted"  # type: ignore[index]
    assert save_archive(state, tmp_path / "out", 15.0) == []
    given = tmp_path / "out" / record.ARCHIVE
    load_archive(given, tmp_path / "fresh" / "state")
    measure(sources, tmp_path / "fresh")
    measure(sources, tmp_path / "one")

    def curves(folder: Path) -> dict[str, list[str]]:
        found = folder.glob("state/runs/*/metrics.jsonl")
        return {p.parent.name: _scores(without_seconds(p)) for p in found}

    ours, theirs = curves(tmp_path / "fresh"), curves(tmp_path / "one")
    assert len(theirs) == 8 and ours == theirs
    state = tmp_path / "fresh" / "state"
    epochs = (Notes(state, "figure1").read("epochs") or {})["result"]
    assert epochs["jest"]["scored_epochs"] > epochs["jest"]["trained_epochs"] > 0
    save_archive(state, tmp_path / "out")
    written = gpu.collect([given], tmp_path / "g", Console(quiet=True))
    assert all(path.exists() for path in written)
    assert {p.name for p in written} >= {"summary.md", "records.json", "figure1.png", "table.md"}
    assert "jest++" in (tmp_path / "g" / "figure1" / "records.json").read_text()
    assert "a trial at a tiny size" in (tmp_path / "g" / "summary.md").read_text()


def _scores(lines: list[str]) -> list[str]:
    """Without speeds, which are measured."""
    records = [json.loads(line) for line in lines]
    return [json.dumps({k: v for k, v in r.items() if k != "speed"}) for r in records]


def test_selection_and_train_parts_measure_everything_on_a_cpu(tmp_path: Path) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        assert run("selection,train", tmp_path) == 0
    finally:
        del os.environ["TRITON_INTERPRET"]
    found = states(tmp_path)
    assert set(found.values()) == {"done"}, gpu.summary(tmp_path / "work" / "state")
    state = tmp_path / "work" / "state"
    kernel = (Notes(state, "selection").read("kernel") or {})["result"]
    assert kernel["fused"] and kernel["float32"]["sum_softplus_relative_error"] < 1e-4
    assert kernel["float16"]["sum_softplus_relative_error"] < 1e-4
    listing = (Notes(state, "selection").read("listing") or {})["result"]
    assert listing["overlap"] > 0.95 and listing["batch"] == 256
    rows = (Notes(state, "train").read("eager") or {})["result"]["rows"]
    assert [row["name"] for row in rows] == ["uniform", "jest", "flexi", "open_clip"]
    assert all(row["mfu"] > 0 for row in rows)
    assert (tmp_path / "out" / "results.tar.gz").exists()


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    notes, budget = Notes(tmp_path, "selection"), Budget(time.time() + 100)

    def broken() -> dict[str, Any]:
        raise ValueError("no such kernel")

    notes.attempt("a", broken, {}, budget)
    notes.attempt("b", lambda: {"x": 1.0}, {}, budget)
    failed, done = notes.read("a"), notes.read("b")
    assert failed and failed["state"] == "failed" and "no such kernel" in failed["error"]
    assert done and done["result"] == {"x": 1.0}
    notes.attempt("a", lambda: pytest.fail("tried again"), {}, budget)  # settled

    def lost() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(Fatal):
        notes.attempt("c", lost, {}, budget)
    assert (notes.read("c") or {})["state"] == "failed"
    assert not record.is_fatal(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_process_that_dies_or_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One measurement kills its process and one never ends: both fail, the third is done."""
    script = tmp_path / "child.py"
    script.write_text(
        "import json, os, sys, time\n"
        "from pathlib import Path\n"
        "folder = Path(json.load(sys.stdin)['state']) / 'measurements'\n"
        "folder.mkdir(exist_ok=True)\n"
        "def write(name, state):\n"
        "    about = {'part': 'selection', 'name': name, 'state': state}\n"
        "    (folder / f'selection.{name}.json').write_text(json.dumps(about))\n"
        "for name in ('dies', 'hangs', 'works'):\n"
        "    path = folder / f'selection.{name}.json'\n"
        "    if path.exists() and json.loads(path.read_text())['state'] == 'failed': continue\n"
        "    write(name, 'begun')\n"
        "    if name == 'dies': os._exit(11)\n"
        "    if name == 'hangs': time.sleep(600)\n"
        "    write(name, 'done')\n"
    )
    start = subprocess.Popen

    def other(command: list[str], **more: Any) -> Any:
        return start([sys.executable, str(script)], **more)

    monkeypatch.setattr(gpu.subprocess, "Popen", other)
    monkeypatch.setattr(gpu, "LIMIT", 1.0)
    assert run("selection", tmp_path) == 0
    assert states(tmp_path) == {
        "selection.dies": "failed", "selection.hangs": "failed", "selection.works": "done",
    }  # fmt: skip


def test_the_minutes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "child.py"
    script.write_text("import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(60)\n")
    start = subprocess.Popen
    monkeypatch.setattr(
        gpu.subprocess, "Popen", lambda c, **more: start([sys.executable, str(script)], **more)
    )
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    started = time.time()
    assert run("selection", tmp_path, minutes=0.05) == 75
    assert time.time() - started < 20 and (tmp_path / "out" / "results.tar.gz").exists()
    with pytest.raises(OutOfTime):
        Budget(time.time() + 16).need(5)


def test_an_archive_writes_nothing_outside(tmp_path: Path) -> None:
    import io
    import tarfile

    for name in ("../evil", "runs/../../evil", "runs/0123456789ab/evil.py", "/etc/evil"):
        path = tmp_path / "bad.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"{}"))
        with pytest.raises(DataError, match="not a part's archive"):
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
    assert load_archive(tmp_path / "out" / record.ARCHIVE, tmp_path / "again") == 7
    assert not (tmp_path / "again" / "runs" / ("c" * 12) / "model.safetensors").exists()


def test_all_methods_are_scaled_alike_and_references_are_not() -> None:
    experiment = figures.read("figure1", tiny=False)
    work = figures.jobs(experiment, {}, None, [0])
    twice = {job.name: job.run.optim.steps for job in figures.scaled(work, 0.5)}
    once = {job.name: job.run.optim.steps for job in work}
    for name, steps in once.items():
        assert twice[name] == (steps if name.startswith("reference") else round(steps * 0.5))
    runs = {job.name: job.run for job in work}
    assert runs["uniform-long"].optim.steps == round(8 / 3 * runs["jest"].optim.steps)
    assert runs["jest"].super_batch_size == 10_240
    assert runs["jest"].engine.precision == "bfloat16" and runs["jest"].data.image_size == 64
    for other in figures.jobs(figures.read("figure3", tiny=False), {}, None, [0]):
        assert other.run.optim.batch_size in (1024, 2048)


def test_a_wrong_part_or_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean figure1"):
        gpu.parts_of("figur1")
    with pytest.raises(ConfigError, match="--sources"):
        run("figure1", tmp_path)
    with pytest.raises(DataError, match="no archive"):
        run("selection", tmp_path, given=tmp_path / "none.tar.gz")
