"""A DataComp uid file names what is trained on; what `jest inspect` writes is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from own_shards import make_shards
from tiny import TINY, tiny_run

from jestcli.config import make_run, merge
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.data.uids import read_uids, rows_in, uid, uids_of
from jestcli.runs.inputs import pool_rows
from jestcli.runs.methods import default_run
from jestcli.runs.run_data import data_of
from jestcli.runs.workspace import Workspace
from jestcli.utils.errors import DataError


def test_rows_of_shards_are_found_by_their_uids(tmp_path: Path) -> None:
    pool = make_shards(tmp_path / "pool", 2, 8)
    loading = Loading(workers=0, cache=tmp_path / "cache")
    shards = open_shards("pool", (str(pool),), loading)
    np.save(tmp_path / "u.npy", uids_of(["uid-13", "uid-2", "uid-99"]))
    assert rows_in(shards, None, tmp_path / "u.npy", "a", tmp_path).tolist() == [2, 13]
    kept = np.array([2, 3, 4])
    (tmp_path / "u.npy").unlink()
    assert rows_in(shards, kept, tmp_path / "u.npy", "a", tmp_path).tolist() == [2], "remembered"
    with pytest.raises(DataError, match="cannot be read"):
        rows_in(shards, None, tmp_path / "gone.npy", "b", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):  # shards in another state: asked anew
        rows_in(shards, kept, tmp_path / "u.npy", "a", tmp_path, "written anew")
    np.save(tmp_path / "none.npy", uids_of(["uid-99"]))
    for _ in range(2):
        with pytest.raises(DataError, match="names no pair"):
            rows_in(shards, None, tmp_path / "none.npy", "c", tmp_path)
    np.save(tmp_path / "none.npy", uids_of(["uid-3"]))
    assert rows_in(shards, None, tmp_path / "none.npy", "c", tmp_path).tolist() == [3]


def test_a_run_draws_from_the_named_pairs_alone(workspace: Workspace, tmp_path: Path) -> None:
    data = data_of(tiny_run(), workspace)
    rows = pool_rows(tiny_run(), data)
    assert rows is not None
    np.save(tmp_path / "u.npy", uids_of(data.pool.keys_of(rows[3:9])))
    settings = {"data": {"uids": str(tmp_path / "u.npy")}}
    run = make_run(merge(tiny_run().model_dump(), settings))
    assert pool_rows(run, data).tolist() == rows[3:9].tolist()  # type: ignore[union-attr]
    moved = tmp_path / "moved.npy"
    moved.write_bytes((tmp_path / "u.npy").read_bytes())
    again = make_run(merge(tiny_run().model_dump(), {"data": {"uids": str(moved)}}))
    assert again.digest() == run.digest() != tiny_run().digest(), "known by its content"
    reference = default_run("jest", merge(TINY, settings), 0).reference
    assert reference is not None and reference.data.uids is None, "it reads the curated set"
    np.save(tmp_path / "u.npy", uids_of(["nobody"]))
    with pytest.raises(DataError, match="is not the file this run was made for"):
        pool_rows(run, data)
    with pytest.raises(DataError, match="names no pair of this pool"):
        pool_rows(make_run(merge(tiny_run().model_dump(), settings)), data)


@pytest.mark.parametrize("array", [np.arange(3), np.array([{}], object), np.zeros((2, 2), "u8,u8")])
def test_another_array_is_one_line(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", array)
    with pytest.raises(DataError, match=r"data.uids=.*u.npy(: expected| cannot be read)") as caught:
        read_uids(tmp_path / "u.npy")
    assert "\n" not in str(caught.value)


HEAD = b"\x93NUMPY\x01\x00\x04\x00"


@pytest.mark.parametrize("content", [b"a1b2\nc3d4\n", b"", b"PK\x03\x04", HEAD, HEAD + b"{(  "])
def test_another_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "u.npy").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_uids(tmp_path / "u.npy")
    path = tmp_path / "u.npy"
    assert str(caught.value) == f"data.uids={path} cannot be read: no whole .npy array of u8,u8"


def test_a_uid_is_two_halves() -> None:
    assert uid("00000000000000010000000000000002") == (1, 2)
