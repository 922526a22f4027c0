"""Noise with known labels: a share of a store's captions, moved to other images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jestcli.data.store import Store


@dataclass(frozen=True)
class Mismatched(Store):
    """A store whose pair i shows the first caption of row `caption_of[i]`, int64 [N].

    Images are the original's own memory map; nothing is copied but one token row a pair.
    """

    caption_of: np.ndarray
    original: Store

    @cached_property
    def captions(self) -> list[str]:
        texts, start = self.original.captions, self.original.caption_start
        return [texts[int(start[row])] for row in self.caption_of]


def caption_of(n: int, share: float, seed: int = 0) -> np.ndarray:
    """int64 [n]: the row whose caption row i shows. round(share * n) random rows pass theirs on
    in a circle, so that each of those, and no other, shows another's."""
    found = np.arange(n)
    moved = np.random.default_rng([seed, n]).permutation(n)[: round(share * n)]
    if len(moved) > 1:
        found[moved] = np.roll(moved, 1)
    return found


def mismatched(store: Store, share: float) -> Store:
    """`store` with this share of its captions moved; the same for every run, whatever its seed."""
    rows = caption_of(len(store), share)
    identity = hashlib.blake2b(f"{store.identity} {share}".encode(), digest_size=8).hexdigest()
    return Mismatched(
        folder=store.folder,
        images=store.images,
        tokens=store.tokens[store.caption_start[rows]],
        caption_start=np.arange(len(store) + 1),
        codes=store.codes,
        names=store.names,
        levels=store.levels,
        about={**store.about, "identity": identity},
        caption_of=rows,
        original=store,
    )
