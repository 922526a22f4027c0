"""Samples of a stream: which one comes at a position, and its bytes out of the shard."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import numpy as np

from jestcli.data.order import Order, weighted
from jestcli.data.shards import IMAGES, LARGEST_TEXT, Pair, Skip, decode
from jestcli.data.sources import Loading, ShardError, opened
from jestcli.data.stream import Stream
from jestcli.data.tarindex import ShardIndex, read_index
from jestcli.utils.errors import DataError
from jestcli.utils.randomness import generator

LARGEST_FILE = 100_000_000  # bytes of one image file


class NoShard(Skip):
    """The whole shard cannot be had."""


class Reader:
    """Samples by (shard, number), from open files and indexes that are kept for a while."""

    def __init__(self, stream: Stream, loading: Loading, keep: int = 32):
        self.stream, self.loading, self.keep = stream, loading, keep
        self.open: OrderedDict[int, tuple[ShardIndex, int]] = OrderedDict()
        self.surplus: dict[str, str] = {}  # shards that hold more than was counted, in words

    def key(self, shard: int, sample: int) -> str:
        """The sample's name in logs, without the shard."""
        try:
            return self._shard(shard)[0].keys[sample]
        except (ShardError, IndexError):
            return f"sample {sample}"

    def raw(self, shard: int, sample: int, images: bool = True) -> dict[str, Any]:
        """Extension -> bytes, as webdataset names them; without `images` the words alone. Raises
        Skip."""
        try:
            index, file = self._shard(shard)
        except ShardError as error:
            raise NoShard(str(error)) from None
        if sample >= len(index):
            raise Skip(f"the shard holds only {len(index):,} samples, fewer than were counted")
        url = self.stream.shards[shard]
        found: dict[str, Any] = {"__key__": index.keys[sample], "__url__": url}
        for extension, (offset, size) in index.members[sample].items():
            image = extension in IMAGES
            if image and not images:
                continue
            if size > (LARGEST_FILE if image else LARGEST_TEXT):
                raise Skip("image file too large" if image else "text too large")
            try:
                found[extension] = os.pread(file, size, offset)
            except OSError as error:
                raise Skip(f"cannot be read ({error.strerror})") from None
            if len(found[extension]) != size:
                raise Skip("shard breaks off")
        return found

    def pair(self, shard: int, sample: int, least: int | None = None) -> Pair:
        """The decoded pair; least: pixels that are enough. Raises Skip."""
        pair = decode(self.raw(shard, sample), least)
        if not pair.captions:
            raise Skip("no caption")
        return pair

    def _shard(self, shard: int) -> tuple[ShardIndex, int]:
        if shard in self.open:
            self.open.move_to_end(shard)
            return self.open[shard]
        url = self.stream.shards[shard]
        index = read_index(url, self.loading)
        with opened(url, self.loading) as held:
            file = os.dup(held.fileno())
        if os.fstat(file).st_size != index.size:
            os.close(file)
            raise ShardError("the shard has changed")
        count = int(self.stream.starts[shard + 1] - self.stream.starts[shard])
        if len(index) > count:
            self.surplus[url] = (
                f"{url} holds {len(index):,} samples, more than the {count:,} that were counted "
                "or stated: the rest is not used"
            )
        self.open[shard] = index, file
        if len(self.open) > self.keep:
            os.close(self.open.popitem(last=False)[1][1])
        return self.open[shard]

    def close(self) -> None:
        for _, file in self.open.values():
            os.close(file)
        self.open.clear()


class Reading:
    """The endless reading of a stream: positions to places.

    rows: those that are read, int64, ascending; None is all. Raises DataError when a source has
    none of them.
    """

    def __init__(self, stream: Stream, seed: int, rows: np.ndarray | None = None):
        self.stream, self.seed, self.rows = stream, seed, rows
        each = stream.counts
        if rows is not None:
            self.starts = np.searchsorted(rows, stream.starts)  # among the rows, by shard
            left = iter(np.diff(self.starts).tolist())
            each = tuple(tuple(next(left) for _ in source) for source in each)
        for source, counts in zip(stream.sources, each, strict=True):
            if not sum(counts):
                raise DataError(f"nothing is kept of {source[0]} and the shards with it")
        self.orders = [
            Order(seed, f"{stream.name} {i}", counts, stream.window)
            for i, counts in enumerate(each)
        ]
        lengths = [len(source) for source in stream.sources]
        self.first = [sum(lengths[:i]) for i in range(len(lengths))]

    def place(self, position: int, attempt: int = 0) -> tuple[int, int]:
        """Shard and sample; attempt k > 0: the k-th substitute."""
        source, inner = self._source(position)
        order = self.orders[source]
        shard, sample = order.substitute(inner, attempt) if attempt else order.place(inner)
        shard += self.first[source]
        if self.rows is not None:
            sample = int(self.rows[self.starts[shard] + sample] - self.stream.starts[shard])
        return shard, sample

    def near(self, position: int) -> list[int]:
        """Shards that are read about there, and next."""
        source, inner = self._source(position)
        return [self.first[source] + shard for shard in self.orders[source].near(inner)]

    def caption(self, pair: Pair, position: int) -> str:
        n = min(len(pair.captions), self.stream.captions)
        if n == 1:
            return pair.captions[0]
        dice = generator(self.seed, f"{self.stream.name} caption", position)
        return pair.captions[int(dice.integers(n))]

    def _source(self, position: int) -> tuple[int, int]:
        if not self.stream.weights:
            return 0, position
        return weighted(self.seed, self.stream.name, self.stream.weights, position)
