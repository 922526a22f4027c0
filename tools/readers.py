"""The loader beside other readers of the same shards: JPEGs decoded a second and core.

    OMP_NUM_THREADS=1 python -m tools.readers OUT     # OUT.json, OUT.md

A busy machine is refused unless `--busy` is given.

One process, no workers, drawn JPEGs of 512 x 384 pixels resized to 224 as open_clip prepares images
for evaluation. The readers take turns; medians of the rounds. Not in the package: webdataset's
decoders unpickle what a member's name asks for, so it reads nothing but what is drawn here.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from jestcli.bench import save
from jestcli.bench.data import draw_shards
from jestcli.data.dataset import Transform
from jestcli.data.loader import Source, SuperBatchLoader
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.data.tokens import small_tokenizer
from jestcli.runs.environment import environment
from jestcli.utils.tables import Table
from tools import words_of

SIZE, HALF, BATCH = 224, 112, 64


def square(image: Image.Image) -> np.ndarray:
    """As open_clip's evaluation: the shorter side to SIZE, the centre cut out."""
    image = resize(image.convert("RGB"), [SIZE], InterpolationMode.BICUBIC)
    return np.asarray(center_crop(image, [SIZE]))


def ours(folder: Path, reduced: int | None, cache: Path) -> Iterator[int]:
    loading = Loading(workers=0, cache=cache)
    dataset = open_shards("pool", (str(folder),), loading)
    source = Source(dataset, dataset.order(0, "pool"), BATCH)
    view = Transform(SIZE, small_tokenizer(8192, 16), reduced)
    with closing(SuperBatchLoader([source], view, loading)) as loader:
        for step in count():
            loader(step)
            yield BATCH


def pillow(folder: Path) -> Iterator[int]:
    """Bytes that lie in memory."""
    files = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            pictures = (m for m in tar if m.name.endswith(".jpg"))
            files += [f.read() for m in pictures if (f := tar.extractfile(m))]
    for content in cycle(files):
        square(Image.open(io.BytesIO(content)))
        yield 1


def by_webdataset(folder: Path) -> Iterator[int]:
    shards = [str(shard) for shard in sorted(folder.glob("*.tar"))]
    read = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").repeat()
    for image, _ in read.to_tuple("jpg", "txt"):
        square(image)
        yield 1


def main(out: Path, rounds: int = 8, seconds: float = 2.0) -> None:
    """Let the readers take turns, there and back; write the record."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name) / "shards", Path(name) / "cache"
        folder.mkdir()
        draw_shards(folder)
        readers = {
            "the loader": ours(folder, None, cache),
            "Pillow alone": pillow(folder),
            "webdataset": by_webdataset(folder),
            "the loader, reduced": ours(folder, HALF, cache),
        }
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        for number in range(rounds):
            for name in list(readers) if number % 2 == 0 else list(readers)[::-1]:
                next(readers[name])  # a warm cache, and what was left open elsewhere
                start, pairs = time.process_time(), 0
                while time.process_time() - start < seconds:
                    pairs += next(readers[name])
                speeds[name].append(pairs / (time.process_time() - start))
    about = environment()
    base = np.array(speeds["the loader"])
    rows: list[dict[str, Any]] = [
        {
            "reader": name,
            "pairs_per_core_second": float(np.median(each)),
            "of_the_loader": float(np.median(np.array(each) / base)),
            "quartiles": np.quantile(each, (0.25, 0.75)).tolist(),
        }
        for name, each in speeds.items()
    ]
    shown = []
    for row in rows:
        low, high = row["quartiles"]
        cells = (f"{row['pairs_per_core_second']:.0f}", f"{low:.0f} to {high:.0f}")
        shown.append((row["reader"], *cells, f"{row['of_the_loader']:.2f}"))
    head = ("reader", "pairs a core second", "quartiles", "of the loader's")
    text = (
        "# The loader beside other readers\n\n"
        f"JPEG, 512 x 384, quality 90, to {SIZE} px (reduced: draft decoding for {HALF} px). One "
        f"process of {about['cpu']}, commit {about['commit']}, load {os.getloadavg()[0]:.1f}; "
        f"{rounds} rounds in turn. Pillow alone decodes and resizes bytes that lie in memory; the "
        "loader and webdataset read the same shards, the loader in random order.\n\n"
        f"{Table('', head, shown).markdown()}\n"
    )
    save({"rows": rows, "environment": about, "load_average": os.getloadavg()[0]}, text, out)


if __name__ == "__main__":
    words = words_of(sys.argv)
    main(Path(words[0]))
