"""What the map says, in sentences and tables whose every number is from the records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from jestcli.paper.map import (
    CONTROLS,
    JESTS,
    Ended,
    at_quality,
    lengths,
    longer,
    named,
    qualities,
    reach,
    saving,
    several,
    winners,
)
from jestcli.paper.methods import MARK, style
from jestcli.paper.records import Record, value
from jestcli.paper.saving import REACHED, Cell, Ratio, cells
from jestcli.utils.tables import Table

SINGLE = "¹"  # after a score of one seed
# Methods whose settings trials of their own chose (docs/protocol.md); the others have JEST's.
TUNED = ("uniform", "jest", "jest-90", "filtered", "filtered-20", "curated", "finetune-1e-3")
UNTUNED = "†"
COSTS = ("examples", "compute", "compute, reference charged")
AGAINST = {
    "uniform training": {
        "examples": "examples",
        "compute": "cached",
        "compute with the reference charged": "charged",
    },
    "the best simpler recipe": {
        "with every cost charged": "charged",
        "with the reference given": "cached",
    },
}
ANSWER = (
    *("examples", "wrong captions", "JEST", "uniform", "best simpler recipe"),
    *("fewer examples than uniform", "less compute (with the reference's)"),
    "over the simpler recipe that saves most, all charged (reference and scores given)",
)


def answer(records: list[Record]) -> list[str]:
    """What figure 1 says, as lines of Markdown: a row for each pool quality and filter ratio at the
    shortest and the longest length, and a sentence. Every number is from the records."""
    curves, rows = at_quality(records), []
    for steps, quality, method in product(_ends(records), qualities(records), JESTS):
        examples = steps * records[0]["batch_size"]
        scores = {
            name: 100 * cell.mean
            for name in (method, "uniform", *CONTROLS)
            for cell in cells(curves, named(name, quality))
            if cell.examples == examples
        }
        axes, cell = ("examples", "cached", "charged"), (records, method, quality, steps)
        fewer, less, with_reference = (_plain(saving(*cell, axis)) for axis in axes)
        charged, given = (saving(*cell, axis, True) for axis in axes[:0:-1])
        controls = [name for name in scores if name in CONTROLS]
        if method not in scores or "uniform" not in scores or charged is None or not controls:
            continue
        best, ratio = max(controls, key=scores.__getitem__), method[5:] or "80"
        where = [f"{examples / 1000:,.0f}k", f"{100 * quality:g} %"]
        reached = [f"{scores[method]:.1f} % at f = .{ratio.rstrip('0')}"]
        reached += [f"{scores['uniform']:.1f} %", f"{scores[best]:.1f} % {called(best)}"]
        saved = [fewer, f"{less} ({with_reference})", f"{_plain(charged)} ({_plain(given)})"]
        rows.append([*where, *reached, *saved])
    return [
        *short_answer(records),
        "",
        *at_equal_scores(records),
        "",
        " ".join(filter(None, (sentence(records), relevance(records)))),
        "",
        *Table("", ANSWER, rows).markdown().split("\n"),
    ]


def _ends(records: list[Record]) -> list[int]:
    """JEST's shortest length, its longest that several qualities have, and those beyond."""
    run = lengths(records)
    return [*dict.fromkeys((*run[:1], *run[-1:])), *longer(records)]


def called(method: str) -> str:
    """A method's label; marked where its settings were taken over and not tuned by trials."""
    return style(method).label + ("" if method.removesuffix("-weak") in TUNED else UNTUNED)


def level(rows: Sequence[Ended]) -> list[str]:
    """Of a cell of `winners` the methods that are within the error of the best, it first."""
    best = rows[0]
    near = (r for r in rows[1:] if best.score - r.score <= math.hypot(best.half, r.half))
    return [best.method, *(row.method for row in near)]


def _shown(records: list[Record]) -> dict[tuple[float, int], list[Ended]]:
    """`winners` of the qualities that several seeds ran."""
    best = winners(records, [*lengths(records), *longer(records)])
    return {at: rows for at, rows in best.items() if at[0] in several(records)}


def ended_best(records: list[Record]) -> Table:
    """The recipe that ended best, by pool quality and length, beside JEST at its better filter
    ratio where that is another; two recipes where the lead is within the error."""
    batch, best = records[0]["batch_size"], _shown(records)
    steps, rows = sorted({n for _, n in best}), []
    for quality in sorted({q for q, _ in best}):
        row = [f"{100 * quality:g} %"]
        for n in steps:
            if (quality, n) not in best:
                row.append("–")
                continue
            here = best[quality, n]
            best_, jest = here[0], next(x for x in here if x.method in JESTS)
            text = f"**{' or '.join(map(called, level(here)[:2]))}** {_percent(best_)}"
            row.append(text if best_ is jest else f"{text}; {called(jest.method)} {_percent(jest)}")
        rows.append(row)
    heads = [f"{n * batch / 1000:,.0f}k examples" for n in steps]
    return Table("", ["wrong captions", *heads], rows)


def saved(records: list[Record]) -> Table:
    """What JEST saves at its better filter ratio, by pool quality and length (`_ends`)."""
    curves, rows = at_quality(records), []
    for steps, quality in product(_ends(records), several(records)):
        examples = steps * records[0]["batch_size"]
        ended = {
            cell.mean: name
            for name in JESTS
            for cell in cells(curves, named(name, quality))
            if cell.examples == examples
        }
        if not ended:
            continue
        method = ended[max(ended)]
        cell = (records, method, quality, steps)
        over = [saving(*cell, axis) for axis in ("examples", "cached", "charged")]
        if over[0] is not None:
            best = [saving(*cell, axis, True) for axis in ("charged", "cached")]
            ratio = ".9" if method == "jest-90" else ".8"
            where = [f"{examples / 1000:,.0f}k", f"{100 * quality:g} %", ratio]
            rows.append([*where, *map(_plain, (*over, *best))])
    head = ("JEST's examples", "wrong captions", "f", *(f"{what}, over uniform" for what in COSTS))
    head += tuple(f"{what}, over the best simpler recipe" for what in COSTS[:0:-1])
    return Table("", head, rows)


def short_answer(records: list[Record]) -> list[str]:
    """What the README says, as far as runs are there: sentences and a table, as Markdown."""
    lines = [f"- {words}" for words in (*in_short(records), *ahead(records))]
    lines += [""] if lines else []
    ended = ended_best(records)
    if ended.rows:
        best = ended.markdown().split("\n")
        half, what = 100 * reach(records) / math.sqrt(3), "what ended best, and its score in %"
        error = "" if math.isnan(half) else f", 95 % interval ±{half:.1f} with three seeds"
        lines += [f"At an equal number of examples: {what}{error}.", "", *best, ""]
    if any(UNTUNED in line for line in lines):
        lines += [f"{UNTUNED} With JEST's settings, not chosen by trials of its own.", ""]
    if any(SINGLE in line for line in lines):
        lines += [f"{SINGLE} One seed, the others two or three.", ""]
    return lines[:-1]


def at_equal_scores(records: list[Record]) -> list[str]:
    """What JEST saves, counted and as a table."""
    lines = [f"- {words}" for words in overall(records)]
    gained = saved(records)
    if gained.rows:
        what = "At an equal score: how many times less JEST needs (below 1: more), at the filter "
        what += "ratio f that ends higher."
        lines += ["", what, "", *gained.markdown().split("\n")]
    return lines


def _percent(ended: Ended) -> str:
    return f"{100 * ended.score:.1f}{SINGLE * (ended.seeds == 1)}"


def ahead(records: list[Record]) -> list[str]:
    """Of each quality at which JEST ends above everything else, at the longest such length: does a
    recipe that selects nothing get there when it goes on?"""
    size, curves, shown = records[0]["batch_size"] / 1000, at_quality(records), _shown(records)
    first = {q: n for (q, n), rows in sorted(shown.items()) if {*level(rows)} <= {*JESTS}}
    lines = []
    for quality, steps in first.items():
        best = shown[quality, steps][0]
        others = [
            (Ended(name, cell.mean, math.nan, len(cell.scores)), cell.examples / 1000)
            for name in CONTROLS
            for cell in cells(curves, named(name, quality))
        ]
        if not others:
            continue
        top, after = max(others, key=lambda other: other[0].score)
        text = f"With {100 * quality:g} % wrong captions {called(best.method)} is at "
        text += f"{_percent(best)} % after {steps * size:,.0f}k examples; "
        if top.score < best.score:
            text += f"no simpler recipe got above {_percent(top)} % ({called(top.method)}), in up "
            text += f"to {max(n for _, n in others):,.0f}k."
        else:
            text += f"{called(top.method)} gets to {_percent(top)} % after {after:,.0f}k."
        lines.append(text)
    return lines


def _sure(records: list[Record], axis: str, simpler: bool) -> list[tuple[str, Ratio]]:
    """JEST's savings over uniform training, or over the best simpler recipe, at `_ends` and both
    filter ratios, each with its cell in words: those whose interval is known."""
    found = []
    for steps, quality, name in product(_ends(records), qualities(records), JESTS):
        ratio = saving(records, name, quality, steps, axis, simpler)
        if ratio is not None and not math.isnan(ratio.low):
            examples = steps * records[0]["batch_size"] / 1000
            found.append((f"{100 * quality:g} % wrong captions, {examples:,.0f}k examples", ratio))
    return found


def _sides(found: Sequence[tuple[str, Ratio]]) -> tuple[int, int]:
    """In how many the whole interval says that JEST needs less, and more."""
    return sum(r.low > 1 for _, r in found), sum(r.high < 1 for _, r in found)


def in_short(records: list[Record]) -> list[str]:
    """The answer in one sentence; nothing where no interval is known."""
    over, paid = _sure(records, "examples", False), _sure(records, "charged", True)
    if not over or not paid:
        return []
    ordered = sorted((r for _, r in over), key=lambda ratio: ratio.ratio)
    least = next((ratio for ratio in ordered if ratio.status == REACHED), ordered[0])
    pays = "; ".join(dict.fromkeys(cell for cell, ratio in paid if ratio.low > 1))
    (fewer, _), (less, more) = _sides(over), _sides(paid)
    return [
        f"**In short:** for the score that JEST reaches uniform training needs {_plain(least)} to "
        f"{_plain(ordered[-1])} the examples (JEST fewer in {fewer} of {len(over)} cells "
        "of pool, length and filter ratio). "
        "Something simpler with the same curated pairs, everything charged, needs less compute "
        f"than JEST in {more} of {len(paid)} cells, more in {less}{pays and f' ({pays})'}."
    ]


def overall(records: list[Record]) -> list[str]:
    """In how many cells JEST needs less than uniform training, and than the best simpler recipe, by
    what is counted. Nothing where no interval is known."""
    lines = []
    for against, axes in AGAINST.items():
        parts = []
        for words, axis in axes.items():
            if sure := _sure(records, axis, against != "uniform training"):
                less, more = _sides(sure)
                rest = {"more": more, "undecided": len(sure) - less - more}
                told = [f"{word} in {n}" for word, n in rest.items() if n]
                parts.append(", ".join([f"{words}: less in {less} of {len(sure)} cells", *told]))
        if parts:
            lines.append(f"For its score JEST needs, beside {against}, {'; '.join(parts)}.")
    if lines:
        lines[-1] += " Cells: qualities, filter ratios, shortest and longest lengths."
    return lines


def sentence(records: list[Record]) -> str:
    """The answer in words, of the poorest and the cleanest pool at JEST's shortest length, each
    score with its range over seeds. "" before the runs that it needs."""
    curves, parts, run = at_quality(records), [], lengths(records)
    steps = run[0] if run else 0
    shown = several(records)
    for quality in sorted({*shown[:1], *shown[-1:]}, reverse=True):
        cell = (records, "jest", quality, steps)
        fewer, less, paid = (saving(*cell, axis) for axis in ("examples", "cached", "charged"))
        if fewer is None:
            continue
        examples = steps * records[0]["batch_size"]
        ends = {
            name: found[0]
            for name in ("jest", *CONTROLS)
            if (found := [c for c in cells(curves, named(name, quality)) if c.examples == examples])
        }
        best = max((n for n in ends if n != "jest"), key=lambda n: ends[n].mean, default=None)
        text = (
            f"With {100 * quality:g} % wrong captions uniform training needs {_plain(fewer)} the "
            f"examples and {_plain(less)} the compute ({_plain(paid)} where the reference is "
            f"charged) for what JEST reaches in {examples / 1000:,.0f}k examples, "
            f"{_over_seeds(ends['jest'])}"
        )
        if best:
            text += f"; the best simpler recipe, {called(best)}, is then at "
            text += _over_seeds(ends[best])
        parts.append(text + ".")
    if shown and run[-1] > steps:
        parts.append(_longest(curves, shown, run[-1] * records[0]["batch_size"]))
    return " ".join(parts)


def _longest(curves: list[Record], shown: list[float], examples: int) -> str:
    """At JEST's longest length, at each quality: the better filter ratio and the best recipe."""
    parts = []
    for quality in reversed(shown):
        runs = {
            name: cells(curves, named(name, quality))
            for name in ("jest", "jest-90", "uniform", *CONTROLS)
        }
        ends = {n: c for n, each in runs.items() for c in each if c.examples == examples}
        mine = max((n for n in ends if "jest" in n), key=lambda n: ends[n].mean, default=None)
        best = max((n for n in ends if "jest" not in n), key=lambda n: ends[n].mean, default=None)
        if mine is None or best is None:
            continue
        text = f"with {100 * quality:g} % wrong captions {style(mine).label} is at "
        text += f"{_over_seeds(ends[mine])} and {called(best)} at {_over_seeds(ends[best])}"
        longer = [c for c in runs[best] if c.examples > examples]
        if longer:  # a recipe without scoring has them for the compute that JEST has spent
            text += f", {100 * longer[-1].mean:.1f} % after {longer[-1].examples / 1000:,.0f}k"
        parts.append(text)
    return f"After {examples / 1000:,.0f}k examples: {'; '.join(parts)}." if parts else ""


def _over_seeds(cell: Cell) -> str:
    low, high, n = 100 * min(cell.scores), 100 * max(cell.scores), len(cell.scores)
    spread = f"{low:.1f} to {high:.1f} over {n} seeds" if n > 1 else "one seed"
    return f"{100 * cell.mean:.1f} % ({spread})"


def _plain(ratio: Ratio | None) -> str:
    """A saving in a cell of a table; the simpler recipe that it is over, if there is one."""
    if ratio is None:
        return "–"
    text = str(ratio).replace(" (one seed: no interval)", "")
    if ratio.status != REACHED:  # a bound's interval only repeats it
        text = text.partition(" [")[0]
    over = ratio.over.split(MARK)[0]
    return text if over == "uniform" else f"{text}, {called(over)}"


def relevance(records: list[Record]) -> str:
    """JEST's lead over uniform training by the share of what the benchmarks ask for that the pool
    has kept, at the longest length of both. "" before these runs."""
    curves = at_quality(records)
    shares = sorted(q for q in qualities(records, "relevance-jest"))
    leads = []
    for share in shares:
        mine, theirs = (
            {c.examples: c for c in cells(curves, f"relevance-{method}{MARK}{share:g}")}
            for method in ("jest", "uniform")
        )
        if both := mine.keys() & theirs.keys():
            n = max(both)
            lead = 100 * (mine[n].mean - theirs[n].mean)
            seeds = min(len(mine[n].scores), len(theirs[n].scores))
            leads.append(
                f"{lead:+.1f} points at {share:g} ({n / 1000:,.0f}k examples, {seeds} seeds)"
            )
    if not leads:
        return ""
    return (
        "JEST over uniform training, by the share of what the benchmarks ask for that a pool of "
        f"the same size has kept: {', '.join(leads)}."
    )


def _told(name: str) -> tuple[str, str]:
    """What a cell of the map is called, and the share of wrong captions in its pool."""
    method, *rest = name.split(MARK)
    if method.startswith("relevance-"):
        return f"{called(method.partition('-')[2])}, relevance {rest[0]}", "0"
    if method.startswith("weight"):
        return f"{called(method.replace('weight', 'jest'))}, weight {rest[1]}", rest[0]
    return called(method), rest[0] if rest else "–"


def table(records: list[Record]) -> Table:
    """A row for every cell, means over its seeds; "wrong chosen": of the pairs trained on."""
    metrics = {"mean": 100, "icons": 100, "emoji": 100, "nats": 1, "noise": 1}
    groups: dict[tuple[tuple[str, str], int], list[Record]] = {}
    for record in at_quality(records):
        groups.setdefault((_told(record["name"]), record["steps"]), []).append(record)
    rows = []
    for ((method, quality), steps), runs in sorted(groups.items()):
        trained, looked = (steps * runs[0][f"{what}batch_size"] for what in ("", "super_"))
        row = [method, quality, f"{trained:,}", f"{looked:,}", str(len(runs))]
        for metric, factor in metrics.items():
            found = [v for r in runs if (v := value(r, metric)) is not None]
            row.append(f"{factor * float(np.mean(found)):.2f}" if found else "–")
        rows.append(row)
    head = ("method", "wrong captions", "examples", "pairs looked at", "seeds")
    return Table("", [*head, "mean %", "icons %", "emoji %", "nats", "wrong chosen"], rows)
