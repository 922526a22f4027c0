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

from jestcli.paper import theme as themes
from jestcli.paper.caption import caption
from jestcli.paper.methods import style
from jestcli.paper.panels import MARK
from jestcli.paper.records import Header, Record
from jestcli.paper.saving import MORE, REACHED, Cell, Ratio, cells, over_best, savings
from jestcli.paper.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = {"examples": 13.1, "charged": 9.9}  # Fig. 1, digitised [P]; the paper charges no reference
CONTROLS = ("filtered", "filtered-20", "curated", "mixed", "finetune", "negclip")
WEAK = ("filtered-weak", "curated", "mixed")  # what has no better reference than jest-weak
CURVES = ("jest", "jest-90", "filtered", "filtered-20", "curated", "mixed", "uniform")
# What figure 1 draws: f = .9 instead of .8, axis, over the best control; label, colour.
LINES = (
    (False, "examples", False, "examples, over uniform", "#0072B2"),
    (False, "cached", False, "compute, over uniform", "#E69F00"),
    (False, "charged", False, "… with the reference's", "#D55E00"),
    (False, "charged", True, "the same, over the best control", "#009E73"),
    (True, "examples", False, "examples at f = .9", "#0072B2"),
    (True, "charged", True, "over the best control at f = .9", "#009E73"),
)


def at_quality(records: Sequence[Record]) -> list[Record]:
    """Records under the name method@quality, whatever their length: one curve each. Those that read
    no pool (curated@steps) are under their method alone."""
    found = []
    for record in records:
        parts = record["name"].split(MARK)
        if len(parts) >= 2 and not record["name"].startswith("reference"):
            found.append({**record, "name": MARK.join(parts[:-1])})
    return found


def qualities(records: Sequence[Record], method: str = "jest") -> list[float]:
    """Shares of wrong captions that `method` was run at, ascending."""
    names = {record["name"] for record in at_quality(records)}
    parts = [name.split(MARK) for name in names]
    return sorted(float(p[1]) for p in parts if len(p) == 2 and p[0] == method)


def named(method: str, quality: float) -> str:
    """ "jest", .8 -> "jest@0.8"; the curated set alone knows no pool."""
    return method if method == "curated" else f"{method}{MARK}{quality:g}"


def saving(
    records: Sequence[Record], method: str, quality: float, steps: int, axis: str, control: bool
) -> Ratio | None:
    """What `method` saves at one cell of the map; None where a run that it needs is missing."""
    curves = at_quality(records)
    name = named(method, quality)
    if control:
        against = [named(c, quality) for c in (WEAK if method.endswith("weak") else CONTROLS)]
        best = [
            o
            for o in over_best(curves, name, against)
            if _steps(curves, o.savings[0].cell) == steps
        ]
        return best[0].ratio(axis) if best else None
    found = savings(curves, name, named("uniform", quality))
    return next((s.ratio(axis) for s in found if _steps(curves, s.cell) == steps), None)


def _steps(records: Sequence[Record], cell: Cell) -> int:
    return round(cell.examples / records[0]["batch_size"])


# --- figure 1 ------------------------------------------------------------------------------------


def lengths(records: Sequence[Record], method: str = "jest") -> list[int]:
    """Steps that `method` was run for at two or more qualities (at any, if there are none)."""
    at: dict[int, set[str]] = {}
    for record in records:
        parts = record["name"].split(MARK)
        if parts[0] == method and len(parts) == 3:
            at.setdefault(record["steps"], set()).add(parts[1])
    return sorted(n for n, found in at.items() if len(found) > 1) or sorted(at)


def draw_headline(records: list[Record], path: Path, note: str) -> list[Path]:
    """Savings against pool quality at the shortest and longest length, a row for each reference;
    below them the curves at .8 wrong captions."""
    rows = [(m, ends) for m in ("jest", "jest-weak") if (ends := lengths(records, m))]

    def draw(theme: Theme) -> Figure:
        height = 4.25 + 3.3 * len(rows)
        figure = themes.new_figure(height)
        for i, (method, ends) in enumerate(rows):
            top = 1.05 + 3.3 * i
            for k, length in enumerate(dict.fromkeys((ends[0], ends[-1]))):
                axes = themes.place(figure, 0.75 + 4.25 * k, top, 3.6, 2.35)
                _savings(axes, records, method, length, theme, first=(i, k) == (0, 0))
        _curves(themes.place(figure, 0.75, height - 3.3, 5.6, 2.4), records, 0.8, theme)
        figure.text(
            0.02,
            1 - 0.2 / height,
            "What JEST saves, by the quality of the pool",
            weight="bold",
            size=themes.FONT + 3,
        )
        figure.text(0.02, 0.008, _wrapped(note, 150), color=theme.muted, size=themes.FONT - 2.2)
        return figure

    return themes.both(draw, path)


def _savings(
    axes: Axes, records: list[Record], method: str, steps: int, theme: Theme, first: bool
) -> None:
    """The lines of LINES at one length, with intervals; arrows where there is only a bound."""
    shown = qualities(records, method)
    axes.set_yscale("log", base=2)
    for number, (harder, axis, control, label, colour) in enumerate(LINES):
        x = [q + 0.011 * (number - 2.5) for q in shown]
        name = method.replace("jest", "jest-90") if harder else method
        found = [saving(records, name, q, steps, axis, control) for q in shown]
        there = [(a, r) for a, r in zip(x, found, strict=True) if r is not None]
        if not there:
            continue
        colour = theme.colour(colour)
        alone = all(math.isnan(r.low) for _, r in there)  # single seeds are never joined
        axes.plot(
            [a for a, _ in there],
            [r.ratio for _, r in there],
            marker="D" if harder else "o",
            ms=4.5,
            color=colour,
            ls="" if alone else "--" if harder else "-",
            mfc=theme.background if alone else colour,
            label=label,
            zorder=3,
        )
        for a, r in there:
            if not math.isnan(r.low):
                top = r.high if math.isfinite(r.high) else r.ratio
                axes.plot([a, a], [max(r.low, 2**-6), top], color=colour, lw=1.2, zorder=2)
            if r.status == MORE:
                axes.annotate(
                    "",
                    (a, r.ratio * 1.5),
                    (a, r.ratio),
                    arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.2},
                )
    axes.axhline(1, color=theme.text, lw=0.8)
    for axis, words in (("examples", "paper: ×13.1 examples"), ("charged", "paper: ×9.9 FLOPs")):
        axes.axhline(PAPER[axis], color=theme.muted, lw=0.8, ls=":")
        up = axis == "examples"
        axes.text(
            0.0,
            PAPER[axis] * (1.06 if up else 0.94),
            words,
            size=themes.FONT - 2,
            color=theme.muted,
            va="bottom" if up else "top",
        )
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.09), max(high, 100))
    axes.axhspan(axes.get_ylim()[0], 1, color=theme.grid, alpha=0.55, lw=0, zorder=0)
    axes.text(
        0.02,
        0.02,
        "below 1: JEST costs more",
        transform=axes.transAxes,
        size=themes.FONT - 1.5,
        color=theme.muted,
    )
    axes.set_yticks([2.0**k for k in range(-3, 7)], [*"⅛¼½1248", "16", "32", "64"])
    axes.set_xlim(-0.06, 0.96)
    axes.set_xticks(shown, [f"{100 * q:g} %" for q in shown])
    axes.set_xlabel("wrong captions in the pool")
    size = steps * records[0]["batch_size"] / 1000
    which = "weak" if method.endswith("weak") else "strong"
    axes.set_title(f"{size:,.0f}k examples, {which} reference")
    axes.set_ylabel("times less than the other needs")
    if first:
        axes.legend(
            frameon=False,
            fontsize=themes.FONT - 0.5,
            loc="lower left",
            bbox_to_anchor=(-0.14, 1.09),
            ncols=3,
            columnspacing=1.4,
            handletextpad=0.4,
        )


def _curves(axes: Axes, records: list[Record], quality: float, theme: Theme) -> None:
    """Annealed ends at one quality, all methods, labelled where they end."""
    curves = at_quality(records)
    ends: list[tuple[float, float, str, str]] = []
    axes.set_xscale("log")
    for method in CURVES:
        found = cells(curves, named(method, quality))
        if not found:
            continue
        look = style(method)
        colour = theme.colour(look.colour)
        x, y = [c.examples for c in found], [100 * c.mean for c in found]
        alone = all(len(c.scores) == 1 for c in found)
        axes.plot(
            x,
            y,
            ls="" if alone else look.dash,
            marker=look.marker,
            ms=4,
            color=colour,
            mfc=theme.background if alone else colour,
        )
        for c in found:
            spread = [100 * s for s in c.scores]
            axes.plot([c.examples] * 2, [min(spread), max(spread)], color=colour, lw=1)
        ends.append((x[-1], y[-1], look.label, colour))
    reference = [r["final"]["mean"] for r in records if r["name"] == "reference strong"] or [
        r["final"]["mean"] for r in records if r["name"] == "reference"
    ]
    if reference:
        score = 100 * float(np.mean(reference))
        axes.axhline(score, color=theme.muted, lw=0.8, ls="--")
        axes.text(
            0.01,
            score,
            "the reference itself",
            transform=axes.get_yaxis_transform(),
            va="bottom",
            size=themes.FONT - 1.5,
            color=theme.muted,
        )
    sizes = sorted({c.examples for method in CURVES for c in cells(curves, named(method, quality))})
    axes.set_xticks(sizes, [f"{n / 1000:,.0f}k" for n in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    low, high = axes.get_ylim()
    places = themes.spread([y for _, y, _, _ in ends], (high - low) * 0.075, low, high)
    right = axes.get_xlim()[1]
    for (end, score, label, colour), at in zip(ends, places, strict=True):
        axes.annotate(
            label,
            (end * 1.03, score),
            (min(end * 1.25, right * 1.04), at),
            color=colour,
            va="center",
            annotation_clip=False,
            size=themes.FONT - 0.5,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.4},
        )
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
    from scipy import stats

    curves = at_quality(records)
    methods = sorted({r["name"].split(MARK)[0] for r in curves if r["name"].count(MARK) <= 1})
    every = [c for name in {r["name"] for r in curves} for c in cells(curves, name)]
    df = sum(len(c.scores) - 1 for c in every)
    squares = sum(float(np.var(c.scores)) * len(c.scores) for c in every)
    sd = math.sqrt(squares / df) if df else math.nan
    reach = float(stats.t.ppf(0.975, df)) * sd if df else math.nan
    found: dict[tuple[float, int], list[tuple[str, float, float]]] = {}
    for quality in qualities(records, "uniform"):
        for length in steps:
            rows = []
            for method in methods:
                for cell in cells(curves, named(method, quality)):
                    if _steps(curves, cell) == length:
                        rows.append((method, cell.mean, reach / math.sqrt(len(cell.scores))))
            if len(rows) > 2 and any(method == "jest" for method, _, _ in rows):
                found[quality, length] = sorted(rows, key=lambda row: -row[1])
    return found


def draw_map(records: list[Record], path: Path, note: str, steps: Sequence[int]) -> list[Path]:
    """The best method of each cell and its lead; hatched where the lead is within the error."""
    best = winners(records, steps)

    def draw(theme: Theme) -> Figure:
        from matplotlib.patches import Rectangle

        shown = sorted({q for q, _ in best})
        figure = themes.new_figure(1.75 + 0.95 * len(steps))
        axes = themes.place(figure, 1.2, 0.45, 7.4, 0.95 * len(steps))
        for (quality, length), rows in best.items():
            x, y = shown.index(quality), list(steps).index(length)
            method, score, half = rows[0]
            second = rows[1] if len(rows) > 1 else None
            sure = second is not None and score - second[1] > math.hypot(half, second[2])
            look = style(method)
            axes.add_patch(
                Rectangle(
                    (x, y),
                    0.97,
                    0.94,
                    facecolor=theme.colour(look.colour),
                    alpha=0.28,
                    hatch=None if sure else "///",
                    edgecolor=theme.muted,
                    lw=0.5,
                )
            )
            lead = (
                ""
                if second is None
                else f"\n+{100 * (score - second[1]):.1f} over {style(second[0]).label}"
            )
            axes.text(
                x + 0.485,
                y + 0.47,
                f"{look.label}\n{100 * score:.1f} %{lead}",
                ha="center",
                va="center",
                size=themes.FONT - 1,
            )
        axes.set_xlim(0, len(shown))
        axes.set_ylim(0, len(steps))
        axes.grid(False)
        axes.set_xticks([i + 0.5 for i in range(len(shown))], [f"{100 * q:g} %" for q in shown])
        axes.set_yticks([i + 0.5 for i in range(len(steps))], [f"{n:,}" for n in steps])
        axes.set_xlabel("wrong captions in the pool")
        axes.set_ylabel("steps of 256")
        axes.set_title(
            "The best of all methods run (hatched: its lead is within the error, or one seed)"
        )
        figure.text(0.01, 0.01, _wrapped(note, 150), color=theme.muted, size=themes.FONT - 2.2)
        return figure

    return themes.both(draw, path)


def draw_all(header: Header, records: list[Record], folder: Path) -> list[Path]:
    """Every figure, and cells.md: the answer in sentences and a row for every cell."""
    steps = sorted({r["steps"] for r in records if r["name"].startswith("jest@")}) or [750]
    note = caption(header, records) + strength(records)
    written = draw_headline(records, folder / "figure1", note)
    written += draw_map(records, folder / "map", note, steps)
    written += draw_why(records, folder / "why", note)
    head, rows = table(records)
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]
    page = folder / "cells.md"
    text = [
        "# The map, cell by cell",
        "",
        *answer(records),
        "",
    ]
    page.write_text("\n".join([*text, *lines, "", note, ""]))
    return [*written, page]


def strength(records: Sequence[Record]) -> str:
    """The references' AUC, which stands under every figure; "" where none was measured."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record["name"].startswith("reference") and record["final"].get("auc"):
            found.setdefault(record["name"], []).append(record["final"]["auc"])
    parts = [f"{name} {np.mean(x):.3f}" for name, x in sorted(found.items())]
    if not parts:
        return ""
    return f" AUC of right against wrong captions of unseen pool pairs: {', '.join(parts)}."


# --- why -----------------------------------------------------------------------------------------


def draw_why(records: list[Record], path: Path, note: str) -> list[Path]:
    """JEST's longest runs over time: the share of wrong pairs among those chosen, and the mean
    learnability of right and of wrong pairs, whose sign turns when the learner has passed its
    reference."""
    runs: dict[float, Record] = {}
    for record in records:
        parts = record["name"].split(MARK)
        if parts[0] == "jest" and len(parts) == 3 and record["training"].get("wrong_sub"):
            quality = float(parts[1])
            if quality not in runs or runs[quality]["steps"] < record["steps"]:
                runs[quality] = record
    if not runs:
        return []

    def draw(theme: Theme) -> Figure:
        figure = themes.new_figure(3.7)
        left = themes.place(figure, 0.75, 0.45, 3.4, 2.35)
        right = themes.place(figure, 5.1, 0.45, 3.4, 2.35)
        for number, (quality, run) in enumerate(sorted(runs.items())):
            colour = theme.colour(("#56B4E9", "#E69F00", "#0072B2", "#D55E00")[number % 4])
            training = run["training"]
            steps = training["step"]
            left.plot(steps, [100 * x for x in training["wrong_sub"]], color=colour)
            left.axhline(100 * quality, color=colour, ls=":", lw=0.9)
            left.annotate(
                f"{100 * quality:g} % drawn",
                (steps[0], 100 * quality),
                color=colour,
                va="bottom",
                size=themes.FONT - 1.5,
            )
            for key, dash in (("right", "-"), ("wrong", "--")):
                right.plot(
                    steps,
                    training[f"learnability_{key}"],
                    color=colour,
                    ls=dash,
                    label=f"{key}, q = {quality:g}",
                )
        left.set_ylim(0, 100)
        left.set_xlabel("step")
        left.set_title("Wrong captions among JEST's picks, %")
        right.axhline(0, color=theme.text, lw=0.8)
        right.set_xlabel("step")
        right.set_title("Mean learnability of right and wrong pairs, nats")
        right.legend(frameon=False, fontsize=themes.FONT - 1.5)
        figure.text(0.01, 0.01, _wrapped(note, 150), color=theme.muted, size=themes.FONT - 2.2)
        return figure

    return themes.both(draw, path)


# --- words ---------------------------------------------------------------------------------------


def answer(records: list[Record]) -> list[str]:
    """What figure 1 says, as lines of Markdown: a row for each pool quality and filter ratio at the
    shortest and the longest length, and a sentence. Every number is from the records."""
    curves, found = at_quality(records), lengths(records)
    simpler: list[Ratio] = []
    lines = [
        "| examples | wrong captions | JEST | uniform | best simpler recipe "
        "| fewer examples than uniform | less compute (with the reference's) "
        "| over the simpler recipe that saves most, all charged (reference and scores given) |",
        "|" + " --- |" * 8,
    ]
    ends = dict.fromkeys((found[0], found[-1])) if found else {}
    for steps, quality, method in product(ends, qualities(records), ("jest", "jest-90")):
        scores = {
            name: 100 * cell.mean
            for name in (method, "uniform", *CONTROLS)
            for cell in cells(curves, named(name, quality))
            if _steps(curves, cell) == steps
        }
        axes = ("examples", "cached", "charged")
        over_uniform = [saving(records, method, quality, steps, x, False) for x in axes]
        charged, given = (saving(records, method, quality, steps, x, True) for x in axes[:0:-1])
        controls = [name for name in scores if name in CONTROLS]
        if method not in scores or "uniform" not in scores or charged is None or not controls:
            continue
        best = max(controls, key=scores.__getitem__)
        fewer, less, with_reference = map(_plain, over_uniform)
        size, ratio = f"{steps * records[0]['batch_size'] / 1000:,.0f}k", method[5:] or "80"
        lines.append(
            f"| {size} | {100 * quality:g} % | {scores[method]:.1f} % at f = .{ratio.rstrip('0')} "
            f"| {scores['uniform']:.1f} % | {scores[best]:.1f} % {style(best).label} "
            f"| {fewer} | {less} ({with_reference}) | {_plain(charged)} ({_plain(given)}) |"
        )
        simpler.append(charged)
    sure = [r for r in simpler if not math.isnan(r.low)]
    more, less_than = sum(r.low > 1 for r in sure), sum(r.high < 1 for r in sure)
    if sure:
        lines += [
            "",
            f"Over the best simpler recipe, with everything charged, JEST saves in {more} of these "
            f"{len(sure)} rows that have an interval and costs more in {less_than}; in the others "
            "the interval holds 1.",
        ]
    return lines


def _plain(ratio: Ratio | None) -> str:
    """A saving in a cell of a table; the simpler recipe that it is over, if there is one."""
    if ratio is None:
        return "–"
    text = str(ratio).replace(" (one seed: no interval)", "")
    if ratio.status != REACHED:  # a bound's interval only repeats it
        text = text.partition(" [")[0]
    over = ratio.over.split(MARK)[0]
    return text if over == "uniform" else f"{text}, {style(over).label}"


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def table(records: list[Record]) -> tuple[list[str], list[list[Any]]]:
    """A row for every cell, means over its seeds; "wrong chosen": of the pairs trained on."""
    from jestcli.paper.groups import value

    head = [
        "method",
        "wrong captions",
        "steps",
        "seeds",
        "mean %",
        "icons %",
        "emoji %",
        "nats",
        "wrong chosen",
    ]
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        parts = record["name"].split(MARK)
        if not record["name"].startswith("reference") and len(parts) >= 2:
            groups.setdefault((parts[0], MARK.join(parts[1:-1]), record["steps"]), []).append(
                record
            )
    rows: list[list[Any]] = []
    for (method, quality, steps), runs in sorted(groups.items()):

        def mean(metric: str, factor: float = 1.0, runs: list[Record] = runs) -> str:
            found = [v for r in runs if (v := value(r, metric)) is not None]
            return f"{factor * float(np.mean(found)):.2f}" if found else "–"

        rows.append(
            [
                style(method).label,
                quality or "–",
                f"{steps:,}",
                len(runs),
                mean("mean", 100),
                mean("icons", 100),
                mean("emoji", 100),
                mean("nats"),
                mean("noise"),
            ]
        )
    return head, rows
