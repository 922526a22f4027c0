"""The map: what JEST saves by pool quality and length, over uniform training and over the best
simpler recipe. Its figures are in paper/map_figures.py, its words and tables in paper/map_words.py.

Runs are called method@quality@steps; quality is the share of wrong captions in the pool. Every
point is the annealed end of its own run. How a saving and its interval come about: paper/saving.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

from jestcli.paper.methods import MARK
from jestcli.paper.records import Record
from jestcli.paper.saving import Cell, OverBest, Ratio, Saving, cells, over_best, pooled, savings

JESTS = ("jest", "jest-90")
CONTROLS = (
    *("filtered", "filtered-20", "negclip", "curated", "mixed"),
    *("finetune", "finetune-1e-3", "finetune-slow"),
)
WEAK = ("filtered-weak", "curated", "mixed")  # what has no better reference than jest-weak


def at_quality(records: Sequence[Record]) -> list[Record]:
    """Records under the name method@quality, whatever their length: one curve each. Those that read
    no pool (curated@steps) are under their method alone."""
    found = [r for r in records if MARK in r["name"] and not r["name"].startswith("reference")]
    return [{**record, "name": record["name"].rpartition(MARK)[0]} for record in found]


def qualities(records: Sequence[Record], method: str = "jest") -> list[float]:
    """Shares of wrong captions that `method` was run at, ascending."""
    parts = [name.split(MARK) for name in {record["name"] for record in at_quality(records)}]
    return sorted(float(p[1]) for p in parts if len(p) == 2 and p[0] == method)


def named(method: str, quality: float) -> str:
    """ "jest", .8 -> "jest@0.8"; the curated set alone knows no pool."""
    return method if method == "curated" else f"{method}{MARK}{quality:g}"


def several(records: list[Record]) -> list[float]:
    """The qualities at which JEST was run with several seeds, one being no headline; all where
    there are none."""
    seeds = {
        quality: {r["seed"] for r in at_quality(records) if r["name"] == named("jest", quality)}
        for quality in qualities(records)
    }
    return [q for q, found in seeds.items() if len(found) > 1] or qualities(records)


def saving(
    records: Sequence[Record],
    method: str,
    quality: float,
    steps: int,
    axis: str,
    control: bool = False,
) -> Ratio | None:
    """What `method` saves at one cell of the map, over uniform training or the best control; None
    where a run that it needs is missing."""
    curves, name = at_quality(records), named(method, quality)
    against = WEAK if method.endswith("weak") else CONTROLS
    found: Sequence[Saving | OverBest] = (
        over_best(curves, name, [named(each, quality) for each in against])
        if control
        else savings(curves, name, named("uniform", quality))
    )
    examples = steps * records[0]["batch_size"]
    return next((s.ratio(axis) for s in found if s.cell.examples == examples), None)


def lengths(records: Sequence[Record], method: str = "jest") -> list[int]:
    """Steps that `method` was run for at two or more qualities with two or more seeds; where there
    are none, at two or more qualities, or at any."""
    seeds: dict[int, dict[str, set[int]]] = {}
    for record in records:
        parts = record["name"].split(MARK)
        if parts[0] == method and len(parts) == 3:
            at = seeds.setdefault(record["steps"], {})
            at.setdefault(parts[1], set()).add(record["seed"])
    for least in (2, 1):
        found = [n for n, at in seeds.items() if sum(len(s) >= least for s in at.values()) > 1]
        if found:
            return sorted(found)
    return sorted(seeds)


def longer(records: Sequence[Record]) -> list[int]:
    """Steps beyond `lengths` that JEST, at either filter ratio, was run for with several seeds."""
    last = max(lengths(records), default=0)
    seeds: dict[tuple[str, int], set[int]] = {}
    for record in records:
        if record["name"].split(MARK)[0] in JESTS and record["steps"] > last:
            seeds.setdefault((record["name"], record["steps"]), set()).add(record["seed"])
    return sorted({steps for (_, steps), found in seeds.items() if len(found) > 1})


def every_length(records: Sequence[Record]) -> list[int]:
    """`lengths` and those beyond."""
    return [*lengths(records), *longer(records)]


def better(records: Sequence[Record], quality: float, steps: int) -> str:
    """The JEST, at one filter ratio or the other, that ends higher at a cell."""
    curves, examples = at_quality(records), steps * records[0]["batch_size"]
    ended = {
        name: cell.mean
        for name in JESTS
        for cell in cells(curves, named(name, quality))
        if cell.examples == examples
    }
    return max(ended, key=ended.__getitem__, default=JESTS[0])


def best_of(records: Sequence[Record], methods: Sequence[str], quality: float) -> list[Cell]:
    """Of several settings of a recipe the one that ends highest, at each length, ascending."""
    curves, best = at_quality(records), dict[float, Cell]()
    for cell in (cell for name in methods for cell in cells(curves, named(name, quality))):
        best[cell.examples] = max(best.get(cell.examples, cell), cell, key=lambda c: c.mean)
    return [best[n] for n in sorted(best)]


def needs_no_strong(method: str) -> bool:
    """Whether a method knows the weak reference at most."""
    return method.endswith("weak") or method in ("curated", "mixed", "uniform", "cabs")


def reach(records: Sequence[Record]) -> float:
    """Half the width of a 95 % interval of one seed's score, with the variance pooled over the
    cells of the map that end at a quarter of the best one's score or above: near chance seeds
    scatter less. NaN where none has two seeds."""
    curves = at_quality(records)
    every = [c for name in {r["name"] for r in curves} for c in cells(curves, name)]
    top = max((cell.mean for cell in every), default=0.0)
    sd, df = pooled([cell for cell in every if cell.mean >= top / 4])
    return float(stats.t.ppf(0.975, df)) * sd if df else math.nan


class Ended(NamedTuple):
    """Where a method ended at one cell: its mean score and the half-width of its 95 % interval (see
    `reach`; NaN where the map knows no scatter)."""

    method: str
    score: float
    half: float
    seeds: int


def winners(
    records: list[Record], steps: Sequence[int], weak: bool = False
) -> dict[tuple[float, int], list[Ended]]:
    """Of each (quality, steps) the methods, best first. weak: those that know the weak reference at
    most, instead of the others."""
    curves, batch, half = at_quality(records), records[0]["batch_size"], reach(records)
    methods = {r["name"].split(MARK)[0] for r in curves if r["name"].count(MARK) <= 1}
    methods = {m for m in methods if (needs_no_strong(m) if weak else not m.endswith("weak"))}
    found: dict[tuple[float, int], list[Ended]] = {}
    for quality in qualities(records, "uniform"):
        here = {method: cells(curves, named(method, quality)) for method in sorted(methods)}
        for length in steps:
            rows = [
                Ended(method, cell.mean, half / math.sqrt(n), n)
                for method, each in here.items()
                for cell in each
                if cell.examples == length * batch
                for n in (len(cell.scores),)
            ]
            wanted = "jest-weak" if weak else "jest"
            if len(rows) > 2 and any(row.method == wanted for row in rows):
                found[quality, length] = sorted(rows, key=lambda row: -row.score)
    return found


def longest(records: list[Record], method: str = "jest") -> dict[float, Record]:
    """A method's longest run of each quality that knows which captions are wrong."""
    runs = {}
    for record in sorted(records, key=lambda r: r["steps"]):
        parts = record["name"].split(MARK)
        if parts[0] == method and len(parts) == 3 and record["training"].get("wrong_sub"):
            runs[float(parts[1])] = record
    return dict(sorted(runs.items()))
