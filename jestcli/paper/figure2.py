"""Figure 2: the learnability matrix, and the learnability of a sub-batch by chunks and ratio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jestcli.paper import theme as look
from jestcli.paper.grid import frame
from jestcli.paper.methods import BLUE, VERMILLION
from jestcli.paper.numbers import FIGURE2_CHUNKS, FIGURE2_RATIOS
from jestcli.paper.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP, SIDE = 0.25, 2.1
MEASURED, MATRIX = "measured.json", "matrix.npy"  # in the experiment's results


def draw_figure2(
    title: str, measured: list[dict[str, Any]], matrix: np.ndarray | None, note: str, path: Path
) -> list[Path]:
    """Write `path`.png, .svg and -dark.png.

    Args:
        measured: one a seed, as of stages/figure2.measure.
        matrix: float [n, n], learner minus reference loss of image i with text j.
        note: on what it was measured.
    """
    return look.both(lambda theme: make_figure2(title, measured, matrix, note, theme), path)


def make_figure2(
    title: str, measured: list[dict[str, Any]], matrix: np.ndarray | None, note: str, theme: Theme
) -> Figure:
    """The figure itself (see `draw_figure2`)."""
    figure, top = frame(
        title,
        "Learnability of a sub-batch chosen by the trained learner from new super-batches; "
        f"mean over seeds ({len(measured)}) and super-batches. Grey: the paper, digitised [P].",
        note,
        2.9,
        theme,
    )
    left = look.place(figure, 0.45, top + TOP, SIDE, SIDE)
    left.set_title("The learnability matrix")
    left.grid(False)
    if matrix is None:
        left.text(0.5, 0.5, "not run", transform=left.transAxes, ha="center")
    else:
        bar = look.place(figure, 0.45 + SIDE + 0.08, top + TOP, 0.09, SIDE)
        _picture(figure, left, bar, matrix.astype(float))
    middle = look.place(figure, 3.75, top + TOP, SIDE, SIDE)
    middle.set_title("By number of chunks, f = .5")
    right = look.place(figure, 6.55, top + TOP, SIDE, SIDE)
    right.set_title("By filter ratio")
    if not measured:
        for axes in (middle, right):
            axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center")
        return figure
    _chunks(middle, measured, theme)
    _ratios(right, measured, theme)
    return figure


def _picture(figure: Figure, axes: Axes, beside: Axes, matrix: np.ndarray) -> None:
    """Colours saturate at the 99th percentile off the diagonal, whose scale is another."""
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    most = float(np.quantile(np.abs(off), 0.99)) or 1.0
    shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    axes.set_xlabel("text (colour: learner − reference, nats)", size=7.6)
    axes.set_ylabel("image")
    axes.set_xticks([])
    axes.set_yticks([])
    bar = figure.colorbar(shown, cax=beside, extend="both")
    bar.ax.tick_params(labelsize=6.5)


def normalised(values: dict[str, list[float]], zero: float, one: float) -> dict[float, float]:
    """Means as 0 at `zero` and 1 at `one`; keys as numbers, ascending."""
    means = {float(k): float(np.mean(v)) for k, v in values.items()}
    return {k: (means[k] - zero) / ((one - zero) or 1.0) for k in sorted(means)}


def pooled(measured: list[dict[str, Any]], key: str) -> dict[str, list[float]]:
    """All seeds' values of a setting together."""
    out: dict[str, list[float]] = {}
    for one in measured:
        for setting, values in one[key].items():
            out.setdefault(setting, []).extend(values)
    return out


def chunk_curves(
    measured: list[dict[str, Any]],
) -> tuple[dict[float, float], dict[float, float], float]:
    """(by chunks, by Gibbs iterations, uniform): 0 is independent selection, 1 the best found."""
    chunks, gibbs = pooled(measured, "chunks"), pooled(measured, "gibbs")
    zero = float(np.mean(chunks["1"]))
    one = max(float(np.mean(v)) for v in [*chunks.values(), *gibbs.values()])
    uniform = float(np.mean([x for m in measured for x in m["uniform"]]))
    return (
        normalised(chunks, zero, one),
        normalised(gibbs, zero, one),
        (uniform - zero) / ((one - zero) or 1.0),
    )


def _chunks(axes: Axes, measured: list[dict[str, Any]], theme: Theme) -> None:
    chunks, gibbs, uniform = chunk_curves(measured)
    colour = theme.colour(BLUE)
    axes.plot(
        list(FIGURE2_CHUNKS),
        list(FIGURE2_CHUNKS.values()),
        color=theme.muted,
        lw=1.0,
        ls=(0, (3, 2)),
        marker="s",
        ms=2.6,
    )
    axes.plot(list(chunks), list(chunks.values()), color=colour, lw=1.8, marker="o", ms=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(chunks), [f"{x:g}" for x in chunks])
    axes.set_xlabel("chunks N (0: independent, 1: best found)", size=7.6)
    axes.set_ylabel("learnability", size=8)
    last = list(gibbs)[-1]
    axes.axhline(gibbs[last], color=theme.colour(VERMILLION), lw=1.0, ls=(0, (4, 2)))
    half = next((n for n, v in gibbs.items() if v >= 0.5), None)
    words = f"Gibbs, {last:,.0f} iterations: {gibbs[last]:.2f}"
    words += f"\n(half way after {half:,.0f})" if half is not None else ""
    words += f"\nuniform: {uniform:.1f}" if abs(uniform) < 100 else ""
    axes.text(
        0.98,
        0.3,
        words,
        transform=axes.transAxes,
        ha="right",
        size=7,
        color=theme.colour(VERMILLION),
    )


def ratio_curve(measured: list[dict[str, Any]]) -> dict[float, float]:
    """By filter ratio: 0 is f = 0 (uniform), 1 is f = .5."""
    ratios = pooled(measured, "ratios")
    return normalised(ratios, float(np.mean(ratios["0.0"])), float(np.mean(ratios["0.5"])))


def _ratios(axes: Axes, measured: list[dict[str, Any]], theme: Theme) -> None:
    curve = ratio_curve(measured)
    axes.plot(
        list(FIGURE2_RATIOS),
        list(FIGURE2_RATIOS.values()),
        color=theme.muted,
        lw=1.0,
        ls=(0, (3, 2)),
        marker="s",
        ms=2.6,
    )
    axes.plot(list(curve), list(curve.values()), color=theme.colour(BLUE), lw=1.8, marker="o", ms=4)
    for x, y in list(curve.items())[2:]:  # the first two are 0 and 1 by definition
        axes.annotate(
            f"{y:.2f}",
            (x, y),
            (-5, 4),
            textcoords="offset points",
            size=7,
            ha="right",
            color=theme.colour(BLUE),
        )
    axes.set_xticks(list(curve), [f"{x:g}" for x in curve], size=7)
    axes.set_xlabel("filter ratio f (0: uniform, 1: f = .5)", size=7.6)
