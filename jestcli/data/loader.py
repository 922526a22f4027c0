"""Candidates for a step, as a pure function of (seed, step), from decoded stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jestcli.data.store import Store
from jestcli.training.randomness import generator, shuffled


@dataclass(frozen=True)
class Part:
    """Rows of one store that a run draws from.

    rows: int64 [n].
    captions: draw one of a pair's first so many captions at random.
    """

    store: Store
    rows: np.ndarray
    stream: str
    captions: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Candidates:
    """A super-batch.

    part, row: int64 [B], which part and which row of its store; images: uint8 [B, 3, S, S];
    tokens: int64 [B, L].
    """

    part: np.ndarray
    row: np.ndarray
    images: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.row)


def draw(parts: list[Part], counts: list[int], seed: int, step: int) -> Candidates:
    """The candidates of `step`: counts[i] pairs of parts[i], every part read epoch by epoch."""
    drawn = [
        _read(part, which, shuffled(seed, part.stream, len(part.rows), step * n, n), seed, step)
        for which, (part, n) in enumerate(zip(parts, counts, strict=True))
        if n
    ]
    return Candidates(
        np.concatenate([d.part for d in drawn]),
        np.concatenate([d.row for d in drawn]),
        torch.cat([d.images for d in drawn]),
        torch.cat([d.tokens for d in drawn]),
    )


def _read(part: Part, which: int, positions: np.ndarray, seed: int, step: int) -> Candidates:
    rows = part.rows[positions]
    first, end = part.store.caption_start[rows], part.store.caption_start[rows + 1]
    if part.captions > 1:
        end = np.minimum(end, first + part.captions)
        first = generator(seed, "caption", which, step).integers(first, end)
    images = torch.from_numpy(part.store.images[rows]).permute(0, 3, 1, 2)
    tokens = torch.from_numpy(part.store.tokens[first].astype(np.int64))
    return Candidates(np.full(len(rows), which), rows, images, tokens)


def rows_of(store: Store, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """The deterministic view of rows: uint8 images [n, 3, S, S], first caption's tokens [n, L]."""
    images = torch.from_numpy(store.images[rows]).permute(0, 3, 1, 2)
    tokens = torch.from_numpy(store.tokens[store.caption_start[rows]].astype(np.int64))
    return images, tokens
