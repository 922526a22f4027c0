"""The paper's Figure 1 on this data: score against examples, FLOPs and seconds, with speed-ups.

The paper's methods and their baseline are lines. Of the controls, only where they end is marked:
as lines they hid the rest. paper/finals.py has a row for each.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jestcli.paper import theme as look
from jestcli.paper.caption import caption, hardware
from jestcli.paper.methods import (
    REFERENCES,
    Style,
    in_order,
    is_control,
    is_reference,
    style,
)
from jestcli.paper.numbers import FIGURE1
from jestcli.paper.records import Header, Record
from jestcli.paper.statistics import (
    BASELINE,
    SpeedUp,
    best_of_curve,
    by_name,
    finals,
    find_target,
    seed_curve,
    speed_up,
    totals,
)
from jestcli.paper.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONVENTION = "cached"
PANEL_WIDTH, PANEL_HEIGHT, PANEL_TOP, PANEL_STEP = 2.72, 2.75, 0.72, 3.5
COLUMNS = (0.58, 5.02)  # left edges of the panels, inches
LABEL_GAP = 0.055  # least distance of labels, as a share of a panel's height
Panels = Sequence[str]


@dataclass(frozen=True)
class End:
    """Where a line ends, and what to write there."""

    x: float
    y: float
    text: str
    colour: str
    bold: bool


def draw_figure1(
    header: Header,
    records: list[Record],
    path: Path,
    overlay: list[Record] | None = None,
    panels: Panels = ("examples", "flops", "seconds"),
) -> list[Path]:
    """Write `path`.png, `path`.svg and `path`-dark.png; returns the paths written.

    Args:
        records: drawn solid, mean over seeds with its t-interval (each seed, if fewer than three).
        overlay: another machine's runs, drawn dashed with circles over them and labelled so.
        panels: what the x axes are: "examples", "flops" (% of the long uniform run's, reference
            cached, nothing re-used), "seconds".
    """
    return look.both(lambda theme: make_figure1(header, records, theme, overlay, panels), path)


def make_figure1(
    header: Header,
    records: list[Record],
    theme: Theme,
    overlay: list[Record] | None = None,
    panels: Panels = ("examples", "flops", "seconds"),
) -> Figure:
    """The figure itself, in the colours of `theme` (see `draw_figure1`)."""
    overlay = overlay or []
    note = textwrap.fill(_note(header, records, overlay), 172)
    rows = (len(panels) + 1) // 2
    height = PANEL_TOP + rows * PANEL_STEP + 0.14 * (note.count("\n") + 1) + 0.05
    figure = look.new_figure(height)
    everything = records + overlay
    tasks = len({b for r in everything for b in r["benchmarks"]})
    title = header.data[:1].upper() + header.data[1:]
    title += f": mean of {tasks} benchmarks" if tasks else ""
    figure.text(0.012, 1 - 0.2 / height, title, size=11.5, weight="bold", va="center")
    figure.text(
        0.012,
        1 - 0.42 / height,
        _subtitle(records, overlay),
        size=8,
        color=theme.muted,
        va="center",
    )
    figure.text(
        0.012, 0.06 / height, note, size=6.8, color=theme.muted, va="bottom", linespacing=1.35
    )
    speed_ups = [speed_up(records, name) for name in _arrow_names(records)]
    for i, axis in enumerate(panels):
        left, top = COLUMNS[i % 2], PANEL_TOP + 0.1 + PANEL_STEP * (i // 2)
        axes = look.place(figure, left, top, PANEL_WIDTH, PANEL_HEIGHT)
        if everything:
            _panel(axes, axis, records, overlay, speed_ups, theme)
        else:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center")
        if i % 2 == 0:
            axes.set_ylabel("mean score, %")
    if len(panels) % 2 == 1 and len(panels) > 1:
        top = PANEL_TOP + 0.1 + PANEL_STEP * (rows - 1)
        axes = look.place(figure, COLUMNS[1] - 0.12, top, 4.0, PANEL_HEIGHT)
        _summary(axes, records, speed_ups, theme)
    return figure


# --- one panel -----------------------------------------------------------------------------------


def _panel(
    axes: Axes,
    axis: str,
    records: list[Record],
    overlay: list[Record],
    speed_ups: list[SpeedUp],
    theme: Theme,
) -> None:
    groups, over = by_name(records), by_name(overlay)
    scale, words = _axis(axis, groups or over)
    ends = []
    learners = in_order(n for n in groups if not is_reference(n))
    for name in learners:
        mark = is_control(name) and not all(map(is_control, learners))
        ends.append(_line(axes, groups[name], axis, scale, style(name), theme, mark=mark))
    for name in in_order(n for n in over if not is_reference(n)):
        ends.append(_line(axes, over[name], axis, scale, style(name), theme, overlaid=True))
    axes.set_xscale("log")
    axes.locator_params(axis="y", integer=True)
    plain_log_ticks(axes)
    axes.set_xlabel(words)
    axes.set_title(
        {
            "examples": "Training examples",
            "flops": "Training FLOPs",
            "seconds": "CPU seconds",
            "joules": "Energy",
        }[axis]
    )
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), high + 0.04 * (high - low))
    _levels(axes, groups, theme)
    _arrows(axes, axis, scale, groups, speed_ups, theme)
    _write_ends(axes, ends, theme)


def _axis(axis: str, groups: dict[str, list[Record]]) -> tuple[float, str]:
    """(what one unit of the raw x becomes, the axis's words)."""
    if axis == "examples":
        return 1.0, "training examples (pairs in gradient steps)"
    if axis == "seconds":
        return 1.0, "CPU seconds of drawing, choosing and updating"
    if axis == "joules":
        return 1.0, "joules of the whole machine, evaluations included"
    name = next((n for n in (BASELINE, "uniform") if n in groups), None)
    if name is None:
        return 1e-12, "TFLOPs, reference cached"
    what = "long uniform run" if name == BASELINE else "uniform run"
    return 100 / totals(groups[name])[CONVENTION], f"% of the {what}, reference cached"


def _line(
    axes: Axes,
    runs: list[Record],
    axis: str,
    scale: float,
    how: Style,
    theme: Theme,
    overlaid: bool = False,
    mark: bool = False,
) -> End:
    """Draw a method's curve, or (mark) only its end; returns where to write its name."""
    curve, colour = seed_curve(runs), theme.colour(how.colour)
    x = scale * curve.cost[CONVENTION if axis == "flops" else axis]
    y = 100 * curve.mean
    if overlaid:
        axes.plot(
            x,
            y,
            color=colour,
            lw=1.1,
            ls=(0, (4, 2)),
            marker="o",
            ms=3.2,
            zorder=5,
            mfc=theme.background,
            mew=1.0,
        )
    elif not mark:
        if len(runs) >= 3:
            axes.fill_between(x, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.16, lw=0)
        elif len(runs) == 2:
            for row in curve.seeds:
                axes.plot(x, 100 * row, color=colour, lw=0.5, alpha=0.7)
        axes.plot(x, y, color=colour, lw=1.9 if how.main else 1.2, ls=how.dash, zorder=4)
    if not overlaid:
        axes.plot(x[-1:], y[-1:], color=colour, marker=how.marker, ms=4.6, zorder=4.5)
    # Short, to fit the margin: "Uniform, here", not "Uniform, long, here".
    label = f"{how.label.partition(',')[0]}, here" if overlaid else how.label
    return End(
        float(x[-1]), float(y[-1]), f"{label} {y[-1]:.1f}", colour, how.main and not overlaid
    )


def _levels(axes: Axes, groups: dict[str, list[Record]], theme: Theme) -> None:
    """Horizontal lines: the long uniform run's final, the references' own, curated-only's best."""
    lines: list[tuple[float, str, str, Any]] = []
    if BASELINE in groups:
        final = float(np.mean(finals(groups[BASELINE])))
        lines.append((100 * final, f"uniform final {100 * final:.1f}", "", (0, (5, 3))))
    for name in REFERENCES:
        if name in groups:
            own = 100 * float(np.mean(finals(groups[name])))
            words = f"{style(name).label.lower()} {own:.1f}"
            lines.append((own, words, style(name).colour, (0, (1, 1.6))))
    if "curated" in groups:
        best = 100 * best_of_curve(groups["curated"])[1]
        lines.append((best, f"curated best {best:.1f}", style("curated").colour, (0, (4, 2))))
    if not lines:
        return
    low, high = axes.get_ylim()
    high = max(high, max(line[0] for line in lines) * 1.03)
    axes.set_ylim(low, high)
    shares = [(line[0] - low) / (high - low) for line in lines]
    placed = spread_above(shares)
    for (y, text, colour, dash), at in zip(lines, placed, strict=True):
        axes.axhline(y, color=theme.colour(colour), lw=0.9, ls=dash, zorder=2)
        axes.text(
            0.015,
            at,
            text,
            transform=axes.transAxes,
            size=6.8,
            color=theme.colour(colour),
            va="center",
            zorder=6,
            bbox=_halo(theme),
        )


def spread_above(shares: Sequence[float]) -> list[float]:
    """Where to write the horizontal lines' names: just above each, apart from one another."""
    return look.spread([s + 0.026 for s in shares], LABEL_GAP, 0.03, 0.98)


def _halo(theme: Theme) -> dict[str, Any]:
    return {"facecolor": theme.background, "edgecolor": "none", "alpha": 0.75, "pad": 0.6}


def _arrows(
    axes: Axes,
    axis: str,
    scale: float,
    groups: dict[str, list[Record]],
    speed_ups: list[SpeedUp],
    theme: Theme,
) -> None:
    """From the long uniform run's total back to each crossing, just below the target."""
    crossed = [s for s in speed_ups if s.crossed]
    if not crossed:
        return
    key = CONVENTION if axis == "flops" else axis
    target = 100 * float(np.mean(finals(groups[BASELINE])))
    total = scale * totals(groups[BASELINE])[key]
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    for k, found in enumerate(sorted(crossed, key=lambda s: s.at[key])):
        how = style(found.name)
        colour, x = theme.colour(how.colour), scale * found.at[key]
        y = target - (k + 0.8) * 0.085 * (high - low)
        axes.plot([x, x], [y, target], color=colour, lw=0.7, ls=(0, (1, 1.5)), zorder=3)
        axes.plot(
            [x], [target], color=colour, marker=how.marker, ms=3.4, zorder=6, mfc=theme.background
        )
        axes.annotate(
            "",
            (x, y),
            (total, y),
            zorder=3,
            arrowprops={
                "arrowstyle": "-|>,head_width=0.16,head_length=0.32",
                "color": colour,
                "lw": 1.1,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
        short = abs(np.log(total / x)) < 0.2 * np.log(right / left)  # words would hide the arrow
        axes.text(
            x * (total / x) ** 0.42,
            y - (0.045 * (high - low) if short else 0),
            times(found, key),
            size=7.2,
            weight="bold",
            color=colour,
            ha="center",
            va="center",
            zorder=6,
            bbox=_halo(theme) | {"alpha": 0.75 if short else 1.0},
        )


def _write_ends(axes: Axes, ends: list[End], theme: Theme) -> None:
    """Label each line in the margin, with a hair line from its end."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    shares = [(end.y - low) / (high - low) for end in ends]
    for end, share, at in zip(ends, shares, look.spread(shares, LABEL_GAP, 0, 1), strict=True):
        across = np.log(end.x / left) / np.log(right / left)
        axes.plot(
            [across, 1.0, 1.025],
            [share, share, at],
            transform=axes.transAxes,
            color=end.colour,
            lw=0.5,
            alpha=0.6,
            clip_on=False,
            zorder=2.5,
        )
        axes.text(
            1.035,
            at,
            end.text,
            transform=axes.transAxes,
            size=7.4,
            color=end.colour,
            weight="bold" if end.bold else "normal",
            va="center",
        )


def plain_log_ticks(axes: Axes, sparse: bool = False) -> None:
    """Ticks such as 20k, 50k, 100k, and room at the left for the levels' names.

    Args:
        sparse: for a small panel: at most one tick a factor of three, and no extra room.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def write(value: float, _: int) -> str:
        for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:g}{letter}"
        return f"{value:g}"

    left, right = axes.get_xlim()
    decades = np.log10(right / left)
    few = sparse or decades > 1.7
    subs = (1.0,) if decades > 2.6 else (1.0, 3.0) if few else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(write))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left if sparse else left / (right / left) ** 0.08, right)


def times(found: SpeedUp, key: str) -> str:
    """A speed-up by one of AXES in words, such as ×3.1."""
    sign = "≥ " if found.status == "at first evaluation" else ""
    return f"{sign}×{found.factor[key]:.1f}"


# --- words ---------------------------------------------------------------------------------------


def _arrow_names(records: list[Record]) -> list[str]:
    names = in_order(r["name"] for r in records)
    return [n for n in names if style(n).main and n not in ("uniform", BASELINE)]


def _subtitle(records: list[Record], overlay: list[Record]) -> str:
    most = max((len(runs) for runs in by_name(records).values()), default=0)
    words = ["nothing run", "one seed", "each of two seeds and their mean"]
    lines = words[most] if most < 3 else "mean over seeds, band: 95 % t-interval"
    out = f"Lines: {lines}."
    if any(r["name"] == BASELINE for r in records):
        out += " Dashed level: the long uniform run's final"
        crossed = any(speed_up(records, name).crossed for name in _arrow_names(records))
        out += "; arrows: cost to reach it." if crossed else "."
    if any(is_control(r["name"]) for r in records):
        out += " Marks alone: where the controls end."
    if overlay:
        seeds = ", ".join(map(str, sorted({r["seed"] for r in overlay})))
        out += f"\nDashed with circles (“here”): this machine, seed {seeds}, "
        out += "over the committed curves."
    return out


def _note(header: Header, records: list[Record], overlay: list[Record]) -> str:
    out = caption(header, records)
    if overlay:
        out += f" This machine: {hardware(overlay)}."
    return out


def _summary(axes: Axes, records: list[Record], speed_ups: list[SpeedUp], theme: Theme) -> None:
    """The speed-ups in words, the target's worth and the paper's own numbers."""
    axes.set_axis_off()
    y = 1.0

    def line(cells: Sequence[str], colour: str = "", **k: Any) -> None:
        nonlocal y
        for x, cell in zip((0.0, 0.46, 0.66, 0.84), cells, strict=False):
            axes.text(
                x,
                y,
                cell,
                transform=axes.transAxes,
                va="top",
                color=theme.colour(colour),
                **{"size": 8, **k},
            )
        y -= 0.075

    groups = by_name(records)
    most = max((len(runs) for runs in groups.values()), default=0)
    target = find_target(records)
    line(["Cost to reach the long uniform run's final"], weight="bold", size=9)
    if target is None:
        line(["The long uniform run was not run: no target."], colour="grey")
    else:
        how = "above chance" if target.valid else "above chance: too few to be a target"
        far = f"{target.standard_errors:.0f} standard errors {how}"
        line([f"target {100 * target.score:.1f} %, {far}"], colour="grey", size=7.4)
    y -= 0.02
    line(["fewer, by a factor of", "examples", "FLOPs", "seconds"], colour="grey", size=7.4)
    for found in speed_ups:
        cells = (
            [times(found, k) for k in ("examples", CONVENTION, "seconds")]
            if found.crossed
            else [{"censored": "never reached"}.get(found.status, found.status)]
        )
        n = len(groups[found.name])
        few = {1: ", one seed", 2: ", two seeds"}.get(n, "") if n < most else ""
        line(
            [style(found.name).label + few, *cells], colour=style(found.name).colour, weight="bold"
        )
        censored = sum(x is None for x in found.per_seed)
        if found.crossed and censored:
            words = f"by its mean curve; {censored} of {len(found.per_seed)} seeds never reach it"
            line([words], colour="grey", size=7.4)
    y -= 0.05
    line(["The paper, on web photographs, at 4B examples"], weight="bold", size=8)
    for name, _, examples, flops, _ in FIGURE1[1:]:
        line([name, f"×{examples}", f"×{flops}", "–"], colour="grey", size=7.6)
    line(["its Fig. 1, digitised [P]; eight other tasks"], colour="grey", size=7)
