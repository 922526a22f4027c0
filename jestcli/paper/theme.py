"""Light and dark looks for figures seen at about 900 pixels, and labels that do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches: shown at about 900 pixels, so one point is 1.4 of them
FONT = 8.5
DPI = 200


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
DARK = Theme(
    "dark", "#0d1117", "#e6edf3", "#8b949e", "#262c34", {"#0072B2": "#2A7FD0", "#56B4E9": "#7FCBF7"}
)


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """matplotlib set up for `theme`; the caller's settings come back afterwards."""
    import matplotlib

    settings: dict[str, Any] = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": FONT,
        "axes.titlesize": FONT + 0.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.text,
        "axes.facecolor": theme.background,
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "text.color": theme.text,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.text,
        "ytick.labelcolor": theme.text,
        "axes.grid": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "lines.solid_capstyle": "round",
        "svg.hashsalt": "jest",
        "svg.fonttype": "path",
    }
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        yield


def save(figure: Figure, path: Path, vector: bool) -> list[Path]:
    """Write `path`.png and, if `vector`, `path`.svg without dates; returns what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(path.name + ".png")]
    figure.savefig(written[0], dpi=DPI, metadata={"Software": None})
    if vector:
        written.append(path.with_name(path.name + ".svg"))
        figure.savefig(written[1], metadata={"Date": None, "Creator": None})
    return written


def both(draw: Callable[[Theme], Figure], path: Path) -> list[Path]:
    """Draw light and dark: `path`.png, `path`.svg and `path`-dark.png; returns the paths."""
    written = []
    for theme in (LIGHT, DARK):
        dark = theme is DARK
        with themed(theme):
            name = path.name + ("-dark" if dark else "")
            written += save(draw(theme), path.with_name(name), vector=not dark)
    return written


def new_figure(height: float) -> Figure:
    """A figure of WIDTH by `height` inches outside pyplot, so nothing needs closing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float, **k: Any) -> Axes:
    """Axes at inches from the figure's left and top edges."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes(
        (
            left / whole_width,
            1 - (top + height) / whole_height,
            width / whole_width,
            height / whole_height,
        ),
        **k,
    )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, at least `gap` apart and within [low, high] where they fit.

    Labels that would overlap are pushed apart around their common centre.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # (centre wanted by the block, labels in it)
    room = high - low
    for i in order:
        blocks.append((min(max(wanted[i], low), high), 1))
        while True:
            centre, n = blocks[-1]
            half = min((n - 1) * gap, room) / 2
            blocks[-1] = (min(max(centre, low + half), high - half), n)
            if len(blocks) < 2:
                break
            (c0, n0), (c1, n1) = blocks[-2:]
            if c1 - c0 >= gap * (n0 + n1) / 2:
                break
            blocks[-2:] = [((c0 * n0 + c1 * n1) / (n0 + n1), n0 + n1)]
    out = [0.0] * len(wanted)
    k = 0
    for centre, n in blocks:
        for j in range(n):
            out[order[k]] = centre + (j - (n - 1) / 2) * gap
            k += 1
    return out
