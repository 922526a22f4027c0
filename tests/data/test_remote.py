"""Shards in a store, through fsspec: memory:// stands for s3://, gs:// and hf://."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from own_shards import make_shards, sample, write_tar

from jestcli.data import remote
from jestcli.data.dataset import Transform
from jestcli.data.fetch import fetched_version, local
from jestcli.data.remote import ShardError, differ, is_remote, of_headers
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sizes import stated_counts
from jestcli.data.sources import Loading, list_shards, not_taken
from jestcli.data.tokens import small_tokenizer
from jestcli.utils.errors import DataError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    """Two shards of eight pairs in memory://pool, and a file that is none."""
    system = fsspec.filesystem("memory")
    remote.lies_in.cache_clear()
    for path in sorted(make_shards(tmp_path / "made", 2, 8).glob("*.tar")):
        system.pipe(f"/pool/{path.name}", path.read_bytes())
    system.pipe("/pool/readme.txt", b"x")
    yield system
    system.rm("/pool", recursive=True)


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    return Loading(workers=0, cache=tmp_path / "cache", retries=2, pause=0, timeout=5)


@pytest.mark.parametrize("entry", [
    "memory://pool", "memory://pool/*.tar", "memory://pool/{00..01}.tar",
])  # fmt: skip
def test_a_stores_shards_are_read_as_local_ones(
    entry: str, store: Any, loading: Loading, tmp_path: Path
) -> None:
    assert [url.rpartition("/")[2] for url in list_shards(entry)] == ["00.tar", "01.tar"]
    transform, rows = Transform(32, small_tokenizer(600, 8)), np.arange(16)
    found, expected = (
        open_shards("pool", (each,), loading).read(rows, transform, None)
        for each in (entry, str(tmp_path / "made"))
    )
    assert found.texts == expected.texts and len(found.texts) == 16
    assert (found.images == expected.images).all()


def test_a_shard_is_fetched_once(store: Any, loading: Loading) -> None:
    path = local("memory://pool/00.tar", loading)
    assert path.read_bytes() == store.cat("/pool/00.tar")
    store.pipe("/pool/00.tar", b"")
    assert local("memory://pool/00.tar", loading) == path and path.stat().st_size > 0


def test_a_store_says_which_version_it_has(store: Any, loading: Loading) -> None:
    url = "memory://pool/00.tar"
    local(url, loading)
    had = fetched_version(url, loading)
    assert had is not None and had["size"] == str(len(store.cat("/pool/00.tar")))
    assert remote.server_says(url, 5) == had
    store.pipe("/pool/00.tar", store.cat("/pool/00.tar"))
    assert differ(had, remote.server_says(url, 5)), "written again"
    assert remote.server_says("memory://pool/none.tar", 5) is None


@pytest.mark.parametrize(
    "one,other,expected",
    [
        ({"ETag": '"a"'}, {"ETag": 'W/"a"', "Last-Modified": "today"}, False),
        ({"ETag": '"a"', "Content-Length": "5"}, {"ETag": '"b"', "Content-Length": "5"}, True),
        ({"ETag": '"a"', "Content-Length": "5"}, {"ETag": '"a"', "Content-Length": "6"}, True),
        ({"ETag": '"a"', "Last-Modified": "x"}, {"ETag": '"a"', "Last-Modified": "y"}, False),
        ({"Last-Modified": "x"}, {"ETag": '"a"', "Last-Modified": "y"}, True),
        ({"Last-Modified": "x"}, {"ETag": '"a"'}, False),
        ({}, {"ETag": '"a"', "Content-Length": "5"}, False),
    ],
)
def test_what_headers_say_of_versions(
    one: dict[str, str], other: dict[str, str], expected: bool
) -> None:
    assert differ(of_headers(one), of_headers(other)) is expected
    assert differ(of_headers(other), of_headers(one)) is expected
    assert not differ(None, of_headers(other)) and not differ(of_headers(one), None)


def test_a_shard_that_changed_is_lost_to_a_run_and_counted_anew_by_the_next(
    store: Any, loading: Loading, tmp_path: Path
) -> None:
    """Of the same size: its old index would cut other captions."""
    url, rows = "memory://pool/00.tar", np.arange(8)
    dataset = open_shards("pool", (url,), loading)
    for path in (loading.cache / "shards").glob("*.tar"):
        path.unlink()
    words = [sample(n, txt=b"a longer caption than before") for n in range(8)]
    changed = write_tar(tmp_path / "changed.tar", *words).read_bytes()
    assert len(changed) == len(store.cat("/pool/00.tar"))
    store.pipe("/pool/00.tar", changed)
    local(url, loading)
    found = dataset.read(rows, Transform(32, small_tokenizer(600, 8)))
    assert {str(reason) for reason in found.bad.values()} == {"the shard has changed"}
    again = open_shards("pool", (url,), loading)
    assert set(again.captions_of(rows)) == {"a longer caption than before"}


def test_counts_beside_the_shards_are_believed(store: Any, loading: Loading) -> None:
    store.pipe("/pool/sizes.json", json.dumps({"00.tar": 8}).encode())
    shards = list_shards("memory://pool/{00..01}.tar")
    stated = stated_counts(shards, loading)
    assert [stated(url) for url in shards] == [8, None]


@pytest.mark.parametrize("url,message,tries", [
    ("memory://pool/02.tar", "no such file", 1),
    ("s4://bucket/00.tar", "Protocol not known: s4", 1),
    ("broken://00.tar", "RuntimeError: gone", 3),
    ("short://00.tar", "the transfer broke off", 3),
    ("stalls://00.tar", "the server stalls", 3),
])  # fmt: skip
def test_what_cannot_be_had_is_one_line(
    url: str, message: str, tries: int, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, end = [], threading.Event()

    class Short(io.BytesIO):
        size = 10**9

    class Broken(MemoryFileSystem):
        def open(self, path: str, *_: Any, **__: Any) -> Any:
            if url.startswith("stalls"):
                end.wait(20)
            if url.startswith("short"):
                return Short(store.cat("/pool/00.tar"))
            raise RuntimeError("gone\nfor good")

    for name in ("broken", "short", "stalls"):
        fsspec.register_implementation(
            name, type(name, (Broken,), {"protocol": name}), clobber=True
        )
    store_of = remote._store

    def counted(url: str) -> Any:
        opened.append(url)
        return store_of(url)

    monkeypatch.setattr(remote, "_store", counted)
    loading = Loading(workers=0, cache=tmp_path / "cache", retries=2, pause=0, timeout=0.2)
    with pytest.raises(ShardError) as caught:
        local(url, loading)
    end.set()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert len(opened) == tries


def test_a_missing_package_or_folder_says_so(
    store: Any, loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(DataError, match="cannot list memory://nowhere: no such file"):
        list_shards("memory://nowhere")
    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ShardError, match=r"Install s3fs to access S3: pip install 'jest-suite\[cl"):
        local("s3://bucket/00.tar", loading)
    with pytest.raises(
        DataError, match=r"^cannot list s3://bucket: Install s3fs to access S3: pip"
    ):
        list_shards("s3://bucket")


def test_a_files_name_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "x.tar").touch()
    assert list_shards("file:s3:/x.tar") == ["s3:/x.tar"] and not is_remote("s3:/x.tar")
    assert is_remote("gs://a/b.tar") and is_remote("hf://datasets/a/b") and not is_remote("a/b")


def test_brackets_and_question_marks_are_patterns(tmp_path: Path) -> None:
    """As in a shell; but a file, or a folder, may have such a name."""

    def listed(pattern: str) -> list[str]:
        return [str(Path(shard).relative_to(tmp_path)) for shard in list_shards(pattern)]

    for name in ("00.tar", "01.tar", "02.tar", "a[1].tar", "a1.tar"):
        (tmp_path / name).touch()
    assert listed(f"{tmp_path}/0[01].tar") == ["00.tar", "01.tar"]
    assert listed(f"file:{tmp_path}/{{0[!0],0?}}.tar")[:3] == ["01.tar", "02.tar", "00.tar"]
    assert listed(f"{tmp_path}/a[1].tar") == ["a[1].tar"]
    assert listed(f"{tmp_path}/9[01].tar") == ["9[01].tar"], "no such file, as any other"


def test_what_lies_beside_the_shards_of_a_store_is_named(tmp_path: Path) -> None:
    """As in a local folder: half of the data may lie in a sub-folder, or packed."""
    store = fsspec.filesystem("memory")
    for name in ("a.tar", "B.TAR", "c.tar.gz", "more/d.tar"):
        store.pipe(f"/beside-{tmp_path.name}/{name}", b"x")
    folder = f"memory://beside-{tmp_path.name}"
    assert [Path(url).name for url in list_shards(folder)] == ["B.TAR", "a.tar"]
    said = not_taken(folder)
    assert "1 compressed tars" in said and "1 sub-folders" in said
