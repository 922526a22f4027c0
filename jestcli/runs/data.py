"""`jest data build | list | show`: the embedded data, seen by a person."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jestcli.config import VERIFIED, ConfigError, did_you_mean
from jestcli.data.pools import verified_size
from jestcli.evaluation.folders import class_names, is_retrieval
from jestcli.utils.console import Terminal
from jestcli.utils.errors import DataError
from jestcli.utils.progress import DOING, bars
from jestcli.utils.reading import parse_json, reading

if TYPE_CHECKING:
    from rich.console import Console

    from jestcli.config import Run
    from jestcli.runs.workspace import Workspace


def build(root: Path, size: int, workers: int | None, console: Console) -> None:
    """Build the embedded data with a progress bar, unless it is there.

    Raises DataError with one line that says what to do.
    """
    from jestcli.icons.build import build as build_data
    from jestcli.icons.build import is_built, read_manifest

    if not is_built(root, size=size):
        with bars(console) as report:
            build_data(root, size=size, workers=workers, progress=report)
    counts = read_manifest(root)["counts"]
    console.print(
        f"data in {root}: {counts['pool']:,} pool images ({counts['pool_pairs']:,} pairs), "
        f"{counts['curated']:,} curated, {len(counts['benchmarks'])} benchmark folders"
    )


def prepare(run: Run, workers: int | None, workspace: Workspace, console: Console) -> None:
    """Have the data of `run` ready, with bars: the embedded ones built and decoded, a user's shards
    found and counted, unless that is done."""
    from jestcli.runs.inputs import splits
    from jestcli.runs.run_data import data_of

    if not run.data.own:
        root = workspace.data_root(run)
        build(root, run.data.image_size, workers, console)
        check_sizes(run, root)
    data = data_of(run, workspace)
    with bars(console) as report:
        for split in ("pool", "curated") if data.embeds_first else splits(run):

            def named(done: int, total: int, stage: str, split: str = split) -> None:
                report(done, total, f"{DOING.get(stage, stage)} ({split})")

            dataset = data.dataset(split, workers, named)
            if run.data.own:
                console.print(f"{split}: {len(dataset):,} pairs in {dataset.n_files:,} shards")


def check_sizes(run: Run, root: Path) -> None:
    """Whether the embedded data in `root` hold what the run and its reference ask for.

    Raises ConfigError in one line: an unknown level, or more pairs than there are.
    """
    from jestcli.icons.build import read_manifest

    counts = read_manifest(root)["counts"]
    set_aside = verified_size(counts["pool"])
    levels = counts["levels"] | {VERIFIED: set_aside}
    for each in (run, run.reference):
        if each is None:
            continue
        level, wanted, source = each.data.level, each.data.curated_size or 0, each.source
        if source.kind in ("curated", "mixed"):
            if level not in levels:
                raise ConfigError(f"no data.level={level}{did_you_mean(level, list(levels))}")
            if wanted > levels[level]:
                there = f"level {level} has {levels[level]:,} pairs"
                raise ConfigError(f"data.curated_size={wanted}: {there}")
        left = counts["pool"] - set_aside
        if not source.curated_in_pool and (source.pool_size or 0) > left:
            raise ConfigError(f"source.pool_size={source.pool_size}: the pool has {left:,} pairs")


def list_sources(root: Path) -> None:
    """Print what `root` holds: splits, levels and benchmarks with n, chance, families, licences.

    Raises DataError when nothing is built there.
    """
    from rich.table import Table

    from jestcli.icons.build import read_manifest

    console = Terminal()
    manifest = read_manifest(root)
    counts = manifest["counts"]
    training = Table(title=f"Training data in {root} ({manifest['size']} px)", title_justify="left")
    for heading in ("split", "level", "images", "what"):
        training.add_column(heading, justify="right" if heading == "images" else "left")
    pool = f"real names as they are; {counts['pool_pairs']:,} pairs with other names"
    training.add_row("pool", "", f"{counts['pool']:,}", pool)
    described = {
        "strong": "labels and tags",
        "strong++": "labels and tags, larger: holds strong",
        "moderate": "well-named sets, names only",
        "weak": "a random part of the pool without logos, names only",
        VERIFIED: "a random part of the pool that no run's pool holds; never a wrong caption",
    }
    counts["levels"] |= {VERIFIED: verified_size(counts["pool"])}
    for level, about in described.items():
        if level in counts["levels"]:
            split = "pool" if level in ("weak", VERIFIED) else "curated"
            training.add_row(split, level, f"{counts['levels'][level]:,}", about)
    console.print(training)

    table = Table(title="Benchmarks (art that no training image shows)", title_justify="left")
    for heading in ("name", "kind", "mirrors", "n", "ways", "chance %", "art families"):
        right = heading in ("n", "ways", "chance %")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for entry in read_benchmarks(root):
        table.add_row(
            entry["name"],
            entry["kind"],
            entry["mirrors"],
            f"{entry['n']:,}",
            f"{entry['n_classes'] or entry['n']:,}",
            f"{100 * entry['chance']:.2f}",
            ", ".join(entry["families"]),
        )
    console.print(table)
    licences = ", ".join(f"{name} {count:,}" for name, count in manifest["pool_licences"].items())
    console.print(f"Licences in the pool: {licences}. See NOTICE.")


def read_benchmarks(root: Path) -> list[dict[str, Any]]:
    """The rows of benchmarks.json. Raises DataError when there is none."""
    path = root / "benchmarks" / "benchmarks.json"
    if not path.exists():
        raise DataError(f"no benchmarks in {root}: run `jest data build` first")
    with reading(path):
        found: list[dict[str, Any]] = parse_json(path.read_bytes())
        for each in found:
            str(each["name"]), str(each["folder"])
    return found


def show(
    root: Path, what: str = "all", n: int = 60, out: Path = Path("contact_sheets")
) -> list[Path]:
    """Draw contact sheets with captions: "pool", "curated", a level, a benchmark, or "all".

    n: images a sheet. Returns the paths written. Raises DataError for an unknown name.
    """
    from jestcli.icons.build import read_manifest

    levels = list(read_manifest(root)["counts"]["levels"])
    entries = {row["name"]: row["folder"].removeprefix("wds_") for row in read_benchmarks(root)}
    folders = set(entries.values())
    names = ["pool", *levels, *sorted(folders)]
    known = {"all": names, "curated": ["curated"]}
    known |= {name: [name] for name in names} | {name: [entries[name]] for name in entries}
    if what not in known:
        raise DataError(f"nothing called {what!r} to show{did_you_mean(what, list(known))}")
    return [_sheet(root, name, n, out, name in folders) for name in known[what]]


def _sheet(root: Path, name: str, n: int, out: Path, benchmark: bool) -> Path:
    import numpy as np

    from jestcli.data.contact_sheet import contact_sheet

    pairs = _benchmark_pairs(root, name) if benchmark else _training_pairs(root, name)
    taken = list(islice(pairs, n))
    title = f"{name}: the first {len(taken)}"
    images = [np.asarray(image) for image, _ in taken]
    path = out / f"{name.replace('+', 'p')}.png"
    return contact_sheet(images, [text for _, text in taken], path, 10, title)


def _training_pairs(root: Path, name: str) -> Iterator[tuple[Any, str]]:
    from jestcli.data.shards import read_shards
    from jestcli.icons.build import shard_urls

    split = "pool" if name in ("pool", "weak") else "curated"
    for pair in read_shards(shard_urls(root, split)):
        if name in ("pool", "curated") or name in pair.meta.get("levels", ()):
            yield pair.image, " | ".join(pair.captions)


def _benchmark_pairs(root: Path, name: str) -> Iterator[tuple[Any, str]]:
    from jestcli.data.shards import read_shards

    folder = root / "benchmarks" / f"wds_{name}"
    classes = [] if is_retrieval(folder) else class_names(folder)
    for pair in read_shards(folder / "test" / "0.tar"):
        yield pair.image, classes[pair.meta["cls"]] if classes else " | ".join(pair.captions)
