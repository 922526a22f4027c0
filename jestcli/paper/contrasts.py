"""Contrasts of conditions, and the words in which an experiment's file states them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from jestcli.paper.methods import line_of, style, value_of

SHOWN = 80  # characters of what is no contrast


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of conditions. weights: (condition, weight), adding up to 0; what is claimed
    is that it is above 0 or, with `equal`, that it is 0 within a margin."""

    says: str
    weights: tuple[tuple[str, float], ...]
    equal: bool = False

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.weights)

    def turned(self) -> Contrast:
        """The other way round."""
        weights = tuple((name, -weight) for name, weight in self.weights)
        return replace(self, says=f"minus ({self.says})", weights=weights)


def difference(a: str, b: str, says: str = "", equal: bool = False) -> Contrast:
    """a - b."""
    return _contrast([[a], [b]], says, equal)


def interaction(a: str, b: str, c: str, d: str, says: str = "") -> Contrast:
    """(a - b) - (c - d): by how much more a is above b than c is above d."""
    return _contrast([[a], [b], [c], [d]], says)


def label(name: str) -> str:
    """A run's name in words: "joint@0.9" is "joint at 0.9"."""
    words = style(line_of(name)).label
    return f"{words} at {value_of(name)}" if value_of(name) else words


def parse_contrasts(text: str) -> tuple[Contrast, ...]:
    """Of "a > b; a ~ b; a - b > c - d": a is above b, level with it, by more above b than c is
    above d. "a, b" stands for the mean of a and b; "(words)" behind a contrast say it in the
    report. Raises ValueError."""
    return tuple(_parse(part) for each in text.split(";") if (part := " ".join(each.split())))


def _parse(text: str) -> Contrast:
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    body, opened, says = text.partition(" (")
    sides = re.split(r" ([>~]) ", body)
    terms = [[side.split(", ") for side in half.split(" - ")] for half in sides[::2]]
    whole = len(sides) == 3 and len(terms[0]) == len(terms[1]) <= 2
    named = all(name.strip(" ,->~") for half in terms for side in half for name in side)
    closed = not opened or (says.endswith(")") and len(says) > 1)
    if not (whole and named and closed):
        raise ValueError(f"{shown!r} is no contrast: expected a > b, a ~ b or a - b > c - d")
    if terms[0] == terms[1]:
        raise ValueError(f"{shown!r} compares a run with itself")
    return _contrast([*terms[0], *terms[1]], says[:-1], sides[1] == "~")


def _contrast(sides: list[list[str]], says: str, equal: bool = False) -> Contrast:
    """Of two or four means of conditions."""
    signs = (1.0, -1.0, -1.0, 1.0)
    weights = [
        (name, sign / len(side)) for sign, side in zip(signs, sides, strict=False) for name in side
    ]
    means = [
        f"the mean of {', '.join(map(label, side))}" if side[1:] else label(side[0])
        for side in sides
    ]
    halves = [" minus ".join(means[i : i + 2]) for i in range(0, len(means), 2)]
    words = says or (halves[0] if len(halves) < 2 else " minus ".join(f"({x})" for x in halves))
    return Contrast(words, tuple(weights), equal)
