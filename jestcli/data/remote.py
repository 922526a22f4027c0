"""Transfers: what a server, a store that fsspec reads (s3://, gs://, hf://, …) or a command sends.

Nothing that a shard, a server or a file's name says is ever run; what a user writes as `pipe:` is a
shell command of their own. Credentials are those that fsspec's package for the store finds by
itself. data/fetch.py keeps what comes: its folder is bounded and shared, fsspec's own is not.
"""

from __future__ import annotations

import http.client
import os
import queue
import re
import selectors
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import IO, Any, TypeVar

from jestcli.utils.errors import DataError

BLOCK = 1 << 20
PACKAGE = ": pip install 'jest-suite[cloud]'"
Version = dict[str, str]
"""What names the content of a file without sending it: "etag", "size" (bytes) and "modified"
(when), as far as a server gives them."""
_HEADERS: dict[str, tuple[str, ...]] = {
    "etag": ("ETag",),
    "size": ("Content-Length",),
    "modified": ("Last-Modified",),
}
# What the stores of fsspec call them; where the content has a name of its own, that.
_INFO = {
    "etag": ("ETag", "etag", "blob_id", "generation", "md5Hash"),
    "size": ("size",),
    "modified": ("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
}
T = TypeVar("T")


class ShardError(Exception):
    """A shard cannot be had; the message is the reason it is counted under."""


class FinalShardError(ShardError):
    """Trying again will not help."""


def is_remote(url: str) -> bool:
    """Whether a shard must be fetched before it can be read."""
    return url.startswith("pipe:") or is_address(url)


def is_address(url: str) -> bool:
    """Whether it is one of a server or a store: https://, s3://, gs://, hf://, …"""
    return re.match(r"(?!file:)[a-z][a-z0-9+.-]+://", url) is not None


def in_store(url: str) -> bool:
    """Whether fsspec reads it."""
    return is_address(url) and not url.startswith(("http://", "https://"))


class Limits:
    """Of one transfer. timeout: seconds without a byte; longest: seconds; most: bytes.

    Called with every block; raises ShardError past the time, FinalShardError past the bytes.
    """

    def __init__(self, timeout: float, longest: float, most: int):
        self.timeout, self.until = timeout, time.monotonic() + longest
        self.most, self.got = most, 0

    def __call__(self, block: bytes) -> bytes:
        # Counted here, for a server may send more than it announces, or slowly without end.
        self.got += len(block)
        if self.got > self.most:
            raise FinalShardError(
                f"larger than the {self.most / 1e9:.3g} GB there are for it (--cache-gb)"
            )
        if time.monotonic() > self.until:
            raise ShardError("the transfer takes too long")
        return block


def transfer(url: str, file: IO[bytes], limits: Limits) -> Version:
    """Write the content of `url` to `file`; returns which version that was. Raises ShardError."""
    if url.startswith("pipe:"):
        _run(url.removeprefix("pipe:"), file, limits)
        return {}
    about: Version = {}
    read = partial(_read_store if in_store(url) else _read_http, url, limits.timeout, about)
    for block in in_time(read, limits.timeout, partial(_explained, url)):
        file.write(limits(block))
    return about


def server_says(url: str, timeout: float) -> Version | None:
    """The version that a server or store has; None where it says nothing of one. Raises ShardError
    where it does not answer."""
    try:
        (about,) = in_time(partial(_info if in_store(url) else _head, url, timeout), timeout)
        return about
    except ShardError:
        raise
    except Exception as error:
        # Some servers forbid HEAD, or do not know it; of a store's errors nothing is known.
        if isinstance(error, urllib.error.HTTPError) or in_store(url):
            return None
        if isinstance(error, OSError | http.client.HTTPException | ValueError):
            raise ShardError("no answer") from None
        raise


def differ(one: Version | None, other: Version | None) -> bool:
    """Whether these are surely two versions: by size, by ETag, and by time only without an ETag.
    One of which nothing is known differs from no other."""
    both = (one or {}).keys() & (other or {}).keys()
    if one is None or other is None or not both:
        return False
    if "size" in both and one["size"] != other["size"]:
        return True
    key = "etag" if "etag" in both else "modified"
    return key in both and one[key] != other[key]


def in_time(
    read: Callable[[], Iterator[T]],
    timeout: float,
    explained: Callable[[Exception], Exception] = lambda error: error,
) -> Iterator[T]:
    """What `read` gives in a thread, and what it raises, as `explained`. ShardError where nothing
    comes for `timeout` seconds."""
    # In a thread, for a library's timeout holds for each of its waits (header, chunk, trailer), not
    # for their sum, and some stores' waits have none.
    waiting: queue.Queue[T | Exception | None] = queue.Queue(2)  # a slow disk is not run ahead of
    given_up = threading.Event()

    def put(item: T | Exception | None) -> None:
        while not given_up.is_set():
            # Looked at again, or a reader that left would hold the thread.
            with suppress(queue.Full):
                waiting.put(item, timeout=1)
                return

    def work() -> None:
        try:
            for item in read():
                put(item)
                if given_up.is_set():
                    return
            put(None)
        except Exception as error:  # raised by the reader
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            try:
                item = waiting.get(timeout=timeout)
            except queue.Empty:
                raise ShardError("the server stalls") from None
            if item is None:
                return
            if isinstance(item, Exception):
                raise item if isinstance(item, ShardError) else explained(item) from None
            yield item
    finally:
        given_up.set()


def _explained(url: str, error: Exception) -> Exception:
    """The ShardError for what a transfer raised; what is no fault of the transfer stays."""
    if in_store(url):  # every store's package raises its own
        final = isinstance(error, FileNotFoundError | PermissionError)
        return (FinalShardError if final else ShardError)(_why(error))
    if isinstance(error, urllib.error.HTTPError):
        passing = error.code in (408, 429) or error.code >= 500
        return (ShardError if passing else FinalShardError)(f"the server answers {error.code}")
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return ShardError("the server stalls")
    if isinstance(error, urllib.error.URLError):
        return ShardError(f"no connection ({reason})")
    if isinstance(error, http.client.HTTPException | ConnectionError | ValueError):
        return ShardError(f"the transfer broke off ({type(error).__name__})")
    return error


def _named(said: Mapping[str, Any], names: dict[str, tuple[str, ...]]) -> Version:
    out = {}
    for key, others in names.items():
        values = (said.get(name) for name in others)
        value = next((each for each in values if each is not None), None)
        if value is not None:
            out[key] = str(value).removeprefix("W/")[:200]
    return out


# --- http ----------------------------------------------------------------------------------------


def of_headers(headers: Mapping[str, Any]) -> Version:
    """What an HTTP answer says of its content."""
    return _named(headers, _HEADERS)


def _head(url: str, timeout: float) -> Iterator[Version]:
    asked = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(asked, timeout=timeout) as answer:
        yield of_headers(answer.headers)


def _read_http(url: str, timeout: float, about: Version) -> Iterator[bytes]:
    got, end = 0, b""
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        about.update(of_headers(answer.headers))
        while block := answer.read1(BLOCK):  # what is there: a slow server is noticed in time
            got, end = got + len(block), (end + block[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
            yield block
        length = answer.headers.get("Content-Length")
        if length is not None and length.isdigit():
            broken = got != int(length)
        else:  # without one, and not in chunks, only the zeros at its end say that a tar is whole
            broken = length is None and not answer.chunked and any(end)
    if broken:
        raise ShardError("the transfer broke off")


# --- stores --------------------------------------------------------------------------------------


def _store(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it. Raises FinalShardError without a package for it."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise FinalShardError(f"{error}{PACKAGE}") from None
    except ValueError as error:  # a protocol that nobody knows
        raise FinalShardError(str(error)) from None
    return system, path


@cache  # a run asks several times, and must not see two answers
def lies_in(url: str) -> list[tuple[str, bool]]:
    """What a store's folder or a `*` pattern holds, by name: addresses, and which are folders.
    Raises DataError."""
    try:
        system, path = _store(url)
        found = system.glob(path, detail=True) if "*" in url else system.ls(path, detail=True)
        about = found.values() if isinstance(found, dict) else found
        return sorted((system.unstrip_protocol(x["name"]), x["type"] == "directory") for x in about)
    except Exception as error:  # every store has its own
        raise DataError(f"cannot list {url}: {_why(error)}") from None


def _info(url: str, _: float) -> Iterator[Version]:
    system, path = _store(url)
    yield _named(system.info(path), _INFO)


def _read_store(url: str, _: float, about: Version) -> Iterator[bytes]:
    system, path = _store(url)
    # Asked before: where it changes meanwhile, what is read counts as older than it is.
    with suppress(Exception):
        about.update(_named(system.info(path), _INFO))
    got = 0
    with system.open(path, "rb") as file:
        while block := file.read(BLOCK):
            got += len(block)
            yield block
        size = getattr(file, "size", None)
    if isinstance(size, int) and got != size:
        raise ShardError("the transfer broke off")


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "access is denied"
    if isinstance(error, ShardError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


# --- commands ------------------------------------------------------------------------------------


def _run(command: str, file: IO[bytes], limits: Limits) -> None:
    """The output of the user's own shell command."""
    # A session of its own: what the shell starts can be ended with it.
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not waiting.select(limits.timeout):
                    raise ShardError("the command stalls")
                block = os.read(process.stdout.fileno(), BLOCK)
                if not block:
                    break
                file.write(limits(block))
        code = process.wait(limits.timeout)
    except subprocess.TimeoutExpired:
        raise ShardError("the command stalls") from None
    finally:
        if process.poll() is None:  # it stalls or sends too much, or we are stopped
            os.killpg(process.pid, 9)
            process.wait()
        process.stdout.close()
    if code:
        raise ShardError(f"the command fails (exit {code})")
