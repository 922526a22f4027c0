"""What the map says, in sentences and tables whose every number is from the records."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def strength(records: Sequence[Record]) -> str:
    """The references' AUC, which stands under every figure; "" where none was measured."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record["name"].startswith("reference") and record["final"].get("auc"):
            found.setdefault(record["name"], []).append(record["final"]["auc"])
    parts = [f"{name} {np.mean(x):.3f}" for name, x in sorted(found.items())]
    words = " AUC of right against wrong captions of unseen pool pairs: "
    return f"{words}{', '.join(parts)}." if parts else ""


ANSWER = (
    *("examples", "wrong captions", "JEST", "uniform", "best simpler recipe"),
    *("fewer examples than uniform", "less compute (with the reference's)"),
    "over the simpler recipe that saves most, all charged (reference and scores given)",
)


def answer(records: list[Record]) -> list[str]:
    """What figure 1 says, as lines of Markdown: a row for each pool quality and filter ratio at the
    shortest and the longest length, and a sentence. Every number is from the records."""
    curves, found = at_quality(records), lengths(records)
    simpler: list[Ratio] = []
    rows = []
    ends = dict.fromkeys((found[0], found[-1])) if found else {}
    for steps, quality, method in product(ends, qualities(records), ("jest", "jest-90")):
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
        simpler.append(charged)
    lines = [
        recommended(records),
        "",
        sentence(records),
        "",
        *Table("", ANSWER, rows).markdown().split("\n"),
    ]
    lines[5] = "|" + " --- |" * len(ANSWER)
    sure = [r for r in simpler if not math.isnan(r.low)]
    more, less_than = sum(r.low > 1 for r in sure), sum(r.high < 1 for r in sure)
    if sure:
        lines += [
            "",
            f"Over the best simpler recipe, with everything charged, JEST saves in {more} of the "
            f"{len(sure)} cells and filter ratios that have an interval and costs more in "
            f"{less_than}; in the others the interval holds 1.",
        ]
    return lines


def recommended(records: list[Record]) -> str:
    """Which recipe ended best, by pool quality and length; where its lead is within the error, over
    which."""
    run, batch, parts = lengths(records), records[0]["batch_size"], []
    best, sure = winners(records, run), several(records)
    for quality in sorted({quality for quality, _ in best if quality in sure}):
        spans: list[tuple[str, list[str]]] = []  # (recipe, lengths in a row)
        for steps in run:
            if (quality, steps) not in best:
                continue
            (method, score, half), (second, below, other), *_ = best[quality, steps]
            words, error = style(method).label, math.hypot(half, other)
            if math.isnan(error):
                words += " by one seed"
            elif score - below <= error:
                words += f" or {style(second).label}"
            if not spans or spans[-1][0] != words:
                spans.append((words, []))
            spans[-1][1].append(f"{steps * batch / 1000:,.0f}k")
        each = [f"{words} ({', '.join(at)})" for words, at in spans]
        parts.append(f"- {100 * quality:g} % wrong captions: {'; '.join(each)}.")
    return "\n".join(["What ended best, by the length of training in examples:", "", *parts])


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
