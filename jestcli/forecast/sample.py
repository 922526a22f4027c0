"""A small copy of a pool, or of a curated set, that races can be run on: pictures of the races'
size with their first captions, as shards that everything else in the suite reads.

Written part by part, in a random order of the pool, until there are enough or time is up; a killed
one goes on after its last part.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from jestcli.data.dataset import Dataset, Transform
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_bytes, save_text
from jestcli.utils.progress import Progress, silent
from jestcli.utils.randomness import generator
from jestcli.utils.reading import parse_json, reading

PART = 1_000  # pairs read between two looks at the clock
LEAST = 2_000  # pairs that are read whatever the clock says
EXACT = 64  # pixels up to which pictures are kept without loss
ABOUT = "sample.json"


@dataclass(frozen=True)
class Sample:
    """folder: of its shards. pairs: that could be read, of `asked`; of: in the shards looked at;
    unreadable: why -> how many of the others; no_samples: the same of what an index of all these
    shards leaves out."""

    folder: Path
    pairs: int
    asked: int
    of: int
    unreadable: dict[str, int]
    no_samples: dict[str, int] = field(default_factory=dict)

    @property
    def bad_share(self) -> float:
        return 1 - self.pairs / max(1, self.asked)


def take(
    dataset: Dataset,
    rows: np.ndarray,
    folder: Path,
    size: int,
    most: int,
    seconds: float,
    report: Progress = silent,
    rates: np.ndarray | None = None,
) -> Sample:
    """Copy up to `most` of these rows, chosen at random; after `seconds` no more than LEAST. size:
    pixels, square. rates: float [len(rows)], how much likelier one row is than another to come
    next (None: all alike). Raises DataError where none can be read."""
    done = folder / ABOUT
    if done.exists():
        with reading(done):
            return Sample(folder, **parse_json(done.read_bytes()))
    dice = generator(0, "sample")
    if rates is None:
        order = rows[dice.permutation(len(rows))][:most]
    else:  # without replacement, as if races between clocks of these rates (Efraimidis, Spirakis)
        order = rows[np.argsort(dice.exponential(size=len(rows)) / rates)][:most]
    nothing = lambda texts: np.zeros((len(texts), 1))  # noqa: E731
    transform, start = Transform(size, nothing, scoring_size=size), time.monotonic()
    bad: Counter[str] = Counter()
    pairs = asked = 0
    for first in range(0, len(order), PART):
        if asked >= LEAST and time.monotonic() - start > seconds:
            break
        path = folder / f"{first // PART:05d}.tar"
        about = path.with_suffix(".json")
        if not about.exists():
            part = np.sort(order[first : first + PART])  # neighbours in a shard one after another
            save_text(about, json.dumps(_copy(dataset, part, transform, path)))
        with reading(about, ": delete the folder of samples"):
            read, reasons = parse_json(about.read_bytes())
        pairs, asked = pairs + read, asked + len(order[first : first + PART])
        bad.update(reasons)
        report(asked, len(order), f"reading the {folder.name}")
    if not pairs:
        why = ", ".join(f"{count:,} {reason}" for reason, count in bad.most_common(3))
        raise DataError(f"none of {asked:,} pairs could be read: {why}")
    found = Sample(folder, pairs, asked, len(rows), dict(bad))
    save_text(done, json.dumps({k: v for k, v in asdict(found).items() if k != "folder"}))
    return found


def rates_of(weights: tuple[float, ...], counts: np.ndarray) -> np.ndarray:
    """float64 [pairs]: how often a training reads each pair of shards with these weights and
    counts, int64 [shards], against another."""
    return np.repeat(np.asarray(weights) / np.maximum(1, counts), counts)


def _copy(
    dataset: Dataset, rows: np.ndarray, transform: Transform, path: Path
) -> tuple[int, dict[str, int]]:
    """Write these rows as one shard; returns how many could be read, and why others could not."""
    samples = dataset.read(rows, transform)
    texts = samples.texts or dataset.captions_of(samples.row)
    pictures = list(samples.images.permute(0, 2, 3, 1).numpy()) if len(samples.row) else []
    names = [dataset.name(row) for row in samples.row.tolist()]
    write(path, list(zip(names, pictures, texts, strict=True)))
    return len(names), Counter(str(reason) for reason in samples.bad.values())


def write(path: Path, pairs: list[tuple[str, np.ndarray, str]]) -> None:
    """A shard of (key, uint8 [s, s, 3], caption)."""
    from webdataset.writer import TarWriter

    content = io.BytesIO()
    with TarWriter(content, encoder=False, mtime=0) as tar:
        for number, (name, picture, text) in enumerate(pairs):
            image, form = io.BytesIO(), "png" if len(picture) <= EXACT else "jpeg"
            Image.fromarray(np.ascontiguousarray(picture)).save(image, form, quality=92)
            about = json.dumps({"key": name, "caption": text}).encode()
            tar.write({"__key__": f"{number:06d}", form: image.getvalue(), "json": about})
    save_bytes(path, content.getvalue())


def hold_out(dataset: Dataset, rows: np.ndarray, folder: Path) -> None:
    """These rows of a decoded sample as a retrieval benchmark in clip-benchmark's layout, each
    caption once: two pairs with one caption could not both be right."""
    found = zip(rows.tolist(), dataset.captions_of(rows), strict=True)
    first = {text: row for row, text in sorted(found, reverse=True)}
    pairs = [
        (dataset.name(row), np.asarray(dataset.image(row)), text)
        for text, row in sorted(first.items(), key=lambda item: item[1])
    ]
    write(folder / "test" / "0.tar", pairs)
    save_text(folder / "dataset_type.txt", "retrieval")
    save_text(folder / "test" / "nshards.txt", "1")
