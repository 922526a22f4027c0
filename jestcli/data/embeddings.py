"""Reference embeddings of shards: beside them, a memory-mapped file each.

    <folder of the shards>/jest-reference/<key>/<shard>.npy    float32 [n, 2, d]: image, text
                                                <shard>.json   the shard's identity, for a check

The key is the hash of the reference (weights, pixels, preprocessing, tokenizer, precision): another
model's embeddings lie in another folder. A file is used only when its shard still has the same
samples. Rows of samples that could not be read are NaN: not there, like a file that is missing.
Where shards are remote or their folder cannot be written, the data cache is used instead.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jestcli.data.sources import Loading, ShardError, is_remote
from jestcli.data.stream import Stream
from jestcli.data.tarindex import read_index
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.io import save_array, save_text

FOLDER = "jest-reference"


class ShardEmbeddings:
    """The embeddings that one reference has of a stream, as far as they are there.

    check: open what is there; DataError for a file that is stale or another model's.
    """

    def __init__(self, stream: Stream, key: str, loading: Loading, check: bool = True):
        self.stream, self.key, self.loading = stream, key, loading
        self.maps: dict[int, np.ndarray] = {}
        for shard in range(len(stream.shards)) if check else ():
            found = self._open(shard)
            if found is not None:
                self.maps[shard] = found

    @property
    def complete(self) -> bool:
        """Whether every shard has a file (samples that cannot be read have no embedding)."""
        return len(self.maps) == len(self.stream.shards)

    def lookup(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """image, text: float32 [n, d] of rows of the stream; there: bool [n], whether known."""
        d = max((each.shape[2] for each in self.maps.values()), default=0)
        out = np.full((len(rows), 2, d), np.nan, np.float32)
        shards = np.searchsorted(self.stream.starts, rows, side="right") - 1
        for shard in np.unique(shards):
            found = self.maps.get(int(shard))
            if found is not None and found.shape[2] == d:  # 1 where no sample could be read
                mask = shards == shard
                out[mask] = found[rows[mask] - self.stream.starts[shard]]
        there = torch.from_numpy(~np.isnan(out[:, 0, :1]).any(1) & (d > 0))
        return torch.from_numpy(out[:, 0]), torch.from_numpy(out[:, 1]), there

    def readable(self) -> np.ndarray:
        """Rows of the stream that have an embedding, int64, ascending."""
        found = [
            self.stream.starts[shard] + np.flatnonzero(~np.isnan(self.maps[shard][:, 0, 0]))
            for shard in sorted(self.maps)
        ]
        return np.concatenate([np.empty(0, np.int64), *found])

    def write(self, shard: int, embeddings: np.ndarray) -> None:
        """Keep a shard's embeddings, float32 [n, 2, d], atomically."""
        path = self._path(shard, to_write=True)
        try:
            about = {"key": self.key, "shard": self.stream.shards[shard],
                     "identity": self._identity(shard)}  # fmt: skip
            path.with_suffix(".json").unlink(missing_ok=True)
            save_array(path, embeddings.astype(np.float32))
            save_text(path.with_suffix(".json"), json.dumps(about))
        except OSError as error:
            raise explain_os_error(error, f"writing reference embeddings to {path}") from error
        self.maps[shard] = np.load(path, mmap_mode="r", allow_pickle=False)

    def current(self, shard: int) -> bool:
        """Whether a shard's embeddings are there and fit."""
        described = self._path(shard).with_suffix(".json").exists()
        return described and self.stale(shard) is None

    def stale(self, shard: int) -> str | None:
        """Why the file of a shard must not be used; None if it may, or if there is none."""
        path = self._path(shard)
        if not path.with_suffix(".json").exists():
            return None
        try:
            about = json.loads(path.with_suffix(".json").read_text())
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if about["key"] != self.key:
                return "are another model's"
            if about["identity"] != self._identity(shard):
                return "are of another version of it"
            n = int(self.stream.starts[shard + 1] - self.stream.starts[shard])
            if array.ndim != 3 or array.dtype != np.float32 or array.shape[:2] != (n, 2):
                return "have a wrong shape"
        except (OSError, ValueError, KeyError, TypeError):
            return "are damaged"
        except ShardError:
            return None  # without the shard none of its rows is asked for
        return None

    def _open(self, shard: int) -> np.ndarray | None:
        path = self._path(shard)
        if not path.with_suffix(".json").exists():
            return None
        why = self.stale(shard)
        if why is not None:
            raise DataError(
                f"the reference embeddings of {self.stream.shards[shard]} {why}: delete "
                f"{path.parent}, or make them again with `jest cache-reference`"
            )
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _identity(self, shard: int) -> str:
        return read_index(self.stream.shards[shard], self.loading).identity

    def _path(self, shard: int, to_write: bool = False) -> Path:
        url = self.stream.shards[shard]
        mark = hashlib.sha256(url.encode()).hexdigest()[:8]
        name = f"{Path(url).stem[:40] if not url.startswith('pipe:') else 'pipe'}-{mark}.npy"
        kept = self.loading.cache / FOLDER / self.key / name
        if is_remote(url):
            return kept
        beside = Path(url).parent / FOLDER / self.key / f"{Path(url).stem}.npy"
        writable = os.access(Path(url).parent, os.W_OK)
        return beside if beside.exists() or (to_write and writable) else kept
