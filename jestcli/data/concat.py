"""Several data sets as one: curated pairs behind the pool, or parts of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jestcli.data.dataset import Dataset, Samples, TableKeys, Tokenizer, Transform, merged, picked
from jestcli.data.embeddings import TableFile
from jestcli.data.order import Pick


class ConcatDataset(Dataset):
    """The rows of several data sets, one after the other, as torch's of the same name."""

    def __init__(self, datasets: Sequence[Dataset]):
        self.datasets = tuple(datasets)
        self.starts = np.cumsum([0, *map(len, datasets)])
        self.in_memory = all(each.in_memory for each in datasets)
        self.n_files = sum(each.n_files for each in datasets)
        self.groups = tuple(dict.fromkeys(group for each in datasets for group in each.groups))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def identity(self) -> str:
        return "+".join(each.identity for each in self.datasets)

    @property
    def nbytes(self) -> float:
        return sum(each.nbytes for each in self.datasets)

    @cached_property
    def hashes(self) -> np.ndarray:  # type: ignore[override] # kept: all pairs are asked for often
        return np.concatenate([each.hashes for each in self.datasets])

    def _parts(self, rows: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """For every data set with some of these: its number, their places, and its own rows."""
        which = np.searchsorted(self.starts, rows, side="right") - 1
        return [
            (i, np.flatnonzero(which == i), rows[which == i] - self.starts[i])
            for i in np.unique(which).tolist()
        ]

    def read(self, rows: np.ndarray, transform: Transform, pick: Pick | None = None) -> Samples:
        read = []
        for i, places, own in self._parts(rows):
            # Each reads its own rows at once: a memory map is fastest in one gather.
            mine = self.datasets[i].read(own, transform, picked(pick, places))
            mine.bad = {int(places[at]): why for at, why in mine.bad.items()}
            mine.place = places[mine.place]
            # A super-batch and the tables of embeddings know pairs by their rows in the whole.
            mine.row, mine.caption_row = (x + self.starts[i] for x in (mine.row, mine.caption_row))
            read.append(mine)
        return merged(read)

    def _lists(self, method: str, rows: np.ndarray, *more: Any) -> list[Any]:
        out: list[Any] = [None] * len(rows)
        for i, places, own in self._parts(rows):
            values = getattr(self.datasets[i], method)(*more, own)
            for place, value in zip(places.tolist(), values, strict=True):
                out[place] = value
        return out

    def captions_of(self, rows: np.ndarray) -> list[str]:
        return self._lists("captions_of", rows)

    def keys_of(self, rows: np.ndarray) -> list[str]:
        return self._lists("keys_of", rows)

    def places(self, rows: np.ndarray) -> list[str]:
        return self._lists("places", rows)

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        return self._lists("labels", rows, group)

    def caption_counts(self, rows: np.ndarray) -> np.ndarray:
        return np.array(self._lists("caption_counts", rows), np.int64)

    def tokens_of(self, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
        parts = [
            (places, self.datasets[i].tokens_of(own, tokenizer))
            for i, places, own in self._parts(rows)
        ]
        order = np.concatenate([places for places, _ in parts]).argsort()
        return torch.cat([tokens for _, tokens in parts])[torch.from_numpy(order)]

    def image(self, row: int, least: int | None = None) -> Image.Image:
        ((i, _, own),) = self._parts(np.array([row]))
        return self.datasets[i].image(int(own[0]), least)

    def name(self, row: int) -> str:
        ((i, _, own),) = self._parts(np.array([row]))
        return self.datasets[i].name(int(own[0]))

    def table_files(self, reference: TableKeys, root: Path) -> list[TableFile]:
        # In the rows' order: a table of several files looks a row up by where each begins.
        return [file for each in self.datasets for file in each.table_files(reference, root)]

    def on_device(self, device: torch.device) -> ConcatDataset:
        return ConcatDataset([each.on_device(device) for each in self.datasets])

    def close(self) -> None:
        for each in self.datasets:
            each.close()
