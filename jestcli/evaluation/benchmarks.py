"""Benchmarks in clip-benchmark's local wds layout, decoded once and kept as tensors.

A few-shot benchmark is a labelled one with a train split. The embedded one's holds its shots; of a
user's, which may be all of ImageNet, a fixed random choice of so many images a class is decoded.
"""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from jestcli.data.bad_samples import BadSample
from jestcli.data.images import decode_image, fit
from jestcli.data.shards import read_shards
from jestcli.evaluation.folders import (
    Labelled,
    check_all,
    class_names,
    is_retrieval,
    labelled,
    listed,
    scored,
    shards_of,
    templates,
)
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_bytes
from jestcli.utils.reading import parse_json

KEPT = 1  # counts changes of what is kept of a decoded split
_ABOUT = ("mirrors", "description", "n", "n_classes", "confirmation")


@dataclass(frozen=True)
class Split:
    """images uint8 [n, 3, S, S]; labels int64 [n], or None and captions for retrieval."""

    images: Tensor
    labels: Tensor | None
    captions: list[list[str]] | None

    def __len__(self) -> int:
        return len(self.images)

    def first(self, n: int) -> Split:
        """A fixed random subset of at most n samples (the same for every caller)."""
        if len(self) <= n:
            return self
        return self.take(torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:n])

    def take(self, rows: Tensor) -> Split:
        """Samples int64 [k], in this order."""
        captions = [self.captions[i] for i in rows.tolist()] if self.captions else None
        labels = self.labels[rows] if self.labels is not None else None
        return Split(self.images[rows], labels, captions)


@dataclass(frozen=True)
class Benchmark:
    """One row of benchmarks.json and the folder it reads.

    kind: zero-shot, few-shot or retrieval; metric: clip-benchmark's name of the score; chance: the
    score of guessing, as a fraction. shots: images a class that the train split is cut to.
    """

    name: str
    kind: str
    metric: str
    chance: float
    folder: Path
    about: dict[str, Any]
    image_size: int | None = None  # images are fitted to it; None: they all are of one size
    shots: int | None = None

    @property
    def classes(self) -> list[str]:
        return class_names(self.folder)

    @property
    def templates(self) -> list[str]:
        return templates(self.folder)

    def split(self, name: str = "test") -> Split:
        """ "test" or "train". Raises DataError where too little is there to train a few shots."""
        if name == "train" and self.shots is not None:
            return _read_shots(self.folder, self.image_size, self.shots, len(self.classes))
        return _read_split(self.folder, name, self.image_size)


def list_benchmarks(root: Path, confirmation: bool = False) -> list[Benchmark]:
    """The eight benchmarks under a data root, or those that confirm (docs/protocol.md) instead.

    Raises DataError.
    """
    folder = root / "benchmarks"
    found = [_of_row(folder, row) for row in listed(folder)]
    return [each for each in found if each.about["confirmation"] is confirmation]


def _of_row(folder: Path, row: dict[str, Any], image_size: int | None = None) -> Benchmark:
    about = {key: row.get(key, False) for key in _ABOUT}
    place = folder / row["folder"]
    return Benchmark(
        row["name"], row["kind"], row["metric"], row["chance"], place, about, image_size
    )


def find_benchmarks(folder: Path, image_size: int, shots: int | None = None) -> list[Benchmark]:
    """Benchmarks in clip-benchmark's local wds layout: `folder` itself, or those in it.

    Zero-shot where there are class names, retrieval both ways (R@1) where dataset_type.txt says
    so. shots: where there are class names and a train split, few-shot with so many images a class
    too. Raises DataError for what cannot be scored (`folders.check_all`).
    """
    checked, rows = check_all(folder, shots), scored(folder)
    if rows is not None:
        return [_of_row(folder, row, image_size) for row in rows]
    found: list[Benchmark] = []
    for about in checked:
        each = about.folder
        name = each.name.removeprefix("wds_")
        if about.retrieval:
            one = Benchmark(name, "retrieval", "", 1 / about.n, each, {}, image_size)
            found += [
                replace(one, name=f"{name}_{way}", metric=f"{query}_retrieval_recall@1")
                for way, query in (("i2t", "text"), ("t2i", "image"))
            ]
            continue
        one = Benchmark(name, "zero-shot", "acc1", 1 / about.n_classes, each, {}, image_size)
        found.append(one)
        if shots is not None and (each / "train").is_dir():
            found.append(replace(one, name=f"{name}_{shots}shot", kind="few-shot", shots=shots))
    return found


def _to_tensor(image: Any, size: int | None) -> Tensor:
    pixels = image.convert("RGB")
    fitted = np.array(pixels) if size is None else fit(pixels, size).copy()
    return torch.from_numpy(fitted).permute(2, 0, 1)


@cache
def _read_split(folder: Path, name: str, size: int | None) -> Split:
    """A split, decoded. The embedded ones (size None) are small: they are kept beside their shard
    once decoded, since every run reads them."""
    if size is not None:
        return _decode_split(folder, name, size)
    state = [(path.name, path.stat()) for path in sorted((folder / name).glob("*.tar"))]
    seen = repr([(KEPT, name, s.st_size, s.st_mtime_ns) for name, s in state])
    digest = hashlib.blake2b(seen.encode(), digest_size=6).hexdigest()
    kept = folder / name / f"decoded-{digest}.npz"
    with (
        suppress(OSError, ValueError, KeyError, BadZipFile),
        np.load(kept, allow_pickle=False) as found,
    ):
        labels = torch.from_numpy(found["labels"]) if "labels" in found else None
        captions = parse_json(str(found["captions"])) if labels is None else None
        return Split(torch.from_numpy(found["images"]), labels, captions)
    split = _decode_split(folder, name, size)
    content, images = io.BytesIO(), split.images.numpy()
    if split.labels is not None:
        np.savez(content, images=images, labels=split.labels.numpy())
    else:
        np.savez(content, images=images, captions=np.array(json.dumps(split.captions)))
    with suppress(OSError):  # a folder that cannot be written to costs time alone
        save_bytes(kept, content.getvalue())
    return split


def _decode_split(folder: Path, name: str, size: int | None) -> Split:
    """All samples of clip-benchmark's layout that can be used: a class number each, or captions."""
    retrieval = is_retrieval(folder)
    images, labels, captions = [], [], []
    for shard in shards_of(folder, name):
        for pair in read_shards(shard):
            if (retrieval and not pair.captions) or (not retrieval and "cls" not in pair.meta):
                raise DataError(
                    f"{shard}: {pair.key} has no {'caption' if retrieval else 'class number'}"
                )
            images.append(_to_tensor(pair.image, size))
            captions.append(list(pair.captions))
            labels.append(pair.meta.get("cls"))
    if not images:
        raise DataError(f"{folder / name} holds no image that can be read")
    if retrieval:
        return Split(torch.stack(images), None, captions)
    return Split(torch.stack(images), torch.tensor(labels), None)


@cache
def _read_shots(folder: Path, size: int | None, shots: int, n_classes: int) -> Split:
    """`shots` images of every class of the train split, the same for every model and run.

    Labels are read first and only what is chosen is decoded. Of a class with fewer images all are
    taken; raises DataError for a class without one.
    """
    of_class: dict[int, list[Labelled]] = {}
    for each in labelled(folder, "train", n_classes):
        of_class.setdefault(each.label, []).append(each)
    images, labels = [], []
    for label in range(n_classes):
        every = of_class.get(label, [])
        dice = torch.Generator().manual_seed(label)
        taken = 0
        for i in torch.randperm(len(every), generator=dice).tolist():
            with suppress(BadSample):
                images.append(_to_tensor(decode_image(every[i].image()), size))
                taken += 1
            if taken == shots:
                break
        if not taken:
            raise DataError(f"{folder / 'train'}: no image of class {label} can be read")
        labels += [label] * taken
    return Split(torch.stack(images), torch.tensor(labels), None)
