"""A number for every pair, from its key alone: what a choice rests on that must not depend on which
other pairs there are.

Whether a pair's caption is wrong, whether it is set aside, whether it stays in a thinned pool: each
asks for the pair's number under a salt of its own, so that the answers are independent of each
other, and the same whatever has been taken out of the pool before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def hashes_of(keys: Iterable[str]) -> np.ndarray:
    """uint64 [n]: BLAKE2b of each key (about 1.4 µs a key)."""
    blake2b = hashlib.blake2b
    joined = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(joined, "<u8").astype(np.uint64)


def salted(hashes: np.ndarray, salt: str) -> np.ndarray:
    """Another uint64 [n] for each of `hashes`, by SplitMix64's finaliser; a bijection, so what
    differs before differs after."""
    digest = hashlib.blake2b(salt.encode(), digest_size=8).digest()
    z: np.ndarray = hashes ^ np.frombuffer(digest, "<u8").astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)  # arrays wrap around silently
    return z ^ (z >> np.uint64(31))


def below(numbers: np.ndarray, share: float) -> np.ndarray:
    """bool [n]: whether uint64 numbers lie in the lowest `share` of their range; nested in it.

    share: in [0, 1]; 1 is all of them."""
    if share >= 1:
        return np.ones(len(numbers), bool)
    return numbers < np.uint64(share * 2.0**64)


def first_by_hash(hashes: np.ndarray, n: int, salt: str) -> np.ndarray:
    """int64 [n], ascending: the places of the n smallest numbers under `salt`; nested in n."""
    numbers = salted(hashes, salt)
    if n >= len(numbers):
        return np.arange(len(numbers))
    return np.sort(np.argpartition(numbers, n)[:n])
