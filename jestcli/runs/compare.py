"""Runs side by side: the settings in which they differ, scores with intervals, curves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from jestcli.runs.listing import Listed, at, flat, mean_of, method_of, said

HASH, DIGITS = "_sha256", 12  # of a file's hash so many digits are shown
Z = 1.96  # standard errors of a 95 % interval
WIDE = (96, 12)  # characters and rows of a curve at most


def differing(found: Sequence[Listed]) -> list[list[str]]:
    """Settings in which the runs differ, a row for each: its name and every run's value."""
    rows, references = [], [x.settings.get("reference") for x in found]
    for each, reference in zip(found, references, strict=True):
        settings = each.settings
        if reference and not all(references):  # one word for all of its settings
            word = f"{method_of(reference)}, {at(reference, 'optim.steps')} steps"
            settings = settings | {"reference": word}
        rows.append(flat(settings))
    keys = [key for key in dict.fromkeys(k for row in rows for k in row) if key != "label"]
    told = {key: [said(row.get(key)) for row in rows] for key in keys}
    told = {key: values for key, values in told.items() if len(set(values)) > 1}
    return [
        [key, *(x[:DIGITS] if key.endswith(HASH) else x for x in values)]
        for key, values in told.items()
        if not (key.endswith(HASH) and key.removesuffix(HASH) in told)  # the files themselves are
    ]


def fitted(settings: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """`differing`'s rows with values that leave room for each other: those that are too long
    without the folders that they share, and without their middle."""
    longest = max((len(row[0]) for row in settings), default=0)
    rows = []
    for key, *values in settings:
        most = max(12, (width - longest) // len(values) - 1)
        if max(map(len, values)) > most:
            # Their beginnings as text, for a list of paths is none.
            shared = os.path.commonprefix(values).rfind("/") + 1  # noqa: RUF071
            values = [f"…/{value[shared:]}" if shared > 1 else value for value in values]
            values = [_without_middle(value, most) for value in values]
        rows.append([key, *values])
    return rows


def _without_middle(text: str, most: int) -> str:
    tail = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - tail]}…{text[-tail:]}"


def score_rows(found: Sequence[Listed]) -> list[list[str]]:
    """Every benchmark's score in % with a 95 % interval over its images; of two runs, their
    difference too, paired by image where the records hold each image's outcome."""
    scores = [x.scores for x in found]
    names = list(dict.fromkeys(name for each in scores for name in each))
    rows, spread = [], []
    for name in names:
        here = [each.get(name) for each in scores]
        cells = [_interval(x["score"], margin(x["score"], x["n"])) if x else "–" for x in here]
        if len(found) == 2 and here[0] and here[1]:
            gap = difference(here[0], here[1])
            spread.append(gap)
            cells.append(_interval(*gap, sign="+"))
        rows.append([name, *cells])
    if len(names) > 1 and all(set(each) == set(names) for each in scores):
        each_run = [[(s["score"], margin(s["score"], s["n"])) for s in x.values()] for x in scores]
        cells = [_interval(*_over(pairs)) for pairs in each_run]
        rows.append(["mean", *cells, *([_interval(*_over(spread), sign="+")] if spread else [])])
    width = max((len(row) for row in rows), default=1)
    return [row + ["–"] * (width - len(row)) for row in rows]


def margin(score: float, n: float) -> float:
    """How far from a share of n images Wilson's 95 % interval reaches, at its farther end.

    A share of 0 or 1 has a standard error of 0, which no number of images makes certain."""
    n, score = max(n, 1), min(max(score, 0.0), 1.0)
    middle = (score + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(score * (1 - score) / n + (Z / (2 * n)) ** 2) / (1 + Z**2 / n)
    return half + abs(middle - score)


def difference(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, float]:
    """second - first, and how far its 95 % interval over test images reaches.

    Paired by image it is Agresti and Min's: half an image is added to each of the four outcomes, so
    that no change at all is not certain either."""
    n, gap = first["n"], second["score"] - first["score"]
    a, b = first.get("hits"), second.get("hits")
    if a is None or b is None or n != second["n"]:
        return gap, math.hypot(*(margin(x["score"], x["n"]) for x in (first, second)))
    one, two = int(a or "0", 16), int(b or "0", 16)
    won, lost = ((x & ~y).bit_count() + 0.5 for x, y in ((two, one), (one, two)))
    return gap, Z * math.sqrt(won + lost - (won - lost) ** 2 / (n + 2)) / (n + 2)


def _over(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The mean of scores, and how far its interval reaches."""
    k = len(pairs)
    return sum(x for x, _ in pairs) / k, math.sqrt(sum(reach**2 for _, reach in pairs)) / k


def _interval(score: float, reach: float, sign: str = "") -> str:
    return f"{100 * score:{sign}.1f} ±{100 * reach:.1f}"


def curves(found: Sequence[Listed], width: int) -> str:
    """The mean score over examples seen (the loss where nothing was evaluated twice), drawn with a
    letter for each run."""
    what, value = "mean score, %", lambda r: 100 * mean_of(r["scores"]) if r.get("scores") else None
    lines = [_line(x, value) for x in found]
    if not any(len(each) > 1 for each in lines):
        lines, what = [_line(x, lambda r: r.get("loss")) for x in found], "training loss"
    points = [p for each in lines for p in each]
    if not points:
        return ""
    columns, rows = min(width, WIDE[0]) - 9, WIDE[1]
    right = max(x for x, _ in points) or 1
    low, high = min(y for _, y in points), max(y for _, y in points)
    high = high if high > low else low + 1
    grid = [[" "] * columns for _ in range(rows)]
    for letter, each in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", lines, strict=False):
        for x, y in _between(each, right / columns):
            row = round((high - y) / (high - low) * (rows - 1))
            grid[row][min(columns - 1, int(x / right * columns))] = letter
    labels = {0: f"{high:.4g}", rows - 1: f"{low:.4g}"}
    drawn = [f"{labels.get(i, ''):>7} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    foot = f"{'':>7} +{'-' * columns}"
    return "\n".join([what, *drawn, foot, f"{right:,.0f} examples".rjust(columns + 9)])


def _line(run: Listed, value: Callable[[dict[str, Any]], Any]) -> list[tuple[float, float]]:
    """A value of the records that have it, over examples seen."""
    b = at(run.settings, "optim.batch_size") or 1
    found = [(r.get("step", 0) * b, value(r)) for r in run.records]
    return [(x, y) for x, y in found if y is not None and math.isfinite(y)]


def _between(points: list[tuple[float, float]], step: float) -> Iterator[tuple[float, float]]:
    """The points, and the straight lines between them every `step`."""
    yield from points[:1]
    for (x, y), (x2, y2) in pairwise(points):
        for i in range(1, (n := max(1, round((x2 - x) / step))) + 1):
            yield x + (x2 - x) * i / n, y + (y2 - y) * i / n
