"""Development and test images of a benchmark: what choices are made on, and what is reported.

A quarter of the concepts is development, by a hash of the class name in lower case and singular:
the same concept is on the same side in every benchmark. All class names stay candidates. In
retrieval an image and its captions are on the side of its first caption; all stay in the gallery,
and only the queries are divided.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jestcli.config import Part
from jestcli.evaluation.benchmarks import Benchmark, Split
from jestcli.utils.errors import DataError
from jestcli.utils.hashing import below, hashes_of, salted
from jestcli.utils.spelling import words_of

DEVELOPMENT_SHARE = 0.25


def in_development(texts: list[str]) -> Tensor:
    """bool [n]: whether each class name or caption is on the development side."""
    concepts = (" ".join(words_of(text)) or text for text in texts)
    hashes = salted(hashes_of(concepts), "development")
    return torch.from_numpy(below(hashes, DEVELOPMENT_SHARE))


def belongs(benchmark: Benchmark, test: Split, part: Part) -> Tensor:
    """bool [n]: which of these test images (in retrieval: queries) are in `part`.

    Raises DataError where none is.
    """
    if part == "all":
        return torch.ones(len(test), dtype=torch.bool)
    if test.labels is not None:
        inside = in_development(benchmark.classes)[test.labels]
    else:
        inside = in_development([captions[0] for captions in test.captions or []])
    mine = inside if part == "development" else ~inside
    if not mine.any():
        raise DataError(f"benchmark {benchmark.name} has no {part} image: use evaluation.part=all")
    return mine
