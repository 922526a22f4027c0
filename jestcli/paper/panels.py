"""How an experiment is drawn, as data: part of its file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

MARK = "@"  # "jest@0.8" is the point at 0.8 of the line "jest"
KINDS = ("curves", "grid", "matrix", "choices", "table", "map")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Panel(_Strict):
    """Final scores by one setting: a line for each name of runs `name@value`.

    lines: name -> label; levels: runs without a value -> label, drawn as horizontal lines; x: what
    the axis is called; log: a logarithmic axis; ordered: whether the setting's values are more and
    less of something (else their points stand side by side and are not joined); metrics: of
    paper/grid.py, at most two.
    """

    title: str
    x: str
    lines: dict[str, str]
    levels: dict[str, str] = {}
    log: bool = False
    ordered: bool = True
    metrics: tuple[Literal["mean", "nats", "noise", "curated"], ...] = ("mean", "nats")


class Figure(_Strict):
    """kind: "curves" (score against cost, Figure 1), "grid" (final scores by a setting, in
    panels), "matrix" (Figure 2), "choices" (what was chosen), "table" (no figure)."""

    kind: Literal["curves", "grid", "matrix", "choices", "table", "map"] = "curves"
    panels: tuple[Panel, ...] = ()


def line_of(name: str) -> str:
    """ "jest@0.8" -> "jest"."""
    return name.partition(MARK)[0]


def value_of(name: str) -> str:
    """ "jest@0.8" -> "0.8"; "" where there is none."""
    return name.partition(MARK)[2]
