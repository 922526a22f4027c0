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

from jestcli.forecast.races import RECIPES, SIMPLE, USUAL, Dials
from jestcli.paper.methods import style
from jestcli.paper.records import Record
from jestcli.paper.saving import Ratio, cells, over_best, pooled, savings

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


def ranking(records: Sequence[Record], examples: float) -> Ranking:
    """All recipes that were raced at two lengths or more, at `examples` trained on."""
    curves = {name: cells(records, name) for name in {r["name"] for r in records}}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    sd, df = pooled([cell for curve in curves.values() for cell in curve])
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
    best = rows[0]
    level = [
        r.name for r in rows[1:] if not best.score - r.score > reach * math.hypot(best.se, r.se)
    ]
    raced = all(examples <= curve[-1].examples for curve in curves.values())
    return Ranking(examples, raced, tuple(rows), tuple(level))


@dataclass(frozen=True)
class Answer:
    """now: at the longer race; later: FURTHER times as long. saving: recipe -> axis -> over uniform
    at the longer race. over_simple: of the best recipe that selects (`selecting`), over the best
    one that does not, the reference charged; pays: whether that is above 1. reference: its own
    score, where it was trained here."""

    now: Ranking
    later: Ranking
    saving: dict[str, dict[str, Ratio]]
    selecting: str
    over_simple: Ratio | None
    pays: str
    reference: float | None


AXES = ("examples", "cached", "charged")


def answer(records: Sequence[Record], own: bool = True) -> Answer:
    """From the races' records (names as in RECIPES). own: the reference is the longest run on the
    curated set. Raises KeyError without uniform training."""
    b, names = records[0]["batch_size"], {r["name"] for r in records}
    longest = b * min(max(r["steps"] for r in records if r["name"] == name) for name in names)
    now = ranking(records, longest)
    saving = {
        name: {axis: each.ratio(axis, LEVEL) for axis in AXES}
        for name in names - {"uniform"}
        for each in savings(records, name, "uniform")
        if each.cell.examples == longest
    }
    selecting = next((r.name for r in now.rows if r.name not in SIMPLE), "")
    against = over_best(records, selecting, [s for s in SIMPLE if s in names])
    over = against[-1].ratio("charged", LEVEL) if against else None
    pays = OPEN
    if over is not None and not math.isnan(over.low):
        pays = YES if over.low > 1 else NO if over.high < 1 else OPEN
    curated = cells(records, "curated")
    known = own and curated and curated[-1].examples > longest
    reference = curated[-1].mean if known else None
    later = ranking(records, FURTHER * longest)
    return Answer(now, later, saving, selecting, over, pays, reference)


def label(name: str, dials: Dials | None = None) -> str:
    """A recipe in words."""
    if name == "filtered" and dials is not None:
        return f"filtered once (best {100 * dials.keep:.0f} %)"
    if name == "jest" and dials is not None and dials.ratio != USUAL.ratio:
        return f"JEST (f = {dials.ratio:g})"
    words = {
        "uniform": "uniform training",
        "curated": "the curated set alone",
        "mixed": "curated and pool mixed",
        "filtered": "filtered once",
        "finetune": "fine-tuning the reference on the pool",
        "easy": "JEST by the reference alone (easy-reference)",
        "jest": "JEST",
        "jest-curated": "JEST with a quarter of the batch curated",
    }
    return words[name] if name in RECIPES else style(name).label


def listed(names: Sequence[str], dials: Dials | None = None) -> str:
    words = [label(name, dials) for name in names]
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def sentences(found: Answer, dials: Dials | None = None) -> list[str]:
    """The answer in plain words, a line each: who leads, what it saves, what would change it."""
    now, later = found.now, found.later
    k = now.examples / 1000
    best, second = now.rows[0], now.rows[1]
    lines = [
        f"Best at the longer race ({k:,.0f}k examples): {label(best.name, dials)}, "
        f"{100 * best.score:.1f} %; second: {label(second.name, dials)}, "
        f"{100 * second.score:.1f} %."
    ]
    if now.level:
        lines.append(
            f"Its lead over {listed(now.level, dials)} is within the error of these races."
        )
    shown = dict.fromkeys((best.name, found.selecting))
    lines += [
        f"For the score of {label(name, dials)} uniform training needs {saved['examples']} the "
        f"examples and {saved['cached']} the compute ({saved['charged']} with the reference's "
        "training on top)."
        for name in shown
        if (saved := found.saving.get(name))
    ]
    if found.over_simple is not None:
        over, selecting = found.over_simple, label(found.selecting, dials)
        verdict = {
            YES: "selecting during training pays here, at this length",
            NO: "selecting during training does not pay here, at this length",
            OPEN: "these races cannot tell whether selecting during training pays",
        }[found.pays]
        lines.append(
            "With the reference's training charged, the best recipe that selects nothing during "
            f"training ({label(over.over, dials)}) needs {over} the compute of {selecting} for the "
            f"same score: {verdict}."
        )
    level = f", level with {listed(later.level, dials)}" if later.level else ""
    lines.append(
        f"Beyond {k:,.0f}k examples nothing was raced. If every curve kept its slope, "
        f"{label(later.best, dials)} would lead at {later.examples / 1000:,.0f}k{level}."
    )
    return lines + _minds(found, dials)


def _minds(found: Answer, dials: Dials | None) -> list[str]:
    now, later, lines = found.now, found.later, []
    if later.best != now.best:
        lines.append(
            f"A longer run would change its mind: {label(later.best, dials)} gains faster than "
            f"{label(now.best, dials)}."
        )
    score = next((r.score for r in now.rows if r.name == found.selecting), None)
    if score is not None and found.reference is not None:
        both = f"({100 * score:.1f} % against its {100 * found.reference:.1f} %)"
        has = f"has passed its reference {both}: a stronger one, from more curated pairs, would "
        has += "change its mind."
        if score < found.reference:
            has = f"has not reached its reference {both}: a longer run may gain more than these "
            has += "races show."
        lines.append(f"{label(found.selecting, dials)} {has}")
    return lines
