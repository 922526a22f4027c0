"""A decoded data set: pixels and tokens in memory maps, made once from any webdataset shards.

Files in its folder, plain .npy and JSON only:

    images.npy         uint8 [N, S, S, 3]
    tokens.npy         int32 [M, L]; captions of image i are rows caption_start[i] up to [i + 1]
    caption_start.npy  int64 [N + 1]
    <column>.npy       integer codes of source, category, family; bit mask of levels
    captions.json, keys.json, store.json (names of the codes, counts, what was skipped)
    hashes.npy         uint64 [N], of the keys; written when first asked for
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jestcli.data.dataset import Dataset, Samples, TableKeys, Tokenizer, Transform
from jestcli.data.decode import COLUMNS, FORMAT, decode_into, fingerprints
from jestcli.data.embeddings import DecodedTable, TableFile
from jestcli.data.images import DECODER
from jestcli.data.order import Pick
from jestcli.data.sources import expand_urls
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.hashing import first_by_hash, hashes_of
from jestcli.utils.io import remembered
from jestcli.utils.progress import Progress, silent
from jestcli.utils.reading import UNREADABLE, parse_json, reading

UNKNOWN = "unknown"


@dataclass(frozen=True)
class DecodedDataset(Dataset):
    """Decoded image-caption pairs (`dataset.Dataset`); arrays are memory-mapped, read-only.

    Rows keep the shards' order: row i is image i.
    """

    folder: Path
    images: np.ndarray  # uint8 [N, S, S, 3]
    tokens: np.ndarray  # int32 [M, L]
    caption_start: np.ndarray  # int64 [N + 1]
    codes: dict[str, np.ndarray]  # column -> int32 [N], -1 where not known
    level_names: dict[str, tuple[str, ...]]  # column -> name of each code; "levels" -> of each bit
    levels: np.ndarray  # uint32 [N], bit k set: in level level_names["levels"][k]
    meta: dict[str, Any]  # store.json: hash, counts, skipped
    resident: tuple[Tensor, Tensor] | None = None  # images [N, 3, S, S] and tokens on a device

    in_memory = True
    groups = ("source", "category")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def identity(self) -> str:
        """Hash of shards, size and tokenizer: what a table of its embeddings is keyed by."""
        return str(self.meta["identity"])

    @property
    def nbytes(self) -> float:
        return len(self) * int(np.prod(self.images[0].shape)) + 4 * int(np.prod(self.tokens.shape))

    @cached_property
    def keys(self) -> list[str]:
        """Key of each image."""
        return self._texts("keys.json", len(self))

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 [N]: a hash of each key. Kept beside the set, so that a run need not read and
        hash all keys before it starts."""
        path = self.folder / "hashes.npy"
        return remembered(path, len(self), np.uint64, lambda: hashes_of(self.keys))

    @cached_property
    def captions(self) -> list[str]:
        """Text of each token row."""
        return self._texts("captions.json", len(self.tokens))

    def _texts(self, name: str, n: int) -> list[str]:
        with reading(path := self.folder / name, ": delete the decoded data set"):
            found: list[str] = parse_json(path.read_bytes())
            if len(found) != n or not isinstance(found, list):
                raise ValueError(f"not {n:,} texts")
        return found

    def read(
        self, rows: np.ndarray, transform: Transform | None = None, pick: Pick | None = None
    ) -> Samples:
        """Pixels and tokens as they were decoded: `transform` has nothing left to do."""
        at = self.caption_start[rows]
        if pick is not None:
            counts = (self.caption_start[rows + 1] - at).tolist()
            at = at + np.array([pick(i, n) for i, n in enumerate(counts)], np.int64)
        if self.resident is None:
            images = torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2)
            tokens = torch.from_numpy(self.tokens[at].astype(np.int64))
        else:
            images, tokens = self.resident
            there, token_at = (torch.from_numpy(x).to(images.device) for x in (rows, at))
            images, tokens = images[there], tokens[token_at].long()
        texts = []
        if transform is not None and transform.second is not None:  # it reads words, not tokens
            texts = [self.captions[i] for i in at.tolist()]
        return Samples(np.arange(len(rows)), rows, rows, images, tokens, texts)

    def image(self, row: int, least: int | None = None) -> Image.Image:
        return Image.fromarray(self.images[row])

    def tokens_of(self, rows: np.ndarray, tokenizer: Tokenizer | None = None) -> Tensor:
        return torch.from_numpy(self.tokens[self.caption_start[rows]].astype(np.int64))

    def captions_of(self, rows: np.ndarray) -> list[str]:
        return [self.captions[at] for at in self.caption_start[rows].tolist()]

    def caption_counts(self, rows: np.ndarray) -> np.ndarray:
        return self.caption_start[rows + 1] - self.caption_start[rows]

    def keys_of(self, rows: np.ndarray) -> list[str]:
        return [self.keys[row] for row in rows.tolist()]

    def name(self, row: int) -> str:
        return self.keys[row]

    def places(self, rows: np.ndarray) -> list[str]:
        return self.labels("source", rows)

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        names, codes = self.level_names.get(group, ()), self.codes.get(group)
        if codes is None:
            return [UNKNOWN] * len(rows)
        return [names[c] if c >= 0 else UNKNOWN for c in codes[rows].tolist()]

    def table_files(self, reference: TableKeys, root: Path) -> list[TableFile]:
        folder = root / "reference-embeddings" / reference.key_over(self.identity)
        return [DecodedTable(folder, len(self), self.identity)]

    def on_device(self, device: torch.device, block: int = 16_384) -> DecodedDataset:
        """Block by block: the host holds a memory map, not the images."""
        images = torch.empty(self.images.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), block):
            some = torch.from_numpy(self.images[start : start + block])
            images[start : start + block] = some.to(device)
        tokens = torch.from_numpy(np.array(self.tokens)).to(device)
        out = replace(self, resident=(images.permute(0, 3, 1, 2), tokens))
        out.__dict__.update(self.__dict__ | {"resident": out.resident})  # what was read stays read
        return out

    def choose(self, level: str, n: int | None = None) -> np.ndarray:
        """Rows of a level, or `n` of them by a hash of their keys.

        Returns int64 [k], ascending: smaller sizes are subsets of larger ones. Raises DataError
        for an unknown level or when there are fewer than `n`.
        """
        levels = self.level_names["levels"]
        if level not in levels:
            known = ", ".join(levels) or "none"
            raise DataError(f"no level {level!r} in {self.folder}: there are {known}")
        rows = np.nonzero((self.levels & np.uint32(1 << levels.index(level))) != 0)[0]
        if n is None:
            return rows.astype(np.int64)
        if n > len(rows):
            raise DataError(f"{n} samples asked for, but level {level!r} has {len(rows)}")
        return rows[first_by_hash(self.hashes[rows], n, "chosen 0")]


def build_decoded(
    urls: str | Sequence[str],
    folder: Path,
    image_size: int,
    tokenizer: Tokenizer,
    *,
    decoder: int | None = DECODER,
    workers: int | None = None,
    progress: Progress = silent,
) -> DecodedDataset:
    """The decoded set of these shards under `folder`, built unless it is there already.

    The store's folder is `folder / <hash of shards, size, the tokenizer's identity, decoder>`.
    decoder: its version; None for data without odd images, which every version decodes alike.
    Images of another size are resized (shorter side, bicubic) and centre-cropped. Raises DataError
    when nothing can be read.
    """
    name = getattr(tokenizer, "identity", None)
    if name is None:
        raise DataError("the tokenizer has no identity, which is part of the hash")
    shards = expand_urls(urls)
    versions = [] if decoder is None else [decoder]
    text = json.dumps([FORMAT, fingerprints(shards, folder), image_size, name, *versions])
    identity = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    final = folder / identity
    if (final / "store.json").exists():
        return open_decoded(final)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".store-", dir=folder) as name_:
            staged = Path(name_) / "store"
            staged.mkdir()
            decode_into(staged, shards, image_size, tokenizer, identity, workers, progress)
            if not (final / "store.json").exists():  # another process may have been faster
                shutil.rmtree(final, ignore_errors=True)  # this was not finished
                os.replace(staged, final)
    except OSError as error:
        raise explain_os_error(error, f"building the decoded data set in {folder}") from error
    return open_decoded(final)


def open_decoded(folder: Path) -> DecodedDataset:
    """Open a built store. Raises DataError when there is none or a file is damaged."""
    try:
        meta = parse_json((folder / "store.json").read_bytes())

        def array(name: str) -> np.ndarray:
            return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

        return DecodedDataset(
            folder=folder,
            images=array("images"),
            tokens=array("tokens"),
            caption_start=np.asarray(array("caption_start")),
            codes={column: np.asarray(array(column)) for column in COLUMNS},
            level_names={column: tuple(names) for column, names in meta["names"].items()},
            levels=np.asarray(array("levels")),
            meta=meta,
        )
    except FileNotFoundError:
        raise DataError(f"no decoded data set in {folder}: build it with build_decoded") from None
    except UNREADABLE as error:
        raise DataError(f"the decoded data set {folder} is damaged ({error}): delete it") from error
