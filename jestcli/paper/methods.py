"""How each method is called and drawn: one place, so that every figure and table agrees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"  # Okabe and Ito's
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARK = "@"  # "jest@0.8" is the point at 0.8 of the line "jest"
Dash = str | tuple[int, tuple[float, ...]]
SOLID: Dash = "-"
SHORT: Dash = (0, (1.2, 1.2))
LONG: Dash = (0, (4, 1.5, 1, 1.5))
CHAIN: Dash = (0, (6, 1.5))


@dataclass(frozen=True)
class Style:
    """A method's words and look; the colour "" is the text's. main: one of the paper's methods or
    their baseline, drawn thick."""

    label: str
    colour: str
    dash: Dash = SOLID
    marker: str = "o"
    main: bool = False


STYLES: dict[str, Style] = {
    "uniform": Style("Uniform", "grey", marker="s", main=True),
    "uniform-4e-3": Style("Uniform at rate 4e-3", "grey", LONG, "s"),
    "uniform-flops": Style("Uniform, same FLOPs", "grey", CHAIN, "s"),
    "uniform-long": Style("Uniform, long", "", marker="s", main=True),
    "flexi-uniform": Style("Uniform, two res.", "grey", LONG, "d"),
    "jest": Style("JEST", BLUE, marker="o", main=True),
    "jest++": Style("JEST++", SKY, marker="P", main=True),
    "flexi": Style("Flexi-JEST", VERMILLION, marker="D", main=True),
    "flexi-long": Style("Flexi-JEST, long", VERMILLION, CHAIN, "d", main=True),
    "flexi++": Style("Flexi-JEST++", ORANGE, marker="X", main=True),
    "jest-curated": Style("JEST, ¼ curated", SKY, SHORT, "h"),
    "cabs": Style("CABS-DM", PURPLE, SHORT, "X"),
    "curated": Style("Curated only", GREEN, marker="^"),
    "curated++": Style("Curated++ only", GREEN, LONG, "^"),
    "mixed": Style("Curated + pool", PURPLE, marker="v"),
    "finetune": Style("Fine-tuned ref.", PURPLE, LONG, "v"),
    "finetune-1e-3": Style("Fine-tuned, rate 1e-3", PURPLE, SHORT, "v"),
    "finetune-slow": Style("Fine-tuned, rate 2.5e-4", PURPLE, SHORT, "^"),
    "filtered": Style("Filtered, best 5 %", ORANGE, SHORT, "D"),
    "cosine": Style("Filtered, cosine", ORANGE, SHORT, "D"),
    "filtered-20": Style("Filtered, best 20 %", ORANGE, CHAIN, "d"),
    "jest-90": Style("JEST, f = .9", BLUE, CHAIN, "P"),
    "jest-weak": Style("JEST, weak ref.", SKY, LONG, "o"),
    "filtered-weak": Style("Filtered, weak ref.", YELLOW, LONG, "d"),
    "independent": Style("Independent", PURPLE, CHAIN, "x"),
    "easy": Style("Easy reference", PURPLE, SOLID, "s"),
    "negclip": Style("Filtered, negCLIP", YELLOW, SHORT, "d"),
    "reference": Style("Reference", GREEN, (0, (1, 2)), "*"),
    "reference++": Style("Reference++", SKY, (0, (1, 2)), "*"),
}
REFERENCES = ("reference", "reference++")


def style(name: str) -> Style:
    """The style of `name`; an unknown name gets its own colour and is its own label."""
    if name in STYLES:
        return STYLES[name]
    number = sum(map(ord, name))
    marker, colour = "PXhpd<>"[number % 7], COLOURS[number % len(COLOURS)]
    return Style(name, colour, (0, (3, 1, 1, 1, 1, 1)), marker)


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct names: the known ones in table order, then the unknown ones by alphabet."""
    present = set(names)
    return [*(name for name in STYLES if name in present), *sorted(present - set(STYLES))]


def is_reference(name: str) -> bool:
    """Whether `name` is a reference's own training, not a learner's."""
    return name in REFERENCES or name.startswith("reference ")


def line_of(name: str) -> str:
    """ "jest@0.8" -> "jest"."""
    return name.partition(MARK)[0]


def value_of(name: str) -> str:
    """ "jest@0.8" -> "0.8"; "" where there is none."""
    return name.partition(MARK)[2]
