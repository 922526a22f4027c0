"""Candidates for a step, as a pure function of (seed, step), from decoded stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from jestcli.data.store import Store
from jestcli.utils.randomness import generator, shuffled


@dataclass(frozen=True)
class Part:
    """Rows of one store that a run draws from.

    rows: int64 [n].
    captions: draw one of a pair's first so many captions at random.
    resident: the store's images, uint8 [N, 3, S, S], and tokens, int32 [M, L], on a device, where
        candidates are then read (see `on_device`).
    """

    store: Store
    rows: np.ndarray
    stream: str
    captions: int
    resident: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Candidates:
    """A super-batch, or this rank's slice of it.

    part, row: int64 [B], which part and which row of its pool; images: uint8 [B, 3, s, s], the
    deterministic view at scoring size; tokens: int64 [B, L].
    name: i -> the key of candidate i, for logs.
    reload: int64 [b] -> uint8 [b, 3, S, S], where scoring saw smaller images than training will.
    wrong: bool [B], whose caption is known to be another's (source.noise_share); None: not known.
    texts, second: the captions, and int64 [b] -> uint8 [b, 3, s', s'] as another model's own
    preprocessing makes them, where a reference needs them.
    """

    part: np.ndarray
    row: np.ndarray
    images: Tensor
    tokens: Tensor
    name: Callable[[int], str]
    reload: Callable[[np.ndarray], Tensor] | None = None
    texts: Sequence[str] = ()
    second: Callable[[np.ndarray], Tensor] | None = None
    wrong: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def keys(self) -> list[str]:
        """The key of every candidate."""
        return [self.name(i) for i in range(len(self))]

    def first(self, n: int) -> Candidates:
        """The first n of them."""
        return replace(
            self,
            part=self.part[:n],
            row=self.row[:n],
            images=self.images[:n],
            tokens=self.tokens[:n],
            texts=self.texts[:n],
            wrong=None if self.wrong is None else self.wrong[:n],
        )

    def full(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates `index`, int64 [b], to train on: uint8 [b, 3, S, S] and int64 [b, L]."""
        images = self.images[index] if self.reload is None else self.reload(index.numpy())
        return images, self.tokens[index]


class Drawing(Protocol):
    """Where a run's candidates come from. Its whole state is the step that is asked for."""

    waited: float
    """Seconds that draws have waited for data so far."""

    bottleneck: str
    """One line when training waits for data, and by how much; else empty."""

    def __call__(self, step: int) -> Candidates:
        """The candidates of `step` (0-based): this rank's contiguous slice of the super-batch."""

    def close(self) -> None:
        """End worker processes. Closing twice is fine."""


def slice_of(n: int, rank: int, world: int) -> slice:
    """The part of n positions that rank `rank` of `world` takes."""
    return slice(n * rank // world, n * (rank + 1) // world)


def slices_of(counts: Sequence[int], rank: int, world: int, apart: bool) -> list[slice]:
    """Of every part, with so many pairs in a step, what this rank takes.

    A slice of all of them, one part after the other; with `apart` a slice of each part: a sampler
    chooses from one of them, of which every rank must then hold as many.
    """
    if apart:
        return [slice_of(n, rank, world) for n in counts]
    mine, starts = slice_of(sum(counts), rank, world), accumulate(counts, initial=0)
    return [
        slice(min(max(mine.start - at, 0), n), min(max(mine.stop - at, 0), n))
        for at, n in zip(starts, counts, strict=False)
    ]


@dataclass
class StoreDrawing:
    """Drawing from decoded stores: counts[i] pairs of parts[i] a step. Never waits.

    before: step -> pairs of every part that the steps before it draw; in place of counts, where
    they change along the run.
    apart: see slices_of.
    """

    parts: list[Part]
    counts: list[int]
    seed: int
    rank: int = 0
    world: int = 1
    before: Callable[[int], list[int]] | None = None
    apart: bool = False
    waited: float = 0.0
    bottleneck: str = ""

    def __call__(self, step: int) -> Candidates:
        counts, starts = self.counts, None
        if self.before is not None:
            starts = self.before(step)
            counts = [end - at for at, end in zip(starts, self.before(step + 1), strict=True)]
        where = (self.rank, self.world, starts, self.apart)
        return draw(self.parts, counts, self.seed, step, *where)

    def close(self) -> None:
        """Nothing to end."""


def draw(
    parts: list[Part],
    counts: list[int],
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    starts: list[int] | None = None,
    apart: bool = False,
) -> Candidates:
    """The candidates of `step`: counts[i] pairs of parts[i], every part read epoch by epoch.

    Of `world` ranks, `rank` gets its slice, or with `apart` its slice of every part. starts: how
    far each part has been read; default: by as many a step.
    """
    starts = starts or [step * n for n in counts]
    drawn = [
        _rows(part, i, n, at, seed, step)
        for i, (part, n, at) in enumerate(zip(parts, counts, starts, strict=True))
    ]
    mine = slices_of(counts, rank, world, apart)
    which, row, token = (
        np.concatenate([each[part] for each, part in zip(x, mine, strict=True)])
        for x in zip(*drawn, strict=True)
    )
    used = [(part, which == i) for i, part in enumerate(parts) if (which == i).any()]
    pairs = [_read(part, row[mask], token[mask]) for part, mask in used]
    return Candidates(
        which, row,
        torch.cat([images for images, _ in pairs]),
        torch.cat([tokens for _, tokens in pairs]),
        lambda i: parts[which[i]].store.keys[row[i]],
        wrong=_wrong(parts, which, row),
    )  # fmt: skip


def _wrong(parts: list[Part], which: np.ndarray, row: np.ndarray) -> np.ndarray | None:
    """Which rows of these parts show another's caption, bool [n]; None: no part knows of any."""
    if all(part.store.moved is None for part in parts):
        return None
    out = np.zeros(len(row), bool)
    for i, part in enumerate(parts):
        if part.store.moved is not None:
            out[which == i] = part.store.moved[row[which == i]]
    return out


def _rows(
    part: Part, which: int, n: int, start: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 [n] each: the part's number, rows of its store, rows of its tokens."""
    if not n:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    rows = part.rows[shuffled(seed, part.stream, len(part.rows), start, n)]
    first, end = part.store.caption_start[rows], part.store.caption_start[rows + 1]
    if part.captions > 1:
        end = np.minimum(end, first + part.captions)
        first = generator(seed, "caption", which, step).integers(first, end)
    return np.full(n, which), rows, first


def _read(part: Part, rows: np.ndarray, token_rows: np.ndarray) -> tuple[Tensor, Tensor]:
    if part.resident is None:
        return part.store.pixels(rows), part.store.token_rows(token_rows)
    images, tokens = part.resident
    at, token_at = (torch.from_numpy(x).to(images.device) for x in (rows, token_rows))
    return images[at], tokens[token_at].long()


def on_device(parts: list[Part], device: torch.device, most_bytes: float) -> list[Part]:
    """The same parts, their whole stores in the memory of `device`; unchanged where those take more
    than `most_bytes`.

    A GPU that waits for pixels from the host is idle most of a small model's step.
    """
    stores = {id(part.store): part.store for part in parts}
    size = sum(
        len(s) * int(np.prod(s.images[0].shape)) + 4 * int(np.prod(s.tokens.shape))
        for s in stores.values()
    )
    if size > most_bytes:  # all or none: candidates of several parts make one tensor
        return parts
    there = {key: _moved(store, device) for key, store in stores.items()}
    return [replace(part, resident=there[id(part.store)]) for part in parts]


def _moved(store: Store, device: torch.device, block: int = 16_384) -> tuple[Tensor, Tensor]:
    """Block by block: the host holds a memory map, not the images."""
    images = torch.empty(len(store), *store.images[0].shape, dtype=torch.uint8, device=device)
    for start in range(0, len(store), block):
        pixels = store.pixels(np.arange(start, min(start + block, len(store))))
        images[start : start + len(pixels)] = pixels.permute(0, 2, 3, 1).to(device)
    tokens = torch.from_numpy(np.array(store.tokens)).to(device)
    return images.permute(0, 3, 1, 2), tokens


def rows_of(store: Store, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """The deterministic view of rows: uint8 images [n, 3, S, S], first caption's tokens [n, L]."""
    return store.pixels(rows), store.token_rows(store.caption_start[rows])
