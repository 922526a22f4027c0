"""Every random draw is a pure function of (seed, stream, epoch or step): no state to resume."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np
import torch


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """An independent generator for this seed, stream name and counters (such as epoch or step)."""
    entropy = [seed, zlib.crc32(stream.encode()), *counters]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def torch_generator(seed: int, stream: str, *counters: int) -> torch.Generator:
    """The same for torch, on the CPU."""
    draw = generator(seed, stream, *counters).integers(0, 2**63 - 1)
    return torch.Generator().manual_seed(int(draw))


@lru_cache(maxsize=4)
def _epoch_order(seed: int, stream: str, epoch: int, n: int) -> np.ndarray:
    return generator(seed, stream, epoch).permutation(n)


def shuffled(seed: int, stream: str, n: int, start: int, count: int) -> np.ndarray:
    """Items `start` to `start + count` of an endless reading of range(n), shuffled every epoch.

    Returns int64 [count]. A pure function of its arguments: the reader's state is `start` alone."""
    positions = np.arange(start, start + count)
    out = np.empty(count, np.int64)
    for epoch in range(start // n, (start + count - 1) // n + 1):
        inside = positions // n == epoch
        out[inside] = _epoch_order(seed, stream, epoch, n)[positions[inside] - epoch * n]
    return out
