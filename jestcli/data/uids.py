"""DataComp's uid files: which pairs of a pool to train on, by their names' two 64-bit halves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tokenize import TokenError

import numpy as np

from jestcli.data.dataset import Dataset
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_array

UID = np.dtype("u8,u8")
BLOCK = 4096


def uid(key: str) -> tuple[int, int]:
    """The halves of a pair's key: of 32 hexadecimal digits themselves, else of its 128-bit
    blake2b hash."""
    # DataComp's uids are 128 bits, as hexadecimal: its files and other pools' names are one form.
    word = key if len(key) == 32 and set(key) <= set("0123456789abcdef") else ""
    word = word or hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    return int(word[:16], 16), int(word[16:], 16)


def uids_of(keys: list[str]) -> np.ndarray:
    """u8,u8 [n]."""
    return np.array([uid(key) for key in keys], UID)


def read_uids(path: Path) -> np.ndarray:
    """The pairs of a .npy file, u8,u8 [n]. Raises DataError for anything else."""
    try:
        with path.open("rb") as file:  # np.load would take an archive, too
            found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"data.uids={path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, SyntaxError, TokenError):  # numpy's words: advice to unpickle
        raise DataError(f"data.uids={path} cannot be read: no whole .npy array of u8,u8") from None
    if found.dtype != UID or found.ndim != 1:
        raise DataError(f"data.uids={path}: expected an array of u8,u8, not {found.dtype}")
    return found


def rows_in(
    dataset: Dataset,
    rows: np.ndarray | None,
    path: Path,
    sha256: str,
    memory: Path,
    state: str = "",
) -> np.ndarray:
    """Those of `rows` (None: all) whose pairs the file names, int64 ascending.

    Every pair's key is read once; `memory` keeps which rows they are of a data set as a whole, as
    long as its shards are in the same `state`. Raises DataError where none is.
    """
    # The file's content names it, not its path: the same path may hold another choice tomorrow.
    name = hashlib.sha256(f"{dataset.identity} {sha256} {state}".encode()).hexdigest()[:24]
    kept = memory / "uids" / f"{name}.npy"
    if kept.exists():
        inside: np.ndarray = np.load(kept, allow_pickle=False)
    else:
        wanted = read_uids(path)
        found = []
        # Block by block, in order: a shard is read through before the next one is opened.
        for first in range(0, len(dataset), BLOCK):
            some = np.arange(first, min(first + BLOCK, len(dataset)))
            found.append(some[np.isin(uids_of(dataset.keys_of(some)), wanted)])
        inside = np.concatenate([np.empty(0, np.int64), *found])
        if len(inside):  # of a pool without one there is nothing to remember but a mistake
            save_array(kept, inside)
    chosen = inside if rows is None else np.intersect1d(inside, rows, assume_unique=True)
    if not len(chosen):
        raise DataError(f"data.uids={path} names no pair of this pool")
    return chosen
