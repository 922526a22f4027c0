"""Learnability over training, and the learning curve of each benchmark."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jestcli.paper import theme as look
from jestcli.paper.caption import caption
from jestcli.paper.figure1 import plain_log_ticks
from jestcli.paper.methods import in_order, is_reference, style
from jestcli.paper.records import Header, Record
from jestcli.paper.statistics import by_name, seed_curve
from jestcli.paper.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_benchmarks(header: Header, records: list[Record], path: Path) -> list[Path]:
    """Small multiples, one benchmark a panel: `path`.png, .svg and -dark.png."""
    return look.both(lambda theme: _benchmarks(header, records, theme), path)


def draw_learnability(header: Header, records: list[Record], path: Path) -> list[Path]:
    """Learnability of super- and sub-batch over training: `path`.png, .svg and -dark.png."""
    return look.both(lambda theme: _learnability(header, records, theme), path)


def _frame(title: str, subtitle: str, note: str, body: float, theme: Theme) -> Figure:
    """An empty figure with its words; `body` inches remain from 0.75 below the top."""
    note = textwrap.fill(note, 172)
    height = 0.75 + body + 0.14 * (note.count("\n") + 1) + 0.08
    figure = look.new_figure(height)
    figure.text(0.012, 1 - 0.2 / height, title, size=11.5, weight="bold", va="center")
    figure.text(0.012, 1 - 0.42 / height, subtitle, size=8, color=theme.muted, va="center")
    figure.text(
        0.012, 0.06 / height, note, size=6.8, color=theme.muted, va="bottom", linespacing=1.35
    )
    return figure


# --- benchmarks ----------------------------------------------------------------------------------


def _benchmarks(header: Header, records: list[Record], theme: Theme) -> Figure:
    groups = by_name([r for r in records if not is_reference(r["name"])])
    names = in_order(groups)
    about = {k: v for r in records for k, v in r["benchmarks"].items()}
    rows = max(1, (len(about) + 3) // 4)
    figure = _frame(
        "Each benchmark by training examples",
        f"Scores in %; {_bands(records)}dotted: chance.",
        caption(header, records),
        rows * 2.15 + 0.3,
        theme,
    )
    for i, benchmark in enumerate(about):
        left, top = 0.42 + 2.16 * (i % 4), 0.75 + 2.15 * (i // 4)
        axes = look.place(figure, left, top, 1.78, 1.5)
        for name in names:
            _small(axes, groups[name], name, benchmark, theme)
        axes.axhline(100 * about[benchmark]["chance"], color=theme.muted, lw=0.8, ls=(0, (1, 1.6)))
        axes.set_xscale("log")
        plain_log_ticks(axes, sparse=True)
        axes.tick_params(labelsize=7)
        axes.set_title(benchmark, size=8.5)
        axes.set_ylim(bottom=0)
    _legend(figure, names, theme)
    return figure


def _bands(records: list[Record]) -> str:
    most = max((len(runs) for runs in by_name(records).values()), default=0)
    return "bands (of the thick lines): 95 % t-interval over seeds; " if most >= 3 else ""


def _small(axes: Axes, runs: list[Record], name: str, benchmark: str, theme: Theme) -> None:
    if not all(benchmark in run["benchmarks"] for run in runs):
        return
    curve, how = seed_curve(runs, benchmark), style(name)
    colour, x = theme.colour(how.colour), curve.cost["examples"]
    if len(runs) >= 3 and how.main:
        axes.fill_between(x, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.13, lw=0)
    axes.plot(x, 100 * curve.mean, color=colour, lw=1.4 if how.main else 0.9, ls=how.dash)


def _legend(figure: Figure, names: list[str], theme: Theme) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=theme.colour(s.colour),
            ls=s.dash,
            lw=1.9 if s.main else 1.2,
            label=s.label,
        )
        for s in map(style, names)
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=min(6, len(handles)),
            frameon=False,
            bbox_to_anchor=(0.5, 0.45 / figure.get_size_inches()[1]),
            fontsize=7.8,
            handlelength=2.2,
            columnspacing=1.4,
        )


# --- learnability --------------------------------------------------------------------------------


def _learnability(header: Header, records: list[Record], theme: Theme) -> Figure:
    groups = {
        name: runs
        for name, runs in by_name(records).items()
        if any(v is not None for run in runs for v in run["training"]["sub"])
    }
    used = [run for runs in groups.values() for run in runs]
    figure = _frame(
        "Learnability of what is drawn and of what is chosen",
        "Learner's loss minus reference's, nats a pair, within the batch named. Thick: chosen "
        "sub-batch; thin: whole super-batch. Mean over seeds.",
        caption(header, used),
        3.45,
        theme,
    )
    axes = look.place(figure, 0.6, 0.65, 6.9, 2.95)
    ends: list[tuple[float, str, str]] = []
    furthest = 0.0
    for name in in_order(groups):
        how = style(name)
        colour = theme.colour(how.colour)
        for key, words, width in (("sub", "chosen", 1.9), ("super", "all", 0.9)):
            steps, values = _mean_training(groups[name], key)
            if not len(steps):
                continue
            furthest = max(furthest, float(steps[-1]))
            axes.plot(steps, values, color=colour, lw=width, ls=how.dash)
            ends.append((float(values[-1]), f"{how.label}, {words}", colour))
    axes.set_xlabel("step")
    axes.set_ylabel("nats a pair")
    if not ends:
        axes.text(0.5, 0.5, "no run selects", transform=axes.transAxes, ha="center")
        return figure
    low, high = axes.get_ylim()
    shares = [(value - low) / (high - low) for value, _, _ in ends]
    for (_, words, colour), at in zip(ends, look.spread(shares, 0.056, 0, 1), strict=True):
        axes.text(1.01, at, words, transform=axes.transAxes, size=7.6, color=colour, va="center")
    axes.set_xlim(0, furthest)
    return figure


def _mean_training(runs: list[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, mean over seeds) of a training quantity at the steps that all seeds logged."""
    series = [
        {
            s: v
            for s, v in zip(r["training"]["step"], r["training"][key], strict=True)
            if v is not None
        }
        for r in runs
    ]
    steps = sorted(set.intersection(*map(set, series)))
    return np.array(steps), np.array([np.mean([one[s] for one in series]) for s in steps])
