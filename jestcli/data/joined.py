"""Several decoded stores read as one, without copying their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from jestcli.data.store import Store


class Stacked:
    """Arrays one under the other, to whoever indexes rows: by a number or by int64 [n]."""

    def __init__(self, arrays: Sequence[Any]):
        self.arrays = arrays
        self.starts = np.cumsum([0, *(len(array) for array in arrays)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        rows = np.asarray(rows)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        if rows.ndim == 0:
            return np.asarray(self.arrays[int(which)][int(rows - self.starts[which])])
        first = self.arrays[0]
        out = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for i, array in enumerate(self.arrays):
            mine = which == i
            out[mine] = array[rows[mine] - self.starts[i]]
        return out


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """`Stacked`, passing for an array where only rows are asked for."""
    return cast(np.ndarray, Stacked(arrays))


@dataclass(frozen=True)
class Joined(Store):
    """The rows of `stores`, one store after the other."""

    stores: tuple[Store, ...]

    @cached_property
    def keys(self) -> list[str]:
        return [key for store in self.stores for key in store.keys]

    @cached_property
    def hashes(self) -> np.ndarray:
        return np.concatenate([store.hashes for store in self.stores])

    @cached_property
    def captions(self) -> list[str]:
        return [text for store in self.stores for text in store.captions]

    def store_of(self, rows: np.ndarray) -> np.ndarray:
        """Which store rows int64 [n] come from, int64 [n]."""
        ends = np.cumsum([len(store) for store in self.stores])
        return np.searchsorted(ends, rows, side="right")


def join(stores: tuple[Store, ...]) -> Joined:
    """`stores` as one. Tokens and columns are copied (small), images stay where they are."""
    identity = "+".join(store.identity for store in stores)
    tokens = np.cumsum([0, *(len(store.tokens) for store in stores)])
    starts = [store.caption_start[:-1] + at for store, at in zip(stores, tokens, strict=False)]
    columns = list(dict.fromkeys(name for store in stores for name in store.codes))
    names, codes = {}, {}
    for column in columns:
        names[column], codes[column] = _codes(stores, column)
    names["levels"], levels = _levels(stores)
    return Joined(
        folder=stores[0].folder,
        images=stacked([store.images for store in stores]),
        tokens=np.concatenate([store.tokens for store in stores]),
        caption_start=np.concatenate([*starts, tokens[-1:]]).astype(np.int64),
        codes=codes,
        names=names,
        levels=levels,
        about={"identity": hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()},
        stores=stores,
    )


def _codes(stores: tuple[Store, ...], column: str) -> tuple[tuple[str, ...], np.ndarray]:
    """A column's names over all stores, and every row's int32 number among them (-1: none)."""
    names = tuple(sorted({name for store in stores for name in store.names.get(column, ())}))
    parts = []
    for store in stores:
        known = [names.index(name) for name in store.names.get(column, ())]
        number = np.array([*known, -1], np.int32)  # the last one answers for -1
        codes = store.codes.get(column)
        parts.append(np.full(len(store), -1, np.int32) if codes is None else number[codes])
    return names, np.concatenate(parts)


def _levels(stores: tuple[Store, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Level names over all stores, and every row's uint32 bits."""
    names = tuple(sorted({name for store in stores for name in store.names["levels"]}))
    parts = []
    for store in stores:
        bits = np.zeros(len(store), np.uint32)
        for k, name in enumerate(store.names["levels"]):
            has = (store.levels >> np.uint32(k)) & np.uint32(1)
            bits |= has << np.uint32(names.index(name))
        parts.append(bits)
    return names, np.concatenate(parts)
