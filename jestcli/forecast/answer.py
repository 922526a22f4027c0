"""From races to an answer: who leads, what it saves, and what would change that.

A recipe's score at a length is read off its own races, linear in the logarithm of examples: between
its lengths an interpolation; beyond the last a guess that both slopes go on, which is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from jestcli.forecast.races import RECIPES, SIMPLE
from jestcli.paper.methods import style
from jestcli.paper.records import Record
from jestcli.paper.saving import Cell, Ratio, cells, over_best, savings

LEVEL = 0.9
FURTHER = 4  # how many times longer than its races an answer looks
YES, NO, OPEN = "yes", "no", "cannot tell"


@dataclass(frozen=True)
class Standing:
    """A recipe's score at a length. se: its standard error, NaN without a second seed anywhere."""

    name: str
    score: float
    se: float


@dataclass(frozen=True)
class Ranking:
    """Recipes at one length, best first. level: names whose lead is within the error."""

    examples: float
    raced: bool
    rows: tuple[Standing, ...]
    level: tuple[str, ...]

    @property
    def best(self) -> str:
        return self.rows[0].name


def _pooled(curves: dict[str, list[Cell]]) -> tuple[float, int]:
    every = [cell for curve in curves.values() for cell in curve]
    df = sum(len(c.scores) - 1 for c in every)
    squares = sum(float(np.var(c.scores)) * len(c.scores) for c in every)
    return (math.sqrt(squares / df), df) if df else (math.nan, 0)


def ranking(records: Sequence[Record], examples: float, metric: str = "mean") -> Ranking:
    """All recipes that were raced at two lengths or more, at `examples` trained on."""
    curves = {name: cells(records, name, metric) for name in {r["name"] for r in records}}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    sd, df = _pooled(curves)
    rows = []
    for name, curve in curves.items():
        x = np.log([c.examples for c in curve])
        k = int(np.clip(np.searchsorted(x, math.log(examples)), 1, len(x) - 1))
        w = (math.log(examples) - x[k - 1]) / (x[k] - x[k - 1])
        near, far = curve[k - 1], curve[k]
        spread = (1 - w) ** 2 / len(near.scores) + w**2 / len(far.scores)
        rows.append(Standing(name, (1 - w) * near.mean + w * far.mean, sd * math.sqrt(spread)))
    rows.sort(key=lambda row: -row.score)
    reach = float(stdtrit(df, (1 + LEVEL) / 2)) if df else math.inf
    level = [r.name for r in rows[1:] if not _ahead(rows[0], r, reach)]
    raced = all(examples <= curve[-1].examples for curve in curves.values())
    return Ranking(examples, raced, tuple(rows), tuple(level))


def _ahead(first: Standing, other: Standing, reach: float) -> bool:
    return first.score - other.score > reach * math.hypot(first.se, other.se)


@dataclass(frozen=True)
class Answer:
    """now: at the longer race; later: FURTHER times as long; saving: recipe -> axis -> over
    uniform at the longer race; over_simple: of the best recipe that selects, over the best one that
    does not, with the reference charged; pays: whether that is above 1; passed: the recipe that
    passed its reference, and after which share of its steps."""

    now: Ranking
    later: Ranking
    saving: dict[str, dict[str, Ratio]]
    selecting: str
    over_simple: Ratio | None
    pays: str
    passed: dict[str, float]


AXES = ("examples", "cached", "charged")


def answer(records: Sequence[Record], metric: str = "mean") -> Answer:
    """From the races' records (names as in RECIPES). Raises KeyError without uniform training."""
    b, names = records[0]["batch_size"], {r["name"] for r in records}
    longest = b * min(max(r["steps"] for r in records if r["name"] == name) for name in names)
    now = ranking(records, longest, metric)
    saving = {
        name: {axis: found[-1].ratio(axis, LEVEL) for axis in AXES}
        for name in names - {"uniform"}
        if (found := savings(records, name, "uniform", metric))
    }
    selecting = next((r.name for r in now.rows if r.name not in SIMPLE), "")
    against = over_best(records, selecting, [s for s in SIMPLE if s in names], metric)
    over = against[-1].ratio("charged", LEVEL) if against else None
    pays = OPEN
    if over is not None and not math.isnan(over.low):
        pays = YES if over.low > 1 else NO if over.high < 1 else OPEN
    passed = {
        r["name"]: r["passed_reference"] / r["steps"]
        for r in records
        if r.get("passed_reference") and r["steps"] * b == longest
    }
    later = ranking(records, FURTHER * longest, metric)
    return Answer(now, later, saving, selecting, over, pays, passed)


def label(name: str, keep: float | None = None) -> str:
    """A recipe in words."""
    if name == "filtered" and keep is not None:
        return f"filtered once (best {100 * keep:.0f} %)"
    words = {
        "uniform": "uniform training",
        "curated": "the curated set alone",
        "mixed": "curated and pool mixed",
        "filtered": "filtered once",
        "easy": "JEST by the reference alone (easy-reference)",
        "jest": "JEST",
        "jest-curated": "JEST with a quarter of the batch curated",
    }
    return words[name] if name in RECIPES else style(name).label


def listed(names: Sequence[str], keep: float | None = None) -> str:
    words = [label(name, keep) for name in names]
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def sentences(found: Answer, keep: float | None = None) -> list[str]:
    """The answer in plain words, a line each: who leads, what it saves, what would change it."""
    now, later = found.now, found.later
    k = now.examples / 1000
    best, second = now.rows[0], now.rows[1]
    lines = [
        f"Best at the longer race ({k:,.0f}k examples): {label(best.name, keep)}, "
        f"{100 * best.score:.1f} %; second: {label(second.name, keep)}, {100 * second.score:.1f} %."
    ]
    if now.level:
        lines.append(f"Its lead over {listed(now.level, keep)} is within the error of these races.")
    lines += [
        _saving(found, name, keep)
        for name in dict.fromkeys((best.name, found.selecting))
        if name in found.saving
    ]
    if found.over_simple is not None:
        over = found.over_simple
        verdict = {
            YES: "so selecting during training pays here, at this length",
            NO: "so selecting during training does not pay here, at this length",
            OPEN: "so these races cannot tell whether selecting during training pays",
        }[found.pays]
        lines.append(
            f"At equal compute, its reference's training charged, {label(found.selecting, keep)} "
            f"needs {over} less than the best recipe that selects nothing during training "
            f"({label(over.over, keep)}), {verdict}."
        )
    lines.append(
        f"Beyond {k:,.0f}k examples nothing was raced. If every curve kept its slope, "
        f"{label(later.best, keep)} would lead at {later.examples / 1000:,.0f}k"
        + (f", level with {listed(later.level, keep)}." if later.level else ".")
    )
    return lines + _minds(found, keep)


def _saving(found: Answer, name: str, keep: float | None) -> str:
    each = found.saving[name]
    return (
        f"{label(name, keep)[0].upper()}{label(name, keep)[1:]} needs {each['examples']} fewer "
        f"examples than uniform training and {each['cached']} less compute "
        f"({each['charged']} with the reference's training)."
    )


def _minds(found: Answer, keep: float | None) -> list[str]:
    """What would change the answer."""
    lines = []
    if found.later.best != found.now.best:
        lines.append(
            f"A longer run would change its mind: {label(found.later.best, keep)} gains faster "
            f"than {label(found.now.best, keep)}."
        )
    for name, share in sorted(found.passed.items()):
        lines.append(
            f"A stronger reference would, too: {label(name, keep)}'s learner passed its reference "
            f"after {100 * share:.0f} % of its steps, and from there its score prefers pairs for "
            "the wrong reason."
        )
    return lines
