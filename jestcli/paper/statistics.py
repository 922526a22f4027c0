"""Statistics over seeds: intervals, the speed-up's target, paired differences.

Scores are fractions. Errors are t-intervals over seeds: what another seed (of data order and
initialisation, the reference's included) would give on the same test images. The test images' own
sampling error is the same for every method, so it enters only where a score is held against a
constant: whether the target is above chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jestcli.paper.records import CONVENTIONS, Record, total_seconds

LEVEL = 0.95
STANDARD_ERRORS = 5.0
BASELINE = "uniform-long"
AXES = ("examples", *CONVENTIONS, "seconds")
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
    x, n = np.asarray(values, float), len(values)
    mean = float(x.mean()) if n else math.nan
    half = math.nan
    if n > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def verdict(interval: Interval) -> str:
    """ "higher" or "lower" where the interval leaves out 0, else "not distinguishable"."""
    if not (interval.low > 0 or interval.high < 0):
        return "not distinguishable"
    return "higher" if interval.mean > 0 else "lower"


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
    """Each seed's final score on all test images; none where a record lacks it."""
    values = [run["final"].get(metric) for run in runs]
    return [] if None in values else [float(v) for v in values]


def totals(runs: list[Record]) -> dict[str, float]:
    """A whole run's examples, FLOPs by convention, seconds and (where counted) joules, mean over
    seeds, by AXES."""
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


class Target(NamedTuple):
    """The score to reach: the long uniform run's final, and whether it is worth reaching."""

    score: float
    chance: float
    error_items: float
    error_seeds: float

    @property
    def standard_errors(self) -> float:
        """How far it is above chance, in these."""
        return (self.score - self.chance) / math.hypot(self.error_items, self.error_seeds)

    @property
    def valid(self) -> bool:
        """Whether that is far enough."""
        return self.standard_errors >= STANDARD_ERRORS


def find_target(records: list[Record]) -> Target | None:
    """The annealed final score of the long uniform run, mean over seeds; None where not run. Its
    standard error joins, in quadrature, the test images' (binomial, at the score or at chance,
    whichever is larger; benchmarks taken as independent; not divided by seeds, which share the
    images) and the seeds' (their standard deviation over the root of their number; 0 for one
    seed)."""
    runs = by_name(records).get(BASELINE)
    if not runs:
        return None
    scores, benchmarks, variances = finals(runs), runs[0]["final"]["scores"], []
    for benchmark, row in benchmarks.items():
        p = float(np.mean([run["final"]["scores"][benchmark]["score"] for run in runs]))
        variances.append(max(x * (1 - x) for x in (p, row["chance"])) / row["n"])
    n, chance = len(scores), float(np.mean([row["chance"] for row in benchmarks.values()]))
    items = math.sqrt(sum(variances)) / len(variances)
    seeds = float(np.std(scores, ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    return Target(float(np.mean(scores)), chance, items, seeds)


class SpeedUp(NamedTuple):
    """What a method's run saves over the long uniform run. status: "reached", "censored" (it ends
    below the target), "invalid target" or "not run". factor: by AXES (and joules, where both
    counted them), empty unless reached. per_seed: the factor in examples of every seed, None where
    that one is censored."""

    status: str
    factor: dict[str, float]
    per_seed: list[float | None]


def speed_up(records: list[Record], name: str) -> SpeedUp:
    """The ratio of whole runs' costs where method `name` ends at least at the target: a lower
    bound, for a shorter run may reach it, too. (Points along a run are not annealed: how short it
    may be is asked over lengths, in paper/saving.py.)"""
    groups, target = by_name(records), find_target(records)
    if target is None or name not in groups:
        return SpeedUp("not run", {}, [])
    if not target.valid:
        return SpeedUp("invalid target", {}, [])
    scores, total, own = finals(groups[name]), totals(groups[BASELINE]), totals(groups[name])
    factor = {axis: total[axis] / own[axis] for axis in own if axis in total}
    least = target.score - 1e-12  # rounding aside
    per_seed = [factor["examples"] if score >= least else None for score in scores]
    reached = float(np.mean(scores)) >= least
    return SpeedUp("reached", factor, per_seed) if reached else SpeedUp("censored", {}, per_seed)


def paired_difference(records: list[Record], a: str, b: str, metric: str = "mean") -> Interval:
    """final(a) - final(b) over the seeds that both ran: the seed's data order and reference are
    shared, so they cancel. n = 0 where there is none."""
    groups = by_name(records)
    one, two = ({r["seed"]: r["final"].get(metric) for r in groups.get(n, [])} for n in (a, b))
    pairs = [(one[seed], two[seed]) for seed in sorted(one.keys() & two.keys())]
    return t_interval([x - y for x, y in pairs if x is not None and y is not None])


def hits_of(row: dict[str, Any]) -> np.ndarray | None:
    """bool [n]: which test items a final score's row says were right; None where not recorded."""
    if "hits" not in row:
        return None
    packed = np.frombuffer(bytes.fromhex(row["hits"]), np.uint8)
    return np.unpackbits(packed, count=row["n"]).astype(bool)


def bootstrap_difference(records: list[Record], a: str, b: str, draws: int = 2000) -> Interval:
    """final(a) - final(b) of the seeds that both ran, and its bootstrap interval over test items.
    What other test items of the same benchmarks would give for these trained models; it says
    nothing about other seeds (`paired_difference` does). An item's hits are paired between the two
    methods and averaged over seeds; where a benchmark records no hits (retrieval) both scores are
    redrawn as independent binomials, which is wider. n: seeds."""
    groups = by_name(records)
    one, two = ({r["seed"]: r["final"]["scores"] for r in groups.get(n, [])} for n in (a, b))
    seeds = sorted(one.keys() & two.keys())
    if not seeds:
        return t_interval([])
    rng, centre, drawn = np.random.default_rng(0), [], []
    for benchmark in one[seeds[0]]:
        rows = [(one[s][benchmark], two[s][benchmark]) for s in seeds]
        centre.append(np.mean([x["score"] - y["score"] for x, y in rows]))
        n = rows[0][0]["n"]
        if all("hits" in row for pair in rows for row in pair):
            apart = [hits_of(x).astype(float) - hits_of(y) for x, y in rows]  # type: ignore[union-attr,operator]
            values, counts = np.unique(np.mean(apart, axis=0), return_counts=True)
            drawn.append(rng.multinomial(n, counts / n, draws) @ values / n)  # equal items at once
        else:
            redrawn = [rng.binomial(n, [[x["score"]], [y["score"]]], (2, draws)) for x, y in rows]
            drawn.append(np.mean([x[0] - x[1] for x in redrawn], axis=0) / n)
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.mean(centre)), float(low), float(high), len(seeds))
