"""Which row of a data set comes at a position: a pure function of (seed, position).

Nothing is stored and nothing has to be resumed: a run's place in its data is its step. Data in
memory are shuffled as a whole. Of shards every epoch permutes the shards and shuffles each window
of a few neighbouring ones together, so that reading stays local (a fetched shard is used up before
the next is needed) and a batch still mixes shards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from jestcli.utils.errors import DataError
from jestcli.utils.randomness import generator, shuffled

BLOCK = 1000  # positions over which weights are kept exactly
Rows = np.ndarray | None
"""int64 [n], ascending; None: all rows of a data set."""
Counts = Callable[[np.ndarray], np.ndarray]
"""Rows -> how many captions each has."""
Pick = Callable[[int, int], int]
"""(number of a pair among those that are read, captions it has) -> which of them it shows."""


class Order(Protocol):
    """An endless reading of some rows of a data set; len() is how many rows. name: of the random
    stream, and of the source in logs."""

    @property
    def name(self) -> str: ...

    @property
    def kept(self) -> Rows: ...

    def __len__(self) -> int: ...

    def rows(self, start: int, count: int) -> np.ndarray:
        """int64 [count]: the rows at positions start, start + 1, …"""

    def substitute(self, position: int, attempt: int) -> int:
        """The row that stands in for an unreadable one there: attempt 1, 2, … differ."""

    def near(self, position: int) -> list[int]:
        """Shards that are read about there, and next."""

    def captions(
        self, most: int, counts: Counts, step: int, whole: range, part: slice
    ) -> Pick | None:
        """Which of a pair's first `most` captions is shown; None: always the first.

        whole: the positions of the step; part: of them, those that are read.
        """


@dataclass(frozen=True, eq=False)
class GlobalShuffle:
    """All of `kept`, int64 ascending, shuffled anew every epoch. number: of the source among those
    of a run; part of the captions' random stream."""

    seed: int
    name: str
    kept: np.ndarray
    number: int = 0

    def __len__(self) -> int:
        return len(self.kept)

    def rows(self, start: int, count: int) -> np.ndarray:
        if not count:
            return np.empty(0, np.int64)
        return self.kept[shuffled(self.seed, self.name, len(self.kept), start, count)]

    def substitute(self, position: int, attempt: int) -> int:
        rng = generator(self.seed, f"{self.name} substitute", position, attempt)
        return int(self.kept[rng.integers(len(self.kept))])

    def near(self, position: int) -> list[int]:
        return []  # in memory there is nothing to fetch

    def captions(
        self, most: int, counts: Counts, step: int, whole: range, part: slice
    ) -> Pick | None:
        if most == 1 or not len(whole):
            return None
        # One draw for the whole step, of which a rank takes its part: recorded runs rest on it.
        end = np.minimum(counts(self.rows(whole.start, len(whole))), most)
        chosen = generator(self.seed, "caption", self.number, step).integers(0, end)[part]
        return lambda i, _: int(chosen[i])


class WindowShuffle:
    """Shards in windows, from one source or from several by weight.

    groups: the samples of every shard, by source. kept: the rows that are read, int64 ascending;
    None is all. Raises DataError when a source has none of them; names: what to call each.
    """

    def __init__(
        self,
        seed: int,
        name: str,
        groups: tuple[tuple[int, ...], ...],
        weights: tuple[float, ...] = (),
        window: int = 8,
        kept: Rows = None,
        names: tuple[str, ...] = (),
    ):
        self.seed, self.name, self.weights, self.kept = seed, name, weights, kept
        flat = [count for group in groups for count in group]
        self.starts = np.concatenate([[0], np.cumsum(flat)]).astype(np.int64)
        self.places = self.starts  # of each shard's first sample among those that are read
        if kept is not None:
            # Counted anew, so that a shard of which nothing is kept is not fetched.
            self.places = np.searchsorted(kept, self.starts)
            left = iter(np.diff(self.places).tolist())
            groups = tuple(tuple(next(left) for _ in group) for group in groups)
        for i, group in enumerate(groups):  # an epoch of nothing has no position
            if not sum(group):
                of = names[i] if names else f"source {i}"
                raise DataError(f"nothing is kept of {of} and the shards with it")
        # A stream each: two sources of the same counts must not be shuffled alike.
        self.orders = [ShardOrder(seed, f"{name} {i}", g, window) for i, g in enumerate(groups)]
        self.first = np.cumsum([0, *map(len, groups)]).tolist()

    def __len__(self) -> int:
        return int(self.places[-1])

    def rows(self, start: int, count: int) -> np.ndarray:
        return np.array([self._row(at) for at in range(start, start + count)], np.int64)

    def substitute(self, position: int, attempt: int) -> int:
        return self._row(position, attempt)

    def near(self, position: int) -> list[int]:
        source, inner = self._source(position)
        return [self.first[source] + shard for shard in self.orders[source].near(inner)]

    def captions(
        self, most: int, counts: Counts, step: int, whole: range, part: slice
    ) -> Pick | None:
        mine = whole[part]

        def pick(i: int, n: int) -> int:  # by position: how many there are is known once it is read
            n = min(n, most)
            stream = f"{self.name} caption"
            return int(generator(self.seed, stream, mine[i]).integers(n)) if n > 1 else 0

        return pick if most > 1 else None

    def _row(self, position: int, attempt: int = 0) -> int:
        source, inner = self._source(position)
        order = self.orders[source]
        shard, sample = order.substitute(inner, attempt) if attempt else order.place(inner)
        at = int(self.places[self.first[source] + shard]) + sample
        return at if self.kept is None else int(self.kept[at])

    def _source(self, position: int) -> tuple[int, int]:
        if not self.weights:
            return 0, position
        return weighted(self.seed, self.name, self.weights, position)


@dataclass(frozen=True, eq=False)  # hashed by identity: counts may be long
class ShardOrder:
    """An endless reading of shards that hold `counts` samples."""

    seed: int
    stream: str
    counts: tuple[int, ...]
    window: int

    @cached_property
    def epoch_size(self) -> int:
        return sum(self.counts)

    def place(self, position: int) -> tuple[int, int]:
        """Shard and sample at a position of the endless reading."""
        epoch, which, at = self._window(position)
        shards = _windows(self, epoch)[0][which]
        return self._inside(shards, int(_shuffled(self, epoch, which)[at]))

    def substitute(self, position: int, attempt: int) -> tuple[int, int]:
        """What stands in for an unreadable sample there: another one of the same window."""
        epoch, which, _ = self._window(position)
        # Of the same window: its shards are here, and another's may have to be fetched for it.
        rng = generator(self.seed, f"{self.stream} substitute", position, attempt)
        shards = _windows(self, epoch)[0][which]
        return self._inside(shards, int(rng.integers(len(_shuffled(self, epoch, which)))))

    def near(self, position: int) -> list[int]:
        """The shards of the window there and of the next one: what to fetch ahead."""
        epoch, which, _ = self._window(position)
        windows, _ = _windows(self, epoch)
        after = windows[which + 1] if which + 1 < len(windows) else _windows(self, epoch + 1)[0][0]
        return [*windows[which].tolist(), *after.tolist()]

    def _window(self, position: int) -> tuple[int, int, int]:
        """Epoch, window of the epoch and place in the window."""
        epoch, at = divmod(position, self.epoch_size)
        starts = _windows(self, epoch)[1]
        which = int(np.searchsorted(starts, at, side="right")) - 1
        return epoch, which, int(at - starts[which])

    def _inside(self, shards: np.ndarray, item: int) -> tuple[int, int]:
        ends = np.cumsum([self.counts[shard] for shard in shards])
        slot = int(np.searchsorted(ends, item, side="right"))
        return int(shards[slot]), int(item - (ends[slot - 1] if slot else 0))


@lru_cache(maxsize=8)
def _windows(order: ShardOrder, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The shards of each window of an epoch, and the position where each begins."""
    counts = np.asarray(order.counts)
    filled = np.nonzero(counts)[0]  # a window of empty shards would have no sample to give
    shards = generator(order.seed, f"{order.stream} shards", epoch).permutation(filled)
    windows = [shards[i : i + order.window] for i in range(0, len(shards), order.window)]
    sizes = [int(counts[window].sum()) for window in windows]
    return windows, np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


@lru_cache(maxsize=16)  # neighbouring positions lie in one window, or in two of several sources
def _shuffled(order: ShardOrder, epoch: int, which: int) -> np.ndarray:
    size = sum(order.counts[shard] for shard in _windows(order, epoch)[0][which])
    return generator(order.seed, f"{order.stream} window", epoch, which).permutation(size)


def weighted(seed: int, stream: str, weights: tuple[float, ...], position: int) -> tuple[int, int]:
    """Which of several sources a position reads, and its position in that source's own reading.

    Of every 1,000 positions each source gets its share, to the nearest 1/1,000.
    """
    # By blocks: drawn position by position, a source's own position would follow from all before.
    block, at = divmod(position, BLOCK)
    source, before = _block(seed, stream, weights, block)
    which = int(source[at])
    return which, block * shares(weights)[which] + int(before[at])


def shares(weights: tuple[float, ...]) -> list[int]:
    """Positions of every 1,000 that each source gets: by largest remainder, none below one."""
    exact = np.asarray(weights) / sum(weights) * BLOCK
    # A source with no position at all would never be read, whatever the user weighed it.
    floor = np.maximum(1, np.floor(exact)).astype(int)
    for which in np.argsort(floor - exact, kind="stable")[: max(0, BLOCK - floor.sum())]:
        floor[which] += 1
    floor[int(np.argmax(floor))] += BLOCK - floor.sum()
    return [int(n) for n in floor]


@lru_cache(maxsize=8)
def _block(
    seed: int, stream: str, weights: tuple[float, ...], block: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each position of a block its source, and how many before it read the same one."""
    listed = np.repeat(np.arange(len(weights)), shares(weights))
    source = generator(seed, f"{stream} sources", block).permutation(listed)
    before = np.empty(BLOCK, np.int64)
    for which, share in enumerate(shares(weights)):
        before[source == which] = np.arange(share)
    return source, before
