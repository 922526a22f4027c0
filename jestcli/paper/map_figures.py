"""Figure 1 of this suite, the map of winners, and why it comes out so, from paper/map.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jestcli.paper import theme as look
from jestcli.paper.map import at_quality, lengths, longest, named, qualities, saving, winners
from jestcli.paper.map_words import answer, table
from jestcli.paper.methods import BLUE, COLOURS, GREEN, ORANGE, VERMILLION, style
from jestcli.paper.records import Header, Record
from jestcli.paper.saving import MORE, REACHED, Ratio, cells
from jestcli.paper.table import caption
from jestcli.paper.theme import FONT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = ((13.1, "paper: ×13.1 examples", 1.06, "bottom"), (9.9, "paper: ×9.9 FLOPs", 0.94, "top"))

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


def draw_all(header: Header, records: list[Record], folder: Path) -> list[Path]:
    """Every figure, and cells.md: the answer in sentences and a row for every cell."""
    steps = sorted({r["steps"] for r in records if r["name"].startswith("jest@")}) or [750]
    note, why = caption(header, records), longest(records)
    written = look.both(lambda t: make_headline(records, note, t), folder / "figure1")
    written += look.both(lambda t: make_map(records, note, steps, t), folder / "map")
    written += look.both(lambda t: make_why(why, note, t), folder / "why") if why else []
    page, parts = folder / "cells.md", ["\n".join(answer(records)), table(records).markdown()]
    page.write_text("\n\n".join(["# The map, cell by cell", *parts, note]) + "\n")
    return [*written, page]


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
