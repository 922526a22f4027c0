"""Learning curves: score against examples, FLOPs, seconds and joules, overall and by benchmark, and
learnability over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jestcli.paper import statistics as stats
from jestcli.paper import theme as look
from jestcli.paper.methods import in_order, is_reference, style
from jestcli.paper.records import Header, Record
from jestcli.paper.table import caption, strength
from jestcli.paper.theme import Axes, Figure, Theme

AXES = {
    "examples": "training examples (pairs in gradient steps)",
    "cached": "FLOPs in % of the longest uniform run's, reference cached",
    "seconds": "CPU seconds of drawing, choosing and updating",
    stats.JOULES: "joules of the whole machine, evaluations included",
}


def draw_all(header: Header, records: list[Record], folder: Path) -> list[Path]:
    """figure1: the mean score by what it cost; benchmarks: each by examples; learnability."""
    benchmarks = list({name: None for record in records for name in record["benchmarks"]})
    joules = any(map(stats.has_joules, stats.by_name(records).values()))
    costs = [axis for axis in AXES if joules or axis != stats.JOULES]

    what, of_all = (header, records), f"{header.data}: mean of {len(benchmarks)} benchmarks"
    every, each = [(axis, None) for axis in costs], [("examples", b) for b in benchmarks]
    title = "Each benchmark by training examples"
    return [
        *look.both(lambda t: make_curves(of_all, *what, every, t), folder / "figure1"),
        *look.both(lambda t: make_curves(title, *what, each, t), folder / "benchmarks"),
        *look.both(lambda t: make_learnability(*what, t), folder / "learnability"),
    ]


def make_curves(
    title: str,
    header: Header,
    records: list[Record],
    panels: Sequence[tuple[str, str | None]],
    theme: Theme,
) -> Figure:
    """Two panels a row. panels: (an axis of AXES, a benchmark or None for the mean of all)."""
    words = (
        "Mean over seeds; band: 95 % t-interval, from three seeds on. Levels: the long uniform "
        "run's final, the references' own."
    )
    rows = (len(panels) + 1) // 2
    figure, top = look.frame(title, words, caption(header, records), 3.3 * rows, theme)
    for i, (axis, benchmark) in enumerate(panels):
        axes = look.place(figure, 0.58 + 4.44 * (i % 2), top + 0.25 + 3.3 * (i // 2), 2.72, 2.55)
        axes.set_title(benchmark or " ")
        if records:
            _panel(axes, records, axis, benchmark, theme)
        else:
            look.empty(axes)
    return figure


def seed_curve(
    runs: list[Record], axis: str, benchmark: str | None = None
) -> tuple[np.ndarray, list[stats.Interval]]:
    """(cost so far, mean over seeds; score, mean or one benchmark's) at the steps that all seeds
    evaluated; none where the axis was not counted."""
    points = [{p["step"]: p for p in run["curve"]} for run in runs]
    steps = sorted(set.intersection(*map(set, points)))
    every = [[p[step] for p in points] for step in steps]
    cost = np.array([[p["flops"].get(axis, p.get(axis)) for p in each] for each in every], float)
    scores = [[p["scores"][benchmark] if benchmark else p["mean"] for p in each] for each in every]
    known = not np.isnan(cost).any()
    return (cost.mean(1), list(map(stats.t_interval, scores))) if known else (cost[:0, 0], [])


def _panel(
    axes: Axes, records: list[Record], axis: str, benchmark: str | None, theme: Theme
) -> None:
    groups = stats.by_name(records)
    ends: list[look.End] = []
    whole = groups.get(stats.BASELINE) or groups.get("uniform")
    scale = 100 / stats.totals(whole)["cached"] if axis == "cached" and whole else 1.0
    for name in in_order(groups):
        runs, how = groups[name], style(name)
        colour, thick = theme.colour(how.colour), 1.9 if how.main else 1.0
        if is_reference(name):
            if benchmark is None:
                level = 100 * float(np.mean(stats.finals(runs)))
                axes.axhline(level, color=colour, lw=0.9, ls=look.DOTTED)
                ends.append((None, level, f"{how.label} {level:.1f}", colour))
            continue
        if benchmark and any(benchmark not in run["benchmarks"] for run in runs):
            continue
        cost, curve = seed_curve(runs, axis, benchmark)
        if not curve:
            continue
        x, y = scale * cost, [100 * point.mean for point in curve]
        if len(runs) >= 3 and how.main:
            ends_of = [100 * p.low for p in curve], [100 * p.high for p in curve]
            axes.fill_between(x, *ends_of, color=colour, alpha=0.16, lw=0)
        axes.plot(x, y, color=colour, lw=thick, ls=how.dash)
        axes.plot(x[-1:], y[-1:], color=colour, marker=how.marker)
        ends.append((float(x[-1]), float(y[-1]), f"{how.label} {y[-1]:.1f}", colour))
    if stats.BASELINE in groups and benchmark is None:
        level = 100 * float(np.mean(stats.finals(groups[stats.BASELINE])))
        axes.axhline(level, color=theme.text, lw=0.9, ls=look.DASHED)
    if benchmark:
        chance = next(r["benchmarks"][benchmark]["chance"] for r in records)
        axes.axhline(100 * chance, color=theme.muted, lw=0.8, ls=look.DOTTED)
    look.log_ticks(axes)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(AXES[axis], size=7.6)
    axes.set_ylabel("score, %")
    look.label_ends(axes, ends)


def make_learnability(header: Header, records: list[Record], theme: Theme) -> Figure:
    """Of the chosen sub-batch (thick) and of the whole super-batch (thin), over training."""
    chosen = [r for r in records if any(v is not None for v in r["training"]["sub"])]
    title = "Learnability of what is drawn and of what is chosen"
    words = (
        "Learner's loss minus reference's, nats a pair, within the batch named. Thick: chosen "
        "sub-batch; thin: whole super-batch. Mean over seeds."
    )
    figure, top = look.frame(title, words, caption(header, chosen) + strength(records), 3.45, theme)
    axes, ends, groups = look.place(figure, 0.6, top + 0.05, 6.6, 2.95), [], stats.by_name(chosen)
    for name in in_order(groups):
        how = style(name)
        for key, words, width in (("sub", "chosen", 1.9), ("super", "all", 0.9)):
            series = [_by_step(run, key) for run in groups[name]]
            steps = sorted(set.intersection(*map(set, series)))
            if steps:
                y = [float(np.mean([one[s] for one in series])) for s in steps]
                axes.plot(steps, y, color=theme.colour(how.colour), lw=width, ls=how.dash)
                ends.append((steps[-1], y[-1], f"{how.label}, {words}", theme.colour(how.colour)))
    axes.set_xlabel("step")
    axes.set_ylabel("nats a pair")
    look.label_ends(axes, ends)
    if not ends:
        look.empty(axes, "no run selects")
    return figure


def _by_step(run: Record, key: str) -> dict[int, float]:
    pairs = zip(run["training"]["step"], run["training"][key], strict=True)
    return {step: value for step, value in pairs if value is not None}
