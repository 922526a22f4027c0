"""Strategies by name. A new one is a function Task -> global indices and a line in SAMPLERS."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor

from jestcli.selection.cabs import cabs
from jestcli.selection.embeddings import check_name
from jestcli.selection.joint import independent, joint, topk
from jestcli.selection.samplers import activeclip, gibbs, rho, uniform
from jestcli.selection.scores import CRITERIA
from jestcli.selection.task import Task

Sampler = Callable[[Task], Tensor]

SAMPLERS: dict[str, Sampler] = {
    "joint": joint,
    "independent": independent,
    "topk": topk,
    "gibbs": gibbs,
    "rho": rho,
    "activeclip": activeclip,
    "uniform": uniform,
    "cabs": cabs,
}
BLIND = {"uniform", "cabs"}  # read no embedding, so the criterion needs no model


def names() -> list[str]:
    """Every name that `find` knows: "joint", "joint/easy_reference", ..., "uniform" and "cabs"."""
    scored = [name for name in SAMPLERS if name not in BLIND]
    return [*SAMPLERS, *(f"{name}/{criterion}" for name in scored for criterion in CRITERIA)]


def find(name: str) -> tuple[Sampler, str | None]:
    """The strategy called `name`, and the criterion that the name fixes, if it does.

    name: an entry of SAMPLERS, "entry/criterion", or "module:function" for a function of yours.
    Raises ValueError for a name that leads nowhere."""
    if not isinstance(name, str):
        raise ValueError(f"sampler must be a name, got {type(name).__name__}")
    if ":" in name:
        return _imported(name), None
    check_name("sampler", name, names())
    sampler, _, criterion = name.partition("/")
    return SAMPLERS[sampler], criterion or None


def _imported(name: str) -> Sampler:
    module_name, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, ValueError, AttributeError) as problem:
        raise ValueError(f"sampler {name!r} cannot be imported: {problem}") from problem
    if not callable(function):
        raise ValueError(f"sampler {name!r} must be a function, got {type(function).__name__}")
    return function
