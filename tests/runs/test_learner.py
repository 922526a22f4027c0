"""A run as a stage: made once, by one process, from the right data, the same if killed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import loader_of, table_of, tiny_reference, tiny_run, without_seconds
from toy import train_run

from jestcli.config import Run
from jestcli.data.loader import Source
from jestcli.paper.forked import start as start_worker
from jestcli.runs import trained
from jestcli.runs.evaluate import evaluate_folder, list_runs
from jestcli.runs.inputs import pool_rows
from jestcli.runs.inputs import sources as run_sources
from jestcli.runs.reference import OpenedReference, open_reference, reads_pool_cache
from jestcli.runs.run_data import data_of
from jestcli.runs.workspace import (
    StageError,
    Workspace,
    is_done,
    only_writer,
    read_done,
    read_run,
)
from jestcli.training.checkpoint import CHECKPOINT, CheckpointError, read
from jestcli.training.metrics import evaluation_steps
from jestcli.training.reference import MICRO_BATCH, RunReference
from jestcli.training.signals import Interrupted

pytestmark = pytest.mark.numeric
QUIET = {"PYTHONWARNINGS": "ignore"}


def refuse(*_: Any) -> None:
    raise AssertionError("trained again")


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a JEST run and its reference."""
    workspace = Workspace(data_root, tmp_path_factory.mktemp("runs"))
    train_run(tiny_run("jest"), workspace, "jest", lambda *_: None)
    return workspace


def test_a_run_directory_says_what_was_run_and_what_came_out(finished: Workspace) -> None:
    run = tiny_run("jest")
    folder = finished.folder(run)
    assert {p.name for p in folder.iterdir()} >= {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "model.safetensors",
        "done.json",
    }
    assert read_run(folder) == ("jest", run), "the config as resolved gives the run again"
    done = read_done(folder)
    assert len(done["scores"]) == 8 and done["steps"] == 4 and done["examples"] == 32
    assert done["mean"] == pytest.approx(np.mean([s["score"] for s in done["scores"].values()]))
    assert done["rows_drawn_from"] == {"pool": 74}
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {x["step"] for x in lines if "scores" in x} == evaluation_steps(run)
    assert lines[-1]["scores"] == done["scores"], "the last evaluation uses every image"
    assert max(s["n"] for s in lines[-2]["scores"].values()) == 8, "those along the run do not"
    about = json.loads((folder / "environment.json").read_text())
    assert about["packages"]["torch"] and about["threads"] == 1


def test_what_a_reference_cost_is_charged(finished: Workspace) -> None:
    run = tiny_run("jest")
    assert run.reference is not None
    mine, reference = (read_done(finished.folder(r)) for r in (run, run.reference))
    extra = mine["flops"]["charged"] - mine["flops"]["cached"]
    model = trained.new_learner(run.reference)
    one = trained.learner_flops(run.reference, model).full
    assert reference["flops"]["charged"] == reference["flops"]["cached"] > 0
    assert extra == pytest.approx(reference["flops"]["charged"] + min(74, 4 * 16) * one)


def test_a_finished_stage_is_not_run_again(finished: Workspace) -> None:
    folder = finished.folder(tiny_run("jest"))
    before = {p: p.stat().st_mtime_ns for p in finished.runs.rglob("*")}
    assert train_run(tiny_run("jest"), finished, "jest", refuse) == folder
    assert before == {p: p.stat().st_mtime_ns for p in finished.runs.rglob("*")}


def test_evaluating_again_gives_the_recorded_scores(finished: Workspace) -> None:
    folder = finished.folder(tiny_run("jest"))
    assert evaluate_folder(folder, finished) == ("jest", read_done(folder)["scores"])
    assert set(list_runs(finished)) == {folder, finished.folder(tiny_reference())}


@pytest.mark.parametrize("content", ["", "[]", '{"label": "x", "sed": 1}', '{"seed": 0}'])
def test_a_folder_that_is_no_run_is_one_line(content: str, tmp_path: Path) -> None:
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(StageError, match="is not a run directory of this version"):
        read_run(tmp_path)


def test_a_run_without_its_model_is_refused(workspace: Workspace) -> None:
    with pytest.raises(StageError, match="no trained model in"):
        trained.load_run(tiny_run(), workspace)


def test_another_process_on_the_directory_is_refused(workspace: Workspace) -> None:
    run, (receive, send) = tiny_run(), forked.CONTEXT.Pipe(duplex=False)
    folder = workspace.folder(run)
    holder = forked.start(hold, folder, send)
    send.close()
    assert receive.recv() == "held"
    with pytest.raises(StageError, match=f"another process is writing {folder}"):
        train_run(run, workspace, "uniform", refuse)
    holder.kill()
    holder.join()
    with only_writer(folder):
        pass  # the lock goes with the process


def hold(folder: Path, send: Connection) -> None:
    with only_writer(folder):
        send.send("held")
        time.sleep(60)


# --- killed at any moment ------------------------------------------------------------------------


def train_until_killed(run: Run, workspace: Workspace, send: Connection) -> None:
    train_run(run, workspace, "jest", lambda *at: send.send(at), keep_last=2)
    send.send("finished")


def train_until_step(run: Run, workspace: Workspace, step: int, number: int) -> None:
    """Send this process a signal when the learner has done so many steps."""

    def report(done: int, total: int, line: str) -> None:
        if (done, total) == (step, run.optim.steps):
            os.kill(os.getpid(), number)

    try:
        train_run(run, workspace, "jest", report, keep_last=2)
    except Interrupted:
        os._exit(130)


def stopped_at(step: int, number: int, run: Run, workspace: Workspace) -> int | None:
    """Exit code of a process that got the signal there."""
    process = forked.start(train_until_step, run, workspace, step, number)
    process.join(200)
    return process.exitcode


def damage(path: Path) -> None:
    """Change one bit of a file's last numbers, where it lies."""
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-9, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def killed_after(messages: int, run: Run, workspace: Workspace, delay: float) -> bool:
    """Train in another process and SIGKILL it `delay` seconds after so many reports.

    Returns whether it ended before that.
    """
    receive, send = forked.CONTEXT.Pipe(duplex=False)
    process = forked.start(train_until_killed, run, workspace, send)
    send.close()
    try:
        for _ in range(messages):
            if receive.recv() == "finished":
                process.join()
                return True
        time.sleep(delay)
    finally:
        process.kill()
        process.join()
    return False


@pytest.mark.parametrize("method", ["jest", "flexi"])
def test_killed_at_random_moments_and_restarted_is_the_same_run(
    method: str, data_root: Path, tmp_path: Path
) -> None:
    """SIGKILL while the reference trains, the pool is embedded, the learner trains or is saved.

    Before that, at seeded steps: SIGTERM, and SIGKILL with the newest checkpoint damaged.
    """
    run = tiny_run(method, optim={"steps": 24}, evaluation={"points": 5})
    whole, killed = (Workspace(data_root, tmp_path / name) for name in ("whole", "killed"))
    train_run(run, whole, "jest", lambda *_: None)
    dice, folder = random.Random(method), killed.folder(run)
    step = dice.randint(2, 9)
    assert stopped_at(step, signal.SIGTERM, run, killed) == 130
    assert read(folder / CHECKPOINT)[1]["step"] == step
    assert stopped_at(dice.randint(12, 20), signal.SIGKILL, run, killed) == -signal.SIGKILL
    assert read(folder / CHECKPOINT)[1]["step"] == 11
    damage(folder / CHECKPOINT)
    with pytest.raises(CheckpointError, match="its numbers have changed"):
        read(folder / CHECKPOINT)
    dice = random.Random()  # truly random: any moment must do
    moments = []
    for _ in range(4):
        moments.append((dice.randint(1, 12), dice.random() * 0.05))
        if killed_after(moments[-1][0], run, killed, moments[-1][1]):
            break
    train_run(run, killed, "jest", lambda *_: None)
    assert run.reference is not None
    for each in (run.reference, run):
        a, b = whole.folder(each), killed.folder(each)
        assert without_seconds(a / "metrics.jsonl") == without_seconds(b / "metrics.jsonl"), moments
        ours, theirs = (load_file(f / "model.safetensors") for f in (a, b))
        assert all(np.array_equal(ours[k], theirs[k]) for k in ours), moments
        assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
        left, right = read_done(a), read_done(b)
        for done in (left, right):
            done.pop("wall_seconds_of_last_sitting")
            done.pop("waiting_for_data_of_last_sitting")
        assert left == right


def test_a_signal_saves_and_the_worker_exits_130(data_root: Path, tmp_path: Path) -> None:
    run = tiny_run(optim={"steps": 3000}, evaluation={"points": 1})
    workspace = Workspace(data_root, tmp_path / "runs")
    said, errors = tmp_path / "out", tmp_path / "errors"
    task = {
        "run": run.model_dump(mode="json"),
        "label": "uniform",
        "data": str(data_root),
        "runs": str(workspace.runs),
    }
    process = start_worker(json.dumps(task), (said, errors), QUIET)
    while not said.exists() or '"done"' not in (line := said.read_text().partition("\n")[0]):
        time.sleep(0.02)
    message = json.loads(line)
    assert message["total"] == 3000 and message["line"].startswith("uniform · ")
    assert " left · loss " in message["line"]
    process.terminate()
    assert process.wait() == 130
    assert errors.read_text().startswith("stopped at step ")
    assert errors.read_text().endswith("of 3000; all is saved\n")
    assert (workspace.folder(run) / "checkpoint.safetensors").exists()
    assert not is_done(workspace.folder(run))


@pytest.mark.parametrize(
    "data,words", [("nowhere", "no benchmarks in nowhere"), ("", "no trained model in")]
)
def test_a_worker_that_cannot_run_says_why_in_one_line(
    data: str, words: str, data_root: Path, tmp_path: Path
) -> None:
    run = tiny_run("jest" if not data else "uniform")
    if run.reference is not None:  # finished, and then its weights were deleted
        gone = Workspace(data_root, tmp_path).folder(run.reference)
        gone.mkdir()
        (gone / "done.json").write_text("{}")
    task = {
        "run": run.model_dump(mode="json"),
        "label": "x",
        "data": data or str(data_root),
        "runs": str(tmp_path),
    }
    logs = tmp_path / "out", tmp_path / "errors"
    assert start_worker(json.dumps(task), logs, QUIET).wait() == 1
    assert words in (tmp_path / "errors").read_text()
    assert (tmp_path / "errors").read_text().count("\n") == 1


# --- where candidates come from ------------------------------------------------------------------


def embeddings(n: int, seed: int = 0) -> OpenedReference:
    rows = np.random.default_rng(seed).normal(size=(2, n, 4)).astype(np.float32)
    return OpenedReference(table=table_of(*(rows / np.linalg.norm(rows, axis=2, keepdims=True))))


def sources(run: Run, workspace: Workspace, n: int = 0) -> list[Source]:
    """What the run draws from; n: pairs of a pool that a filter's reference has embedded."""
    reference = embeddings(n) if n else OpenedReference()
    return run_sources(run, data_of(run, workspace), reference)


def test_the_offline_filter_keeps_the_best_pairs_by_reference_cosine(workspace: Workspace) -> None:
    run, table = tiny_run("filtered", source={"keep": 0.25}), embeddings(84).table
    (part,) = sources(run, workspace, 84)
    rows = pool_rows(run, data_of(run, workspace))
    assert rows is not None and table is not None
    pairs = table.pairs(rows)
    cosine = (pairs.image * pairs.text).sum(1).numpy()
    assert part.rows.tolist() == sorted(rows[np.argsort(-cosine)[:18]].tolist())
    assert part.per_step == 8 and len(part.dataset) == 84
    assert set(loader_of(part)(0).row) <= set(part.rows)


def test_mixed_draws_the_share_it_is_told(workspace: Workspace) -> None:
    for share, expected in ((0.5, [4, 4]), (0.25, [6, 2]), (1.0, [0, 8])):
        run = tiny_run("mixed", source={"curated_share": share})
        parts = sources(run, workspace)
        assert [part.per_step for part in parts] == expected
        assert [part.name for part in parts] == ["pool", "curated"]
        assert len(parts[0].rows) == 74 and len(parts[1].rows) == 12
        drawn = loader_of(*parts)(1)
        assert np.bincount(drawn.part, minlength=2).tolist() == expected


def test_pool_and_curated_sources(workspace: Workspace) -> None:
    jest, curated = tiny_run("jest"), tiny_run("curated", data={"level": "strong++"})
    (pool,) = sources(jest, workspace)
    assert len(pool.rows) == 74 and pool.per_step == 16, "a super-batch of B = b / (1 - f)"
    (part,) = sources(curated, workspace)
    assert len(part.rows) == 23 and part.per_step == 8
    small = tiny_run("uniform", source={"pool_size": 30})
    (some,) = sources(small, workspace)
    assert len(some.rows) == 30 == len(set(some.rows)) and max(some.rows) < 84
    best = tiny_run("filtered", source={"pool_size": 30, "keep": 0.5})
    (kept,) = sources(best, workspace, 84)
    assert len(kept.rows) == 15 and set(kept.rows) <= set(some.rows), "filtered among those"
    weak = tiny_run("curated", data={"level": "weak"})
    (listed,) = sources(weak, workspace)
    assert len(listed.dataset) == 84, "the weakest level is a part of the pool"
    assert 0 < len(listed.rows) < 84
    few = tiny_run("curated", data={"curated_size": 5})
    assert len(sources(few, workspace)[0].rows) == 5


def test_finetuning_starts_from_the_references_weights(finished: Workspace) -> None:
    """With a learning rate of nearly nothing, it ends where the reference ended."""
    run = tiny_run("finetune", optim={"lr": 1e-12, "steps": 1, "warmup": 1})
    train_run(run, finished, "finetune", lambda *_: None)
    ours, reference = (
        load_file(finished.folder(r) / "model.safetensors") for r in (run, tiny_reference())
    )
    for name, tensor in reference.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=0, atol=1e-6)
    done = read_done(finished.folder(run))["flops"]
    assert done["charged"] > done["cached"]


def test_only_runs_that_score_with_the_reference_read_its_embeddings() -> None:
    reads = {
        m
        for m in (
            "uniform",
            "jest",
            "flexi",
            "finetune",
            "filtered",
            "independent",
            "easy-reference",
            "hard-learner",
            "curated",
            "mixed",
        )
        if reads_pool_cache(tiny_run(m))
    }
    assert reads == {"jest", "flexi", "filtered", "independent", "easy-reference"}


def test_a_live_reference_trains_what_a_cached_one_trains(finished: Workspace) -> None:
    """Up to rounding: candidates are embedded in other micro-batches."""
    live = tiny_run("jest", engine={"reference_cache": False})
    assert not reads_pool_cache(live)
    train_run(live, finished, "live", lambda *_: None)
    folders = finished.folder(live), finished.folder(tiny_run("jest"))
    assert folders[0] != folders[1]
    one, other = (
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in folders
    )
    losses = [[x["loss"] for x in lines if "loss" in x] for lines in (one, other)]
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert read_done(folders[0])["flops"] == read_done(folders[1])["flops"]


def test_a_reference_embeds_the_pool_once_whichever_run_comes_first(finished: Workspace) -> None:
    run = tiny_run("jest", engine={"scoring_batch": 5})
    found = open_reference(run, finished, data_of(run, finished), report=refuse)
    assert found.table is not None and found.table.complete
    assert isinstance(found.live, RunReference) and found.live.micro_batch == MICRO_BATCH
