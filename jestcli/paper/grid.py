"""Final scores by one setting, a line a method: the ablations (Figures 3 to 5 and the like)."""

from __future__ import annotations

import math
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from jestcli.paper import theme as look
from jestcli.paper.caption import caption
from jestcli.paper.methods import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, style
from jestcli.paper.panels import MARK, Panel, line_of, value_of
from jestcli.paper.records import Header, Record
from jestcli.paper.statistics import Interval, by_name, t_interval
from jestcli.paper.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
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
LEFT, STEP, PANEL_WIDTH, PANEL_HEIGHT, ROW = 0.62, 4.42, 2.6, 1.95, 2.75


def draw_grid(
    title: str,
    panels: tuple[Panel, ...],
    header: Header,
    records: list[Record],
    path: Path,
    names: list[str],
) -> list[Path]:
    """Write `path`.png, .svg and -dark.png; returns the paths.

    A row a panel, a column a metric: the mean score, and nats above guessing, whose noise is
    smaller. Bars are 95 % t-intervals over seeds.

    Args:
        names: every run of the experiment; one without a record is written as "not run".
    """
    return look.both(lambda theme: make_grid(title, panels, header, records, names, theme), path)


def make_grid(
    title: str,
    panels: tuple[Panel, ...],
    header: Header,
    records: list[Record],
    names: list[str],
    theme: Theme,
) -> Figure:
    """The figure itself (see `draw_grid`)."""
    figure, top = frame(
        title,
        "Final scores, mean over seeds; nats above guessing are less noisy than accuracy. "
        + ("Bars: 95 % t-interval over seeds." if _seeds(records) >= 3 else "Thin: single seeds."),
        caption(header, records),
        ROW * len(panels),
        theme,
    )
    groups = by_name(records)
    for row, panel in enumerate(panels):
        for column, metric in enumerate(panel.metrics):
            axes = look.place(
                figure, LEFT + STEP * column, top + 0.25 + ROW * row, PANEL_WIDTH, PANEL_HEIGHT
            )
            _panel(axes, panel, groups, names, metric, theme)
            axes.set_title(panel.title if column == 0 else " ")
    return figure


def frame(title: str, subtitle: str, note: str, body: float, theme: Theme) -> tuple[Figure, float]:
    """An empty figure with its words and where its body begins, inches from the top."""
    note = textwrap.fill(note, 172)
    lines = subtitle.count("\n")
    top = 0.6 + 0.16 * lines
    height = top + body + 0.14 * (note.count("\n") + 1) + 0.1
    figure = look.new_figure(height)
    figure.text(0.012, 1 - 0.2 / height, title, size=11.5, weight="bold", va="center")
    figure.text(0.012, 1 - 0.34 / height, subtitle, size=8, color=theme.muted, va="top")
    figure.text(
        0.012, 0.06 / height, note, size=6.8, color=theme.muted, va="bottom", linespacing=1.35
    )
    return figure, top


def _seeds(records: list[Record]) -> int:
    return max((len(runs) for runs in by_name(records).values()), default=0)


def places(panel: Panel, names: list[str]) -> tuple[dict[str, float], bool]:
    """(where each value of the panel's setting stands, whether that is to scale).

    Words stand evenly, and numbers of which two would be in each other's way.
    """
    values = list(
        dict.fromkeys(value_of(n) for n in names if MARK in n and line_of(n) in panel.lines)
    )
    even = {v: float(i) for i, v in enumerate(values)}
    try:
        numbers = {v: float(v) for v in values}
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
    theme: Theme,
) -> None:
    factor, words, decimals = METRICS[metric]
    at, numbers = places(panel, names)
    ends: list[tuple[float, str, str]] = []
    missing: list[tuple[float, str]] = []
    taken = {style(name).colour for name in panel.levels}
    colours = [colour for colour in COLOURS if colour not in taken]
    for i, (line, label) in enumerate(panel.lines.items()):
        colour = theme.colour(colours[i % len(colours)])
        aside = 0.0 if panel.ordered else BESIDE * (i - (len(panel.lines) - 1) / 2)
        points: list[tuple[float, Interval, list[float]]] = []
        for value, x in at.items():
            runs = groups.get(f"{line}{MARK}{value}")
            if runs and (values := scores_of(runs, metric)):
                points.append((x + aside, t_interval(values), values))
            elif not runs and f"{line}{MARK}{value}" in names:
                missing.append((x, colour))
        if points:
            y = _line(axes, points, factor, colour, MARKERS[i % len(MARKERS)], joined=panel.ordered)
            ends.append((y, f"{label} {y:.{decimals}f}" if panel.ordered else label, colour))
        else:
            ends.append((math.nan, f"{label}: not run", colour))
    for name, label in panel.levels.items():
        own = style(name)
        colour = theme.colour(own.colour) if own.label != name else theme.muted
        values = scores_of(groups.get(name, []), metric)
        if not values:
            why = "not recorded" if name in groups else "not run"
            ends.append((math.nan, f"{label}: {why}", colour))
            continue
        y = factor * t_interval(values).mean
        axes.axhline(y, color=colour, lw=1.0, ls=own.dash if own.dash != "-" else (0, (5, 3)))
        ends.append((y, f"{label} {y:.{decimals}f}", colour))
    axes.set_xlabel(panel.x)
    axes.set_ylabel(words)
    _ticks(axes, at, numbers, panel.log)
    _write(axes, ends, missing)


def scores_of(runs: list[Record], metric: str) -> list[float]:
    """Each seed's final value of `metric`; none where a record lacks it."""
    values = [run["final"].get(metric) for run in runs]
    return [] if any(v is None for v in values) else [float(v) for v in values]


def _line(
    axes: Axes,
    points: list[tuple[float, Interval, list[float]]],
    factor: float,
    colour: str,
    marker: str,
    joined: bool,
) -> float:
    """Draw one method's points; returns where the line ends."""
    x = [p[0] for p in points]
    y = [factor * p[1].mean for p in points]
    axes.plot(x, y, color=colour, lw=1.6 if joined else 0, marker=marker, ms=4.2, zorder=4)
    for place, interval, values in points:
        if len(values) >= 3:
            axes.errorbar(
                [place],
                [factor * interval.mean],
                [[factor * interval.half]] * 2,
                color=colour,
                lw=0.9,
                capsize=2,
                zorder=3,
            )
        elif len(values) == 2:
            axes.plot([place] * 2, [factor * v for v in values], color=colour, lw=0.8, alpha=0.7)
    return y[-1]


def _ticks(axes: Axes, at: dict[str, float], numbers: bool, log: bool) -> None:
    from matplotlib.ticker import NullLocator

    if not at:
        return
    places = sorted(set(at.values()))
    if log and numbers and places[0] > 0:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        room = (places[-1] / places[0]) ** 0.06 if len(places) > 1 else 2.0
        axes.set_xlim(places[0] / room, places[-1] * room)
    else:
        room = 0.06 * (places[-1] - places[0]) or 0.5
        axes.set_xlim(places[0] - room, places[-1] + room)
    long = [v.replace("-", "-\n") if len(v) > LONG and not numbers else v for v in at]
    axes.set_xticks(list(at.values()), long)


def _write(
    axes: Axes, ends: list[tuple[float, str, str]], missing: list[tuple[float, str]]
) -> None:
    """Label the lines in the margin; "not run" at the foot of every cell that is missing."""
    from matplotlib.ticker import MaxNLocator

    if all(math.isnan(y) for y, _, _ in ends):
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        low, high = axes.get_ylim()
        axes.set_ylim(low - (0.06 * (high - low) if missing else 0.0), high)
        for x, colour in dict(missing).items():
            axes.annotate(
                "not run",
                (x, 0.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                size=6,
                color=colour,
            )
    low, high = axes.get_ylim()
    shares = [0.0 if math.isnan(y) else (y - low) / (high - low) for y, _, _ in ends]
    for (_, text, colour), at in zip(ends, look.spread(shares, 0.08, 0, 1), strict=True):
        axes.text(1.02, at, text, transform=axes.transAxes, size=7.2, color=colour, va="center")
