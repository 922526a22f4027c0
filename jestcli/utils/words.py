"""Words that say how an icon is drawn or in which size, not what it shows."""

from __future__ import annotations

STYLE_WORDS = (
    "fill", "filled", "solid", "outline", "outlined", "line", "linear", "bold", "thin", "light",
    "regular", "duotone", "twotone", "simple", "straight", "alt", "mini", "micro", "small",
    "circle", "circled", "square", "squared", "12", "16", "20", "24", "28", "32", "48",
)  # fmt: skip
