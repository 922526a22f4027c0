"""Runs, stores and data small enough to train within milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from miniature_world import Miniature

from jestcli.config import METHODS, Run, make_run, merge
from jestcli.data.dataset import Transform
from jestcli.data.decoded import DecodedDataset
from jestcli.data.loader import Source, SuperBatch, SuperBatchLoader
from jestcli.data.sources import Loading
from jestcli.icons.build import build, build_key
from jestcli.icons.spec import WORLD
from jestcli.models.towers import Clip, build_model
from jestcli.runs.run_data import data_of
from jestcli.runs.workspace import Workspace
from jestcli.training.reference import EmbeddingTable

# Whatever a test's numbers rest on stands here: the defaults may be tuned.
# With all that the profile cpu says: a file with these settings means the same as tiny_run().
TINY: dict[str, Any] = {
    "data": {"vocab_size": 600, "context_length": 8, "level": "strong", "curated_size": None},
    "model": {
        "embed_dim": 8,
        "width": 16,
        "layers": 1,
        "head_width": 8,
        "patch_sizes": [8, 16],
        "text_width": 16,
        "text_layers": 1,
        "init_logit_scale": 10,
        "init_logit_bias": -10,
        "tower": "vit",
    },
    "optim": {
        "steps": 4,
        "batch_size": 8,
        "warmup": 2,
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "beta2": 0.95,
        "schedule": "cosine",
    },
    "engine": {"scoring_batch": 64},
    "selection": {"filter_ratio": 0.5, "n_chunks": 4},
    "evaluation": {"points": 2, "max_images": 8},
}


def tiny_reference(**changes: Any) -> Run:
    """A reference of two steps on the curated set."""
    base = merge(merge(TINY, METHODS["curated"]), {"optim": {"steps": 2}})
    return make_run(merge(base, changes))


def tiny_run(method: str = "uniform", **changes: Any) -> Run:
    """A run of four steps by this method; with a reference where it reads one."""
    base = merge(TINY, METHODS[method])
    if method in (
        "jest",
        "flexi",
        "filtered",
        "finetune",
        "easy-reference",
        "independent",
        "jest-curated",
    ):
        base["reference"] = tiny_reference().model_dump()
    return make_run(merge(base, changes))


def tiny_model(run: Run, patch_sizes: tuple[int, ...] | None = None, seed: int = 0) -> Clip:
    return build_model(run.model, run.data, patch_sizes or run.model.patch_sizes, seed)


def fake_dataset(n: int = 40, identity: str = "fake", seed: int = 0) -> DecodedDataset:
    """Random pixels; each image has one to three random captions; no file is read."""
    rng = np.random.default_rng(seed)
    captions = rng.integers(1, 4, n)
    starts = np.concatenate([[0], np.cumsum(captions)]).astype(np.int64)
    tokens = np.zeros((starts[-1], 8), np.int32)
    tokens[:, 0], tokens[:, 1:4] = 598, rng.integers(1, 590, (len(tokens), 3))
    tokens[:, 4] = 599  # the end token is the highest id
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    levels = (np.arange(n) % 2 + 1).astype(np.uint32)
    dataset = DecodedDataset(
        Path("/nowhere"),
        images,
        tokens,
        starts,
        {},
        {"levels": ("even", "odd")},
        levels,
        {"identity": identity},
    )
    dataset.__dict__["keys"] = [f"key-{i}" for i in range(n)]  # the cached property
    return dataset


def fake_source(dataset: DecodedDataset, rows: np.ndarray, name: str, captions: int = 1) -> Source:
    """Rows of a data set, to be given seed and size by `loader`."""
    return Source(dataset, dataset.order(0, name, rows), 0, captions)


def fake_pool(n: int = 40) -> Source:
    return fake_source(fake_dataset(n), np.arange(n), "pool")  # the first caption only


def loader(
    sources: list[Source],
    counts: list[int],
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    before: list[Callable[[int], int]] | None = None,
    apart: bool = False,
) -> SuperBatchLoader:
    """counts[i] pairs of sources[i] a step, or as many as `before` says."""
    drawn = [
        replace(
            source,
            order=source.dataset.order(seed, source.name, source.order.kept, i),
            per_step=counts[i],
            before=before[i] if before else None,
        )
        for i, source in enumerate(sources)
    ]
    transform = Transform(32, lambda texts: np.zeros((len(texts), 8)))  # nothing to be done
    return SuperBatchLoader(drawn, transform, Loading(workers=0), None, rank, world, apart)


def draw(sources: list[Source], counts: list[int], seed: int = 0, step: int = 0) -> SuperBatch:
    """One super-batch of these."""
    return loader(sources, counts, seed)(step)


def loader_of(*sources: Source) -> SuperBatchLoader:
    """Of sources that have their seed and size."""
    transform = Transform(32, lambda texts: np.zeros((len(texts), 8)))
    return SuperBatchLoader(sources, transform, Loading(workers=0))


def table_of(image: np.ndarray, text: np.ndarray) -> EmbeddingTable:
    """A table of embeddings, float32 [n, d], that lie in no file."""
    file = SimpleNamespace(n=len(image), open=lambda: (image, text), check=lambda: None)
    live = SimpleNamespace(scale=(torch.tensor(10.0), torch.tensor(-10.0)))
    return EmbeddingTable([cast(Any, file)], cast(Any, live))


def make_root(miniature: Miniature, root: Path) -> Path:
    """Build and decode the miniature in `root` so that it passes for the embedded data.

    Its manifest claims the key of the real world: a process of its own, with nothing patched,
    then finds "the data" built.
    """
    build(root, world=miniature.world, fetcher=miniature.fetcher, workers=1)
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["key"] = build_key(WORLD, manifest["size"])
    path.write_text(json.dumps(manifest))
    data = data_of(tiny_run(), Workspace(root))
    for split in ("pool", "curated"):
        data.dataset(split, workers=1)
    return root


def without_seconds(path: Path) -> list[str]:
    """The lines of a metrics.jsonl, apart from what was measured in seconds."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        assert record.pop("seconds") or "skipped" in record
        record.pop("speed", None)
        record.pop("joules", None)  # only where the hardware counts them
    return [json.dumps(record, sort_keys=True) for record in records]
