"""The pictures of a forecast: score distributions, races, and the place on the map."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from jestcli.forecast.races import RECIPES, Races
from jestcli.forecast.seen import Seen
from jestcli.forecast.share import ESTIMATE, QUANTILE, Share
from jestcli.paper import theme as themes
from jestcli.paper.methods import style
from jestcli.paper.records import Record
from jestcli.paper.saving import cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_scores(seen: Seen, theme: themes.Theme) -> Figure:
    """Scores of the pool as it is and under permuted captions."""
    figure = themes.new_figure(2.9)
    axes = themes.place(figure, 0.5, 0.45, 8.2, 1.9)
    right, wrong = seen.scores.right, seen.scores.wrong.ravel()
    bins = np.linspace(min(right.min(), wrong.min()), max(right.max(), wrong.max()), 80)
    for values, colour, words in (
        (wrong, "grey", "under other pairs' captions"),
        (right, "#0072B2", "as they are"),
    ):
        axes.hist(
            values, bins.tolist(), density=True, alpha=0.55, color=theme.colour(colour), label=words
        )
    cut = float(np.quantile(wrong, QUANTILE))
    axes.axvline(cut, color=theme.text, lw=0.8, ls="--")
    axes.text(
        cut,
        axes.get_ylim()[1],
        f" {100 * QUANTILE:g} % of wrong pairs are below",
        va="top",
        size=themes.FONT - 1,
    )
    axes.set_yticks([])
    axes.set_xlabel("cosine of picture and caption by the reference")
    axes.set_title("What the reference thinks of the pool's pairs")
    axes.legend(frameon=False, loc="upper right")
    return figure


def draw_races(records: list[Record], races: Races, theme: themes.Theme) -> Figure:
    """Annealed ends, hollow where there is one seed; lines as the answer reads between lengths."""
    figure = themes.new_figure(4.0)
    axes = themes.place(figure, 0.7, 0.45, 6.3, 2.9)
    axes.set_xscale("log", base=2)
    ends: list[themes.End] = []
    for name in RECIPES:
        curve, look = cells(records, name), style(name)
        if not curve:
            continue
        x, y = [c.examples for c in curve], [100 * c.mean for c in curve]
        colour = theme.colour(look.colour)
        axes.plot(x, y, ls=look.dash, color=colour, lw=0.9, alpha=0.6)
        for cell in curve:
            alone, scores = len(cell.scores) == 1, [100 * s for s in cell.scores]
            face = theme.background if alone else colour
            axes.plot(cell.examples, 100 * cell.mean, look.marker, ms=5, color=colour, mfc=face)
            axes.plot([cell.examples] * 2, [min(scores), max(scores)], color=colour, lw=1)
        words = f"Filtered, best {100 * races.keep:.0f} %" if name == "filtered" else look.label
        ends.append((x[-1], y[-1], words, colour))
    ticks = sorted({r["steps"] * r["batch_size"] for r in records})
    axes.set_xticks(ticks, [f"{n / 1000:,.3g}k" for n in ticks])
    axes.minorticks_off()
    themes.label_ends(axes, ends)
    axes.set_xlabel("examples trained on (annealed end of a run of that length; hollow: one seed)")
    axes.set_ylabel("mean score, %")
    axes.set_title("The races")
    return figure


def known_map() -> list[dict[str, Any]]:
    """Cells of this suite's own map: q, examples, best, saving, bound."""
    text = files("jestcli.forecast").joinpath("map.json").read_text()
    found: list[dict[str, Any]] = json.loads(text)["cells"]
    return found


def draw_map(share: Share, examples: float, theme: themes.Theme) -> Figure:
    """The cells of the map, and where this pool lies."""
    figure = themes.new_figure(4.2)
    axes = themes.place(figure, 0.9, 0.45, 7.8, 3.1)
    offset: dict[str, Any] = {"textcoords": "offset points"}
    for cell in known_map():
        look, x, y = style(cell["best"]), cell["q"], cell["examples"]
        axes.plot(x, y, look.marker, color=theme.colour(look.colour), ms=6)
        words, point = f"{look.label}\n(JEST {cell['bound']}×{cell['saving']:.2g})", (x, y)
        axes.annotate(words, point, (0, 6), ha="center", size=themes.FONT - 2.5, **offset)
    at = share.looks_wrong
    axes.errorbar(
        [at.value],
        [examples],
        xerr=[[at.value - at.low], [at.high - at.value]],
        fmt="*",
        ms=13,
        color=theme.text,
        capsize=3,
    )
    if share.kind != ESTIMATE:
        axes.annotate(
            "",
            (0, examples),
            (at.value, examples),
            arrowprops={"arrowstyle": "->", "color": theme.text},
        )
    axes.set_yscale("log", base=2)
    axes.set_xlim(-0.1, 1.1)
    ticks = sorted({c["examples"] for c in known_map()} | {examples})
    axes.set_yticks(ticks, [f"{n / 1000:,.3g}k" for n in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * 1.7)
    axes.set_xlabel("share of wrong captions (star: what the reference cannot tell, of your pool)")
    axes.set_ylabel("examples")
    axes.set_title(
        "Where you are on the map: each cell's best recipe, and what JEST saves over uniform"
    )
    return figure


def as_svg(draw: Any) -> dict[str, str]:
    """The picture in light and in dark, as data addresses."""
    out = {}
    for theme in (themes.LIGHT, themes.DARK):
        content = io.BytesIO()
        with themes.themed(theme):
            draw(theme).savefig(content, format="svg", metadata={"Date": None, "Creator": None})
        coded = base64.b64encode(content.getvalue()).decode()
        out[theme.name] = f"data:image/svg+xml;base64,{coded}"
    return out
