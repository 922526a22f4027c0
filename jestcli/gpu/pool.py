"""The embedded data from a pack: drawn on all cores, straight into decoded stores, and resident.

No shards are written on the way: on a machine that is lent for minutes, what `jest data build`
writes and reads back would take as long as the drawing. What is trained on and tested on is decided
by the same functions, near-duplicates of training images leave the benchmarks as there, and the
art families and rasters of both sides are checked to be disjoint.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jestcli.config import Run
from jestcli.data.store import Store, open_store, write_store
from jestcli.data.tokens import small_tokenizer
from jestcli.gpu.pack import unpack
from jestcli.icons import benchmarks as marks
from jestcli.icons.build import benchmark_tasks, build_key, write_tasks
from jestcli.icons.captions import Words, read_emoji, read_lucide, read_phosphor, read_tabler
from jestcli.icons.draw import Collection, Rastered, draw_world
from jestcli.icons.rasterize import resvg_version
from jestcli.icons.spec import WORLD, World
from jestcli.icons.splits import Sample, make_plan
from jestcli.icons.write import write_json
from jestcli.runs.workspace import Inputs, Workspace
from jestcli.utils.errors import DataError
from jestcli.utils.parallel import Progress, silent, usable_cores

UNIT = 500  # icons drawn at a time: collections of heavy drawings end soon on many cores
PREPARED = "prepared.json"
SPLITS = ("pool", "curated")


@dataclass(frozen=True)
class Prepared:
    """Decoded data in `root`: stores of both splits, benchmarks, and what is known of them."""

    root: Path
    world: World
    size: int
    about: dict[str, Any]


def prepare(
    pack: Path,
    work: Path,
    run: Run,
    workers: int | None = None,
    progress: Progress = silent,
    world: World = WORLD,
) -> Prepared:
    """The data of `run`'s size and vocabulary from `pack`, under `work` unless they are there.

    Raises DataError. A call that was cut off goes on from what it had drawn.
    """
    size, vocabulary = run.data.image_size, run.data.vocab_size
    stopwatch = _Stopwatch()
    opened = unpack(pack, work / "sources" / _name(pack), world, workers)
    world = opened.world
    stopwatch("unpack")
    root = work / f"icons-{size}-{vocabulary}-{build_key(world, size)}"
    if (root / PREPARED).exists():
        about = json.loads((root / PREPARED).read_text())
        return Prepared(root, world, size, about)
    cache = work / "sources" / _name(pack)
    collections, drawn = draw_world(
        world, opened.tarballs["icons"], cache, size, workers, progress, unit=UNIT
    )
    seconds = stopwatch("draw")
    cores = min(workers or usable_cores(), len(drawn.icons))
    icons = len(drawn.icons) + len(drawn.failed)
    print(f"drew {icons:,} icons at {size} px in {seconds:.1f} s on {cores} cores: "
          f"{icons / seconds / cores:.0f} a second and core", flush=True)  # fmt: skip
    emoji = read_emoji(opened.tarballs["emoji"])
    tags: dict[str, dict[str, Words]] = {
        "lucide": read_lucide(opened.tarballs["lucide"]),
        "tabler": read_tabler(opened.tarballs["tabler"]),
    }
    plan = make_plan(world, collections, drawn, emoji, tags)
    made = marks.make_benchmarks(
        world, collections, drawn, emoji, read_phosphor(opened.tarballs["phosphor"])
    )
    training = [sample.icon for sample in (*plan.pool, *plan.curated)]
    kept, lost = marks.without_leaks(made, drawn, training, world.near_duplicate)
    _assert_disjoint(collections, training, kept)
    stopwatch("compare")
    staged = root.with_name(f".{root.name}")
    shutil.rmtree(staged, ignore_errors=True)
    tasks = [t for mark in kept for t in benchmark_tasks(mark, world, collections, drawn, staged)]
    write_tasks(tasks, workers, progress)
    write_json(
        staged / "benchmarks" / "benchmarks.json",
        [entry for mark in kept for entry in marks.entries(mark, collections, lost[mark.name])],
    )
    stopwatch("benchmarks")
    for split, samples in zip(SPLITS, (plan.pool, plan.curated), strict=True):
        _write_split(staged / "store" / split, samples, collections, drawn, run, world)
    stopwatch("stores")
    about = {
        "packages": {name: package.spec for name, package in world.packages.items()},
        "pack": world.packages["icons"].integrity,
        "resvg": resvg_version(),
        "counts": {
            "drawn": len(drawn.icons), "not_drawn": len(drawn.failed), "pool": len(plan.pool),
            "curated": len(plan.curated),
            "benchmarks": {mark.name: len(mark.test) for mark in kept},
            "dropped_near_duplicates": lost,
        },
        "seconds": stopwatch.seconds,
        "cores": cores,
        "icons_a_second_and_core": icons / seconds / cores,
    }  # fmt: skip
    write_json(staged / PREPARED, about)
    shutil.rmtree(root, ignore_errors=True)
    staged.rename(root)
    return Prepared(root, world, size, about)


def _name(pack: Path) -> str:
    """A folder's name for what is unpacked from this very file."""
    from jestcli.data.store import fingerprint

    return fingerprint(str(pack))[:12]


class _Stopwatch:
    """Seconds by name since the last call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str) -> float:
        now = time.perf_counter()
        self.seconds[name], self.last = round(now - self.last, 3), now
        return max(self.seconds[name], 1e-3)


def _assert_disjoint(
    collections: Mapping[str, Collection], training: Sequence[Any], kept: Sequence[marks.Benchmark]
) -> None:
    """Raise DataError if a benchmark shows a family or a raster of the training data."""
    shown = [item.icon for mark in kept for item in (*mark.test, *mark.train)]
    families = {collections[icon.prefix].family for icon in training}
    rasters = {icon.digest for icon in training}
    for icon in shown:
        if collections[icon.prefix].family in families or icon.digest in rasters:
            raise DataError(f"leakage: {icon.key} is in the benchmarks and in the training data")


def _write_split(
    folder: Path,
    samples: Sequence[Sample],
    collections: Mapping[str, Collection],
    drawn: Rastered,
    run: Run,
    world: World,
) -> None:
    folder.mkdir(parents=True)
    captions = [sample.captions for sample in samples]
    about = [collections[sample.icon.prefix] for sample in samples]
    texts = [text for row in captions for text in row]
    data = run.data
    tokenizer = small_tokenizer(data.vocab_size, data.context_length)
    write_store(
        folder, data.image_size,
        blocks=_blocks(samples, drawn),
        keys=[sample.key for sample in samples],
        captions=captions,
        columns={
            "source": [each.prefix for each in about],
            "category": [each.category for each in about],
            "family": [each.family for each in about],
        },
        levels=[sample.levels for sample in samples],
        tokens=tokenizer(texts).numpy(),
        about={"identity": f"{build_key(world, data.image_size)}-{data.vocab_size}-{folder.name}"},
    )  # fmt: skip


def _blocks(samples: Sequence[Sample], drawn: Rastered, size: int = 8192) -> Iterator[np.ndarray]:
    units: dict[str, np.ndarray] = {}
    for start in range(0, len(samples), size):
        icons = [sample.icon for sample in samples[start : start + size]]
        for icon in icons:
            if icon.unit not in units:
                units[icon.unit] = drawn.images(icon.unit)
        yield np.stack([units[icon.unit][icon.row] for icon in icons])


class ResidentStore(Store):
    """A store whose pixels and tokens lie on a device, read by index there."""

    def __init__(self, store: Store, device: torch.device):
        for name, value in vars(store).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_device", device)

    @cached_property
    def _on_device(self) -> tuple[Tensor, Tensor]:
        """uint8 [N, 3, S, S] (channels last), int32 [M, L]."""
        device: torch.device = self._device  # type: ignore[attr-defined]
        n, size = len(self), self.images.shape[1]
        images = torch.empty(n, size, size, 3, dtype=torch.uint8, device=device)
        for start in range(0, n, 16_384):
            block = np.ascontiguousarray(self.images[start : start + 16_384])
            images[start : start + len(block)] = torch.from_numpy(block).to(device)
        tokens = torch.from_numpy(np.ascontiguousarray(self.tokens)).to(device)
        return images.permute(0, 3, 1, 2), tokens

    def pixels(self, rows: np.ndarray) -> Tensor:
        images, _ = self._on_device
        return images[torch.from_numpy(np.asarray(rows)).to(images.device)]

    def token_rows(self, rows: np.ndarray) -> Tensor:
        _, tokens = self._on_device
        return tokens[torch.from_numpy(np.asarray(rows)).to(tokens.device)].long()


@dataclass(frozen=True)
class ResidentInputs(Inputs):
    """Inputs whose stores are the prepared ones, on the device."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def store(self, split: str, workers: int | None = None, progress: Progress = silent) -> Store:
        return ResidentStore(open_store(self.root / "store" / split), self.device)


@dataclass(frozen=True)
class PackedWorkspace(Workspace):
    """Run directories and the data of a pack, both named by the packed world."""

    prepared: Prepared | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def data_root(self, run: Run) -> Path:
        assert self.prepared is not None
        return self.prepared.root

    def data_key(self, run: Run) -> str:
        assert self.prepared is not None
        return build_key(self.prepared.world, self.prepared.size)

    @cached_property
    def _inputs(self) -> dict[tuple[int, int, int], ResidentInputs]:
        return {}

    def embedded(self, run: Run) -> ResidentInputs:
        """The same object for every run of one kind: its stores are on the device once."""
        key = (run.data.image_size, run.data.vocab_size, run.data.context_length)
        if key not in self._inputs:
            self._inputs[key] = ResidentInputs(self.data_root(run), *key, self.device)
        return self._inputs[key]
