"""Reference embeddings of the pool, computed once and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jestcli.data.joined import stacked
from jestcli.data.loader import Candidates, rows_of
from jestcli.data.store import Store
from jestcli.models.flexi import View
from jestcli.models.towers import Clip
from jestcli.runs.workspace import only_writer
from jestcli.selection import PairEmbeddings
from jestcli.training.checkpoint import write_json
from jestcli.training.step import EmbedReference, embed

BLOCK = 1024
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cache:
    """image, text: float32 memory maps [N, d], row i being row i of the store."""

    image: np.ndarray
    text: np.ndarray
    scale: float
    bias: float
    caption_of: np.ndarray | None = None
    """int64 [N]: row whose caption row i shows, where captions were moved (data/noise.py)."""

    def __call__(self, candidates: Candidates) -> PairEmbeddings:
        """The reference embeddings of candidates that are all in the store."""
        return self.pairs(candidates.row)

    def pairs(self, rows: np.ndarray) -> PairEmbeddings:
        """The reference embeddings of these rows, int64 [n], of the store."""
        texts = rows if self.caption_of is None else self.caption_of[rows]
        image, text = torch.from_numpy(self.image[rows]), torch.from_numpy(self.text[texts])
        return PairEmbeddings(image, text, self.scale, self.bias)

    def on(self, device: torch.device) -> EmbedReference:
        """The same from the device's memory, where all of the cache is put."""
        there = self.pairs(np.arange(len(self.image))).to(device)

        def reference(candidates: Candidates) -> PairEmbeddings:
            return there.rows(torch.from_numpy(candidates.row).to(device))

        return reference


def cache_key(model: Clip, store: Store, view: View | None = None) -> str:
    """The hash of the weights, the store (its shards, image size and tokenizer) and the view."""
    digest = hashlib.sha256(store.identity.encode())
    if view is not None:
        digest.update(repr(view).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def build_cache(
    model: Clip,
    store: Store,
    folder: Path,
    progress: Progress,
    view: View | None = None,
    micro_batch: int = 64,
) -> Cache:
    """The cache of `model` over `store` under `folder`, computed unless it is there.

    view: how the image tower sees the pool; None is full resolution. micro_batch: pairs embedded at
    a time, on the model's device. Resumable: a killed build goes on after the last whole block.
    """
    final = folder / cache_key(model, store, view)
    if not (final / "cache.json").exists():
        with only_writer(final):
            _fill(model, store, final, progress, view, micro_batch)
    about = json.loads((final / "cache.json").read_text())
    image, text = (np.load(final / f"{x}.npy", mmap_mode="r") for x in ("image", "text"))
    return Cache(image, text, about["scale"], about["bias"])


def joined_cache(caches: Sequence[Cache]) -> Cache:
    """One reference's caches over several stores, as one over the `Joined` store of them."""
    image, text = (stacked([getattr(c, name) for c in caches]) for name in ("image", "text"))
    return Cache(image, text, caches[0].scale, caches[0].bias)


def _fill(
    model: Clip,
    store: Store,
    final: Path,
    progress: Progress,
    view: View | None,
    micro_batch: int,
) -> None:
    if view is not None:
        model.set_low(view)
    final.mkdir(parents=True, exist_ok=True)
    one = torch.zeros(1, store.tokens.shape[1]).long().to(model.clip.logit_scale.device)
    n, d = len(store), model.encode_text(one).shape[1]
    position = final / "rows"
    start = int(position.read_text()) if position.exists() else 0
    arrays = [
        np.lib.format.open_memmap(
            final / f"{name}.npy", "r+" if start else "w+", np.float32, (n, d)
        )
        for name in ("image", "text")
    ]
    model.eval()
    for first in range(start, n, BLOCK):
        rows = np.arange(first, min(first + BLOCK, n))
        pairs = embed(model, *rows_of(store, rows), view, micro_batch)
        arrays[0][rows], arrays[1][rows] = pairs.image.cpu().numpy(), pairs.text.cpu().numpy()
        progress(int(rows[-1]) + 1, n)
        if (first // BLOCK) % 32 == 31:
            for array in arrays:
                array.flush()
            temporary = position.with_name(".rows")
            temporary.write_text(str(int(rows[-1]) + 1))
            os.replace(temporary, position)
    for array in arrays:
        array.flush()
    about = {"rows": n, "scale": float(model.scale), "bias": float(model.bias),
             "store": store.identity}  # fmt: skip
    write_json(final / "cache.json", about)
    position.unlink(missing_ok=True)
