"""Files that are whole or not there, whoever else writes them at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        temporary.write_bytes(content)


def save_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; its folder is made. Raises OSError."""
    save_bytes(path, text.encode())


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file atomically; its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
