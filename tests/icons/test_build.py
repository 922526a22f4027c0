"""The build end to end on a miniature: what goes where, resume, idempotence, clear refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature_world import EMOJI_NAMES, THINGS, Miniature, drawing, make_miniature

from jestcli.data.shards import Pair, read_shards
from jestcli.icons import build as building
from jestcli.icons.build import build, is_built, read_manifest, shard_urls
from jestcli.icons.spec import Package
from jestcli.utils.errors import DataError
from jestcli.utils.lock import hold


@pytest.fixture(scope="module")
def root(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    build(path, world=miniature.world, fetcher=miniature.fetcher, workers=2)
    return path


def pairs(root: Path, split: str) -> dict[str, Pair]:
    return {pair.key: pair for pair in read_shards(shard_urls(root, split))}


def test_pool_holds_the_rest_with_real_names(root: Path) -> None:
    pool = pairs(root, "pool")
    sources = {pair.meta["source"] for pair in pool.values()}
    assert sources == {"stuff", "brands", "tabler", "mdi"}  # tabler and mdi: what no level took
    assert pool["stuff/cat-0"].captions == ("cat 0", "kitty")
    assert pool["stuff/dog-0"].captions == ("dog 0",)  # a mirrored alias is another picture
    assert "stuff/copied-bell" not in pool, "a curated raster is removed from the pool"
    assert "stuff/nothing" not in pool, "a blank raster is not a pair"
    assert set(pool["brands/acme"].meta) == {
        "key",
        "source",
        "set",
        "category",
        "family",
        "licence",
        "captions",
        "levels",
    }
    weak = [pair for pair in pool.values() if "weak" in pair.meta["levels"]]
    assert len(weak) == 20 and all(pair.meta["category"] != "Logos" for pair in weak)


def test_curated_levels_and_captions(root: Path) -> None:
    curated = pairs(root, "curated")
    dog = curated["twemoji/dog"]
    assert dog.captions == ("dog", "dog, pet, puppy", "pet", "puppy")
    assert dog.meta["levels"] == ["strong", "strong++"]
    assert curated["noto/dog"].meta["levels"] == ["strong++"]
    assert curated["tabler/boat"].captions == ("boat", "boat, ship", "ship")
    assert curated["mdi/boat"].captions == ("boat",)
    assert curated["mdi/boat"].meta["levels"] == ["moderate"]
    assert curated["twemoji/flag-chile"].captions[0] == "flag: Chile"


def test_benchmarks_are_in_the_local_wds_layout(root: Path) -> None:
    entries = {e["name"]: e for e in json.loads((root / "benchmarks/benchmarks.json").read_text())}
    assert list(entries) == [
        "objects",
        "objects_filled",
        "objects_fewshot",
        "tagged_i2t",
        "tagged_t2i",
        "emoji_3d",
        "animals",
        "food",
    ]
    objects = entries["objects"]
    folder = root / "benchmarks" / objects["folder"]
    classes = (folder / "classnames.txt").read_text().splitlines()
    assert classes == sorted(THINGS), "drawn by two of three families; 'solo' is not"
    assert objects["n_classes"] == len(classes) and objects["chance"] == 1 / len(classes)
    shown = list(read_shards(str(folder / "test/0.tar")))
    assert len(shown) == objects["n"]
    for pair in shown:
        assert pair.meta["key"].split("/")[1].startswith(classes[pair.meta["cls"]])
    filled = list(read_shards(str(root / "benchmarks/wds_objects_filled/test/0.tar")))
    assert len(filled) == entries["objects_filled"]["n"] > 0
    styles = {pair.meta["key"].rpartition("-")[2] for pair in filled}
    assert styles == {"fill", "duotone", "solid"}
    assert styles.isdisjoint(pair.meta["key"].rpartition("-")[2] for pair in shown)
    assert "ph/boat-fill" not in {pair.meta["key"] for pair in filled}, "its raster is in the pool"
    assert entries["objects_filled"]["dropped_as_near_duplicates"] == 1
    assert entries["tagged_i2t"]["chance"] == 5 / entries["tagged_i2t"]["n"]
    few = root / "benchmarks" / entries["objects_fewshot"]["folder"]
    train = list(read_shards(str(few / "train/0.tar")))
    assert {pair.meta["family"] for pair in train} == {"phosphor"}
    assert {p.meta["cls"] for p in train} == {
        p.meta["cls"] for p in read_shards(str(few / "test/0.tar"))
    }
    assert entries["emoji_3d"]["n"] == len(EMOJI_NAMES) and entries["animals"]["n_classes"] == 3
    tagged = list(read_shards(str(root / "benchmarks/wds_tagged/test/0.tar")))
    assert {pair.captions[0] for pair in tagged} == {f"{t}, nice {t}, thing" for t in THINGS}
    assert (root / "benchmarks/wds_tagged/dataset_type.txt").read_text().strip() == "retrieval"


def test_clip_benchmark_reads_the_folders(root: Path) -> None:
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    folder = str(root / "benchmarks" / "wds_objects")
    data = builder.build_dataset("wds/objects", root=folder, transform=np.asarray, split="test")
    image, label = next(iter(data))
    assert image.shape == (32, 32, 3) and 0 <= int(label) < len(data.classes)
    assert "{c}" in data.templates[0]


def test_second_run_does_nothing(root: Path, miniature: Miniature) -> None:
    def refuse(package: Package, into: Path, tools: Path) -> Path:
        raise AssertionError("fetched again")

    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    start = time.perf_counter()
    build(root, world=miniature.world, fetcher=refuse)
    assert time.perf_counter() - start < 2
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


class Killed(BaseException):
    """Stands for the process dying."""


@pytest.mark.parametrize("stage", ["unpack", "draw", "write", "check"])
def test_killed_and_resumed_build_is_the_same(
    stage: str, root: Path, miniature: Miniature, tmp_path: Path
) -> None:
    def kill(done: int, total: int, doing: str) -> None:
        if doing == stage and 0 < done < total:
            raise Killed

    world, fetcher = miniature.world, miniature.fetcher
    with pytest.raises(Killed):
        build(tmp_path, world=world, fetcher=fetcher, workers=1, progress=kill)
    assert not is_built(tmp_path, world)
    build(tmp_path, world=world, fetcher=fetcher, workers=1)
    for name, size in read_manifest(root)["files"].items():
        assert (tmp_path / name).stat().st_size == size
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes(), name
    assert read_manifest(tmp_path) == read_manifest(root)


def test_a_missing_file_is_noticed_and_built_again(miniature: Miniature, tmp_path: Path) -> None:
    world, fetcher = miniature.world, miniature.fetcher
    build(tmp_path, world=world, fetcher=fetcher, workers=1)
    victim = tmp_path / "shards" / "pool" / "00000.tar"
    content = victim.read_bytes()
    victim.write_bytes(content[:1000])
    assert not is_built(tmp_path, world)
    build(tmp_path, world=world, fetcher=fetcher, workers=1)
    assert victim.read_bytes() == content


def test_another_world_is_another_build(miniature: Miniature, tmp_path: Path) -> None:
    other = dataclasses.replace(miniature.world, weak_size=3)
    for world in (miniature.world, other):
        build(tmp_path, world=world, fetcher=miniature.fetcher, workers=1)
    assert is_built(tmp_path, other) and not is_built(tmp_path, miniature.world)
    assert read_manifest(tmp_path)["counts"]["levels"]["weak"] == 3


def test_wrong_hash_is_refused_and_nothing_is_left(miniature: Miniature, tmp_path: Path) -> None:
    packages = dict(miniature.world.packages)
    packages["emoji"] = dataclasses.replace(packages["emoji"], integrity="sha512-AAAA")
    world = dataclasses.replace(miniature.world, packages=packages)
    with pytest.raises(DataError, match="not the pinned") as caught:
        build(tmp_path, world=world, fetcher=miniature.fetcher)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / ".cache" / "packages").glob("*emoji*"))
    assert not (tmp_path / "manifest.json").exists() and not (tmp_path / "shards").exists()


def test_no_network_says_what_to_do(
    miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DataError, match="check the network") as caught:
        build(tmp_path, world=miniature.world)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_full_disk_says_what_to_do(
    miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building.shards, "write_json", full)
    with pytest.raises(DataError, match="the disk is full"):
        build(tmp_path, world=miniature.world, fetcher=miniature.fetcher, workers=1)
    assert not (tmp_path / "manifest.json").exists()


def test_only_one_build_at_a_time(miniature: Miniature, tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(DataError, match="another build"):
        build(tmp_path, world=miniature.world, fetcher=miniature.fetcher)


def test_odd_image_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="multiple of 16"):
        build(tmp_path, size=30)


def test_withheld_family_under_another_name_is_caught(tmp_path: Path) -> None:
    """The pixels of a benchmark, planted in a pool set: the benchmark loses them."""

    def plant(icons: dict[str, tuple[Any, Any]]) -> None:
        icons["stuff"][1]["icons"]["stolen"] = {"body": drawing("fluent-emoji/dog")}

    planted = make_miniature(tmp_path, plant)
    root = tmp_path / "data"
    manifest = build(root, world=planted.world, fetcher=planted.fetcher, workers=1)
    assert manifest["counts"]["dropped_near_duplicates"]["emoji_3d"] == 1
    assert "stuff/stolen" in pairs(root, "pool")


def test_a_relative_folder_reaches_the_fetcher_as_an_absolute_one(tmp_path, monkeypatch):
    """npm runs in a folder of its own, where a relative destination would not be found."""
    from jestcli.icons.fetch import fetch, integrity
    from jestcli.icons.spec import Package

    monkeypatch.chdir(tmp_path)
    content = tmp_path / "content.tgz"
    content.write_bytes(b"anything")
    package = Package("thing", "1.0.0", integrity(content))

    def fetcher(package, into, tools):
        assert into.is_absolute() and tools.is_absolute()
        return Path(shutil.copy(content, into / "got.tgz"))

    assert fetch(package, Path("relative/packages"), fetcher).read_bytes() == b"anything"
