"""Effects on final scores: contrasts of conditions with a pooled variance.

All runs of an experiment enter one linear model, score = condition + seed + error, fitted by
ordinary least squares. A seed shares its reference and its order of the data among the conditions,
so its term takes away what they have in common, as pairing does; the error's variance is pooled
over all conditions, so that two to five seeds each give enough degrees of freedom. Where conditions
share too few seeds for the terms to be told apart, the seed's is left out.

Pooling assumes that conditions scatter alike, as runs' scores do by and large. Quantities that are
no scores do not (UNLIKE): some are fixed, others scatter thirty times as much. Of them the model
is fitted to a contrast's own conditions alone; of two conditions that is the paired t-test.

A run counts once: where two conditions hold the same run (one digest) they are one condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from jestcli.paper.contrasts import Contrast
from jestcli.paper.records import Record, value

LEVEL, POWER = 0.95, 0.8  # of intervals; of the detectable difference
UNLIKE = ("share", "ratio", "logarithm", "iteration")  # metrics of claims that are no scores


@dataclass(frozen=True)
class Effect:
    """A contrast's estimate, in the metric's units. se: its standard error, NaN without degrees of
    freedom or with a condition of one seed, and so are interval and p then; df: of the variance;
    n: seeds of the condition with fewest."""

    contrast: Contrast
    estimate: float
    se: float
    df: int
    n: int

    @property
    def low(self) -> float:
        return self.estimate - self._half

    @property
    def high(self) -> float:
        return self.estimate + self._half

    @property
    def _half(self) -> float:
        return float(stdtrit(self.df, (1 + LEVEL) / 2)) * self.se

    @property
    def detectable(self) -> float:
        """The difference that would be found with 80 % power at this error,
        (t(.975) + t(.8)) se (Bloom 1995, Evaluation Review 19:547)."""
        return self._half + float(stdtrit(self.df, POWER)) * self.se

    @property
    def p(self) -> float:
        """Two-sided, of "it is 0"."""
        return self._p(abs(self.estimate))

    def p_within(self, margin: float) -> float:
        """p of "it is at least `margin` from 0": two one-sided tests (TOST, Schuirmann 1987, J.
        Pharmacokin. Biopharm. 15:657). It is twice the larger of theirs, so that it is below .05
        where the 95 % interval lies within the margin, not the 90 % one."""
        return self._p(margin - abs(self.estimate))

    def p_below(self, margin: float) -> float:
        """p of "it is at least `margin`": one of the two tests of `p_within`, at the same level."""
        return self._p(margin - self.estimate)

    def p_outside(self, margin: float) -> float:
        """Two-sided p of "it is at most `margin` from 0"."""
        return self._p(abs(self.estimate) - margin)

    def _p(self, distance: float) -> float:
        if self.se == 0:  # scores that do not vary at all
            return 0.0 if distance > 0 else 1.0
        return float(np.minimum(1.0, 2 * stdtr(self.df, -distance / self.se)))


@dataclass(frozen=True)
class Fit:
    """The linear model of one experiment and metric. columns: the design's conditions, then "" for
    each seed; alias: the name under which each condition's runs were counted; seeds: how many each
    has; scores: by condition and seed; own: whether each contrast is fitted alone; result:
    statsmodels'."""

    columns: tuple[str, ...] = ()
    alias: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    scores: dict[tuple[str, int], float] = field(default_factory=dict)
    own: bool = False
    result: Any = None

    def effect(self, contrast: Contrast) -> Effect | None:
        """None where a condition was not run, or all are the same runs."""
        if any(name not in self.alias for name in contrast.conditions):
            return None
        if self.own:
            names = {self.alias[name] for name in contrast.conditions}
            some = {at: x for at, x in self.scores.items() if at[0] in names}
            return _ols(some, self.alias).effect(contrast)
        row = np.zeros(len(self.columns))
        for name, weight in contrast.weights:
            row[self.columns.index(self.alias[name])] += weight
        if not row.any():
            return None
        n = min(self.seeds[self.alias[name]] for name in contrast.conditions)
        df, se = int(self.result.df_resid), math.nan
        if df > 0 and n > 1:
            se = math.sqrt(float(row @ self.result.cov_params() @ row))
        return Effect(contrast, float(row @ self.result.params), se, df, n)


def fit(records: Iterable[Record], metric: str = "mean") -> Fit:
    """Fit score = condition + seed + error to all runs that have `metric` (see `records.value`);
    the condition is the name. Of one seed of a condition the record given last counts."""
    found = [(r["name"], r) for r in records if value(r, metric) is not None]
    alias: dict[str, str] = {}
    owner: dict[str, str] = {}  # of a digest
    for name, record in found:
        first = owner.setdefault(record["digest"], alias.setdefault(name, name))
        if first != alias[name]:  # the same run under another name
            alias = {k: first if v == alias[name] else v for k, v in alias.items()}
            owner = {k: alias[v] for k, v in owner.items()}
    whole = _ols({(alias[name], r["seed"]): value(r, metric) for name, r in found}, alias)
    return replace(whole, own=metric in UNLIKE)


def _ols(scores: dict[tuple[str, int], Any], alias: dict[str, str]) -> Fit:
    """Of scores by condition and seed."""
    from statsmodels.regression.linear_model import OLS

    if not scores:
        return Fit()
    names, seeds = sorted({n for n, _ in scores}), sorted({s for _, s in scores})
    of_name = np.array([[name == n for n in names] for name, _ in scores], float)
    of_seed = np.array([[seed == s for s in seeds[1:]] for _, seed in scores], float)
    design = np.hstack([of_name, of_seed])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        design = of_name
    result = OLS(np.array(list(scores.values()), float), design).fit()
    columns = (*names, *[""] * (design.shape[1] - len(names)))
    counts = {n: sum(n == name for name, _ in scores) for n in names}
    return Fit(columns, alias, counts, scores, result=result)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down p values, family-wise within a claim; NaN stays and does not count. Not
    statsmodels', which collects all garbage at every call: seconds where torch is loaded."""

    def adjusted(known: np.ndarray) -> np.ndarray:
        out, order, left = known.copy(), np.argsort(known), np.arange(len(known), 0, -1)
        out[order] = np.minimum(1.0, np.maximum.accumulate(left * known[order]))
        return out

    return _of_known(p, adjusted)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's, false discovery rate across claims; NaN stays, not counted."""
    from statsmodels.stats.multitest import multipletests

    return _of_known(p, lambda known: multipletests(known, method="fdr_bh")[1])


def _of_known(p: Sequence[float], adjusted: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    values = np.array(p, float)
    known = ~np.isnan(values)
    if known.any():
        values[known] = adjusted(values[known])
    return [float(v) for v in values]
