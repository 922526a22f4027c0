"""Pool quality: a known share of the pairs shows another pair's caption (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jestcli.data.dataset import Dataset, Samples, TableKeys, Tokenizer, Transform
from jestcli.data.embeddings import TableFile
from jestcli.data.order import Order, Pick, Rows
from jestcli.utils.hashing import below, salted


class CaptionNoise(Dataset):
    """A data set in which a share of the pairs, known which, shows another pair's first caption.

    Every choice is made pair by pair, by a hash of its key (utils/hashing.py). Taking pairs out of
    what a run draws from (a smaller pool, a filter) therefore leaves every other pair's caption as
    it is, and the pairs that are wrong at a share of .2 are wrong at .5, too.

    A pair is wrong when its key's hash is below `share`. The wrong ones stand in a ring, by another
    hash of the key; each gets the caption of the next one, or of the first after that whose caption
    reads differently (compared as token rows: by what the model sees). So no wrong pair shows a
    caption like its own, and where captions repeat one may be shown twice and another not at all:
    nearly, not strictly, a permutation.

    share: in [0, 1), of the rows that may be wrong; so many are wrong up to binomial noise.
    rows: int64 [n] ascending, those that may be wrong; None: all.
    """

    mismatched = True

    def __init__(self, dataset: Dataset, share: float, tokenizer: Tokenizer, rows: Rows = None):
        self.dataset, self.share, self.tokenizer = dataset, share, tokenizer
        self.in_memory = dataset.in_memory
        self.groups, self.most_captions = dataset.groups, dataset.most_captions
        self.n_files = dataset.n_files
        # Not by position: whoever takes pairs out (a filter, a smaller pool) moves the rest.
        hashes = dataset.hashes if rows is None else dataset.hashes[rows]
        chosen = np.flatnonzero(below(salted(hashes, "wrong caption"), share))
        # Another hash than the one that chose them: neighbours would be alike in it.
        order = chosen[np.argsort(salted(hashes[chosen], "ring of captions"), kind="stable")]
        self.ring = order if rows is None else rows[order]
        self.at = np.full(len(dataset), -1, np.int64)  # a row's place in the ring; -1: right
        self.at[self.ring] = np.arange(len(self.ring))

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def identity(self) -> str:
        return f"{self.dataset.identity} noise {self.share}"

    @property
    def notes(self) -> dict[str, str]:
        return self.dataset.notes

    @property
    def nbytes(self) -> float:
        return self.dataset.nbytes

    @property
    def hashes(self) -> np.ndarray:
        return self.dataset.hashes

    def caption_rows(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: the rows whose captions these show. Of shards it reads captions to compare."""
        out = rows.copy()
        wrong = np.flatnonzero(self.at[rows] >= 0)
        at, n = self.at[rows[wrong]], len(self.ring)
        giver = (at + 1) % max(1, n)  # a ring: each wrong caption is given once, as far as can be
        same = np.arange(len(at))
        for _ in range(n):
            same = same[self._alike(self.ring[at[same]], self.ring[giver[same]])]
            if not len(same):
                break
            giver[same] = (giver[same] + 1) % n
        giver[same] = at[same]  # all captions of the ring read alike: none can be wrong
        out[wrong] = self.ring[giver]
        return out

    def _alike(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """bool [n]: whether two captions read alike, or the other's cannot be read."""
        if not len(rows):
            return np.empty(0, bool)
        mine, theirs = (self.dataset.tokens_of(each, self.tokenizer) for each in (rows, others))
        return ((mine == theirs).all(dim=1) | (theirs[:, 0] < 0)).numpy()

    def wrong(self, rows: np.ndarray) -> np.ndarray:
        """bool [n]: which of these show another's caption. Of shards by the ring alone: to compare
        captions would read them all."""
        return self.caption_rows(rows) != rows if self.in_memory else self.at[rows] >= 0

    def read(self, rows: np.ndarray, transform: Transform, pick: Pick | None = None) -> Samples:
        # An image stays where it is and only its caption is read elsewhere: one more read a pair.
        samples = self.dataset.read(rows, transform, None)
        samples.caption_row = self.caption_rows(samples.row)
        moved = np.flatnonzero(samples.caption_row != samples.row)
        if len(moved):
            given = samples.caption_row[moved]
            tokens = self.dataset.tokens_of(given, transform.tokenizer)
            samples.tokens[torch.from_numpy(moved)] = tokens.to(samples.tokens.device)
            if samples.texts:
                for i, text in zip(moved.tolist(), self.dataset.captions_of(given), strict=True):
                    samples.texts[i] = text
        return samples

    def image(self, row: int, least: int | None = None) -> Image.Image:
        return self.dataset.image(row, least)

    def tokens_of(self, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
        return self.dataset.tokens_of(self.caption_rows(rows), tokenizer)

    def captions_of(self, rows: np.ndarray) -> list[str]:
        return self.dataset.captions_of(self.caption_rows(rows))

    def caption_counts(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), np.int64)  # a second caption would be right where one is wrong

    def keys_of(self, rows: np.ndarray) -> list[str]:
        return self.dataset.keys_of(rows)

    def name(self, row: int) -> str:
        return self.dataset.name(row)

    def places(self, rows: np.ndarray) -> list[str]:
        return self.dataset.places(rows)

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        return self.dataset.labels(group, rows)

    def order(
        self, seed: int, name: str, rows: Rows = None, number: int = 0, weighted: bool = True
    ) -> Order:
        return self.dataset.order(seed, name, rows, number, weighted)

    def prefetch(self, shards: Sequence[int]) -> dict[str, Callable[[], Any]]:
        return self.dataset.prefetch(shards)

    def table_files(self, reference: TableKeys, root: Path) -> list[TableFile]:
        # One table serves every share of noise: a caption's embedding lies beside its own image's.
        return self.dataset.table_files(reference, root)

    def on_device(self, device: torch.device) -> CaptionNoise:
        out = CaptionNoise.__new__(CaptionNoise)
        out.__dict__ = self.__dict__ | {"dataset": self.dataset.on_device(device)}
        return out

    def close(self) -> None:
        self.dataset.close()
