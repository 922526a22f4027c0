"""The pack: a selection of the icon sources, and the data that are built from it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch
from miniature_world import Miniature
from tiny import tiny_run

from jestcli.evaluation.benchmarks import list_benchmarks
from jestcli.icons.build import build as build_data
from jestcli.icons.build import build_key, read_manifest, selection_of
from jestcli.icons.fetch import integrity
from jestcli.runs.workspace import Workspace
from jestcli.utils.errors import DataError
from tools.gpu_lab.pack import pack, prepare


def tarballs(miniature: Miniature) -> dict[str, Path]:
    return {name: miniature.folder / f"{name}.tgz" for name in miniature.world.packages}


@pytest.fixture(scope="module")
def packed(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "sources.tar"
    pack(tarballs(miniature), path, 1.0, miniature.world, workers=1)
    return path


def test_a_pack_of_everything_builds_the_same_data_under_a_name_of_its_own(
    miniature: Miniature, packed: Path, data_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    prepare(packed, root, 32, workers=1, world=miniature.world)
    mine, theirs = read_manifest(root), read_manifest(data_root)
    assert mine["counts"] == theirs["counts"] and mine["raster_digests"] == theirs["raster_digests"]
    for split in ("pool", "curated"):
        name = f"shards/{split}/00000.tar"
        assert (root / name).read_bytes() == (data_root / name).read_bytes()
    for one, two in zip(list_benchmarks(root), list_benchmarks(data_root), strict=True):
        assert one.about == two.about and torch.equal(one.split().images, two.split().images)
    world = selection_of(miniature.world, integrity(packed))
    assert mine["key"] == build_key(world, 32) != build_key(miniature.world, 32)
    run = tiny_run()
    assert Workspace(root).folder(run).name != Workspace(data_root).folder(run).name
    before = (root / "manifest.json").stat().st_mtime_ns
    prepare(packed, root, 32, workers=1, world=miniature.world)
    assert (root / "manifest.json").stat().st_mtime_ns == before  # it was there


def test_another_versions_selection_is_not_fetched_but_named(
    miniature: Miniature, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="another version built: delete it"):
        build_data(tmp_path, world=selection_of(miniature.world, integrity(packed)))


def test_what_does_not_fit_is_left_out_and_named(miniature: Miniature, tmp_path: Path) -> None:
    whole = pack(tarballs(miniature), tmp_path / "a.tar", 1.0, miniature.world, workers=1)
    assert not whole.left_out and "closed" not in whole.icons  # its licence
    again = pack(tarballs(miniature), tmp_path / "b.tar", 1.0, miniature.world, workers=1)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes() and again == whole
    part, size = whole, whole.bytes + 40_000
    while not part.left_out:
        size -= 500
        part = pack(tarballs(miniature), tmp_path / "c.tar", size / 1e6, miniature.world, 1)
    assert set(part.left_out) <= {"stuff", "brands"}  # never what benchmarks or levels show
    assert (tmp_path / "c.tar").stat().st_size <= size
    with pytest.raises(DataError, match="too few"):
        pack(tarballs(miniature), tmp_path / "d.tar", 0.02, miniature.world, workers=1)


def test_withheld_icons_that_no_benchmark_shows_are_left_out(packed: Path) -> None:
    with tarfile.open(packed) as tar:
        kept = json.loads(tar.extractfile("pack.json").read())["kept"]  # type: ignore[union-attr]
    assert kept["fluent-emoji-high-contrast"] == 0 and kept["ph"] == 40 and kept["iconoir"] == 8


def test_a_file_that_is_no_pack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="not a pack"):
        prepare(tmp_path / "x.tar", tmp_path / "root", 32, workers=1)
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        (tmp_path / "pack.json").write_text('{"format": 2}')
        tar.add(tmp_path / "pack.json", "pack.json")
        tar.add(tmp_path / "pack.json", "packages/../../evil.tgz")
    with pytest.raises(DataError, match="lacks emoji, icons, lucide"):
        prepare(tmp_path / "y.tar", tmp_path / "root", 32, workers=1)
    assert not (tmp_path / "evil.tgz").exists()
