"""Scores of groups of benchmarks, and test images counted once where benchmarks share them.

Icons and emoji are two questions: the emoji benchmarks hold most of the variance between methods
and few of the images, so each group has its own mean. Within a group benchmarks show the same
drawings: the few-shot images are those of `objects` and `objects_filled`, both directions of
retrieval rank one set, and a part of `animals` and `food` is in `emoji_3d`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import Any

import numpy as np

from jestcli.paper.records import Record
from jestcli.paper.statistics import hits_of

GROUPS = {
    "icons": ("objects", "objects_filled", "objects_fewshot", "tagged_i2t", "tagged_t2i"),
    "emoji": ("emoji_3d", "animals", "food"),
}


def value(record: Record, metric: str) -> float | None:
    """A finished run's number: None where the record does not hold it.

    Args:
        metric: a field of `final` ("mean", "nats", "logprob", ...), a group ("icons", "emoji": the
            mean score of its benchmarks, a fraction), or both ("icons:nats").
    """
    group, _, quantity = metric.partition(":")
    if group in GROUPS:
        return group_mean(record, group, quantity or "score")
    return record["final"].get(metric)


def group_mean(record: Record, group: str, quantity: str = "score") -> float | None:
    """The mean over a group's benchmarks, each with equal weight; None where one is missing.

    Args:
        quantity: "score" (a fraction), or "nats" and "logprob", which retrieval does not have: the
            mean is over the benchmarks of the group that have it.
    """
    rows = record["final"]["scores"]
    if any(benchmark not in rows for benchmark in GROUPS[group]):
        return None
    found = [rows[b][quantity] for b in GROUPS[group] if quantity in rows[b]]
    return sum(found) / len(found) if found else None


def image_ids(images: Any) -> list[str]:
    """One id for each image of a benchmark's test split, equal where the pixels are.

    Args:
        images: uint8 [n, 3, S, S], a tensor or an array, in the order of the split.
    """
    return [sha1(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images]


def distinct_mean(
    runs: Sequence[Record], group: str, images: Mapping[str, Sequence[str]]
) -> tuple[float, float, int]:
    """(mean, its standard error, n distinct images) of a group with every image counted once.

    An image's value is the mean, over the benchmarks that show it and over `runs` (a method's
    seeds), of whether it was right. Retrieval records no hits: its score p stands in, as one draw
    for both directions. The error is what other images would give for these models,
    sqrt((var of the values + mean of h² p (1 - p)) / n), h the share of an image's appearances
    that are retrieval's; seeds share the images and do not divide it.

    Args:
        images: for each benchmark of the group its test images' ids, in the order of the hits.
    Raises:
        ValueError: a benchmark has another number of images than the records.
    """
    shown: dict[str, list[tuple[float, bool]]] = {}
    for benchmark in GROUPS[group]:
        rows = [run["final"]["scores"][benchmark] for run in runs]
        ids, n, hidden = images[benchmark], rows[0]["n"], "hits" not in rows[0]
        if len(ids) != n:
            raise ValueError(f"{benchmark} has {len(ids)} images, its records {n}")
        each = [np.full(n, row["score"]) if hidden else hits_of(row) for row in rows]
        for image, x in zip(ids, np.mean(np.array(each, float), axis=0), strict=True):
            shown.setdefault(image, []).append((float(x), hidden))
    values = np.array([np.mean([x for x, _ in seen]) for seen in shown.values()])
    share = np.array([np.mean([hidden for _, hidden in seen]) for seen in shown.values()])
    scores = [[x for x, hidden in seen if hidden] for seen in shown.values()]
    p = np.array([np.mean(x) if x else 0.0 for x in scores])
    variance = np.var(values, ddof=1) + np.mean(share**2 * p * (1 - p))
    return float(values.mean()), math.sqrt(variance / len(values)), len(values)
