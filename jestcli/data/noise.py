"""Noise with known labels: a share of a store's captions, moved to other images.

Every choice is made pair by pair, by a hash of its key (data/hashing.py). Taking pairs out of what
a run draws from (a smaller pool, a filter) therefore leaves every other pair's caption as it is,
and the pairs that are wrong at a share of .2 are wrong at .5, too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from jestcli.data.store import Store
from jestcli.utils.hashing import below, salted

if TYPE_CHECKING:
    from torch import Tensor


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

    def pixels(self, rows: np.ndarray) -> Tensor:
        return self.original.pixels(rows)  # which may have them on a device

    def token_rows(self, rows: np.ndarray) -> Tensor:
        return self.original.token_rows(self.original.caption_start[self.caption_of[rows]])

    @property
    def hashes(self) -> np.ndarray:
        return self.original.hashes

    @cached_property
    def moved(self) -> np.ndarray:
        return self.caption_of != np.arange(len(self))


def caption_of(store: Store, share: float, rows: np.ndarray | None = None) -> np.ndarray:
    """int64 [N]: the row whose caption each row of `store` shows.

    A pair is wrong when its key's hash is below `share`. The wrong ones stand in a ring, by
    another hash of the key; each gets the caption of the next one, or of the first after that
    whose caption reads differently (compared as token rows: by what the model sees). So no wrong
    pair shows a caption like its own, and where captions repeat one may be shown twice and another
    not at all: nearly, not strictly, a permutation.

    Args:
        share: in [0, 1), of the rows that may be wrong; so many are wrong up to binomial noise.
        rows: int64 [n], those that may be wrong; None: all.
    """
    found = np.arange(len(store))
    hashes = store.hashes if rows is None else store.hashes[rows]
    chosen = np.flatnonzero(below(salted(hashes, "wrong caption"), share))
    order = chosen[np.argsort(salted(hashes[chosen], "ring of captions"), kind="stable")]
    ring = order if rows is None else rows[order]
    shown = store.tokens[store.caption_start[ring]]  # token rows in the ring's order
    n = len(ring)
    giver = (np.arange(n) + 1) % max(1, n)
    same = np.arange(n)
    for _ in range(n):
        same = same[(shown[same] == shown[giver[same]]).all(axis=1)]
        if not len(same):
            break
        giver[same] = (giver[same] + 1) % n
    giver[same] = same  # all captions of the ring read alike: none can be wrong
    found[ring] = ring[giver]
    return found


def mismatched(store: Store, given: np.ndarray) -> Mismatched:
    """`store` with the captions of the rows `given` (see `caption_of`), int64 [N]."""
    digest = hashlib.blake2b(store.identity.encode() + given.tobytes(), digest_size=8)
    return Mismatched(
        folder=store.folder,
        images=store.images,
        tokens=store.tokens[store.caption_start[given]],
        caption_start=np.arange(len(store) + 1),
        codes=store.codes,
        names=store.names,
        levels=store.levels,
        about={**store.about, "identity": digest.hexdigest()},
        caption_of=given,
        original=store,
    )
