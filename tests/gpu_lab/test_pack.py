"""The pack: the built data in files, and the same data again."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_run

from jestcli.evaluation.benchmarks import list_benchmarks
from jestcli.icons.build import is_built
from jestcli.runs.run_data import data_of
from jestcli.runs.workspace import Workspace
from jestcli.utils.errors import DataError
from tools.gpu_lab.pack import pack, prepare


@pytest.fixture(scope="module")
def parts(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    run = tiny_run()
    for split in ("pool", "curated"):
        data_of(run, Workspace(data_root)).dataset(split)
    out = tmp_path_factory.mktemp("pack") / "data"
    return tuple(pack(data_root, out, 0.001, workers=1))


def test_what_is_unpacked_is_what_was_built(
    parts: tuple[Path, ...], data_root: Path, tmp_path: Path
) -> None:
    assert len(parts) > 1
    root, run = tmp_path / "root", tiny_run()
    prepare(parts[::-1], root, 32, workers=1)
    assert is_built(root)
    for split in ("pool", "curated"):
        mine, theirs = (data_of(run, Workspace(at)).dataset(split) for at in (root, data_root))
        assert mine.identity == theirs.identity, "by its shards' hashes, which were not unpacked"
        assert np.array_equal(mine.images, theirs.images)
        assert mine.captions == theirs.captions and mine.keys == theirs.keys
    for one, two in zip(list_benchmarks(root), list_benchmarks(data_root), strict=True):
        assert one.about == two.about and torch.equal(one.split().images, two.split().images)
    assert Workspace(root).folder(run).name == Workspace(data_root).folder(run).name
    before = (root / "manifest.json").stat().st_mtime_ns
    prepare(parts, root, 32, workers=1)
    assert (root / "manifest.json").stat().st_mtime_ns == before  # it was there


def test_a_part_that_lacks_is_named(parts: tuple[Path, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"1 parts of {len(parts)}: name all"):
        prepare(parts[:1], tmp_path / "root", 32, workers=1)
    assert not is_built(tmp_path / "root")


def test_what_is_no_pack_is_refused(parts: tuple[Path, ...], tmp_path: Path) -> None:
    bad = tmp_path / "x.tar"
    bad.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"x.tar is not a part of a pack"):
        prepare((bad,), tmp_path / "root", 32, workers=1)
    with pytest.raises(DataError, match="of another version's data"):
        prepare(parts, tmp_path / "root", 64, workers=1)
    with tarfile.open(parts[0]) as tar:
        about = json.loads(tar.extractfile("part.json").read())  # type: ignore[union-attr]
    (tmp_path / "part.json").write_text(json.dumps(about | {"parts": 1}))
    (tmp_path / "0.xz").write_bytes(b"no xz")
    with tarfile.open(bad, "w") as tar:
        tar.add(tmp_path / "part.json", "part.json")
        tar.add(tmp_path / "0.xz", "rest.xz")
    with pytest.raises(DataError, match=r"x.tar is not a part of a pack"):
        prepare((bad,), tmp_path / "root", 32, workers=1)


def test_no_name_in_it_becomes_a_path_outside(tmp_path: Path) -> None:
    from tools.gpu_lab.pack import _inside

    assert _inside(tmp_path, "store/pool/a-1/images.npy") == tmp_path / "store/pool/a-1/images.npy"
    for name in ("../x", "/x", "a/../../x", "a//b", ""):
        with pytest.raises(DataError, match="is not taken"):
            _inside(tmp_path, name)
