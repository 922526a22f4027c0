"""Benchmarks in clip-benchmark's local wds layout, decoded once and kept as tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jestcli.data.errors import DataError


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

    @property
    def classes(self) -> list[str]:
        return _lines(self.folder / "classnames.txt")

    @property
    def templates(self) -> list[str]:
        return _lines(self.folder / "zeroshot_classification_templates.txt")

    def split(self, name: str = "test") -> Split:
        return _read_split(self.folder, name)


def list_benchmarks(root: Path) -> list[Benchmark]:
    """The benchmarks under a data root. Raises DataError."""
    folder = root / "benchmarks"
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


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().split("\n") if line]


def _to_tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@cache
def _read_split(folder: Path, name: str) -> Split:
    from clip_benchmark.datasets.builder import build_wds_dataset

    dataset = build_wds_dataset("wds", _to_tensor, split=name, data_dir=str(folder))
    images, targets = zip(*dataset, strict=True)
    if isinstance(targets[0], int):
        return Split(torch.stack(images), torch.tensor(targets), None)
    return Split(torch.stack(images), None, [list(captions) for captions in targets])
