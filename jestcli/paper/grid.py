"""Final scores by one setting, a line a method: the ablations (Figures 3 to 5 and the like)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from jestcli.paper import theme as look
from jestcli.paper.effects import Fit, fit
from jestcli.paper.experiment import Panel
from jestcli.paper.methods import COLOURS, MARK, line_of, style, value_of
from jestcli.paper.records import Header, Record
from jestcli.paper.statistics import by_name, finals, pooled_interval
from jestcli.paper.table import POOLED, caption
from jestcli.paper.theme import Axes, Figure, Theme

BESIDE = 0.16  # of the distance of two values, between the points of two methods
NEAR = 0.1  # of the axis: values closer than that are not drawn to scale
LONG = 8  # letters of a value that get two lines
MARKERS = "oD^vsP"
# metric: (factor, words, decimals)
METRICS = {
    "mean": (100.0, "mean score, %", 1),
    "nats": (1.0, "nats above guessing", 2),
    "noise": (100.0, "% moved captions trained on", 0),
    "curated": (100.0, "% curated pairs trained on", 1),
}


def make_grid(
    title: str,
    panels: tuple[Panel, ...],
    header: Header,
    records: list[Record],
    names: list[str],
    theme: Theme,
) -> Figure:
    """A row a panel, a column a metric: the mean score, and nats above guessing, whose noise is
    smaller. names: every run of the experiment; one without a record is written as "not run"."""
    groups = by_name(records)
    models = {m: fit(records, m) for m in dict.fromkeys(m for p in panels for m in p.metrics)}
    words = (
        "Final scores, mean over seeds; nats above guessing are less noisy than accuracy. Hollow: "
    )
    note = f"Bars: {POOLED} {caption(header, records)}"
    figure, top = look.frame(title, words + "one seed.", note, 2.75 * len(panels), theme)
    for row, panel in enumerate(panels):
        for column, metric in enumerate(panel.metrics):
            left, down = 0.74 + 4.42 * column, top + 0.25 + 2.75 * row
            axes = look.place(figure, left, down, 2.6, 1.95)
            _panel(axes, panel, groups, names, metric, models[metric], theme)
            axes.set_title(panel.title if column == 0 else " ")
    return figure


def places(panel: Panel, names: list[str]) -> tuple[dict[str, float], bool]:
    """(where each value of the panel's setting stands, whether that is to scale). Words stand
    evenly, and numbers of which two would be in each other's way."""
    varied = [value_of(n) for n in names if MARK in n and line_of(n) in panel.lines]
    even = {v: float(i) for i, v in enumerate(dict.fromkeys(varied))}
    try:
        numbers = {v: float(v) for v in even}
    except ValueError:
        return even, False
    at = sorted(numbers.values())
    crowded = any(b - a < NEAR * (at[-1] - at[0]) for a, b in pairwise(at))
    return (even, False) if crowded and not panel.log else (numbers, True)


def _panel(
    axes: Axes,
    panel: Panel,
    groups: dict[str, list[Record]],
    names: list[str],
    metric: str,
    model: Fit,
    theme: Theme,
) -> None:
    factor, words, decimals = METRICS[metric]
    at, numbers = places(panel, names)
    ends: list[look.End] = []
    missing: dict[float, list[str]] = {}
    taken = {style(name).colour for name in panel.levels}
    colours = [colour for colour in COLOURS if colour not in taken]
    for i, (line, label) in enumerate(panel.lines.items()):
        colour = theme.colour(colours[i % len(colours)])
        points: list[tuple[float, float]] = []
        lacking: list[float] = []
        single: list[tuple[float, float]] = []  # of one seed: hollow, and joined to nothing
        aside = 0.0 if panel.ordered else BESIDE * (i - (len(panel.lines) - 1) / 2)
        for setting, place in sorted(at.items(), key=lambda item: item[1]):
            name = f"{line}{MARK}{setting}"
            if values := finals(groups.get(name, []), metric):
                found, x = pooled_interval(model, values), place + aside
                y, half = factor * found.mean, factor * found.half
                points.append((x, y))
                if len(values) == 1:
                    single.append(points[-1])
                if not math.isnan(half):
                    axes.errorbar(x, y, half, color=colour, lw=0.9, capsize=2)
            elif name not in groups and name in names:
                lacking.append(place)
        if not points:
            ends.append((None, math.nan, f"{label}: not run", colour))
            continue
        for place in lacking:
            missing.setdefault(place, []).append(label)
        width, marker = 1.6 if panel.ordered else 0, MARKERS[i % len(MARKERS)]
        how: Any = {"color": colour, "marker": marker, "zorder": 4}
        sure = [(x, math.nan if (x, y) in single else y) for x, y in points]
        axes.plot(*zip(*sure, strict=True), lw=width, **how)
        if single:
            axes.plot(*zip(*single, strict=True), lw=0, mfc=theme.background, **how)
        x, y = points[-1]
        ends.append((x, y, f"{label} {y:.{decimals}f}" if panel.ordered else label, colour))
    for name, label in panel.levels.items():
        drawn = style(name)
        colour = theme.colour(drawn.colour) if drawn.label != name else theme.muted
        if not (values := finals(groups.get(name, []), metric)):
            why = "not recorded" if name in groups else "not run"
            ends.append((None, math.nan, f"{label}: {why}", colour))
            continue
        level = factor * float(np.mean(values))
        axes.axhline(
            level, color=colour, lw=1.0, ls=drawn.dash if drawn.dash != "-" else look.DASHED
        )
        ends.append((None, level, f"{label} {level:.{decimals}f}", colour))
    axes.set_xlabel(panel.x)
    axes.set_ylabel(words)
    if all(math.isnan(y) for _, y, _, _ in ends):
        look.empty(axes)
    _ticks(axes, at, numbers, panel.log)
    low, high = axes.get_ylim()
    axes.set_ylim(low - (0.06 * (high - low) if missing else 0.0), high)
    for place, lines in missing.items():
        foot = axes.get_xaxis_transform()
        side = {min(at.values()): "left", max(at.values()): "right"}.get(place, "center")
        text = f"{', '.join(lines)}: not run"
        axes.text(place, 0.02, text, transform=foot, ha=side, size=6, color=theme.muted)
    look.label_ends(axes, ends)


def _ticks(axes: Axes, at: dict[str, float], numbers: bool, log: bool) -> None:
    if not at:
        return
    first, *_, last = sorted(at.values()) * 2
    if log and numbers and first > 0:
        axes.set_xscale("log")
        axes.minorticks_off()
        room = (last / first) ** 0.06 if last > first else 2.0
        axes.set_xlim(first / room, last * room)
    else:
        room = 0.06 * (last - first) or 0.5
        axes.set_xlim(first - room, last + room)
    long = [v.replace("-", "-\n") if len(v) > LONG and not numbers else v for v in at]
    crowded = sum(map(len, long)) > 16  # letters
    axes.set_xticks(list(at.values()), long, size=6.5 if crowded else None)
