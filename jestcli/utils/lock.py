"""One writer a folder: a lock that goes with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ASK_AGAIN = 0.2  # seconds
_held: list[IO[str]] = []


class Held(Exception):
    """Another process holds the folder."""


@contextmanager
def hold(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold `folder` (made if missing) while inside. If another process does: wait for it, which a
    signal ends, or raise Held at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        while not _taken(file):
            if not wait:
                raise Held(str(folder))
            # Not in flock itself: a signal that comes just before it would be heard after it alone.
            time.sleep(ASK_AGAIN)
        _held.append(file)
        try:
            yield
        finally:
            _held.remove(file)


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _let_go() -> None:
    """In a forked child: a lock is its parent's alone, and must not outlive that."""
    for file in _held:
        file.close()


os.register_at_fork(after_in_child=_let_go)


def held(parent: Path) -> set[str]:
    """Names of the folders in `parent` that some process holds; none where the system does not say.

    Looks without locking: whoever wants to hold one meanwhile is not refused."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
        inodes = {line.split()[5].rpartition(":")[2] for line in lines if "->" not in line}
    except (OSError, IndexError):
        return set()
    return {p.parent.name for p in parent.glob("*/.lock") if str(p.stat().st_ino) in inodes}
