"""Statistics over seeds: intervals, the speed-up's target and crossing, paired differences.

Scores are fractions. Errors are t-intervals over seeds: what another seed (of data order and
initialisation, the reference's included) would give on the same test images. The test images' own
sampling error is the same for every method, so it enters only where a score is held against a
constant: whether the target is above chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from jestcli.paper.records import CONVENTIONS, Record, total_seconds

LEVEL = 0.95
STANDARD_ERRORS = 5.0
BASELINE = "uniform-long"
AXES = ("examples", *CONVENTIONS, "seconds")
JOULES = "joules"  # an axis more, where every evaluation of every seed counted them


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values and its t-interval; with one value low and high are NaN."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        return self.high - self.mean


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean and two-sided Student t-interval of independent values."""
    x = np.asarray(values, float)
    n, mean = len(x), float(x.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def by_name(records: list[Record]) -> dict[str, list[Record]]:
    """Records grouped by method, each group by seed. One record a seed: the last given wins."""
    groups: dict[str, dict[int, Record]] = {}
    for record in records:
        groups.setdefault(record["name"], {})[record["seed"]] = record
    return {name: [runs[s] for s in sorted(runs)] for name, runs in groups.items()}


@dataclass(frozen=True)
class Curve:
    """A method's learning curve. Arrays over evaluations; `seeds` is [n seeds, n evaluations].

    cost: by AXES, the mean over seeds so far: examples, FLOPs by convention, seconds.
    """

    cost: dict[str, np.ndarray]
    seeds: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def seed_curve(runs: list[Record], benchmark: str | None = None, metric: str = "mean") -> Curve:
    """The curve of one method's seeds at the steps that all of them evaluated.

    Args:
        benchmark: one benchmark's score instead of `metric`, a field of the curve's points.
    """
    points = [{p["step"]: p for p in run["curve"]} for run in runs]
    steps = sorted(set.intersection(*(set(p) for p in points)))

    def values(read: Any) -> np.ndarray:
        return np.array([[read(p[s]) for s in steps] for p in points], float)

    scores = values(lambda p: p["scores"][benchmark] if benchmark else p[metric])
    spread = [t_interval(list(column)) for column in scores.T]
    cost = {
        "examples": values(lambda p: p["examples"]).mean(0),
        "seconds": values(lambda p: p["seconds"]).mean(0),
        **{c: values(lambda p, c=c: p["flops"][c]).mean(0) for c in CONVENTIONS},
    }
    if has_joules(runs):
        cost[JOULES] = values(lambda p: p[JOULES]).mean(0)
    return Curve(
        cost,
        scores,
        scores.mean(0),
        np.array([i.low for i in spread]),
        np.array([i.high for i in spread]),
    )


def has_joules(runs: list[Record]) -> bool:
    """Whether every evaluation of these runs says how much energy was spent until then."""
    return bool(runs) and all(
        bool(run["curve"]) and all(JOULES in point for point in run["curve"]) for run in runs
    )


def finals(runs: list[Record], metric: str = "mean") -> list[float]:
    """Each seed's final score on all test images."""
    return [run["final"][metric] for run in runs]


def best_of_curve(runs: list[Record]) -> tuple[int, float]:
    """(index, mean over seeds) of a method's best evaluation: what early stopping with the test
    set would give, an upper bound that favours it."""
    mean = seed_curve(runs).mean
    index = int(mean.argmax())
    return index, float(mean[index])


@dataclass(frozen=True)
class Target:
    """The score to reach: the long uniform run's final, and whether it is worth reaching."""

    score: float
    chance: float
    error_items: float
    error_seeds: float
    n: int

    @property
    def standard_errors(self) -> float:
        """How far the target is above chance, in standard errors."""
        return (self.score - self.chance) / math.hypot(self.error_items, self.error_seeds)

    @property
    def valid(self) -> bool:
        return self.standard_errors >= STANDARD_ERRORS


def find_target(records: list[Record], name: str = BASELINE) -> Target | None:
    """The annealed final score of the long uniform run, mean over seeds; None where not run.

    Protocol: the final score is on all test images, and so is the last point of every curve; the
    points before it are unbiased for that quantity or put on its footing (see `records`). So one
    target serves all points.

    Its standard error joins, in quadrature, the test images' (binomial, at the score or at chance,
    whichever is larger; benchmarks taken as independent; not divided by seeds, which share the
    images) and the seeds' (their standard deviation over the root of their number; 0 for one seed).
    """
    runs = by_name(records).get(name)
    if not runs:
        return None
    scores = finals(runs)
    benchmarks = runs[0]["final"]["scores"]
    variances = []
    for benchmark, row in benchmarks.items():
        p = float(np.mean([run["final"]["scores"][benchmark]["score"] for run in runs]))
        chance = row["chance"]
        variances.append(max(p * (1 - p), chance * (1 - chance)) / row["n"])
    n = len(scores)
    return Target(
        score=float(np.mean(scores)),
        chance=float(np.mean([row["chance"] for row in benchmarks.values()])),
        error_items=math.sqrt(sum(variances)) / len(variances),
        error_seeds=float(np.std(scores, ddof=1) / math.sqrt(n)) if n > 1 else 0.0,
        n=n,
    )


def crossing(examples: Sequence[float], scores: Sequence[float], target: float) -> float | None:
    """Examples at which a curve reaches `target` for good; None ("censored") if it never does.

    The first evaluation from which on every score is at least `target`, interpolated linearly in
    log(examples) with the evaluation before. A curve that starts above gives its first evaluation,
    which is then an upper bound of the crossing.
    """
    below = [i for i, score in enumerate(scores) if score < target - 1e-12]  # rounding aside
    if not below:
        return float(examples[0])
    i = below[-1] + 1
    if i == len(scores):
        return None
    share = (target - scores[i - 1]) / (scores[i] - scores[i - 1])
    x0, x1 = math.log(examples[i - 1]), math.log(examples[i])
    return math.exp(x0 + share * (x1 - x0))


@dataclass(frozen=True)
class SpeedUp:
    """What a method needs to reach the target, against the long uniform run's total.

    status: "crossed", "at first evaluation" (factors are lower bounds), "censored" (never
    reached), "invalid target" or "not run". at and factor: by AXES (and joules, where both counted
    them), empty unless it crossed.
    per_seed: every seed's own factor in examples against the same target, None where censored.
    """

    name: str
    status: str
    at: dict[str, float]
    factor: dict[str, float]
    per_seed: list[float | None]

    @property
    def crossed(self) -> bool:
        return bool(self.factor)


def speed_up(records: list[Record], name: str, baseline: str = BASELINE) -> SpeedUp:
    """The speed-up of method `name` over `baseline` in examples, FLOPs and seconds.

    FLOPs and seconds at the crossing are linear in examples between two evaluations.
    """
    groups, target = by_name(records), find_target(records, baseline)
    if target is None or name not in groups:
        return SpeedUp(name, "not run", {}, {}, [])
    if not target.valid:
        return SpeedUp(name, "invalid target", {}, {}, [])
    curve, total = seed_curve(groups[name]), totals(groups[baseline])
    examples = curve.cost["examples"]
    own = [crossing(list(examples), list(row), target.score) for row in curve.seeds]
    per_seed = [total["examples"] / x if x else None for x in own]
    x = crossing(list(examples), list(curve.mean), target.score)
    if x is None:
        return SpeedUp(name, "censored", {}, {}, per_seed)
    axes = [axis for axis in (*AXES, JOULES) if axis in curve.cost and axis in total]
    at = {axis: float(np.interp(x, examples, curve.cost[axis])) for axis in axes}
    at["examples"] = x
    status = "at first evaluation" if curve.mean.min() >= target.score else "crossed"
    return SpeedUp(name, status, at, {a: total[a] / at[a] for a in axes}, per_seed)


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
    return {axis: float(np.mean(values)) for axis, values in out.items()}


def joules_by_seed(records: list[Record], name: str, baseline: str = BASELINE) -> list[float]:
    """Every crossing seed's own factor in energy: the baseline's mean total over what that seed had
    spent when it reached the target for good."""
    groups, target = by_name(records), find_target(records, baseline)
    if target is None or not (has_joules(groups[name]) and has_joules(groups[baseline])):
        return []
    total, found = totals(groups[baseline])[JOULES], []
    for run in groups[name]:
        examples, scores, joules = (
            [point[key] for point in run["curve"]] for key in ("examples", "mean", JOULES)
        )
        x = crossing(examples, scores, target.score)
        if x is not None:
            found.append(total / float(np.interp(x, examples, joules)))
    return found


def faster(factors: Sequence[float | None]) -> bool:
    """Whether a speed-up is beyond the chance of seeds: every seed reaches the target, and the
    t-interval over the logarithms of their factors lies above ×1."""
    if any(x is None for x in factors):
        return False
    return t_interval([math.log(x) for x in factors if x is not None]).low > 0


@dataclass(frozen=True)
class Difference:
    """final(a) - final(b) over the seeds that both ran."""

    a: str
    b: str
    interval: Interval

    @property
    def words(self) -> str:
        if self.interval.n < 2:
            return "one seed" if self.interval.n else "not run"
        return verdict(self.interval)


def verdict(interval: Interval) -> str:
    """ "higher" or "lower" where the interval leaves out 0, else "not distinguishable"."""
    if not (interval.low > 0 or interval.high < 0):
        return "not distinguishable"
    return "higher" if interval.mean > 0 else "lower"


def hits_of(row: dict[str, Any]) -> np.ndarray | None:
    """bool [n]: which test items a final score's row says were right; None where not recorded."""
    if "hits" not in row:
        return None
    packed = np.frombuffer(bytes.fromhex(row["hits"]), np.uint8)
    return np.unpackbits(packed, count=row["n"]).astype(bool)


def bootstrap_difference(
    records: list[Record], a: str, b: str, draws: int = 2000, level: float = LEVEL
) -> Interval:
    """final(a) - final(b) of the seeds that both ran, and its bootstrap interval over test items.

    What other test items of the same benchmarks would give for these trained models; it says
    nothing about other seeds (`paired_difference` does). An item's hits are paired between the two
    methods and averaged over seeds; where a benchmark records no hits (retrieval) both scores are
    redrawn as independent binomials, which is wider. n: seeds.
    """
    groups = by_name(records)
    one, two = ({r["seed"]: r["final"]["scores"] for r in groups.get(n, [])} for n in (a, b))
    seeds = sorted(one.keys() & two.keys())
    if not seeds:
        return Interval(math.nan, math.nan, math.nan, 0)
    dice = np.random.default_rng(0)
    centre, drawn = [], []
    for benchmark in one[seeds[0]]:
        rows = [(one[s][benchmark], two[s][benchmark]) for s in seeds]
        centre.append(np.mean([x["score"] - y["score"] for x, y in rows]))
        hits = [(hits_of(x), hits_of(y)) for x, y in rows]
        n = rows[0][0]["n"]
        if all(x is not None and y is not None for x, y in hits):
            each = np.mean([x.astype(float) - y for x, y in hits], axis=0)  # type: ignore[union-attr]
            values, counts = np.unique(each, return_counts=True)  # items of one value are alike
            drawn.append(dice.multinomial(n, counts / n, draws) @ values / n)
        else:
            redrawn = [dice.binomial(n, [[x["score"]], [y["score"]]], (2, draws)) for x, y in rows]
            drawn.append(np.mean([x[0] - x[1] for x in redrawn], axis=0) / n)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(np.mean(drawn, axis=0), tails)
    return Interval(float(np.mean(centre)), float(low), float(high), len(seeds))


def paired_difference(records: list[Record], a: str, b: str, metric: str = "mean") -> Difference:
    """Paired over seeds: the seed's data order and reference are shared, so they cancel."""
    groups = by_name(records)
    one, two = ({r["seed"]: r["final"].get(metric) for r in groups.get(n, [])} for n in (a, b))
    one, two = ({s: v for s, v in x.items() if v is not None} for x in (one, two))
    values = [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]
    if not values:
        return Difference(a, b, Interval(math.nan, math.nan, math.nan, 0))
    return Difference(a, b, t_interval(values))
