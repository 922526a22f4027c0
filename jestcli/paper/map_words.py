"""What the map says, in sentences and tables whose every number is from the records."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from jestcli.paper.map import (
    CONTROLS,
    at_quality,
    lengths,
    named,
    qualities,
    saving,
    several,
    winners,
)
from jestcli.paper.methods import MARK, style
from jestcli.paper.records import Record, value
from jestcli.paper.saving import REACHED, Cell, Ratio, cells
from jestcli.utils.tables import Table

JESTS = ("jest", "jest-90")
ANSWER = (
    *("examples", "wrong captions", "JEST", "uniform", "best simpler recipe"),
    *("fewer examples than uniform", "less compute (with the reference's)"),
    "over the simpler recipe that saves most, all charged (reference and scores given)",
)


def answer(records: list[Record]) -> list[str]:
    """What figure 1 says, as lines of Markdown: a row for each pool quality and filter ratio at the
    shortest and the longest length, and a sentence. Every number is from the records."""
    curves, found = at_quality(records), lengths(records)
    rows = []
    ends = dict.fromkeys((found[0], found[-1])) if found else {}
    for steps, quality, method in product(ends, qualities(records), JESTS):
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
        reached += [f"{scores['uniform']:.1f} %", f"{scores[best]:.1f} % {style(best).label}"]
        saved = [fewer, f"{less} ({with_reference})", f"{_plain(charged)} ({_plain(given)})"]
        rows.append([*where, *reached, *saved])
    return [
        *short_answer(records),
        "",
        sentence(records),
        "",
        *Table("", ANSWER, rows).markdown().split("\n"),
    ]


def ended_best(records: list[Record]) -> Table:
    """The recipe that ended best, by pool quality and length, beside JEST at its better filter
    ratio where that is another; two recipes where the lead is within the error."""
    batch, shown = records[0]["batch_size"], several(records)
    best = {at: rows for at, rows in winners(records, lengths(records)).items() if at[0] in shown}
    steps, rows = sorted({n for _, n in best}), []
    for quality in sorted({q for q, _ in best}):
        row = [f"{100 * quality:g} %"]
        for n in steps:
            if (quality, n) not in best:
                row.append("–")
                continue
            (method, score, half), (second, below, other), *_ = here = best[quality, n]
            error, jest = math.hypot(half, other), next(x for x in here if x[0] in JESTS)
            words = style(method).label
            if math.isnan(error):
                words += " by one seed"
            elif score - below <= error:
                words += f" or {style(second).label}"
            text = f"**{words}** {100 * score:.1f}"
            row.append(text if method in JESTS else f"{text}; JEST {100 * jest[1]:.1f}")
        rows.append(row)
    heads = [f"{n * batch / 1000:,.0f}k examples" for n in steps]
    return Table("", ["wrong captions", *heads], rows)


def saved(records: list[Record]) -> Table:
    """What JEST saves at its shortest length and the paper's filter ratio, by pool quality."""
    run, rows = lengths(records), []
    for quality in several(records) if run else []:
        cell = (records, "jest", quality, run[0])
        over = [saving(*cell, axis) for axis in ("examples", "cached", "charged")]
        if over[0] is not None:
            best = saving(*cell, "charged", True)
            rows.append([f"{100 * quality:g} %", *map(_plain, over), _plain(best)])
    of_uniform = ("examples", "compute", "compute, reference charged")
    return Table(
        "",
        [
            "wrong captions",
            *(f"{what}, over uniform" for what in of_uniform),
            "the same, over the best simpler recipe",
        ],
        rows,
    )


def short_answer(records: list[Record]) -> list[str]:
    """What the README says, as far as runs are there: two tables and a sentence, as Markdown."""
    lines: list[str] = []
    ended, gained = ended_best(records), saved(records)
    if ended.rows:
        best = ended.markdown().split("\n")
        lines += ["What ended best, and its score in %:", "", *best, ""]
    if gained.rows:
        size = lengths(records)[0] * records[0]["batch_size"] / 1000
        what = f"What JEST saves in a training of {size:,.0f}k examples"
        lines += [f"{what} (×2: the other needs twice):", "", *gained.markdown().split("\n"), ""]
    return [*lines, overall(records)]


def overall(records: list[Record]) -> str:
    """In how many cells JEST pays against something simpler. "" where no interval is known."""
    run = lengths(records)
    ends = dict.fromkeys((run[0], run[-1])) if run else {}
    each = [
        saving(records, method, quality, steps, "charged", True)
        for steps, quality, method in product(ends, qualities(records), JESTS)
    ]
    sure = [r for r in each if r is not None and not math.isnan(r.low)]
    more, less = sum(r.low > 1 for r in sure), sum(r.high < 1 for r in sure)
    if not sure:
        return ""
    return (
        "Over the best simpler recipe, with everything charged, JEST saves in "
        f"{more} of the {len(sure)} cells and filter ratios that have an interval and costs more "
        f"in {less}; in the others the interval holds 1."
    )


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
            text += f"; the best simpler recipe, {style(best).label}, is then at "
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
        text += f"{_over_seeds(ends[mine])} and {style(best).label} at {_over_seeds(ends[best])}"
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
    return text if over == "uniform" else f"{text}, {style(over).label}"


def table(records: list[Record]) -> Table:
    """A row for every cell, means over its seeds; "wrong chosen": of the pairs trained on."""
    metrics = {"mean": 100, "icons": 100, "emoji": 100, "nats": 1, "noise": 1}
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in at_quality(records):
        method, _, quality = record["name"].partition(MARK)
        groups.setdefault((method, quality, record["steps"]), []).append(record)
    rows = []
    for (method, quality, steps), runs in sorted(groups.items()):
        row = [style(method).label, quality or "–", f"{steps:,}", str(len(runs))]
        for metric, factor in metrics.items():
            found = [v for r in runs if (v := value(r, metric)) is not None]
            row.append(f"{factor * float(np.mean(found)):.2f}" if found else "–")
        rows.append(row)
    head = ["method", "wrong captions", "steps", "seeds", "mean %", "icons %", "emoji %", "nats"]
    return Table("", [*head, "wrong chosen"], rows)
