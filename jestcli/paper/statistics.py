"""Means over seeds and their intervals, and what whole runs cost.

Scores are fractions. Errors are over seeds (of data order and initialisation, the reference's
included) on the same test images, whose own sampling error is the same for every method. What a
seed does to all methods alike is taken out of `pooled_interval`: it is for comparing methods that
share their seeds, and narrower than what new seeds would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from jestcli.paper.effects import LEVEL, Fit
from jestcli.paper.records import CONVENTIONS, Record, total_seconds, value

BASELINE = "uniform-long"
JOULES = "joules"  # an axis more, where every evaluation of every seed counted them


class Interval(NamedTuple):
    """A mean over `n` values and its t-interval; with one value low and high are NaN."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half of its width."""
        return self.high - self.mean


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and two-sided Student t-interval of independent values; NaN without any."""
    n = len(values)
    return _interval(values, float(np.std(values, ddof=1)) if n > 1 else math.nan, n - 1)


def pooled_interval(model: Fit, scores: Sequence[float]) -> Interval:
    """Mean of a condition's scores, one a seed, and its interval by the variance that `model` (of
    paper/effects.py) pools over all conditions, the seeds' common part taken away. Low and high are
    NaN where contrasts of it have none: with one seed, or no degrees of freedom."""
    df = int(model.result.df_resid) if model.result is not None else 0
    known = df > 0 and len(scores) > 1
    return _interval(scores, math.sqrt(model.result.mse_resid) if known else math.nan, df)


def _interval(values: Sequence[float], sd: float, df: int) -> Interval:
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    half = math.nan
    if not math.isnan(sd):
        half = float(stdtrit(df, (1 + LEVEL) / 2)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def by_name(records: list[Record]) -> dict[str, list[Record]]:
    """Records grouped by method, each group by seed. One record a seed: the last given wins."""
    groups: dict[str, dict[int, Record]] = {}
    for record in records:
        groups.setdefault(record["name"], {})[record["seed"]] = record
    return {name: [runs[s] for s in sorted(runs)] for name, runs in groups.items()}


def has_joules(runs: list[Record]) -> bool:
    """Whether every evaluation of these runs says how much energy was spent until then."""
    points = [run["curve"] for run in runs]
    return bool(points) and all(each and all(JOULES in p for p in each) for each in points)


def finals(runs: list[Record], metric: str = "mean") -> list[float]:
    """Each seed's final score on all test images, a metric of `records.value`; none where a record
    lacks it."""
    known = [v for run in runs if (v := value(run, metric)) is not None]
    return known if len(known) == len(runs) else []


def totals(runs: list[Record]) -> dict[str, float]:
    """A whole run's examples, FLOPs by convention, seconds and (where counted) joules, mean over
    seeds."""
    out: dict[str, list[float]] = {
        "examples": [run["steps"] * run["batch_size"] for run in runs],
        "seconds": [total_seconds(run) for run in runs],
        **{c: [run["flops_per_iteration"][c] * run["steps"] for run in runs] for c in CONVENTIONS},
    }
    if has_joules(runs):
        out[JOULES] = [run["curve"][-1][JOULES] for run in runs]
    return {axis: _mean(values) for axis, values in out.items()}


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def hits_of(row: dict[str, Any]) -> np.ndarray | None:
    """bool [n]: which test items a final score's row says were right; None where not recorded."""
    if "hits" not in row:
        return None
    packed = np.frombuffer(bytes.fromhex(row["hits"]), np.uint8)
    return np.unpackbits(packed, count=row["n"]).astype(bool)
