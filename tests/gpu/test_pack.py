from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature_world import Miniature
from tiny import tiny_run

from jestcli.data.loader import Part, draw
from jestcli.data.store import build_store, open_store
from jestcli.data.tokens import small_tokenizer
from jestcli.evaluation.benchmarks import list_benchmarks
from jestcli.gpu.pack import pack, packed_world
from jestcli.gpu.pool import PackedWorkspace, Prepared, ResidentStore, prepare
from jestcli.icons.build import read_manifest
from jestcli.icons.fetch import integrity
from jestcli.utils.errors import DataError


def tarballs(miniature: Miniature) -> dict[str, Path]:
    return {name: miniature.folder / f"{name}.tgz" for name in miniature.world.packages}


@pytest.fixture(scope="session")
def packed(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "sources.tar"
    pack(tarballs(miniature), path, 1.0, miniature.world, workers=1)
    return path


@pytest.fixture(scope="session")
def prepared(
    miniature: Miniature, packed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    work = tmp_path_factory.mktemp("work")
    return prepare(packed, work, tiny_run(), workers=1, world=miniature.world)


def test_a_pack_of_everything_gives_what_the_build_gives(
    miniature: Miniature, prepared: Prepared, data_root: Path
) -> None:
    """Same rows, pixels, captions, levels and benchmarks as the packages' own build."""
    counts = read_manifest(data_root)["counts"]
    for key in ("pool", "curated", "benchmarks", "dropped_near_duplicates"):
        assert prepared.about["counts"][key] == counts[key]
    workspace = PackedWorkspace(None, Path("nowhere"), prepared=prepared)
    inputs = workspace.inputs(tiny_run())
    for split in ("pool", "curated"):
        shards = sorted(str(p) for p in (data_root / "shards" / split).glob("*.tar"))
        built = build_store(shards, data_root / "again", 32, small_tokenizer(600, 8), workers=1)
        mine = inputs.store(split)
        assert mine.keys == built.keys and mine.captions == built.captions
        for name in ("images", "tokens", "caption_start", "levels"):
            assert np.array_equal(getattr(mine, name), getattr(built, name)), (split, name)
        assert mine.names == built.names
    for mine, theirs in zip(
        list_benchmarks(prepared.root), list_benchmarks(data_root), strict=True
    ):
        assert mine.about == theirs.about and mine.name == theirs.name
        assert torch.equal(mine.split().images, theirs.split().images)


def test_its_world_has_a_digest_of_its_own(miniature: Miniature, packed: Path) -> None:
    world = packed_world(packed, miniature.world)
    assert world.digest() != miniature.world.digest()
    assert {p.integrity for p in world.packages.values()} == {integrity(packed)}


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


def test_withheld_icons_that_no_benchmark_shows_are_left_out(packed: Path, tmp_path: Path) -> None:
    with tarfile.open(packed) as tar:
        kept = json.loads(tar.extractfile("pack.json").read())["kept"]  # type: ignore[union-attr]
    assert kept["fluent-emoji-high-contrast"] == 0 and kept["ph"] == 40 and kept["iconoir"] == 8


def test_a_file_that_is_no_pack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="not a pack"):
        prepare(tmp_path / "x.tar", tmp_path / "work", tiny_run(), workers=1)


def test_a_resident_store_draws_the_same_candidates(prepared: Prepared) -> None:
    workspace = PackedWorkspace(None, Path("nowhere"), prepared=prepared)
    resident = workspace.inputs(tiny_run()).pool
    assert isinstance(resident, ResidentStore)
    plain = open_store(resident.folder)
    rows = np.arange(len(plain))
    one, two = (
        draw([Part(store, rows, "pool", 2)], [6], seed=1, step=3) for store in (resident, plain)
    )
    assert torch.equal(one.images, two.images) and torch.equal(one.tokens, two.tokens)
    for a, b in zip(one.full(torch.tensor([4, 1])), two.full(torch.tensor([4, 1])), strict=True):
        assert torch.equal(a, b)
    assert one.keys == two.keys
