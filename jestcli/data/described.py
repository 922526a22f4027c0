"""What the pairs of a pool are called, show and belong to, by row: of a decoded store or of shards.

For looking at pairs, not for training: shards are read one sample at a time.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from jestcli.data.reading import Reader
from jestcli.data.shards import Skip, words_of
from jestcli.data.sources import Loading, is_remote, list_shards
from jestcli.data.store import Store, fit
from jestcli.data.stream import Stream

UNKNOWN = "unknown"
PICTURE = 72  # pixels at which a shard's image is shown


class Described(Protocol):
    """Pairs by row, int64 [n]. groups: the ways in which they are sorted besides their captions."""

    groups: tuple[str, ...]
    most_captions: int | None
    """Captions that may be read where a few are as good as all; None: any number."""

    def keys(self, rows: np.ndarray) -> list[str]:
        """What each pair is called."""

    def places(self, rows: np.ndarray) -> list[str]:
        """Where each comes from: its source set or shard."""

    def captions(self, rows: np.ndarray) -> list[str]:
        """The caption that training shows of each; "" where it can no longer be read."""

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        """The one of `group` that each belongs to."""

    def pictures(self, rows: np.ndarray) -> list[np.ndarray]:
        """uint8 [H, W, 3] each."""


class StorePairs:
    """Of a decoded store. groups: "source" and "category"."""

    groups: tuple[str, ...] = ("source", "category")
    most_captions: int | None = None

    def __init__(self, store: Store):
        self.store = store

    def keys(self, rows: np.ndarray) -> list[str]:
        return [self.store.keys[row] for row in rows.tolist()]

    def places(self, rows: np.ndarray) -> list[str]:
        return self.labels("source", rows)

    def captions(self, rows: np.ndarray) -> list[str]:
        return [self.store.captions_of(row)[0] for row in rows.tolist()]

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        names, codes = self.store.names.get(group, ()), self.store.codes.get(group)
        if codes is None:
            return [UNKNOWN] * len(rows)
        return [names[c] if c >= 0 else UNKNOWN for c in codes[rows].tolist()]

    def pictures(self, rows: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(self.store.images[row]) for row in rows.tolist()]


class ShardPairs:
    """Of a stream of shards. groups: "source", the entry of `data.train` that a shard is of, where
    there are several; nothing else is known of a user's pairs."""

    def __init__(self, stream: Stream, entries: tuple[str, ...], loading: Loading):
        self.stream, self.reader = stream, Reader(stream, loading)
        self.entry = {shard: entry for entry in entries for shard in list_shards(entry)}
        self.groups: tuple[str, ...] = ("source",) if len(entries) > 1 else ()
        # One caption of each of many remote shards would fetch them all.
        self.most_captions: int | None = 0 if any(map(is_remote, stream.shards)) else 2_000

    def keys(self, rows: np.ndarray) -> list[str]:
        return [self._words(row)[0] for row in rows.tolist()]

    def places(self, rows: np.ndarray) -> list[str]:
        shards = np.searchsorted(self.stream.starts, rows, side="right") - 1
        return [self.stream.shards[shard] for shard in shards.tolist()]

    def captions(self, rows: np.ndarray) -> list[str]:
        return [self._words(row)[1] for row in rows.tolist()]

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        return [self.entry[shard] for shard in self.places(rows)]

    def pictures(self, rows: np.ndarray) -> list[np.ndarray]:
        return [self._picture(row) for row in rows.tolist()]

    def _words(self, row: int) -> tuple[str, str]:
        shard, sample = self.stream.locate(row)
        try:
            key, captions, meta = words_of(self.reader.raw(shard, sample, images=False))
            uid = meta.get("uid")  # DataComp's name of a pair
            key = uid if isinstance(uid, str) and uid else key
            return key, captions[0] if captions else ""
        except Skip:
            return self.reader.key(shard, sample), ""

    def _picture(self, row: int) -> np.ndarray:
        try:
            pair = self.reader.pair(*self.stream.locate(row), PICTURE)
        except Skip:
            return np.full((PICTURE, PICTURE, 3), 255, np.uint8)
        return fit(pair.image, PICTURE)
