"""JSON and other files that someone else may have written, or a disk damaged: read, or one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jestcli.utils.errors import DataError

# What readers raise where a file's content is not as it was written.
UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError),
    *(StopIteration, EOFError),
)


@contextmanager
def reading(path: Path, then: str = "") -> Iterator[None]:
    """Where the content of `path` is not as it was written: DataError in one line, with what to do
    `then`. Nothing but reading belongs inside."""
    try:
        yield
    except UNREADABLE as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"{path} is damaged ({why}){then}") from None


def parse_json(content: str | bytes) -> Any:
    """Raises ValueError for all that is no JSON, what is nested too deeply to be read included."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, then: str = "") -> dict[str, Any]:
    """The JSON object in a file. Raises DataError where it is damaged, OSError where it is not."""
    with reading(path, then):
        found = parse_json(path.read_bytes())
        if not isinstance(found, dict):
            raise TypeError("not a JSON object")
    return found
