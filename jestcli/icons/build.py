"""Build the embedded data: fetch, draw, split, write, check. Resumable, idempotent, atomic.

Layout under the root:

    manifest.json     what was built, from what, with which hashes; written last
    shards/pool/      {00000..}.tar   webdataset: .png .txt .json
    shards/curated/   {00000..}.tar
    benchmarks/       benchmarks.json and one wds_<name>/ folder each (clip-benchmark's layout)
    .cache/           fetched packages; while a build is under way also drawn icons

A build is named by the hash of the world, the image size and the renderer. It is staged beside the
root's final folders and moved in place when it has passed the leakage check."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestcli.icons import benchmarks as marks
from jestcli.icons import write as shards
from jestcli.icons.captions import read_emoji, read_lucide, read_phosphor, read_tabler
from jestcli.icons.draw import Drawn, Rastered, draw_world, resvg_version
from jestcli.icons.fetch import Fetcher, fetch
from jestcli.icons.leakage import Compared, Rasters, assert_no_leakage
from jestcli.icons.spec import WORLD, World
from jestcli.icons.splits import Plan, Sample, make_plan
from jestcli.icons.write import Row, ShardTask
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.lock import Held, hold
from jestcli.utils.parallel import unordered
from jestcli.utils.progress import Progress, silent
from jestcli.utils.reading import read_json, reading

FORMAT = 4  # counts changes of this package that change what it writes
SIZE = 32


def default_root(size: int = SIZE) -> Path:
    """$JEST_DATA, else `.data/icons` (`.data/icons-64` for 64 px) under the current folder."""
    if given := os.environ.get("JEST_DATA"):
        return Path(given)
    return Path(".data") / ("icons" if size == SIZE else f"icons-{size}")


def build_key(world: World, size: int) -> str:
    """The hash of all that determines the data (16 hex digits)."""
    text = f"{FORMAT} {world.digest()} {size} {resvg_version()}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a built root. Raises DataError when there is none."""
    try:
        manifest = read_json(path := root / "manifest.json")
        with reading(path):
            counts = manifest["counts"]
            int(counts["pool"]), int(counts["pool_pairs"]), int(counts["curated"])
            dict(counts["levels"]), len(counts["benchmarks"]), dict(manifest["files"])
    except FileNotFoundError:
        raise DataError(f"no data in {root}: run `jest data build` first") from None
    except DataError as error:
        raise DataError(f"{error}: delete it, then run `jest data build`") from None
    return manifest


def is_built(root: Path, world: World = WORLD, size: int = SIZE) -> bool:
    """Whether exactly this data is in `root`, every file of it."""
    try:
        manifest = read_manifest(root)
    except DataError:
        return False
    return manifest.get("key") == build_key(world, size) and all(
        (root / name).is_file() and (root / name).stat().st_size == size
        for name, size in manifest["files"].items()
    )


def shard_urls(root: Path, split: str) -> list[str]:
    """Paths of a split's shards ("pool" or "curated"), in order. Raises DataError."""
    read_manifest(root)
    found = sorted((root / "shards" / split).glob("*.tar"))
    if not found:
        raise DataError(f"{root} has no split {split}: there are pool and curated")
    return [str(path) for path in found]


def build(
    root: Path,
    *,
    size: int = SIZE,
    workers: int | None = None,
    world: World = WORLD,
    fetcher: Fetcher | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Build the data in `root` unless it is there; returns the manifest.

    size: image side in pixels, a multiple of 16. workers: processes, default one a usable core.
    Raises DataError: no network, no npm, a wrong hash, a full disk, a leak. What was done is kept,
    and the next call goes on from there."""
    if size <= 0 or size % 16:
        raise DataError(f"image size {size} is not a multiple of 16")
    if is_built(root, world, size):
        return read_manifest(root)
    with _alone_in(root):
        cache, key = root / ".cache", build_key(world, size)
        tarballs: dict[str, Path] = {}
        for name, package in world.packages.items():
            progress(len(tarballs), len(world.packages), "fetch")
            tarballs[name] = fetch(package, cache / "packages", fetcher)
        progress(len(tarballs), len(tarballs), "fetch")

        drawn = draw_world(world, tarballs["icons"], cache, size, workers, progress)
        emoji, phosphor = read_emoji(tarballs["emoji"]), read_phosphor(tarballs["phosphor"])
        lucide, tabler = read_lucide(tarballs["lucide"]), read_tabler(tarballs["tabler"])
        plan = make_plan(world, drawn, emoji, {"lucide": lucide, "tabler": tabler})
        made = marks.make_benchmarks(world, drawn, emoji, phosphor)
        training = [sample.icon for sample in (*plan.pool, *plan.curated)]
        progress(0, 1, "compare")
        kept, lost, compared = marks.without_leaks(made, drawn, training, world.near_duplicate)
        progress(1, 1, "compare")

        here = _Staged(world, drawn, root / f".staging-{key}")
        for old in root.glob(".staging-*"):
            if old != here.folder:
                shutil.rmtree(old)
        splits = {"pool": plan.pool, "curated": plan.curated}
        tasks = [
            task for name, each in splits.items() for task in _training_tasks(name, each, here)
        ]
        bench_tasks = [task for mark in kept for task in _benchmark_tasks(mark, here)]
        total, done = sum(len(task.rows) for task in tasks + bench_tasks), 0
        progress(0, total, "write")
        for _, written in unordered(shards.write_shard, tasks + bench_tasks, workers):
            done += written
            progress(done, total, "write")
        listed = [x for mark in kept for x in marks.entries(mark, lost[mark.name])]
        shards.write_json(here.folder / "benchmarks" / "benchmarks.json", listed)
        digests = _check(tasks, bench_tasks, compared, workers, progress)
        manifest = _manifest(key, here, plan, kept) | {"raster_digests": digests}
        manifest["counts"]["dropped_near_duplicates"] = lost
        _move_in_place(root, here.folder, manifest)
        shutil.rmtree(drawn.cache, ignore_errors=True)
        shutil.rmtree(cache / "collections", ignore_errors=True)
        return manifest


@contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """One build at a time, and what the system refuses in one line. Raises DataError."""
    try:
        with hold(root):
            yield
    except Held:
        raise DataError(f"another build is running in {root}: wait for it to end") from None
    except OSError as error:
        raise explain_os_error(error, f"building the data in {root}") from error


@dataclass(frozen=True)
class _Staged:
    """What a build has drawn, and the folder that it writes to."""

    world: World
    drawn: Rastered
    folder: Path


def _training_tasks(split: str, samples: Sequence[Sample], here: _Staged) -> list[ShardTask]:
    tasks = []
    n, count = len(samples), max(1, -(-len(samples) // here.world.shard_size))
    for shard in range(count):
        rows = []
        for sample in samples[shard * n // count : (shard + 1) * n // count]:
            words = {"captions": list(sample.captions), "levels": list(sample.levels)}
            text = _meta(sample.icon, words)
            members = {"txt": sample.captions[0], "json": text}
            rows.append(Row(sample.key, sample.icon.unit, sample.icon.row, members))
        path = here.folder / "shards" / split / f"{shard:05d}.tar"
        tasks.append(ShardTask(path, here.drawn.cache, tuple(rows)))
    return tasks


def _meta(icon: Drawn, more: Mapping[str, Any] = {}) -> str:
    about = icon.collection
    meta = {"key": icon.key, "source": about.prefix, "set": about.title, "category": about.category}
    meta |= {"family": about.family, "licence": about.licence, **more}
    return json.dumps(meta, ensure_ascii=False)


def _benchmark_tasks(mark: marks.Benchmark, here: _Staged) -> list[ShardTask]:
    """Write a benchmark's text files; return the tar files still to write."""
    folder = here.folder / "benchmarks" / f"wds_{mark.name}"
    if retrieval := mark.kind == marks.RETRIEVAL:
        shards.write_lines(folder / "dataset_type.txt", ["retrieval"])
    else:
        shards.write_lines(folder / "classnames.txt", mark.classes)
        shards.write_lines(folder / "zeroshot_classification_templates.txt", here.world.templates)
    tasks = []
    for split, items in (("test", mark.test), ("train", mark.train)):
        if not items:
            continue
        rows = []
        ordered = sorted(items, key=lambda item: hashlib.blake2b(item.icon.key.encode()).digest())
        for number, item in enumerate(ordered):
            icon = item.icon
            answer = {"txt": item.caption} if retrieval else {"cls": str(item.label)}
            members = {"json": _meta(icon), **answer}
            rows.append(Row(f"{number:06d}", icon.unit, icon.row, members))
        shards.write_lines(folder / split / "nshards.txt", ["1"])
        tasks.append(ShardTask(folder / split / "0.tar", here.drawn.cache, tuple(rows)))
    return tasks


def _check(
    tasks: list[ShardTask],
    bench_tasks: list[ShardTask],
    compared: Compared,
    workers: int | None,
    progress: Progress,
) -> dict[str, str]:
    """Assert, on what was written, that nothing leaks. Returns a raster digest for each split."""
    rows = {task.path: len(task.rows) for task in tasks + bench_tasks}
    read: dict[Path, Rasters] = {}
    for path, rasters in unordered(shards.read_back, list(rows), workers):
        read[path] = rasters
        progress(len(read), len(rows), "check")
    for path, count in rows.items():
        if len(read[path]) != count:
            raise DataError(f"{path} holds {len(read[path])} of {count} samples")
    training, tests = (shards.join([read[t.path] for t in each]) for each in (tasks, bench_tasks))
    assert_no_leakage(tests, training, compared)
    splits: dict[str, list[str]] = {}
    for path, rasters in read.items():
        parts = path.parts
        at = parts.index("shards" if "shards" in parts else "benchmarks")
        splits.setdefault("/".join(parts[at + 1 : -1]), []).extend(rasters.digests)
    return {
        name: hashlib.blake2b("".join(sorted(all_)).encode(), digest_size=12).hexdigest()
        for name, all_ in sorted(splits.items())
    }


def _manifest(key: str, here: _Staged, plan: Plan, kept: list[marks.Benchmark]) -> dict[str, Any]:
    paths = [path for path in sorted(here.folder.rglob("*")) if path.is_file()]
    levels = Counter(level for sample in plan.curated for level in sample.levels)
    licences = Counter(sample.icon.collection.licence for sample in plan.pool)
    reasons = here.drawn.failed.values()
    failed = Counter("blank" if why == "blank" else "not drawable" for why in reasons)
    packages = here.world.packages
    return {
        "key": key,
        "format": FORMAT,
        "size": here.drawn.size,
        "world": here.world.digest(),
        "packages": {name: package.spec for name, package in packages.items()},
        "integrity": {name: package.integrity for name, package in packages.items()},
        "resvg": resvg_version(),
        "counts": {
            "pool": len(plan.pool),
            "pool_pairs": sum(len(sample.captions) for sample in plan.pool),
            "curated": len(plan.curated),
            "levels": {**levels, "weak": sum(bool(sample.levels) for sample in plan.pool)},
            "benchmarks": {mark.name: len(mark.test) for mark in kept},
            "not_drawn": dict(failed),
        },
        "rasters_removed_from_pool": plan.removed,
        "pool_licences": dict(licences.most_common()),
        "files": {str(path.relative_to(here.folder)): path.stat().st_size for path in paths},
    }


def _move_in_place(root: Path, staging: Path, manifest: dict[str, Any]) -> None:
    """Swap the staged folders in; the manifest, last, makes them the root's data."""
    (root / "manifest.json").unlink(missing_ok=True)
    for name in ("shards", "benchmarks"):
        if (staging / name).exists():
            shutil.rmtree(root / name, ignore_errors=True)
            os.replace(staging / name, root / name)
    shutil.rmtree(staging, ignore_errors=True)
    shards.write_json(root / "manifest.json", manifest)
