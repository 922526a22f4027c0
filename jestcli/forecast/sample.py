"""A small copy of a pool, or of a curated set, that races can be run on: pictures of the races'
size with their first captions, as shards that everything else in the suite reads.

Written part by part, in a random order of the pool, until there are enough or time is up; a killed
one goes on after its last part. What the pool shares with the curated pairs held out is left out
of a second copy, if there is any.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from jestcli.data.bad_samples import BadSample
from jestcli.data.dataset import Dataset, Transform
from jestcli.data.remote import ShardError
from jestcli.data.tar import read_members, scan
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_bytes, save_text
from jestcli.utils.layout import IMAGES
from jestcli.utils.progress import Progress, silent
from jestcli.utils.randomness import generator
from jestcli.utils.reading import parse_json, reading

PART = 1_000  # pairs read between two looks at the clock
LEAST = 2_000  # pairs that are read whatever the clock says
EXACT = 64  # pixels up to which pictures are kept without loss
ABOUT, SHARED = "sample.json", "shared.json"


@dataclass(frozen=True)
class Sample:
    """folder: of its shards. pairs: that could be read, of `asked`; of: in the shards looked at;
    unreadable: why -> how many of the others; no_samples: the same of what an index of all these
    shards leaves out. also_curated: of the pool's, pairs that show a curated picture; left_out: how
    many of these are no part of `pairs`, for it is one held out."""

    folder: Path
    pairs: int
    asked: int
    of: int
    unreadable: dict[str, int]
    no_samples: dict[str, int] = field(default_factory=dict)
    also_curated: int = 0
    left_out: int = 0

    @property
    def bad_share(self) -> float:
        return 1 - (self.pairs + self.left_out) / max(1, self.asked)


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


def without_held(pool: Sample, curated: Sample, held: Sample) -> Sample:
    """The pool's sample without the pairs that show a picture held out: a race that trains on it
    would be scored on what it has seen. Where there are any, a copy beside the sample, under an
    address of its own, so that no run takes one for the other; else the sample itself.

    The same picture: the same pixels of the small copy. Raises DataError where nothing is left."""
    about, apart = pool.folder / SHARED, pool.folder.with_name(f"{pool.folder.name}-without-held")
    if not about.exists():
        known, secret = (
            {digest for path in _parts(each) for digest, _ in _pairs_of(path)}
            for each in (curated, held)
        )
        shown = [digest for path in _parts(pool) for digest, _ in _pairs_of(path)]
        left = sum(digest in secret for digest in shown)
        if left == len(shown):
            raise DataError("every pair of the pool's sample shows a picture held out for scoring")
        shutil.rmtree(apart, ignore_errors=True)  # one that was killed before it was whole
        for path in _parts(pool) if left else ():
            kept = [members for digest, members in _pairs_of(path) if digest not in secret]
            if kept:
                save_bytes(apart / path.name, _packed(kept))
        also = sum(digest in known or digest in secret for digest in shown)
        save_text(about, json.dumps({"also_curated": also, "left_out": left}))
    with reading(about, ": delete the folder of samples"):
        shared = dict(parse_json(about.read_bytes()))
    left = shared["left_out"]
    return replace(pool, folder=apart if left else pool.folder, pairs=pool.pairs - left, **shared)


def _parts(sample: Sample) -> list[Path]:
    return sorted(sample.folder.glob("*.tar"))


def _pairs_of(path: Path) -> Iterator[tuple[bytes, dict[str, bytes]]]:
    """Every pair of a shard written here: a hash of its picture, and its members by extension. The
    file stands for its pixels, since all of a sample are written by one encoder."""
    try:
        with path.open("rb") as file:
            index = scan(file)
            for number in range(len(index)):
                found = read_members(file.fileno(), index, number, str(path))
                members = {k: v for k, v in found.items() if not k.startswith("__")}
                picture = next(members[kind] for kind in IMAGES if kind in members)
                yield hashlib.blake2b(picture, digest_size=16).digest(), members
    except (ShardError, BadSample) as reason:
        raise DataError(f"{path}: {reason}: delete the folder of samples") from None


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
    samples = []
    for name, picture, text in pairs:
        image, form = io.BytesIO(), "png" if len(picture) <= EXACT else "jpeg"
        Image.fromarray(np.ascontiguousarray(picture)).save(image, form, quality=92)
        about = json.dumps({"key": name, "caption": text}).encode()
        samples.append({form: image.getvalue(), "json": about})
    save_bytes(path, _packed(samples))


def _packed(samples: list[dict[str, bytes]]) -> bytes:
    """A tar of these members by extension, numbered."""
    from webdataset.writer import TarWriter

    content = io.BytesIO()
    with TarWriter(content, encoder=False, mtime=0) as tar:
        for number, members in enumerate(samples):
            tar.write({"__key__": f"{number:06d}", **members})
    return content.getvalue()


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
