"""What is set aside of the embedded pool, and pools that differ in what they show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jestcli.config import VERIFIED, VERIFIED_SIZE
from jestcli.data.dataset import Dataset
from jestcli.utils.errors import DataError
from jestcli.utils.hashing import below, first_by_hash, salted
from jestcli.utils.io import remembered
from jestcli.utils.spelling import words_of

THINNEST = 0.1  # the smallest share of relevant pairs: it sets the size of all such pools


def verified_size(pairs: int) -> int:
    """How many of a pool's pairs are set aside: 36,000, of a small pool an eighth."""
    return min(VERIFIED_SIZE, pairs // 8)


def verified_rows(pool: Dataset, n: int | None = None) -> np.ndarray:
    """int64 [n], ascending: pairs of the pool whose captions are never moved, by a hash of their
    keys; smaller sets lie in larger ones. All that n=None gives are out of every run's pool.

    Raises DataError where there are fewer than `n`.
    """
    there = verified_size(len(pool))
    if n is not None and n > there:
        raise DataError(f"{n:,} pairs asked for, but level {VERIFIED!r} has {there:,}")
    return first_by_hash(pool.hashes, there if n is None else n, VERIFIED)


def unverified_rows(pool: Dataset, total: int | None = None) -> np.ndarray:
    """int64, ascending: what a run may draw from: all rows but the verified ones.

    total: rows of the store whose first len(pool) rows are the pool's; None: the pool itself.
    """
    # Out of every pool, used or not: runs with other curated sets must draw from the same pairs.
    drawn = np.ones(len(pool) if total is None else total, bool)
    drawn[verified_rows(pool)] = False
    return np.flatnonzero(drawn)


def relevant(dataset: Dataset, classes: Iterable[str], folder: Path | None = None) -> np.ndarray:
    """bool [N]: whether a pair's first caption holds one of these class names, word by word.

    Compared in lower case and singular (`words_of`), by the pair's own caption, moved or not. Kept
    in `folder`.
    """
    names = sorted({words for words in map(words_of, classes) if words})
    n, known, longest = len(dataset), set(names), max((len(name) for name in names), default=0)

    def look() -> np.ndarray:
        texts = dataset.captions_of(np.arange(n))
        return np.fromiter((_holds(text, known, longest) for text in texts), bool, n)

    if folder is None:
        return look()
    text = f"{dataset.identity} {names}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return remembered(folder / f"relevant-{digest}.npy", n, bool, look)


def _holds(text: str, known: set[tuple[str, ...]], longest: int) -> bool:
    words = words_of(text)
    return any(
        words[i : i + n] in known
        for n in range(1, min(longest, len(words)) + 1)
        for i in range(len(words) - n + 1)
    )


def thinned(hashes: np.ndarray, shows: np.ndarray, share: float) -> np.ndarray:
    """int64, ascending: places of a pool whose relevant pairs are thinned to `share`.

    All such pools have one size, that of the pool at THINNEST: the pairs that are not relevant and
    a tenth of those that are. Where more are left, what goes is chosen by a hash, relevant or not,
    so that at 1 the composition is the whole pool's.

    Args:
        hashes: uint64 [n]; shows: bool [n], the relevant ones; share: in [THINNEST, 1].
    """
    size = int((~shows | below(salted(hashes, "relevant"), THINNEST)).sum())
    # By the same numbers: a thinner pool's relevant pairs are among those of a thicker one.
    left = np.flatnonzero(~shows | below(salted(hashes, "relevant"), share))
    return left[first_by_hash(hashes[left], size, "equal size")]
