"""Files that are whole or not there, whoever else writes them at the same time."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, idle: float = 0.0) -> None:
    """Remove what processes that are no more left half-written in `folder` and right below it.

    The number in such a name is the process that wrote it, on this machine: who does not hold the
    folder spares what was written to in the last `idle` seconds."""
    now = time.time()
    for path in [*folder.glob(".*"), *folder.glob("*/.*")]:
        writer = re.search(r"\.(\d+)(-\d+)?$", path.name)
        with suppress(FileNotFoundError):  # another one sweeps, too
            if writer and not _lives(int(writer[1])) and now - path.stat().st_mtime >= idle:
                path.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return process != os.getpid()


def save_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def save_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; its folder is made. Raises OSError."""
    save_bytes(path, text.encode())


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file atomically; its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def remembered(path: Path, n: int, kind: type, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array [n] of dtype `kind` that `make` gives, kept in `path` for whoever asks next."""
    with suppress(OSError, ValueError):
        kept: np.ndarray = np.load(path, allow_pickle=False)
        if kept.shape == (n,) and kept.dtype == kind:
            return kept
    found = make()
    if path.parent.is_dir():
        with suppress(OSError):  # a folder that cannot be written to costs time alone
            save_array(path, found)
    return found
