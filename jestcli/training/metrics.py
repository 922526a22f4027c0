"""metrics.jsonl: the lines of a run, written by the trainer, read by whoever looks back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jestcli.config import Run
from jestcli.training.signals import TrainingError
from jestcli.utils.reading import parse_json, reading

METRICS = "metrics.jsonl"
PASSED_AFTER = 3  # logged steps in a row below zero: the learner has passed its reference


def evaluation_steps(run: Run) -> set[int]:
    """Steps after which the run is evaluated: log-spaced from 5 % of the run, the end included."""
    last, n = run.optim.steps, run.evaluation.points
    # Curves are read against log examples: equal distances there.
    points = np.geomspace(max(1, 0.05 * last), last, n) if n > 1 else [last]
    return {round(p) for p in points} | {last}


def last_scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Scores of the last evaluation in a run directory: the final one, once the run is over."""
    path = folder / METRICS
    with reading(path):
        # From the end: a long run has many lines, and the last evaluation is all that is asked.
        records = (parse_json(line) for line in reversed(path.read_bytes().splitlines()))
        scores: dict[str, dict[str, Any]] = next(r["scores"] for r in records if "scores" in r)
        scores.items()
    return scores


def chosen_in_training(folder: Path) -> list[tuple[int, np.ndarray]]:
    """(step, rows int64 [b] of the pool) of every logged step that names its sub-batch."""
    found, path = [], folder / METRICS
    with reading(path):
        for line in path.read_bytes().splitlines():
            record = parse_json(line)
            if record.get("chosen"):
                found.append((int(record["step"]), np.asarray(record["chosen"], np.int64)))
    return found


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full or broken disk, in one line. Raises TrainingError."""
    try:
        yield
    except OSError as error:
        why = f"{error.strerror}; the last checkpoint is intact"
        raise TrainingError(f"cannot write {path}: {why}") from None


def reference_lead(record: dict[str, Any]) -> float | None:
    """Mean learnability, nats, of the pairs that count in a record of the training log: of those
    known to be right, else of the chosen; None where it was not measured. A mean over a poor pool
    says nothing: it is below zero from the first step, for no learner knows a wrong pair either."""
    right: float | None = record.get("learnability_right")
    return record["learnability"][1] if right is None else right


def passed_reference(records: Iterable[dict[str, Any]]) -> int | None:
    """The step of the training log at which the learner had passed its reference, if it has."""
    below = 0
    for record in records:
        lead = reference_lead(record)
        below = 0 if lead is None or lead >= 0 else below + 1
        if below == PASSED_AFTER:
            return int(record["step"])
    return None
