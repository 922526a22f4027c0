"""The training loop: draw, choose, update, and now and then evaluate, log and checkpoint."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jestcli.config import Run
from jestcli.data.loader import Candidates
from jestcli.models.flops import Cost
from jestcli.models.towers import Clip
from jestcli.training.checkpoint import load_training, save_training
from jestcli.training.optimiser import learning_rate, make_optimiser
from jestcli.training.step import EmbedReference, NotFinite, choose, update

LOG_EVERY = 20
CHECKPOINT_EVERY = 100
CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
Report = Callable[[int, int, str], None]


class Interrupted(Exception):
    """Stopped by a signal with everything saved; the same command goes on from there."""


class TrainingError(Exception):
    """Training cannot go on; the message is one line for the user."""


def evaluation_steps(run: Run) -> set[int]:
    """Steps after which the run is evaluated: log-spaced from 5 % of the run, the end included."""
    last, n = run.optim.steps, run.evaluation.points
    points = np.geomspace(max(1, 0.05 * last), last, n) if n > 1 else [last]
    return {round(p) for p in points} | {last}


def train(
    run: Run,
    folder: Path,
    learner: Clip,
    draw: Callable[[int], Candidates],
    reference: EmbedReference | None,
    evaluate: Callable[[bool], dict[str, dict[str, Any]]],
    cost_after: Callable[[int], Cost],
    report: Report,
    track: Callable[[dict[str, Any]], None],
) -> None:
    """Train `learner` to the end of `run`, from the checkpoint in `folder` if there is one.

    Args:
        draw: step -> its candidates.
        reference: candidates -> their reference embeddings; None where the run reads none.
        evaluate: whether this is the final evaluation -> scores by benchmark.
        cost_after: steps -> FLOPs so far.
        report: (steps done, steps, one line about now) -> shown to the user.
        track: called with every record that goes to metrics.jsonl.
    Writes metrics.jsonl and checkpoint.safetensors. Raises Interrupted on SIGINT or SIGTERM,
    TrainingError when the loss is no longer finite.
    """
    optimiser = make_optimiser(learner, run.optim)
    checkpoint, metrics = folder / CHECKPOINT, folder / METRICS
    clock = {"draw": 0.0, "choose": 0.0, "update": 0.0}
    start, bad_steps = 0, 0
    if checkpoint.exists():
        about = load_training(checkpoint, learner, optimiser)
        start, clock, bad_steps = about["step"], about["seconds"], about.get("bad_steps", 0)
        os.truncate(metrics, about["metrics_bytes"])
    else:
        metrics.write_bytes(b"")
    evaluate_at = evaluation_steps(run)

    def log(record: dict[str, Any]) -> None:
        with _disk(metrics), metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        track(record)

    def save(step: int) -> None:
        about = {"step": step, "seconds": clock, "bad_steps": bad_steps}
        with _disk(checkpoint):
            with metrics.open("rb") as file:
                os.fsync(file.fileno())
            about["metrics_bytes"] = metrics.stat().st_size
            save_training(checkpoint, learner, optimiser, about)

    with _signals() as stopped:
        for step in range(start, run.optim.steps):
            done = step + 1
            logging = done % LOG_EVERY == 0 or done == 1
            with _timed(clock, "draw"):
                candidates = draw(step)
            choice, loss = None, math.nan
            try:
                with _timed(clock, "choose"):
                    choice = choose(learner, reference, candidates, run, step, measure=logging)
                with _timed(clock, "update"):
                    loss = update(learner, optimiser, candidates, choice.index, run, step)
            except NotFinite as problem:
                bad_steps += 1
                log({"step": done, "skipped": str(problem), "bad_steps": bad_steps,
                     "keys": _keys(candidates, problem.index)})  # fmt: skip
                if bad_steps > run.engine.max_bad_steps:
                    raise TrainingError(
                        f"{problem} at step {done}, after {bad_steps - 1} skipped steps "
                        f"(engine.max_bad_steps): see {metrics}; the last checkpoint is good"
                    ) from None
            if logging and choice is not None and math.isfinite(loss):
                record = {
                    "step": done,
                    "loss": loss,
                    "lr": learning_rate(step, run.optim),
                    "learnability": [
                        choice.super_batch_learnability, choice.sub_batch_learnability,
                    ],
                    "chosen": _chosen(run, candidates, choice.index),
                    "scale": float(learner.scale),
                    "bias": float(learner.bias),
                    "seconds": dict(clock),
                    "flops": cost_after(done).as_dict(),
                }  # fmt: skip
                log(record)
            report(done, run.optim.steps, f"loss {loss:.3f}" if loss == loss else "step skipped")
            if done in evaluate_at:
                scores = evaluate(done == run.optim.steps)
                log(
                    {
                        "step": done,
                        "scores": scores,
                        "seconds": dict(clock),
                        "flops": cost_after(done).as_dict(),
                    }
                )
            if done in evaluate_at or done % CHECKPOINT_EVERY == 0 or stopped.is_set():
                save(done)
            if stopped.is_set():
                raise Interrupted(f"stopped at step {done} of {run.optim.steps}; all is saved")


def _chosen(run: Run, candidates: Candidates, index: torch.Tensor) -> list[int] | None:
    """Rows of a selecting run's sub-batch in its pool: what `jest inspect` looks back at."""
    return None if run.selection.sampler == "uniform" else candidates.row[index].tolist()


def last_scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Scores of the last evaluation in a run directory: the final one, once the run is over."""
    lines = (folder / METRICS).read_text().splitlines()
    records = (json.loads(line) for line in reversed(lines))
    scores: dict[str, dict[str, Any]] = next(r["scores"] for r in records if "scores" in r)
    return scores


def chosen_in_training(folder: Path) -> list[tuple[int, np.ndarray]]:
    """(step, rows int64 [b] of the pool) of every logged step that names its sub-batch."""
    found = []
    for line in (folder / METRICS).read_text().splitlines():
        record = json.loads(line)
        if record.get("chosen"):
            found.append((record["step"], np.asarray(record["chosen"], np.int64)))
    return found


def _keys(candidates: Candidates, index: Tensor) -> list[str]:
    """What the first 64 of these candidates are called, to find them in the data."""
    rows = index[:64].tolist()
    return [f"{candidates.part[row]}:{candidates.row[row]}" for row in rows]


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """A full or broken disk, in one line."""
    try:
        yield
    except OSError as error:
        problem = f"cannot write {path}: {error.strerror}; the last checkpoint is intact"
        raise TrainingError(problem) from None


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds spent inside: of the processor, so that other jobs on it do not count."""
    start = time.process_time()
    yield
    clock[name] += time.process_time() - start


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, while inside (in the main thread only)."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    previous = {
        number: signal.signal(number, lambda *_: stopped.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def set_threads(threads: int) -> None:
    """Fix what changes floating-point results on one machine: the thread count."""
    torch.set_num_threads(threads)
