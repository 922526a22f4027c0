"""The order of samples in shards: a pure function of (seed, position), nothing to store.

Every epoch permutes the shards and shuffles each window of a few neighbouring ones together, so
that reading stays local (a fetched shard is used up before the next is needed) and a batch still
mixes shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from jestcli.utils.randomness import generator

BLOCK = 1000  # positions over which weights are kept exactly


@dataclass(frozen=True, eq=False)  # hashed by identity: counts may be long
class Order:
    """An endless reading of shards that hold `counts` samples."""

    seed: int
    stream: str
    counts: tuple[int, ...]
    window: int

    @cached_property
    def epoch_size(self) -> int:
        """Samples in an epoch."""
        return sum(self.counts)

    def place(self, position: int) -> tuple[int, int]:
        """Shard and sample at a position of the endless reading."""
        epoch, which, at = self._window(position)
        shards = _windows(self, epoch)[0][which]
        return self._inside(shards, int(_shuffled(self, epoch, which)[at]))

    def substitute(self, position: int, attempt: int) -> tuple[int, int]:
        """What stands in for an unreadable sample there: another one of the same window."""
        epoch, which, _ = self._window(position)
        dice = generator(self.seed, f"{self.stream} substitute", position, attempt)
        shards = _windows(self, epoch)[0][which]
        return self._inside(shards, int(dice.integers(len(_shuffled(self, epoch, which)))))

    def near(self, position: int) -> list[int]:
        """The shards of the window there and of the next one: what to fetch ahead."""
        epoch, which, _ = self._window(position)
        windows, _ = _windows(self, epoch)
        if which + 1 < len(windows):
            return [int(shard) for shard in np.concatenate(windows[which : which + 2])]
        return [int(x) for x in np.concatenate([windows[which], _windows(self, epoch + 1)[0][0]])]

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
def _windows(order: Order, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The shards of each window of an epoch, and the position where each begins."""
    counts = np.asarray(order.counts)
    filled = np.nonzero(counts)[0]
    shards = generator(order.seed, f"{order.stream} shards", epoch).permutation(filled)
    windows = [shards[i : i + order.window] for i in range(0, len(shards), order.window)]
    sizes = [int(counts[window].sum()) for window in windows]
    return windows, np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


@lru_cache(maxsize=16)
def _shuffled(order: Order, epoch: int, which: int) -> np.ndarray:
    size = sum(order.counts[shard] for shard in _windows(order, epoch)[0][which])
    return generator(order.seed, f"{order.stream} window", epoch, which).permutation(size)


def weighted(seed: int, stream: str, weights: tuple[float, ...], position: int) -> tuple[int, int]:
    """Which of several sources a position reads, and its position in that source's own reading.

    Of every 1,000 positions each source gets its share, to the nearest 1/1,000.
    """
    block, at = divmod(position, BLOCK)
    source, before = _block(seed, stream, weights, block)
    which = int(source[at])
    return which, block * shares(weights)[which] + int(before[at])


def shares(weights: tuple[float, ...]) -> list[int]:
    """Positions of every 1,000 that each source gets: by largest remainder, none below one."""
    exact = np.asarray(weights) / sum(weights) * BLOCK
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
    for which in range(len(weights)):
        mask = source == which
        before[mask] = np.arange(mask.sum())
    return source, before
