"""One error for every misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_name(argument: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError, with the nearest known name, unless `value` is in `known`."""
    known = list(known)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
    raise ValueError(f"{argument} {value!r} is not known; {hint}")
