"""Runs, stores and data small enough to train within milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from miniature_world import Miniature

from jestcli.config import METHODS, Run, make_run, merge
from jestcli.data.loader import Part
from jestcli.data.store import Store
from jestcli.icons.build import build, build_key
from jestcli.icons.spec import WORLD
from jestcli.models.towers import Clip, build_model
from jestcli.runs.workspace import Workspace

# Whatever a test's numbers rest on stands here: the defaults may be tuned.
# With all that the profile cpu says: a file with these settings means the same as tiny_run().
TINY: dict[str, Any] = {
    "data": {"vocab_size": 600, "context_length": 8, "level": "strong", "curated_size": None},
    "model": {
        "embed_dim": 8, "width": 16, "layers": 1, "head_width": 8, "patch_sizes": [8, 16],
        "text_width": 16, "text_layers": 1, "init_logit_scale": 10, "init_logit_bias": -10,
        "tower": "vit",
    },
    "optim": {
        "steps": 4, "batch_size": 8, "warmup": 2, "lr": 1e-3, "weight_decay": 1e-4, "beta2": 0.95,
        "schedule": "cosine",
    },
    "engine": {"scoring_batch": 64},
    "selection": {"filter_ratio": 0.5, "n_chunks": 4},
    "evaluation": {"points": 2, "max_images": 8},
}  # fmt: skip


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


def fake_store(n: int = 40, identity: str = "fake", seed: int = 0) -> Store:
    """Random pixels; each image has one to three random captions; no file is read."""
    dice = np.random.default_rng(seed)
    captions = dice.integers(1, 4, n)
    starts = np.concatenate([[0], np.cumsum(captions)]).astype(np.int64)
    tokens = np.zeros((starts[-1], 8), np.int32)
    tokens[:, 0], tokens[:, 1:4] = 598, dice.integers(1, 590, (len(tokens), 3))
    tokens[:, 4] = 599  # the end token is the highest id
    images = dice.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    levels = (np.arange(n) % 2 + 1).astype(np.uint32)
    store = Store(
        Path("/nowhere"), images, tokens, starts, {}, {"levels": ("even", "odd")}, levels,
        {"identity": identity},
    )  # fmt: skip
    store.__dict__["keys"] = [f"key-{i}" for i in range(n)]  # the cached property
    return store


def fake_pool(n: int = 40) -> Part:
    return Part(fake_store(n), np.arange(n), "pool", 1)  # the first caption only


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
    inputs = Workspace(root).inputs(tiny_run())
    for split in ("pool", "curated"):
        inputs.store(split, workers=1)
    return root


def without_seconds(path: Path) -> list[str]:
    """The lines of a metrics.jsonl, apart from what was measured in seconds."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        assert record.pop("seconds") or "skipped" in record
        record.pop("speed", None)
        record.pop("joules", None)  # only where the hardware counts them
    return [json.dumps(record, sort_keys=True) for record in records]
