"""Benchmarks in clip-benchmark's local wds layout, decoded once and kept as tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jestcli.data.errors import DataError
from jestcli.data.store import fit


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
        rows = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:n]
        captions = [self.captions[i] for i in rows.tolist()] if self.captions else None
        labels = self.labels[rows] if self.labels is not None else None
        return Split(self.images[rows], labels, captions)


@dataclass(frozen=True)
class Benchmark:
    """One row of benchmarks.json and the folder it reads.

    kind: zero-shot, few-shot or retrieval; metric: clip-benchmark's name of the score; chance: the
    score of guessing, as a fraction.
    """

    name: str
    kind: str
    metric: str
    chance: float
    folder: Path
    about: dict[str, Any]
    image_size: int | None = None  # images are fitted to it; None: they all are of one size

    @property
    def classes(self) -> list[str]:
        return _lines(self.folder / "classnames.txt")

    @property
    def templates(self) -> list[str]:
        return _lines(self.folder / "zeroshot_classification_templates.txt")

    def split(self, name: str = "test") -> Split:
        return _read_split(self.folder, name, self.image_size)


def list_benchmarks(root: Path) -> list[Benchmark]:
    """The benchmarks under a data root. Raises DataError."""
    return _read_list(root / "benchmarks")


def _read_list(folder: Path) -> list[Benchmark]:
    try:
        rows = json.loads((folder / "benchmarks.json").read_text())
    except (OSError, ValueError):
        raise DataError(f"no benchmarks in {folder}: run `jest data build` first") from None
    return [
        Benchmark(
            r["name"], r["kind"], r["metric"], r["chance"], folder / r["folder"],
            {k: r[k] for k in ("mirrors", "description", "n", "n_classes")},
        )
        for r in rows
    ]  # fmt: skip


def find_benchmarks(folder: Path, image_size: int) -> list[Benchmark]:
    """Benchmarks in clip-benchmark's local wds layout: `folder` itself, or those in it.

    Zero-shot where there are class names, retrieval both ways (R@1) where dataset_type.txt says
    so. Raises DataError when there is none.
    """
    if (folder / "benchmarks.json").exists():
        return [replace(each, image_size=image_size) for each in _read_list(folder)]
    children = sorted(folder.iterdir()) if folder.is_dir() else []
    found: list[Benchmark] = []
    for each in [folder, *children]:
        if not (each / "test").is_dir():
            continue
        name, kind = each.name.removeprefix("wds_"), each / "dataset_type.txt"
        try:
            if kind.exists() and kind.read_text().strip() == "retrieval":
                chance = 1 / len(_read_split(each, "test", image_size))
                found += [
                    Benchmark(f"{name}_{way}", "retrieval", f"{metric}_retrieval_recall@1", chance,
                              each, {}, image_size)
                    for way, metric in (("i2t", "text"), ("t2i", "image"))
                ]  # fmt: skip
            else:
                one = Benchmark(name, "zero-shot", "acc1", 0.0, each, {}, image_size)
                found.append(replace(one, chance=1 / len(one.classes)))
        except (OSError, ValueError, ZeroDivisionError) as error:
            raise DataError(f"{each} is not in clip-benchmark's wds layout: {error}") from None
    if not found:
        raise DataError(f"no benchmark in {folder}: expected folders with test/0.tar in them")
    return found


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().split("\n") if line]


def _to_tensor(image: Any, size: int | None) -> Tensor:
    pixels = image.convert("RGB")
    fitted = np.array(pixels) if size is None else fit(pixels, size).copy()
    return torch.from_numpy(fitted).permute(2, 0, 1)


@cache
def _read_split(folder: Path, name: str, size: int | None) -> Split:
    from clip_benchmark.datasets.builder import build_wds_dataset

    dataset = build_wds_dataset(
        "wds", partial(_to_tensor, size=size), split=name, data_dir=str(folder)
    )
    images, targets = zip(*dataset, strict=True)
    if isinstance(targets[0], int):
        return Split(torch.stack(images), torch.tensor(targets), None)
    return Split(torch.stack(images), None, [list(captions) for captions in targets])
