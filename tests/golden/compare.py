"""Where two records differ: exactly, or by more than rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

# A key's bias in attention has no gradient but rounding, which AdamW scales up to a whole step.
ROUNDING = "in_proj_bias"


def differences(expected: Any, found: Any, rtol: float = 0.0, at: str = "") -> Iterator[str]:
    """One line for each value of `expected` that `found` has not; what `found` has beyond is fine.

    rtol: of floating-point numbers; 0 asks for every bit.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        if rtol and set(expected) >= {"shape", "mean", "norm"}:
            yield from _weights(expected, found, 100 * rtol if ROUNDING in at else rtol, at)
            return
        for key, value in expected.items():
            if key not in found:
                yield f"{at}{key}: missing"
            else:
                yield from differences(value, found[key], rtol, f"{at}{key} > ")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            yield from differences(a, b, rtol, f"{at}{i} > ")
    elif isinstance(expected, float) and isinstance(found, float | int):
        if not math.isclose(expected, found, rel_tol=rtol, abs_tol=0.1 * rtol):
            yield f"{at[:-3]}: {expected!r} was {found!r} here"
    elif expected != found or type(expected) is not type(found):
        yield f"{at[:-3]}: {expected!r} was {found!r} here"


def _weights(
    expected: dict[str, Any], found: dict[str, Any], rtol: float, at: str
) -> Iterator[str]:
    """A tensor's summary: the mean may differ by a share of the root mean square."""
    if expected["shape"] != found["shape"]:
        yield f"{at}shape: {expected['shape']} was {found['shape']} here"
        return
    size = expected["norm"] / math.sqrt(max(1, math.prod(expected["shape"])))
    for name, allowed in (("norm", rtol * expected["norm"]), ("mean", rtol * size)):
        if abs(expected[name] - found[name]) > allowed + 1e-9:
            yield f"{at}{name}: {expected[name]!r} was {found[name]!r} here"
