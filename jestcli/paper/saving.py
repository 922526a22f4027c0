"""How much less a method needs than a baseline for the same score, with an interval.

Every score here is the annealed end of its own run. A method's *saving* at one of its lengths is

    S = n_baseline(m) / n_method,    m the method's score there, mean over seeds,

n_baseline(m) being where the baseline's curve g first reaches m. g runs through the baseline's
means at its lengths, as a natural cubic spline in log examples. As the spline is linear in these
means, g(x) = sum_k w_k(x) m_k, its sampling variance at a given x is exact.

The interval holds the ratios that a two-sided t-test does not reject: with x = log(n_method S),

    |m - g(x)| <= t(df) s sqrt(1/n + sum_k w_k(x)² / n_k) + e(x),

n and n_k the seeds. s² is the variance within cells (a method at a length), pooled over all cells
of both methods, and df its degrees of freedom, sum (seeds - 1). e is the interpolation's own error:
half the distance between the spline and the straight line through the two lengths around x; and, as
few lengths do not show how the curve bends, at least a tenth of the rise half-way between lengths
four times apart (with the square of log distance otherwise). This inverts a test as Fieller's
theorem does (Fieller 1954, J. R. Stat. Soc. B 16:175); `results/statistics` measures how far it can
be trusted. That the baseline gains from more examples is used: below the lower end every ratio is
rejected because the baseline is not there yet, above the upper end every ratio because it is past.
So where the baseline never gets there the lower end is still finite and the upper infinite ("more
than"); where its shortest run is better already the lower end is 0 ("less than").

A cost is another axis for the same crossing: the baseline's cost there over the method's cost.
Fewer pairs *looked at* is such an axis ("seen"), since "examples" counts those trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import stdtr

from jestcli.paper.effects import LEVEL
from jestcli.paper.records import CONVENTIONS, TYPICAL, Record, total_seconds, value
from jestcli.paper.statistics import totals

WITH_REFERENCE = "+reference"
AXES = {
    "examples": "pairs trained on",
    "seen": "pairs looked at",
    "cached_reuse": "FLOPs, reference cached, selected forwards re-used",
    "cached": "FLOPs, reference cached",
    "uncached": "FLOPs, reference not cached",
    "cached_reuse" + WITH_REFERENCE: "FLOPs, selected forwards re-used, reference charged",
    "charged": "FLOPs, reference charged",
    "uncached" + WITH_REFERENCE: "FLOPs, reference not cached, its training charged",
    "seconds": "seconds of training",
}
REACHED, MORE, LESS = "reached", "more than", "less than"
GRID = 1001  # points at which ratios are tested, over the baseline's lengths


@dataclass(frozen=True)
class Cell:
    """A method at one length. scores: one a seed; cost: mean over seeds, by AXES."""

    examples: float
    scores: tuple[float, ...]
    cost: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))


def cells(records: Iterable[Record], name: str, metric: str = "mean") -> list[Cell]:
    """A method's cells by length; of one seed at one length the record given last counts."""
    runs: dict[float, dict[int, Record]] = {}
    for record in records:
        if record["name"] == name and value(record, metric) is not None:
            runs.setdefault(record["steps"] * record["batch_size"], {})[record["seed"]] = record
    return [
        Cell(n, tuple(value(r, metric) or 0.0 for r in seeds.values()), _cost([*seeds.values()]))
        for n, seeds in sorted(runs.items())
    ]


def pooled(every: Sequence[Cell]) -> tuple[float, int]:
    """Standard deviation within cells, NaN without degrees of freedom, and these."""
    df = sum(len(cell.scores) - 1 for cell in every)
    squares = sum(float(np.var(cell.scores)) * len(cell.scores) for cell in every)
    return (math.sqrt(squares / df) if df else math.nan), df


def _cost(runs: list[Record]) -> dict[str, float]:
    """Whole runs' costs by AXES, mean over seeds. The reference's charge, its training and one
    scoring of each pool pair seen, is `charged` less `cached`; for `uncached`, which scores every
    candidate already, it is up to one scoring of the pool too much."""
    cost = totals(runs)
    charge = cost["charged"] - cost["cached"]
    for convention in set(CONVENTIONS) - {"charged", "cached"}:
        cost[convention + WITH_REFERENCE] = cost[convention] + charge
    cost["seen"] = float(np.mean([r["steps"] * r["super_batch_size"] for r in runs]))
    cost["core_hours"] = float(np.mean([core_hours(r) for r in runs]))
    return cost


def core_hours(record: Record) -> float:
    """What a run took, evaluations and its reference's training left out; by its FLOPs, about,
    where it was not timed on a core."""
    seconds = total_seconds(record) * (record["environment"].get("threads") or 1)
    if math.isnan(seconds):
        seconds = record["flops_per_iteration"]["cached"] * record["steps"] * TYPICAL
    return seconds / 3600


@dataclass(frozen=True)
class Ratio:
    """A saving and its interval. status: REACHED; MORE, where `ratio` is that at the baseline's
    longest run and a bound; LESS, that at its shortest. Without degrees of freedom low and high
    are NaN. over: the baseline's name. seeds: the fewest of the cells that it is read off."""

    ratio: float
    low: float
    high: float
    status: str
    over: str
    seeds: int = 2

    def __str__(self) -> str:
        bound = {REACHED: "", MORE: "more than ", LESS: "less than "}[self.status]
        text = f"{bound}×{self.ratio:.3g}"
        if math.isnan(self.low):
            return f"{text} (one seed: no interval)"
        high = "∞" if math.isinf(self.high) else f"{self.high:.3g}"
        return f"{text} [{self.low:.3g}, {high}]"


@dataclass(frozen=True)
class Saving:
    """What a method at one length (`cell`) saves against a baseline's cells by length (`curve`, at
    least two); sd, df: within cells, pooled over all of both methods."""

    baseline: str
    cell: Cell
    curve: tuple[Cell, ...]
    sd: float
    df: int

    @cached_property
    def _grid(self) -> tuple[np.ndarray, ...]:
        """Log examples; m - g there; p of "the baseline is not short of m, here or before", and of
        "it is not past m, here or later"."""
        nodes, means = self._logs("examples"), np.array([c.mean for c in self.curve])
        x = np.linspace(nodes[0], nodes[-1], GRID)
        weights = CubicSpline(nodes, np.eye(len(nodes)), bc_type="natural")(x)
        gap = self.cell.mean - weights @ means
        after = np.clip(np.searchsorted(nodes, x), 1, None)
        rise = np.abs(np.diff(means))[after - 1]
        bend = 0.4 * rise * (nodes[after] - x) * (x - nodes[after - 1]) / math.log(4) ** 2
        error = np.maximum(bend, np.abs(weights @ means - np.interp(x, nodes, means)) / 2)
        each = 1 / np.array([len(c.scores) for c in self.curve])
        se = self.sd * np.sqrt(1 / len(self.cell.scores) + weights**2 @ each)
        short, past = (stdtr(self.df, (error - sign * gap) / (se + 1e-12)) for sign in (1, -1))
        return x, gap, np.maximum.accumulate(short), np.maximum.accumulate(past[::-1])[::-1]

    def _logs(self, axis: str) -> np.ndarray:
        return np.log([c.cost[axis] for c in self.curve])

    def knows(self, axis: str) -> bool:
        """Whether all of its runs have that cost: seconds on like machines not always."""
        return not any(math.isnan(cell.cost[axis]) for cell in (self.cell, *self.curve))

    def _factor(self, x: float, axis: str) -> float:
        """The baseline's cost at log examples `x`, linear between lengths in logarithms, over the
        method's."""
        cost = np.interp(x, self._logs("examples"), self._logs(axis))
        return math.exp(cost) / self.cell.cost[axis]

    def _at(self, factor: float, axis: str) -> float:
        """Log examples at which the baseline has spent `factor` times the method's cost; infinite
        outside its lengths."""
        cost, wanted = self._logs(axis), math.log(factor * self.cell.cost[axis])
        if abs(wanted - cost[-1]) < 1e-9:  # "more than ×32" is asked at the very end
            wanted = cost[-1]
        nodes = self._logs("examples")
        return float(np.interp(wanted, cost, nodes, left=-math.inf, right=math.inf))

    def ratio(self, axis: str = "examples", level: float = LEVEL) -> Ratio:
        """The saving along `axis`, and its two-sided interval at confidence `level`."""
        x, gap, short, past = self._grid
        there = np.flatnonzero(gap <= 0)
        first = there[0] if len(there) else GRID - 1
        status = MORE if not len(there) else LESS if gap[0] < 0 else REACHED
        low = high = math.nan
        if self.df > 0:
            alpha = (1 - level) / 2
            before, after = (short < alpha).sum(), (past < alpha).sum()
            low = self._factor(x[before - 1], axis) if before else 0.0
            high = self._factor(x[GRID - after], axis) if after else math.inf
        after = int(np.searchsorted(self._logs("examples"), x[first] - 1e-9))
        read = (self.cell, *self.curve[max(0, after - 1) : after + 1])
        seeds = min(len(cell.scores) for cell in read)
        return Ratio(self._factor(x[first], axis), low, high, status, self.baseline, seeds)

    def p_above(self, factor: float, axis: str = "examples") -> float:
        """One-sided p of "the saving is at most `factor`"; 1 where the baseline was not run so far,
        NaN without degrees of freedom."""
        x, _, short, _ = self._grid
        where = int(np.searchsorted(x, self._at(factor, axis) - 1e-9))
        return float(short[where]) if where < GRID else 1.0

    def p_below(self, factor: float, axis: str = "examples") -> float:
        """One-sided p of "the saving is at least `factor`", as `p_above`."""
        x, _, _, past = self._grid
        where = int(np.searchsorted(x, self._at(factor, axis) + 1e-9, side="right")) - 1
        return float(past[where]) if where >= 0 else 1.0

    def hours(self, factor: float, axis: str = "examples") -> float:
        """Core-hours, about, that would decide on which side of `factor` the saving is. Where the
        baseline ends before it: its runs up to there, as many seeds as its longest has. Else more
        seeds of every cell, until the interval, which shrinks with the root of their number, leaves
        it out; infinite where the saving is just `factor` or has no interval."""
        last, found = self.curve[-1], self.ratio(axis)
        if self._at(factor, axis) == math.inf:
            longer = factor * self.cell.cost[axis] / last.cost[axis]
            return len(last.scores) * last.cost["core_hours"] * longer
        end = found.low if found.ratio > factor else found.high
        away = abs(math.log(found.ratio / factor))
        if not (away and end and math.isfinite(end)):
            return math.inf
        spent = sum(len(c.scores) * c.cost["core_hours"] for c in (self.cell, *self.curve))
        return spent * max(0.0, (math.log(end / found.ratio) / away) ** 2 - 1)


def savings(
    records: Sequence[Record], method: str, baseline: str = "uniform", metric: str = "mean"
) -> list[Saving]:
    """The saving at each of the method's lengths; none where it was not run, or the baseline at
    fewer than two lengths. Lower-is-better metrics have no saving."""
    own, curve = cells(records, method, metric), cells(records, baseline, metric)
    if len(curve) < 2:
        return []
    sd, df = pooled([*own, *curve])
    return [Saving(baseline, cell, tuple(curve), sd, df) for cell in own]


@dataclass(frozen=True)
class OverBest:
    """The saving over the best of several controls at the method's score: the smallest saving.
    Which is best is chosen on the same data; the interval allows for that. Its lower end, the least
    of the lower ends, needs no correction: it lies above the truth only if that of the truly best
    control does. The upper end is the least at level 1 - alpha/k (Bonferroni over k controls)."""

    savings: tuple[Saving, ...]

    @property
    def cell(self) -> Cell:
        """The method's."""
        return self.savings[0].cell

    def knows(self, axis: str) -> bool:
        """As Saving.knows."""
        return all(s.knows(axis) for s in self.savings)

    def ratio(self, axis: str = "charged", level: float = LEVEL) -> Ratio:
        """The smallest saving: of the controls that reach the score, else the smallest bound. A
        control that was not run far enough to tell lowers the lower end."""
        each = [s.ratio(axis, level) for s in self.savings]
        corrected = 1 - (1 - level) / len(self.savings)
        best = min([r for r in each if r.status != MORE] or each, key=lambda r: r.ratio)
        high = min(s.ratio(axis, corrected).high for s in self.savings)
        return Ratio(best.ratio, min(r.low for r in each), high, best.status, best.over, best.seeds)

    def p_above(self, factor: float, axis: str = "charged") -> float:
        """One-sided p of "the saving over some control is at most `factor`" (each is tested)."""
        return float(np.max([s.p_above(factor, axis) for s in self.savings]))

    def p_below(self, factor: float, axis: str = "charged") -> float:
        """One-sided p of "the saving over every control is at least `factor`" (Bonferroni)."""
        least = np.min([s.p_below(factor, axis) for s in self.savings])
        return float(np.minimum(1.0, len(self.savings) * least))

    def hours(self, factor: float, axis: str = "charged") -> float:
        """Core-hours that would decide against every control."""
        return max(s.hours(factor, axis) for s in self.savings)


def over_best(
    records: Sequence[Record], method: str, controls: Sequence[str], metric: str = "mean"
) -> list[OverBest]:
    """The saving over the best control at each of the method's lengths, compared at equal charged
    cost unless asked otherwise; controls run at fewer than two lengths are left out."""
    found = [s for control in controls if (s := savings(records, method, control, metric))]
    return [OverBest(tuple(each)) for each in zip(*found, strict=True)]
