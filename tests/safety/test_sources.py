"""What a server sends and what files are called runs nothing, fills no disk and holds no reader."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from own_shards import make_shards, sample, write_tar

from jestcli.data import fetch
from jestcli.data.fetch import local
from jestcli.data.remote import ShardError
from jestcli.data.shard_dataset import open_shards
from jestcli.data.shards import read_shards
from jestcli.data.sources import Loading, list_shards, shell_commands
from jestcli.utils.errors import DataError

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def answering(*answers: Answer) -> Iterator[str]:
    """The address of a loopback server that gives these answers in turn, the last for ever."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = left.pop(0) if len(left) > 1 else left[0]
            with suppress(OSError):  # the reader has gone
                answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/a.tar"
    finally:
        server.shutdown()
        server.server_close()


def body(content: bytes, length: bool = True) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"x")
        time.sleep(0.02)


def flood(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(bytes(1 << 16))


def slowly(start: bytes, each: bytes) -> Answer:
    """What a protocol sets no limit to: a byte now and then, none of it the shard's."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        for _ in range(100):
            handler.wfile.write(each)
            time.sleep(0.05)

    return answer


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
header = slowly(b"HTTP/1.1 200 OK\r\nX: ", b"x")
length = slowly(CHUNKED, b"0")
trailer = slowly(CHUNKED + b"400\r\n" + bytes(1024) + b"\r\n0\r\n", b"a: b\r\n")


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    return Loading(0, 0.05, tmp_path / "cache", timeout=0.5, longest=0.4, retries=1, pause=0.01)


@pytest.fixture
def shard(tmp_path: Path) -> bytes:
    return write_tar(tmp_path / "a.tar", *map(sample, range(3))).read_bytes()


PAGE = b"<html>please log in</html>" * 100


@pytest.mark.parametrize(
    "answer,reason",
    [
        (body(PAGE), "what comes is not a tar file"),
        (body(b""), "what comes is not a tar file"),
        (drip, "the transfer takes too long"),
        (header, "the server stalls"),
        (length, "the server stalls"),
        (trailer, "the server stalls"),
        (flood, "larger than the 0.001 GB there are for it"),
    ],
)
def test_what_is_no_shard_is_never_kept(answer: Answer, reason: str, loading: Loading) -> None:
    small, started = Loading(**vars(loading) | {"gigabytes": 0.001}), time.monotonic()
    with answering(answer) as url, pytest.raises(ShardError, match=reason):
        local(url, small)
    assert time.monotonic() - started < 8, "it is not waited for"
    left = {path.suffix for path in (loading.cache / "shards").iterdir()}
    assert left <= {".lock", ".failed"}


def test_a_page_or_half_a_shard_is_asked_for_again(loading: Loading, shard: bytes) -> None:
    for first in (body(PAGE), body(shard[:5000], length=False)):
        with answering(first, body(shard, length=False)) as url:
            assert local(url, loading).read_bytes() == shard
    with answering(body(shard[:5000], length=False)) as url, pytest.raises(ShardError) as caught:
        local(url, loading)
    assert str(caught.value) == "the transfer broke off"


def test_the_disk_is_not_filled(
    loading: Loading, shard: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = fetch.shutil._ntuple_diskusage  # type: ignore[attr-defined]
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage(10**12, 0, 10**9 + 2000))
    with answering(body(shard)) as url, pytest.raises(ShardError, match="larger than the 2e-06 GB"):
        local(url, loading)


def test_a_shard_that_never_comes_is_counted_and_the_others_are_read(
    loading: Loading, tmp_path: Path
) -> None:
    make_shards(tmp_path / "pool", 1, 12)
    some = Loading(**vars(loading) | {"max_faults": 0.5})
    with answering(body(PAGE)) as url:
        dataset = open_shards("pool", (str(tmp_path / "pool"), url), some, window=2)
    assert len(dataset) == 12
    with answering(body(PAGE)) as url, pytest.raises(DataError, match="not a tar file"):
        open_shards("pool", (str(tmp_path / "pool"), url), loading, window=2)


def test_what_a_killed_process_left_of_a_shard_is_swept(loading: Loading, shard: bytes) -> None:
    folder = loading.cache / "shards"
    folder.mkdir(parents=True)
    old, busy = folder / "a.part1-2", folder / "b.part1-2"
    for path in (old, busy):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    with answering(body(shard)) as url:
        local(url, loading)
    assert busy.exists() and not old.exists()


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A file's name that is a command, and the file which exists once that was run."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("JEST_CACHE", str(tmp_path / "cache"))
    return "pipe:touch ran;cat x.tar", tmp_path / "here" / "ran"


@pytest.mark.parametrize("form", ["file:{}", "./{}", "file:./{}", ".", "*.tar", "file:file:{}"])
def test_a_files_name_is_never_a_command(form: str, trap: tuple[str, Path], tmp_path: Path) -> None:
    name, ran = trap
    write_tar(Path(name), *map(sample, range(3)))
    entry, loading = form.format(name), Loading(0, cache=tmp_path / "cache")
    assert not shell_commands([entry])
    try:
        assert len(open_shards("pool", (entry,), loading, window=2)) == 3
    except DataError as error:
        assert "no such file" in str(error)
    for url in (list_shards(entry), entry, Path(name)):
        try:
            list(read_shards(url))
        except DataError as error:
            assert "no such file" in str(error)
    assert not ran.exists()


def test_a_folder_of_benchmarks_may_be_called_like_a_command(trap: tuple[str, Path]) -> None:
    from jestcli.evaluation.benchmarks import find_benchmarks

    name, ran = trap
    folder = Path(name.replace("x.tar", "x"))
    write_tar(folder / "test" / "0.tar", *[sample(n, json=None) for n in range(3)])
    (folder / "dataset_type.txt").write_text("retrieval")
    assert len(find_benchmarks(folder, 32)) == 2 and not ran.exists()


def test_only_an_explicit_address_runs_and_is_announced(trap: tuple[str, Path]) -> None:
    _, ran = trap
    write_tar(Path("x.tar"), *map(sample, range(3)))
    command = "pipe:touch ran;cat x.tar"
    assert shell_commands([command, "x.tar", "file:pipe:x"]) == [command]
    assert len(list(read_shards(command))) == 3 and ran.exists()


@pytest.mark.parametrize("entry", ["{0..", "${NOT_THERE}/{0..3}.tar"])
def test_a_pattern_that_means_nothing_is_one_line(entry: str) -> None:
    try:
        assert list_shards(entry) == [entry]
    except DataError as error:
        assert "no shards can be meant by" in str(error) and "\n" not in str(error)
