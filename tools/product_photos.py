"""Make shards of data that are not icons: photographs of clothes, four to a picture.

    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb fashion
    python -m tools.product_photos fashion/usr/share/datasets/fashion-mnist OUT

From Fashion-MNIST (Xiao et al. 2017, 28 x 28 grey pixels, MIT): a picture shows four products,
and its caption names them in reading order. OUT/pool (40,000 pairs) and OUT/curated (4,000) are of
different training photographs; OUT/benchmarks/wds_photos, retrieval, of test photographs. All
captions are right: `--noise-share` permutes those of the pool.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
POOL, CURATED, TEST, SHARD = 40_000, 4_000, 1_000, 5_000


def idx(path: Path, header: int) -> np.ndarray:
    """The bytes of an idx file after its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def write(folder: Path, photos: np.ndarray, labels: np.ndarray, fours: np.ndarray) -> None:
    """Shards of pictures of four photographs [n, 4], in img2dataset's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(fours), SHARD):
        with tarfile.open(folder / f"{first // SHARD}.tar", "w") as tar:
            for n, four in enumerate(fours[first : first + SHARD], first):
                a, b, c, d = photos[four]
                picture, content = Image.fromarray(np.block([[a, b], [c, d]])), io.BytesIO()
                picture.save(content, "PNG")
                caption = ", ".join(NAMES[k] for k in labels[four])
                for kind, data in (("png", content.getvalue()), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{n:06d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def main(source: Path, out: Path) -> None:
    dice = np.random.default_rng(0)

    def read(part: str) -> tuple[np.ndarray, np.ndarray]:
        images = idx(source / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        return images, idx(source / f"{part}-labels-idx1-ubyte.gz", 8)

    photos, labels = read("train")
    order = dice.permutation(len(photos))
    for name, count, own in (("pool", POOL, order[6_000:]), ("curated", CURATED, order[:6_000])):
        write(out / name, photos, labels, dice.choice(own, (count, 4)))
    photos, labels = read("t10k")
    folder = out / "benchmarks" / "wds_photos"
    write(folder / "test", photos, labels, dice.choice(len(photos), (TEST, 4)))
    (folder / "dataset_type.txt").write_text("retrieval\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
