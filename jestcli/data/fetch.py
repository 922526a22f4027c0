"""Remote shards made local files: fetched whole, once, atomically, into a bounded folder.

<cache>/shards/<name>.tar       the shard; which were used longest ago go first
               <name>.sha256    its content when it was last fetched
               <name>.version   what its server said of it then
               <name>.failed    why it could not be had just now
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import tarfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from filelock import FileLock

from jestcli.config import file_hash
from jestcli.data.remote import (
    FinalShardError,
    Limits,
    ShardError,
    Version,
    differ,
    is_address,
    is_remote,
    server_says,
    transfer,
)
from jestcli.data.sources import Loading
from jestcli.utils.errors import explain_os_error
from jestcli.utils.io import save_text
from jestcli.utils.reading import parse_json

ATTEMPTS = 8  # to open a shard that other readers evict
ABANDONED = 3600.0  # seconds without a byte after which a half-written shard is nobody's
LEFT_FREE = 1e9  # bytes of the disk that no shard is to fill
PATIENCE = 60.0  # seconds that a shard which could not be fetched is left alone
ASKED_AT_ONCE = 16  # servers' answers waited for
_said: dict[str, Version | None] = {}  # a run asks several times, and must not see two answers
_silent: set[str] = set()  # servers that did not answer once are not waited for again
T = TypeVar("T")


def opened(url: str, loading: Loading) -> IO[bytes]:
    """The shard, open for reading: what is open outlives its eviction from the cache. Raises
    ShardError with the reason."""
    for _ in range(ATTEMPTS):
        try:
            return local(url, loading).open("rb")
        except FileNotFoundError:
            continue  # another reader, with a small cache, evicted it between the two
        except OSError as error:
            raise ShardError(f"cannot be read ({error.strerror})") from None
    raise ShardError("evicted before it could be opened: the cache of shards is too small")


def local(url: str, loading: Loading) -> Path:
    """The file of a shard, fetched unless it is here. Raises ShardError with the reason."""
    if not is_remote(url):
        if not Path(url).is_file():
            raise ShardError("no such file")
        return Path(url)
    path = _kept(url, loading)
    if path.exists():
        with suppress(OSError):  # evicted between two looks: the caller fetches again
            os.utime(path)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Workers and ranks share the folder: one fetches, the others wait and find it.
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _fetch(url, path, loading)
                _evict(path.parent, loading.gigabytes, path)
    except OSError as error:
        raise explain_os_error(error, f"keeping a fetched shard in {path.parent}") from error
    return path


def fetched_content(url: str, loading: Loading) -> str | None:
    """SHA-256 of a remote shard as it was last fetched into this cache, still there or not; None
    where it never was."""
    try:
        return _kept(url, loading).with_suffix(".sha256").read_text()
    except OSError:
        return None


def fetched_at(url: str, loading: Loading) -> int:
    """When that was, in ns. Raises OSError where it never was."""
    return _kept(url, loading).with_suffix(".sha256").stat().st_mtime_ns


def fetched_version(url: str, loading: Loading) -> Version | None:
    """What its server said of a remote shard when it was last fetched; None where that is not
    known."""
    try:
        about = parse_json(_kept(url, loading).with_suffix(".version").read_bytes())
        return {key: str(value) for key, value in about.items()}
    except (OSError, ValueError, AttributeError):
        return None


def server_version(url: str, loading: Loading) -> Version | None:
    """What the server of a remote shard says that it has, asked once a process and without fetching
    it; None of a command, and where it does not answer."""
    if url not in _said:
        server, _said[url] = urllib.parse.urlsplit(url).netloc, None
        if is_address(url) and server not in _silent:
            try:
                _said[url] = server_says(url, loading.timeout)
            except ShardError:
                _silent.add(server)
    return _said[url]


def ask_servers(urls: Iterable[str], loading: Loading) -> None:
    """`server_version` of all of these, several at a time."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        list(pool.map(partial(server_version, loading=loading), dict.fromkeys(urls)))


def forget_outdated(url: str, loading: Loading) -> None:
    """Remove the fetched copy of a shard of which the server has another version."""
    if differ(fetched_version(url, loading), server_version(url, loading)):
        _kept(url, loading).unlink(missing_ok=True)


def download_small(url: str, loading: Loading, most: int) -> bytes | None:
    """A small file at an address; None where there is none, or none of at most `most` bytes.

    Tried again as a shard is; what cannot be had in the end counts as not there.
    """

    def once() -> bytes:
        file = io.BytesIO()
        transfer(url, file, _limits(loading, most))
        return file.getvalue()

    try:
        return _tried(once, loading)
    except ShardError:
        return None


def _kept(url: str, loading: Loading) -> Path:
    name = hashlib.sha256(url.encode()).hexdigest()[:24]
    return loading.cache / "shards" / f"{name}.tar"


def _limits(loading: Loading, most: int) -> Limits:
    return Limits(loading.timeout, loading.longest, most)


def _tried(get: Callable[[], T], loading: Loading) -> T:
    """What `get` gives, tried again after a pause. Raises the last ShardError."""
    for attempt in range(loading.retries):
        try:
            return get()
        except FinalShardError:
            raise
        except ShardError:
            time.sleep(loading.pause * 2**attempt)
    return get()


def _fetch(url: str, path: Path, loading: Loading) -> None:
    """Fetch into `path`, atomically; a failure is remembered for a while, for all processes."""
    # Else every worker in turn would try, wait and try again for a shard that is not there.
    failed = path.with_suffix(".failed")
    if failed.exists() and time.time() - failed.stat().st_mtime < PATIENCE:
        raise ShardError(failed.read_text())
    temporary = path.with_suffix(f".part{os.getpid()}-{threading.get_ident()}")
    room = shutil.disk_usage(path.parent).free - LEFT_FREE
    most = int(min(loading.gigabytes * 1e9 or math.inf, max(room, 0)))

    def once() -> Version:
        with temporary.open("w+b") as file:
            version = transfer(url, file, _limits(loading, most))
            _check_begins_as_tar(file)
        return version

    try:
        version = _tried(once, loading)
        save_text(path.with_suffix(".sha256"), file_hash(temporary))
        save_text(path.with_suffix(".version"), json.dumps(version))
        if url in _said:
            _said[url] = version
        os.replace(temporary, path)
        failed.unlink(missing_ok=True)
    except ShardError as error:
        failed.write_text(str(error))
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _check_begins_as_tar(file: IO[bytes]) -> None:
    """A page that says "log in" must not be kept as a shard. Raises ShardError, to try again."""
    file.seek(0)
    header = file.read(tarfile.BLOCKSIZE)
    if header == bytes(tarfile.BLOCKSIZE):
        return  # without members
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise ShardError("what comes is not a tar file") from None


def _evict(folder: Path, gigabytes: float, keep: Path) -> None:
    """Remove the shards that were used longest ago until the rest fits, and what a killed process
    left of one."""
    found: list[tuple[float, int, Path]] = []
    for path in (*folder.glob("*.part*"), *folder.glob("*.tar")):
        with suppress(OSError):  # another process removed it
            about = path.stat()
            if path.suffix == ".tar":
                found.append((about.st_mtime, about.st_size, path))
            elif time.time() - about.st_mtime > ABANDONED:
                path.unlink()
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= gigabytes * 1e9:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            total -= size
