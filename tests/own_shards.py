"""A user's own data in small: JPEG shards in img2dataset's layout, and servers that misbehave."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jestcli.data.dataset import Transform
from jestcli.data.loader import Source, SuperBatch, SuperBatchLoader
from jestcli.data.shard_dataset import ShardDataset
from jestcli.data.tokens import small_tokenizer

WORDS = ("red", "green", "blue", "small", "large", "cat", "dog", "house", "tree", "car")


def jpeg(number: int, size: tuple[int, int] = (80, 64), quality: int = 90) -> bytes:
    """A smooth picture that `number` determines."""
    dice = np.random.default_rng(number)
    rough = Image.fromarray(dice.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    rough.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def caption(number: int) -> str:
    dice = np.random.default_rng(number)
    return " ".join(WORDS[i] for i in dice.integers(0, len(WORDS), 4))


def sample(number: int, **members: bytes | None) -> dict[str, bytes]:
    """One sample as img2dataset writes it; members given replace or (None) remove its own."""
    key = f"{number:09d}"
    about = {"uid": f"uid-{number}", "key": key, "caption": caption(number), "url": "http://x"}
    own: dict[str, Any] = {
        "jpg": jpeg(number),
        "txt": caption(number).encode(),
        "json": json.dumps(about).encode(),
    } | members
    return {f"{key}.{kind}": content for kind, content in own.items() if content is not None}


def write_tar(path: Path, *samples: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for members in samples:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def make_shards(folder: Path, shards: int = 4, samples: int = 12, first: int = 0) -> Path:
    """Shards 00.tar, 01.tar, … of numbered samples."""
    for shard in range(shards):
        numbers = range(first + shard * samples, first + (shard + 1) * samples)
        write_tar(folder / f"{shard:02d}.tar", *map(sample, numbers))
    return folder


def make_own(root: Path) -> Path:
    """A pool of 48 pairs, a curated set of 16, and a zero-shot and a retrieval benchmark."""
    make_shards(root / "pool")
    make_shards(root / "curated", 1, 16, first=1000)
    flowers, pairs = root / "benchmarks" / "wds_flowers", root / "benchmarks" / "wds_pairs"
    write_tar(
        flowers / "test" / "0.tar",
        *[{f"{n}.jpg": jpeg(n), f"{n}.cls": str(n % 3).encode()} for n in range(12)],
    )
    (flowers / "classnames.txt").write_text("rose\ntulip\naster\n")
    (flowers / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    write_tar(pairs / "test" / "0.tar", *[sample(n, json=None) for n in range(10)])
    (pairs / "dataset_type.txt").write_text("retrieval")
    for each in (flowers, pairs):
        (each / "test" / "nshards.txt").write_text("1")
    return root


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; `faults` name -> what goes wrong, as often as the number says.

    asked: the names that were asked for, in order.
    """

    def __init__(
        self,
        *args: Any,
        faults: dict[str, list[Any]],
        stop: threading.Event,
        asked: list[str],
        **more: Any,
    ):
        self.faults, self.stop, self.asked = faults, stop, asked
        super().__init__(*args, **more)

    def do_GET(self) -> None:
        self.asked.append(self.path.strip("/"))
        left = self.faults.get(self.path.strip("/"), [])
        fault = left.pop(0) if left else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "stall":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 512)
            self.wfile.flush()
            self.stop.wait(20)
        elif fault == "short":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 512)
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path, asked: list[str] | None = None, **faults: list[Any]) -> Iterator[str]:
    """The address of a loopback server of `folder`. faults: file (dots as _) -> its answers.

    asked: filled with what is asked for.
    """
    stop = threading.Event()
    named = {name.replace("_", "."): answers for name, answers in faults.items()}
    handler = partial(
        _Handler,
        directory=str(folder),
        faults=named,
        stop=stop,
        asked=[] if asked is None else asked,
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


def shard_loader(
    dataset: ShardDataset, per_step: int = 10, captions: int = 1, **more: Any
) -> SuperBatchLoader:
    """A loader of these shards with seed 3. more: of the Transform (size, second, …) and of the
    loader (log, rank, world)."""
    looks = {
        key: more.pop(key) for key in ("size", "scoring_size", "second", "seldom") if key in more
    }
    transform = Transform(**{"size": 32, "tokenizer": small_tokenizer(600, 8), **looks})
    source = Source(dataset, dataset.order(3, "pool"), per_step, captions)
    return SuperBatchLoader([source], transform, dataset.loading, **more)


def same(a: list[SuperBatch], b: list[SuperBatch]) -> bool:
    """Whether both drew the same rows with the same pixels, step by step."""
    return all(
        x.row.tolist() == y.row.tolist() and torch.equal(x.images, y.images)
        for x, y in zip(a, b, strict=True)
    )
