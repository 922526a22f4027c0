"""Diversity of what is chosen, as a figure and a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jestcli.paper import theme as look
from jestcli.paper.grid import frame
from jestcli.paper.methods import BLUE, GREEN, ORANGE, VERMILLION, style
from jestcli.paper.theme import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED = "diversity.json"
SPANS = {  # column -> what it is called
    "effective_sources": "effective source sets",
    "effective_categories": "effective categories",
    "distinct_captions": "distinct captions, share",
}
THIRDS = {"rare": ORANGE, "middle": GREEN, "frequent": BLUE}


def draw_diversity(
    title: str, measured: list[dict[str, Any]], names: list[str], note: str, path: Path
) -> list[Path]:
    """Write `path`.png, .svg and -dark.png. measured: of stages/diversity.measure_all."""
    return look.both(lambda theme: make_diversity(title, measured, names, note, theme), path)


def make_diversity(
    title: str, measured: list[dict[str, Any]], names: list[str], note: str, theme: Theme
) -> Figure:
    """A row a method: chosen (filled) against random (hollow) batches, and accuracy by how often
    a class is named in the pool."""
    height = 0.32 * max(len(names), 3) + 0.3
    figure, top = frame(
        title,
        "Filled: chosen pairs; hollow: as many random pairs of the same pool. Effective: "
        "exp of the entropy.\nRight: accuracy by how often the pool names a class. Thin lines: "
        "range over seeds.",
        note,
        height + 0.75,
        theme,
    )
    width, left = 1.5, 1.45
    for i, (key, words) in enumerate(SPANS.items()):
        axes = look.place(figure, left + i * (width + 0.3), top + 0.2, width, height)
        for y, name in enumerate(names):
            for kind, filled in (("random", False), ("chosen", True)):
                values = [
                    m[kind][key] for m in measured if m["name"] == name and key in (m[kind] or {})
                ]
                if values:
                    colour = theme.colour(VERMILLION if filled else BLUE)
                    axes.plot([min(values), max(values)], [y, y], color=colour, lw=0.9)
                    axes.plot(
                        [np.mean(values)],
                        [y],
                        "o",
                        ms=5,
                        color=colour,
                        mfc=colour if filled else "none",
                    )
        _rows(axes, names, words, i == 0)
    axes = look.place(figure, left + 3 * (width + 0.3), top + 0.2, width, height)
    for y, name in enumerate(names):
        for third, colour in THIRDS.items():
            values = [
                m["accuracy"][third]
                for m in measured
                if m["name"] == name and third in m["accuracy"]
            ]
            if values:
                axes.plot([100 * np.mean(values)], [y], "D", ms=4, color=theme.colour(colour))
    for i, (third, colour) in enumerate(THIRDS.items()):
        axes.text(
            0.34 * i, 1.03, third, transform=axes.transAxes, size=7, color=theme.colour(colour)
        )
    _rows(axes, names, "accuracy, %", False)
    if not measured:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center")
    return figure


def _rows(axes: Any, names: list[str], words: str, labelled: bool) -> None:
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [style(n).label for n in names] if labelled else [])
    axes.set_xlabel(words, size=7.4)
    axes.tick_params(axis="x", labelsize=7)


def to_markdown(measured: list[dict[str, Any]], names: list[str], note: str) -> str:
    """The same as a table, means over seeds; "not run" where nothing was measured."""
    head = ["method", "seeds", *SPANS.values(), "near-duplicates %", *THIRDS]
    rows = []
    for name in names:
        found = [m for m in measured if m["name"] == name]
        if not found:
            rows.append([style(name).label, *["not run"] * (len(head) - 1)])
            continue
        cells = [style(name).label, str(len(found))]
        for key in SPANS:
            cells.append(_against([m for m in found if key in (m["chosen"] or {})], key))
        pairs = [m["near_duplicates"] for m in found if m["near_duplicates"]]
        cells.append(" / ".join(f"{100 * x:.1f}" for x in np.mean(pairs, 0)) if pairs else "–")
        for third in THIRDS:
            values = [m["accuracy"][third] for m in found if third in m["accuracy"]]
            cells.append(f"{100 * np.mean(values):.1f}" if values else "–")
        rows.append(cells)
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    words = (
        "Chosen / random of the same pool. Near-duplicates: pairs with an image in their own batch "
        "at a cosine of .98 by the reference. Rare, middle, frequent: accuracy in % on each third "
        "of a benchmark's classes by how often the pool's captions name them."
    )
    return "\n".join(lines) + f"\n\n{words} {note}\n"


def _against(found: list[dict[str, Any]], key: str) -> str:
    if not found:
        return "–"
    return " / ".join(f"{np.mean([m[k][key] for m in found]):.2f}" for k in ("chosen", "random"))
