"""Where every method and control of Figure 1 ends, and what it cost to get there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jestcli.paper import theme as look
from jestcli.paper.caption import caption
from jestcli.paper.grid import frame
from jestcli.paper.methods import style
from jestcli.paper.records import Header, Record
from jestcli.paper.statistics import BASELINE, by_name, finals, t_interval, totals
from jestcli.paper.theme import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.27
LEFT, WIDTH = 1.35, 4.6
COLUMNS = (("final", 6.5), ("FLOPs", 7.1), ("charged", 7.75), ("seeds", 8.4))  # inches, centres


def draw_finals(header: Header, records: list[Record], path: Path) -> list[Path]:
    """Write `path`.png, .svg and -dark.png; returns the paths.

    A row a method, best first: its final score with the 95 % t-interval over seeds (each seed, if
    fewer than three), and its FLOPs in % of the long uniform run's, reference cached and charged.
    """
    return look.both(lambda theme: make_finals(header, records, theme), path)


def make_finals(header: Header, records: list[Record], theme: Theme) -> Figure:
    """The figure itself (see `draw_finals`)."""
    groups = by_name(records)
    means = {name: float(np.mean(finals(runs))) for name, runs in groups.items()}
    names = sorted(groups, key=lambda name: means[name])  # the best at the top
    body = ROW * (len(names) + 1) + 0.55
    figure, top = frame(
        "Where every method ends, and what it costs",
        "Final mean score; bars: 95 % t-interval over seeds (points alone: each seed). FLOPs in % "
        "of the long uniform run's,\nreference cached; charged: with its training and scoring. "
        "Dashed: the long uniform run's final; dotted: chance.",
        caption(header, records),
        body,
        theme,
    )
    axes = look.place(figure, LEFT, top + 0.3, WIDTH, ROW * len(names))
    base = totals(groups[BASELINE]) if BASELINE in groups else None
    above = 1 + 0.14 / (ROW * len(names))
    for title, at in COLUMNS:
        axes.text(
            (at - LEFT) / WIDTH,
            above,
            title,
            transform=axes.transAxes,
            ha="center",
            size=7.4,
            color=theme.muted,
        )
    for row, name in enumerate(names):
        scores, colour = [100 * x for x in finals(groups[name])], theme.colour(style(name).colour)
        if len(scores) >= 3:
            axes.errorbar(
                [100 * means[name]],
                [row],
                xerr=[t_interval(scores).half],
                color=colour,
                lw=1.0,
                capsize=2.5,
                zorder=3,
            )
        else:
            axes.plot(scores, [row] * len(scores), "|", color=colour, ms=5, zorder=3)
        axes.plot(
            [100 * means[name]], [row], color=colour, marker=style(name).marker, ms=5.2, zorder=4
        )
        for (_, at), text in zip(COLUMNS, _cells(groups[name], means[name], base), strict=True):
            axes.text(
                (at - LEFT) / WIDTH,
                row,
                text,
                transform=axes.get_yaxis_transform(),
                ha="center",
                va="center",
                size=7.6,
            )
    axes.set_yticks(range(len(names)), [style(name).label for name in names])
    for name, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set_color(theme.colour(style(name).colour))
        label.set_fontweight("bold" if style(name).main else "normal")
    axes.tick_params(axis="y", length=0, labelsize=7.8)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean score, %")
    if BASELINE in means:
        axes.axvline(100 * means[BASELINE], color=theme.text, lw=0.9, ls=(0, (5, 3)), zorder=2)
    chances = {b: v["chance"] for r in records for b, v in r["benchmarks"].items()}
    if chances:
        chance = 100 * float(np.mean(list(chances.values())))
        axes.axvline(chance, color=theme.muted, lw=0.9, ls=(0, (1, 1.6)), zorder=2)
    return figure


def _cells(runs: list[Record], mean: float, base: dict[str, float] | None) -> list[str]:
    """What stands right of a row: score, both costs, seeds."""
    spent, out = totals(runs), [f"{100 * mean:.1f}"]
    for convention in ("cached", "charged"):
        out.append(f"{100 * spent[convention] / base[convention]:.0f} %" if base else "–")
    return [*out, str(len(runs))]
