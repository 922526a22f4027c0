"""The training loop: draw, choose, update, and now and then evaluate, log and checkpoint."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jestcli.config import Run
from jestcli.data.loader import Candidates, Drawing
from jestcli.models.flops import Cost
from jestcli.models.towers import Clip
from jestcli.training import trunk as trunks
from jestcli.training.checkpoint import Checkpoints, training_tensors
from jestcli.training.clock import Speed, Stopwatch, log_line, peak_flops
from jestcli.training.distributed import ALONE, World
from jestcli.training.energy import EnergyMeter
from jestcli.training.engine import make_trainee
from jestcli.training.finite import NotFinite
from jestcli.training.optimiser import learning_rate, make_optimiser
from jestcli.training.step import Choice, EmbedReference, choose, offered, update

LOG_EVERY = 20
CHECKPOINT_EVERY = 100
PASSED_AFTER = 3  # logged steps in a row below zero: the learner has passed its reference
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


def shared_steps(run: Run) -> int:
    """Up to which step `run` can go on from what another length has trained (training/trunk.py)."""
    return max(0, min(run.optim.trunk_steps, min(evaluation_steps(run)) - 1))


def train(
    run: Run,
    folder: Path,
    learner: Clip,
    draw: Drawing,
    reference: EmbedReference | None,
    evaluate: Callable[[bool], dict[str, dict[str, Any]]],
    cost_after: Callable[[int], Cost],
    report: Report,
    track: Callable[[dict[str, Any]], None],
    world: World = ALONE,
    show: Callable[[int, Candidates, Tensor], None] | None = None,
    keep_last: int = 1,
    trunk: Path | None = None,
) -> None:
    """Train `learner` to the end of `run`, from the checkpoint in `folder` if there is one.

    Every rank calls it with its own `draw`; rank 0 alone writes, reports and tracks.

    Args:
        draw: step -> its candidates (this rank's slice of them).
        reference: candidates -> their reference embeddings; None where the run reads none.
        evaluate: whether this is the final evaluation -> scores by benchmark (used on rank 0).
        cost_after: steps -> FLOPs so far.
        report: (steps done, steps, one line about now) -> shown to the user.
        track: called with every record that goes to metrics.jsonl.
        show: called at evaluations with the step, its candidates and what was chosen of them.
        keep_last: checkpoints to keep, the newest included.
        trunk: the folder that runs of other lengths share with this one (training/trunk.py).
    Writes metrics.jsonl and checkpoints (training/checkpoint.py). Raises Interrupted on SIGINT or
    SIGTERM, TrainingError when too many steps are not finite or the disk is full.
    """
    trainee = make_trainee(learner, run, world)
    optimiser = make_optimiser(learner, run.optim)
    saved, metrics = Checkpoints(folder, keep_last), folder / METRICS
    about, lines = saved.load(learner, optimiser), b""
    if not about and trunk is not None:
        about, lines = trunks.take(trunk, shared_steps(run), learner, optimiser, world)
    start, bad_steps, best = about.get("step", 0), about.get("bad_steps", 0), about.get("best")
    below = about.get("below", 0)  # logged steps in a row with a mean learnability below zero
    watch = Stopwatch(world.device, about.get("seconds"))
    meter, earlier = EnergyMeter(), about.get("joules", {})
    if world.main:
        with metrics.open("ab") as file:
            file.truncate(0 if lines else about.get("metrics_bytes", 0))
            file.write(lines)
        for known in lines.splitlines():
            track(json.loads(known))
    evaluate_at = evaluation_steps(run)
    speed = Speed(
        watch, start, run.optim.steps, run.optim.batch_size, peak_flops(world.device) * world.size
    )
    line = ""

    def flops_a_step(done: int) -> float:
        return cost_after(done).cached - cost_after(done - 1).cached

    def joules() -> dict[str, dict[str, float]]:
        """Of this machine over every sitting, evaluations included; nothing if nothing counts."""
        counted = meter.read() or {}
        spent = {name: earlier.get(name, 0.0) + value for name, value in counted.items()}
        return {"joules": spent} if spent else {}

    def log(record: dict[str, Any]) -> None:
        if world.main:
            record |= joules()
            with _disk(metrics), metrics.open("a") as file:
                file.write(json.dumps(record) + "\n")
            track(record)

    def save(step: int, for_others: bool) -> None:
        tensors = training_tensors(learner, optimiser)  # every rank: shards are put together
        if not world.main:
            return
        state = {
            "step": step, "seconds": watch.seconds, "bad_steps": bad_steps, "best": best,
            "below": below,
            "metrics_bytes": metrics.stat().st_size, "run": run.model_dump(mode="json"),
            "flops": cost_after(step).as_dict(), "ranks": world.size,
            **joules(),
        }  # fmt: skip
        if for_others and trunk is not None:  # first: a killed run comes by here again
            with _disk(trunk):
                trunks.leave(trunk, tensors, state, metrics, world)
        with _disk(folder):
            with metrics.open("rb") as file:
                os.fsync(file.fileno())
            saved.write(tensors, state)

    with _signals() as signalled:
        for step in range(start, run.optim.steps):
            done = step + 1
            logging = done % LOG_EVERY == 0 or done == 1
            with watch("draw"):
                candidates = draw(step)
            choice, loss = None, math.nan
            try:
                with watch("score"):
                    choice = choose(
                        learner, reference, candidates, run, step, logging, world, watch
                    )
                with watch("update"):
                    loss = update(trainee, optimiser, candidates, choice.index, run, step, world)
            except NotFinite as problem:
                bad_steps += 1
                keys = _keys(candidates, problem.index, world)
                log({"step": done, "skipped": str(problem), "bad_steps": bad_steps, "keys": keys})
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
                    **_why(choice),
                    "chosen": _chosen(run, candidates, choice.index, world),
                    "scale": float(learner.scale.detach()),
                    "bias": float(learner.bias.detach()),
                    "seconds": dict(watch.seconds),
                    "speed": speed(done, flops_a_step(done), getattr(draw, "waited", 0.0))
                    | {"bottleneck": getattr(draw, "bottleneck", "")},
                    "flops": cost_after(done).as_dict(),
                }  # fmt: skip
                if below < PASSED_AFTER and choice.super_batch_learnability is not None:
                    below = below + 1 if choice.super_batch_learnability < 0 else 0
                    if below == PASSED_AFTER:  # said once
                        record["passed_reference"] = True
                log(record)
                line = log_line(record)
            if world.main:
                report(done, run.optim.steps, line if math.isfinite(loss) else "step skipped")
            if done in evaluate_at:
                scores = evaluate(done == run.optim.steps)
                log({"step": done, "scores": scores, "seconds": dict(watch.seconds),
                     "flops": cost_after(done).as_dict()})  # fmt: skip
                if scores and (best is None or _mean(scores) > best["mean"]):
                    best = {"step": done, "mean": _mean(scores)}
                if show and choice is not None:
                    show(done, offered(run, candidates, world), choice.index)
                world.wait()
            stop = world.any(signalled.is_set())
            parting = trunk is not None and done == run.optim.trunk_steps
            if done in evaluate_at or done % CHECKPOINT_EVERY == 0 or stop or parting:
                save(done, parting)
            if stop:
                raise Interrupted(f"stopped at step {done} of {run.optim.steps}; all is saved")


def _chosen(run: Run, candidates: Candidates, index: Tensor, world: World) -> list[int] | None:
    """Rows of what a sampler chose, in the run's pool: what `jest inspect` looks back at."""
    if not run.selects:
        return None
    rows = torch.from_numpy(candidates.row).to(world.device)
    selected = index[: len(index) - run.curated_pairs].to(world.device)
    chosen: list[int] = world.gathered(rows)[selected].tolist()
    return chosen


def _why(choice: Choice) -> dict[str, Any]:
    """What is known of the pairs' captions: shares of wrong ones, learnability of either kind."""
    if choice.wrong is None:
        return {}
    found: dict[str, Any] = {"wrong": list(choice.wrong)}
    if choice.super_batch_learnability is not None:
        found |= {
            "learnability_right": choice.learnability_right,
            "learnability_wrong": choice.learnability_wrong,
        }
    return found


def _mean(scores: dict[str, dict[str, Any]]) -> float:
    return sum(score["score"] for score in scores.values()) / len(scores)


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


def _keys(candidates: Candidates, index: Tensor, world: World) -> list[str]:
    """What the first 64 of these candidates are called, by rank, to find them in the data."""
    mine = index[index // len(candidates) == world.rank] - world.rank * len(candidates)
    names = [candidates.name(i) for i in mine[:64].tolist()]
    everyone = [json.loads(text) for text in world.texts(json.dumps(names))]
    return [name for names in everyone for name in names][:64]


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """A full or broken disk, in one line."""
    try:
        yield
    except OSError as error:
        problem = f"cannot write {path}: {error.strerror}; the last checkpoint is intact"
        raise TrainingError(problem) from None


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
