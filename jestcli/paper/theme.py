"""What figures share: light and dark looks, a frame with its words, labels that do not overlap."""

from __future__ import annotations

import base64
import math
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

WIDTH = 9.0  # inches: shown at about 900 pixels, so one point is 1.4 of them
PHONE = 3.6  # inches: shown at about 390 pixels, so one point is 1.5 of them
FONT = 8.5
DPI = 200
COLOURS_IN_PNG = 200
LINE = 0.15  # inches between labels
# Names for annotations: matplotlib is an extra, and takes a second to import.
Axes: TypeAlias = "matplotlib.axes.Axes"
Figure: TypeAlias = "matplotlib.figure.Figure"
End = tuple[float | None, float, str, str]
DOTTED, DASHED = (0, (1, 1.6)), (0, (5, 3))


@dataclass(frozen=True)
class Theme:
    """Colours as hex. lighter: stands in for colours too dark on this background."""

    name: str
    background: str
    text: str
    muted: str
    grid: str
    lighter: dict[str, str]

    def colour(self, colour: str) -> str:
        """A method's colour on this background ("" is the text colour)."""
        if colour == "grey":
            return self.muted
        return self.lighter.get(colour, colour) or self.text


LIGHT = Theme("light", "#ffffff", "#1f2328", "#7b838c", "#e4e8ec", {})
BRIGHT = {"#0072B2": "#2A7FD0", "#56B4E9": "#7FCBF7"}
DARK = Theme("dark", "#0d1117", "#e6edf3", "#8b949e", "#262c34", BRIGHT)


def themed(theme: Theme) -> AbstractContextManager[None]:
    """matplotlib set up for `theme`; the caller's settings come back afterwards."""
    import matplotlib

    text = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    muted = ("axes.edgecolor", "xtick.color", "ytick.color")
    background = ("axes.facecolor", "figure.facecolor", "savefig.facecolor")
    settings: dict[str, Any] = {
        **dict.fromkeys(text, theme.text),
        **dict.fromkeys(muted, theme.muted),
        **dict.fromkeys(background, theme.background),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        **{"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": FONT},
        **{"axes.titlesize": FONT + 0.5, "axes.titleweight": "bold", "axes.titlelocation": "left"},
        **{"axes.grid": True, "grid.color": theme.grid, "grid.linewidth": 0.6},
        **{"axes.axisbelow": True, "lines.solid_capstyle": "round", "lines.markersize": 4.2},
        **{"svg.hashsalt": "jest", "svg.fonttype": "path"},
    }
    return matplotlib.rc_context(settings)  # type: ignore[arg-type]


def both(draw: Callable[[Theme], Figure], path: Path, vector: bool = True) -> list[Path]:
    """Draw light and dark: `path`.png, `path`-dark.png and, as a vector, `path`.svg (without
    dates): a report shows what has one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    light = (".png", ".svg") if vector else (".png",)
    for theme, endings in ((LIGHT, light), (DARK, ("-dark.png",))):
        with themed(theme):
            figure = draw(theme)
            for ending in endings:
                written.append(path.with_name(path.name + ending))
                keys = ("Date", "Creator") if ending == ".svg" else ("Software",)
                figure.savefig(written[-1], dpi=DPI, metadata=dict.fromkeys(keys))
                if ending != ".svg":
                    _few_colours(written[-1])
    return written


def data_url(content: bytes, kind: str) -> str:
    """A picture within a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _few_colours(path: Path) -> None:
    """A third of the bytes, and no difference to be seen: reports and READMEs load these."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(COLOURS_IN_PNG, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """A figure of `width` by `height` inches outside pyplot, so nothing needs closing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def frame(
    title: str, subtitle: str, note: str, body: float, theme: Theme, width: float = WIDTH
) -> tuple[Figure, float]:
    """An empty figure with its words and where its body begins, inches from the top. width and
    body: inches."""
    title, note = textwrap.fill(title, int(10.5 * width)), textwrap.fill(note, int(18.3 * width))
    subtitle = "\n".join(textwrap.fill(line, int(16.8 * width)) for line in subtitle.split("\n"))
    more = 0.19 * title.count("\n")
    top = 0.6 + more + 0.16 * subtitle.count("\n")
    height = top + body + 0.14 * (note.count("\n") + 1) + 0.1
    figure, muted, left = new_figure(height, width), theme.muted, 0.108 / width
    figure.text(left, 1 - (0.2 + more / 2) / height, title, size=11.5, weight="bold", va="center")
    figure.text(left, 1 - (0.34 + more) / height, subtitle, size=8, color=muted, va="top")
    figure.text(left, 0.06 / height, note, size=6.8, color=muted, va="bottom", linespacing=1.35)
    return figure, top


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at inches from the figure's left and top edges."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def say(axes: Axes, x: float, y: float, text: str, **how: Any) -> None:
    """Write at shares of the axes' width and height."""
    axes.text(x, y, text, transform=axes.transAxes, **{"size": 7.2, **how})


def empty(axes: Axes, words: str = "not run") -> None:
    """Say so in the middle of axes that have nothing to show."""
    axes.set_xticks([])
    axes.set_yticks([])
    say(axes, 0.5, 0.5, words, ha="center", size=FONT)


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write names in the right margin, apart from one another, with a hair line from each end.
    ends: (x, None at the right edge; y, NaN where nothing is drawn; words; colour)."""
    low, high = axes.get_ylim()
    shares = [0.0 if math.isnan(y) else (y - low) / (high - low) for _, y, _, _ in ends]
    whole: Any = axes.figure
    gap = LINE / (axes.get_position().height * whole.get_size_inches()[1])
    for (x, y, words, colour), at in zip(ends, spread(shares, gap, 0, 1), strict=True):
        end, across = (1.0, "axes fraction") if x is None else (x, "data")
        hair = {"arrowstyle": "-", "color": colour, "lw": 0.4, "shrinkA": 0, "shrinkB": 2}
        how: Any = {"xycoords": (across, "data"), "textcoords": "axes fraction"}
        how |= {"va": "center", "size": 7.2, "color": colour, "annotation_clip": False}
        point = end, low if math.isnan(y) else y
        axes.annotate(words, point, (1.03, at), arrowprops=None if math.isnan(y) else hair, **how)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, at least `gap` apart and within [low, high] where they fit: the
    closest by least squares, which is an isotonic regression."""
    from scipy.optimize import isotonic_regression

    if not len(wanted):
        return []
    order = np.argsort(wanted, kind="stable")
    steps = min(gap, (high - low) / max(1, len(wanted) - 1)) * np.arange(len(wanted))
    placed = np.asarray(isotonic_regression(np.clip(wanted, low, high)[order] - steps).x)
    out = np.empty(len(wanted))
    out[order] = np.clip(placed, low, high - steps[-1]) + steps
    return [float(x) for x in out]


def log_ticks(axes: Axes) -> None:
    """A logarithmic x axis with ticks such as 20k, 50k, 100k."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    left, right = axes.get_xlim()
    decades = np.log10(right / left)
    subs = (1.0,) if decades > 2.6 else (1.0, 3.0) if decades > 1.7 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
