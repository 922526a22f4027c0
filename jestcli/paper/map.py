"""The map: what JEST saves by pool quality and length, over uniform training and over the best
simpler recipe. Figure 1 of this suite, the map of winners, and why it comes out so.

Runs are called method@quality@steps; quality is the share of wrong captions in the pool. Every
point is the annealed end of its own run. How a saving and its interval come about: paper/saving.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from jestcli.paper import theme as look
from jestcli.paper.caption import caption
from jestcli.paper.methods import BLUE, COLOURS, GREEN, MARK, ORANGE, VERMILLION, style
from jestcli.paper.records import Header, Record, value
from jestcli.paper.saving import (
    MORE,
    REACHED,
    Cell,
    OverBest,
    Ratio,
    Saving,
    cells,
    over_best,
    pooled,
    savings,
)
from jestcli.paper.theme import FONT, Theme
from jestcli.utils.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = ((13.1, "paper: ×13.1 examples", 1.06, "bottom"), (9.9, "paper: ×9.9 FLOPs", 0.94, "top"))
CONTROLS = ("filtered", "filtered-20", "curated", "mixed", "finetune", "negclip")
WEAK = ("filtered-weak", "curated", "mixed")  # what has no better reference than jest-weak
CURVES = ("jest", "jest-90", "filtered", "filtered-20", "finetune", "curated", "mixed", "uniform")
# What figure 1 draws: f = .9 instead of .8, axis, over the best control; label, colour.
LINES = (
    (False, "examples", False, "examples, over uniform", BLUE),
    (False, "cached", False, "compute, over uniform", ORANGE),
    (False, "charged", False, "… with the reference's", VERMILLION),
    (False, "charged", True, "the same, over the best control", GREEN),
    (True, "examples", False, "examples at f = .9", BLUE),
    (True, "charged", True, "over the best control at f = .9", GREEN),
)


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


# --- figure 1 ------------------------------------------------------------------------------------


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


def make_headline(records: list[Record], note: str, theme: Theme) -> Figure:
    """Savings against pool quality at the shortest and longest length, a row for each reference;
    below them the curves at .8 wrong captions."""
    rows = [(m, ends) for m in ("jest", "jest-weak") if (ends := lengths(records, m))]
    title, body = "What JEST saves, by the quality of the pool", 3.75 + 3.3 * len(rows)
    words = "Hollow: one seed, or a bound (with an arrow: the other was not run so far)."
    figure, top = look.frame(title, words, note, body, theme)
    for i, (method, ends) in enumerate(rows):
        for k, length in enumerate(dict.fromkeys((ends[0], ends[-1]))):
            axes = look.place(figure, 0.75 + 4.25 * k, top + 0.65 + 3.3 * i, 3.6, 2.35)
            _savings(axes, records, method, length, theme)
            if (i, k) == (0, 0):
                how: Any = {"ncols": 3, "columnspacing": 1.4, "handletextpad": 0.4}
                axes.legend(loc="lower left", bbox_to_anchor=(-0.14, 1.09), **how)
    _curves(look.place(figure, 0.75, top + body - 2.95, 5.6, 2.4), records, 0.8, theme)
    return figure


def _savings(axes: Axes, records: list[Record], method: str, steps: int, theme: Theme) -> None:
    """The lines of LINES at one length, with intervals; arrows where there is only a bound."""
    shown = qualities(records, method)
    axes.set_yscale("log", base=2)
    for number, (harder, axis, control, label, bare) in enumerate(LINES):
        name = method.replace("jest", "jest-90") if harder else method
        each = [(q, saving(records, name, q, steps, axis, control)) for q in shown]
        there = [(q + 0.011 * (number - 2.5), ratio) for q, ratio in each if ratio is not None]
        if not there:
            continue
        colour = theme.colour(bare)
        how: Any = {"color": colour, "marker": "D" if harder else "o", "zorder": 3}
        sure = [(at, r) for at, r in there if r.status == REACHED and not math.isnan(r.low)]
        axes.plot(*_points(sure), ls="--" if harder else "-", label=label, **how)
        # Single seeds and bounds are hollow and never joined.
        rest = [point for point in there if point not in sure]
        axes.plot(*_points(rest), ls="", mfc=theme.background, **how)
        for at, ratio in there:
            if not math.isnan(ratio.low) and ratio.status == REACHED:
                top = ratio.high if math.isfinite(ratio.high) else ratio.ratio
                axes.plot([at, at], [max(ratio.low, 2**-6), top], color=colour, lw=1.2, zorder=2)
            if ratio.status != REACHED:
                arrow = {"arrowstyle": "->", "color": colour, "lw": 1.2}
                tip = ratio.ratio * (1.6 if ratio.status == MORE else 1 / 1.6)
                axes.annotate("", (at, tip), (at, ratio.ratio), arrowprops=arrow)
    axes.axhline(1, color=theme.text, lw=0.8)
    for y, words, off, va in PAPER:  # Fig. 1, digitised [P]; the paper charges no reference
        axes.axhline(y, color=theme.muted, lw=0.8, ls=":")
        axes.text(0, y * off, words, size=FONT - 2, color=theme.muted, va=va)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.09), max(high, 100))
    axes.axhspan(axes.get_ylim()[0], 1, color=theme.grid, alpha=0.55, lw=0, zorder=0)
    look.say(axes, 0.02, 0.02, "below 1: JEST costs more", color=theme.muted)
    axes.set_yticks([2.0**k for k in range(-3, 7)], [*"⅛¼½1248", "16", "32", "64"])
    axes.set_xlim(-0.06, 0.96)
    axes.set_xticks(shown, [f"{100 * q:g} %" for q in shown])
    axes.set_xlabel("wrong captions in the pool")
    size = steps * records[0]["batch_size"] / 1000
    which = "weak" if method.endswith("weak") else "strong"
    axes.set_title(f"{size:,.0f}k examples, {which} reference")
    axes.set_ylabel("times less than the other needs")


def _points(found: Sequence[tuple[float, Ratio]]) -> tuple[list[float], list[float]]:
    return [at for at, _ in found], [ratio.ratio for _, ratio in found]


def _curves(axes: Axes, records: list[Record], quality: float, theme: Theme) -> None:
    """Annealed ends at one quality, all methods, labelled where they end."""
    curves, sizes = at_quality(records), set()
    ends: list[look.End] = []
    axes.set_xscale("log")
    for method in CURVES:
        found, how = cells(curves, named(method, quality)), style(method)
        if not found:
            continue
        x, y, colour = [c.examples for c in found], [100 * c.mean for c in found], how.colour
        colour, alone = theme.colour(colour), all(len(c.scores) == 1 for c in found)
        dash, fill = ("", theme.background) if alone else (how.dash, colour)
        axes.plot(x, y, ls=dash, marker=how.marker, color=colour, mfc=fill)
        for c in found:
            low, high = 100 * min(c.scores), 100 * max(c.scores)
            axes.plot([c.examples] * 2, [low, high], color=colour, lw=1)
        ends.append((x[-1], y[-1], how.label, colour))
        sizes |= set(x)
    scores = [
        [r["final"]["mean"] for r in records if r["name"] == name]
        for name in ("reference strong", "reference")
    ]
    if own := scores[0] or scores[1]:
        score = 100 * float(np.mean(own))
        axes.axhline(score, color=theme.muted, lw=0.8, ls="--")
        ends.append((None, score, "the reference itself", theme.muted))
    axes.set_xticks(sorted(sizes), [f"{n / 1000:,.0f}k" for n in sorted(sizes)])
    axes.minorticks_off()
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    look.label_ends(axes, ends)
    axes.set_xlabel("examples trained on (annealed end of a run of that length)")
    axes.set_ylabel("mean of eight benchmarks, %")
    axes.set_title(f"{100 * quality:g} % wrong captions")


# --- the map of winners --------------------------------------------------------------------------


def winners(
    records: list[Record], steps: Sequence[int]
) -> dict[tuple[float, int], list[tuple[str, float, float]]]:
    """Of each (quality, steps): (method, mean score, half-width of its 95 % interval), best first.

    The half-width is that of a mean with the variance pooled over all cells of the map.
    """
    curves, batch = at_quality(records), records[0]["batch_size"]
    methods = sorted({r["name"].split(MARK)[0] for r in curves if r["name"].count(MARK) <= 1})
    sd, df = pooled([c for name in {r["name"] for r in curves} for c in cells(curves, name)])
    reach = float(stats.t.ppf(0.975, df)) * sd if df else math.nan
    found: dict[tuple[float, int], list[tuple[str, float, float]]] = {}
    for quality in qualities(records, "uniform"):
        here = {method: cells(curves, named(method, quality)) for method in methods}
        for length in steps:
            rows = [
                (method, cell.mean, reach / math.sqrt(len(cell.scores)))
                for method, each in here.items()
                for cell in each
                if cell.examples == length * batch
            ]
            if len(rows) > 2 and any(method == "jest" for method, _, _ in rows):
                found[quality, length] = sorted(rows, key=lambda row: -row[1])
    return found


def make_map(records: list[Record], note: str, steps: Sequence[int], theme: Theme) -> Figure:
    """The best method of each cell and its lead; hatched where the lead is within the error."""
    from matplotlib.patches import Rectangle

    best, height = winners(records, steps), 0.95 * len(steps)
    shown = sorted({quality for quality, _ in best})
    title = "The best of all methods run (hatched: its lead is within the error, or one seed)"
    figure, top = look.frame(title, "", note, height + 0.5, theme)
    axes = look.place(figure, 1.2, top, 7.4, height)
    for (quality, length), ((method, score, half), (second, below, other), *_) in best.items():
        x, y, how = shown.index(quality), list(steps).index(length), style(method)
        hatch = None if score - below > math.hypot(half, other) else "///"
        colours: Any = {
            "facecolor": theme.colour(how.colour),
            "edgecolor": theme.muted,
            "alpha": 0.28,
        }
        axes.add_patch(Rectangle((x, y), 0.97, 0.94, hatch=hatch, lw=0.5, **colours))
        words = f"{how.label}\n{100 * score:.1f} %\n"
        words += f"+{100 * (score - below):.1f} over {style(second).label}"
        axes.text(x + 0.485, y + 0.47, words, ha="center", va="center", size=FONT - 1)
    axes.set_xlim(0, len(shown))
    axes.set_ylim(0, len(steps))
    axes.grid(False)
    axes.set_xticks([i + 0.5 for i in range(len(shown))], [f"{100 * q:g} %" for q in shown])
    axes.set_yticks([i + 0.5 for i in range(len(steps))], [f"{n:,}" for n in steps])
    axes.set_xlabel("wrong captions in the pool")
    axes.set_ylabel("steps of 256")
    return figure


# --- why -----------------------------------------------------------------------------------------


def longest(records: list[Record]) -> dict[float, Record]:
    """JEST's longest run of each quality that knows which captions are wrong."""
    runs = {}
    for record in sorted(records, key=lambda r: r["steps"]):
        parts = record["name"].split(MARK)
        if parts[0] == "jest" and len(parts) == 3 and record["training"].get("wrong_sub"):
            runs[float(parts[1])] = record
    return dict(sorted(runs.items()))


def make_why(runs: dict[float, Record], note: str, theme: Theme) -> Figure:
    """JEST's longest runs over time: the share of wrong pairs among those chosen, and the mean
    learnability of right and of wrong pairs, whose sign turns when the learner has passed its
    reference."""
    figure, top = look.frame("Why: what JEST picks over time", "", note, 3.0, theme)
    left, right = (look.place(figure, x, top + 0.1, 3.4, 2.35) for x in (0.75, 5.1))
    for number, (quality, run) in enumerate(runs.items()):
        colour, training = theme.colour(COLOURS[number % len(COLOURS)]), run["training"]
        steps, share = training["step"], 100 * quality
        left.plot(steps, [100 * x for x in training["wrong_sub"]], color=colour)
        left.axhline(share, color=colour, ls=":", lw=0.9)
        left.text(steps[0], share, f"{share:g} % drawn", color=colour, va="bottom", size=7)
        for key, dash in (("right", "-"), ("wrong", "--")):
            label, values = f"{key}, q = {quality:g}", training[f"learnability_{key}"]
            right.plot(steps, values, color=colour, ls=dash, label=label)
    left.set_ylim(0, 100)
    left.set_title("Wrong captions among JEST's picks, %")
    right.axhline(0, color=theme.text, lw=0.8)
    right.set_title("Mean learnability of right and wrong pairs, nats")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.set_xlabel("step")
    return figure


# --- words ---------------------------------------------------------------------------------------


def draw_all(header: Header, records: list[Record], folder: Path) -> list[Path]:
    """Every figure, and cells.md: the answer in sentences and a row for every cell."""
    steps = sorted({r["steps"] for r in records if r["name"].startswith("jest@")}) or [750]
    note, why = caption(header, records) + strength(records), longest(records)
    written = look.both(lambda t: make_headline(records, note, t), folder / "figure1")
    written += look.both(lambda t: make_map(records, note, steps, t), folder / "map")
    written += look.both(lambda t: make_why(why, note, t), folder / "why") if why else []
    page, parts = folder / "cells.md", ["\n".join(answer(records)), table(records).markdown()]
    page.write_text("\n\n".join(["# The map, cell by cell", *parts, note]) + "\n")
    return [*written, page]


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


def several(records: list[Record]) -> list[float]:
    """The qualities at which JEST was run with several seeds, one being no headline; all where
    there are none."""
    seeds = {
        quality: {r["seed"] for r in at_quality(records) if r["name"] == named("jest", quality)}
        for quality in qualities(records)
    }
    return [q for q, found in seeds.items() if len(found) > 1] or qualities(records)


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
            tie = not score - below > math.hypot(half, other)
            words = style(method).label + (f" or {style(second).label}" if tie else "")
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
