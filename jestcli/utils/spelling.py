"""English words as they are compared: in lower case and singular."""

from __future__ import annotations

import re

# They say how an icon is drawn or in which size, not what it shows.
STYLE_WORDS = (
    *("fill", "filled", "solid", "outline", "outlined", "line", "linear", "bold", "thin", "light"),
    *("regular", "duotone", "twotone", "simple", "straight", "alt", "mini", "micro", "small"),
    *("circle", "circled", "square", "squared", "12", "16", "20", "24", "28", "32", "48"),
)
_WORDS = re.compile(r"[^\W_]+")
# Plurals that end in s and singulars that do too.
_NOT_PLURAL = (
    *("ss", "us", "is", "os", "as", "news", "lens", "series", "gps", "css", "https", "ios", "dns"),
    *("scissors", "pants", "glasses", "headphones", "binoculars", "goggles", "stairs"),
)


def singular(word: str) -> str:
    """An English noun without its plural ending; words that are no plural stay."""
    if len(word) <= 3 or not word.endswith("s") or word.endswith(_NOT_PLURAL):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("xes", "ches", "shes", "sses")):
        return word[:-2]
    return word[:-1]


def words_of(text: str) -> tuple[str, ...]:
    """Its words in lower case and singular: "Circles-Filled" -> circle, filled."""
    return tuple(singular(word) for word in _WORDS.findall(text.lower()))
