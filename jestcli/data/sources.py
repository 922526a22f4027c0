"""Where shards are: folders, patterns, `pipe:`, http URLs and stores, each made a local file.

A remote shard is fetched whole into a bounded folder, atomically, with limits in bytes and time,
and retries; every reader after that sees a file that begins as a tar does. What a user writes as
`pipe:` is a shell command of their own; nothing that a shard, a server or a file's name says is
ever run.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import http.client
import io
import json
import math
import os
import queue
import re
import selectors
import shutil
import subprocess
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

from braceexpand import braceexpand

from jestcli.config import Run, file_hash
from jestcli.data.versions import Version, differ, of_headers
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.io import save_text
from jestcli.utils.layout import PLAIN, Layout
from jestcli.utils.plain import one_line
from jestcli.utils.reading import parse_json

BLOCK = 1 << 20
ATTEMPTS = 8  # to open a shard that other readers evict
ABANDONED = 3600.0  # seconds without a byte after which a half-written shard is nobody's
LEFT_FREE = 1e9  # bytes of the disk that no shard is to fill
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
FOLDERS = 1_000  # of a sub-folder's own that are looked into for more tars
PATIENCE = 60.0  # seconds that a shard which could not be fetched is left alone
ASKED_AT_ONCE = 16  # servers' answers waited for
_said: dict[str, Version | None] = {}  # a run asks several times, and must not see two answers
_silent: set[str] = set()  # servers that did not answer once are not waited for again


class ShardError(Exception):
    """A shard cannot be had; the message is the reason it is counted under."""


class FinalShardError(ShardError):
    """Trying again will not help."""


def default_cache() -> Path:
    """$JEST_CACHE, or a folder in the user's cache: fetched shards and indexes of all shards."""
    own = os.environ.get("JEST_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else home / "jest"


@dataclass(frozen=True)
class Loading:
    """How data come here. Nothing in it but `layout`, which a Run states, changes what is computed.

    workers: processes that read and decode (0: the training process itself; None: cores - 1).
    max_faults: the share of unreadable samples, or shards, above which a run stops.
    cache: folder of fetched shards (at most `gigabytes` of them) and of indexes.
    timeout: seconds without a byte after which a server counts as stalled; longest: seconds that a
    whole shard may take; retries: tries more.
    """

    workers: int | None = None
    max_faults: float = 0.05
    cache: Path = field(default_factory=default_cache)
    gigabytes: float = 50.0
    timeout: float = 30.0
    longest: float = 1800.0
    retries: int = 3
    pause: float = 1.0  # seconds before the second try, doubled for every further one
    layout: Layout = PLAIN


def list_shards(entry: str) -> list[str]:
    """The shards of one source: a folder's *.tar (or *.TAR) by name, a pattern's, or itself.

    Braces ({000..099}), `*` for local files and webdataset's `::` lists are expanded. Raises
    DataError when a folder or a `*` pattern holds none.
    """
    path = Path(entry.removeprefix("file:")).expanduser()
    if not is_remote(entry) and path.is_dir():
        found = sorted(_of_file(str(each)) for each in path.glob("[!.]*") if _named(each, ".tar"))
        if not found:
            raise DataError(f"no .tar shard in the folder {path}{not_taken(entry)}")
        return found
    shards: list[str] = []
    for url in expand_urls(entry):
        if _in_store(url):
            from jestcli.data.remote import listed

            shards += listed(url)
            continue
        if is_remote(url):
            shards.append(url)
            continue
        name = str(Path(url.removeprefix("file:")).expanduser())
        matches = sorted(glob.glob(name)) if "*" in name else [name]
        if not matches:
            raise DataError(f"no shard matches {name}")
        shards += map(_of_file, matches)
    return shards


def not_taken(entry: str) -> str:
    """What lies in a folder beside the shards that are read and looks like more of them, in words
    that can follow others; "" for nothing, and for what is no folder."""
    path = Path(entry.removeprefix("file:")).expanduser()
    if _in_store(entry):
        from jestcli.data.remote import beside

        packed, deeper = beside(entry)
    elif is_remote(entry) or not path.is_dir():
        return ""
    else:
        lies = [each for each in path.iterdir() if not each.name.startswith(".")]
        packed = sum(_named(each, *PACKED) for each in lies)
        deeper = sum(_holds_tars(each) for each in lies if each.is_dir())
    words = [f"{packed:,} compressed tars (unpack them)"] if packed else []
    words += [f"{deeper:,} sub-folders of tars (name them, or write */*.tar)"] if deeper else []
    return f"; not read: {' and '.join(words)}" if words else ""


def _holds_tars(folder: Path) -> bool:
    """Whether tars lie in a folder, at any depth."""
    return any(
        name.lower().endswith((".tar", *PACKED))
        for _, _, names in islice(os.walk(folder), FOLDERS)
        for name in names
    )


def _named(path: Path, *endings: str) -> bool:
    return path.name.lower().endswith(endings) and path.is_file()


def _of_file(name: str) -> str:
    """A file's name so that it cannot be read as an address: one may be called `pipe:…`."""
    return f"./{name}" if is_remote(name) else name


def expand_urls(urls: str | Path | Sequence[str]) -> list[str]:
    """Brace patterns and `::` lists to single shards, as webdataset reads them; in order. A Path,
    or what `file:` stands before, is a file whatever its name. Raises DataError."""
    given = [urls] if isinstance(urls, str | Path) else urls
    return [each for url in given for each in _expand(url)]


def _expand(url: str | Path) -> list[str]:
    if isinstance(url, Path):
        return [_of_file(str(url))]
    if url.startswith("pipe:") and "{" not in url:
        return [url]  # a shell command may hold "::" and "$"
    try:
        named = re.sub(r"\$\{(\w+)\}", lambda found: os.environ[f"WDS_{found[1]}"], url)
        found = [each for part in named.split("::") for each in braceexpand(part)]
    except KeyError as missing:
        raise DataError(f"no shards can be meant by {url}: {missing} is not set") from None
    except ValueError as error:  # a brace alone
        raise DataError(f"no shards can be meant by {url}: {error}") from None
    own = "file:"
    return [_of_file(each.removeprefix(own)) if each.startswith(own) else each for each in found]


def is_remote(url: str) -> bool:
    """Whether a shard must be fetched before it can be read."""
    return url.startswith("pipe:") or is_address(url)


def is_address(url: str) -> bool:
    """Whether it is one of a server or a store: https://, s3://, gs://, hf://, …"""
    return re.match(r"(?!file:)[a-z][a-z0-9+.-]+://", url) is not None


def _in_store(url: str) -> bool:
    """Whether fsspec reads it."""
    return is_address(url) and not url.startswith(("http://", "https://"))


def runs_beside(run: Run) -> list[str]:
    """What a configuration runs beside this suite, a line each: shell commands (`pipe:`) and
    samplers that are somebody's own (`module:function`), its reference's too."""
    found = []
    for each in (run, run.reference):
        if each is not None:
            commands = shell_commands((*each.data.train, *each.data.curated))
            found += [f"runs in a shell: {one_line(command)}" for command in commands]
            if ":" in each.selection.sampler:
                found.append(f"imports and calls: {one_line(each.selection.sampler)}")
    return list(dict.fromkeys(found))


def shell_commands(entries: Sequence[str]) -> list[str]:
    """Those of these sources that run a shell command, however their patterns are written."""
    return [e for e in entries if any(url.startswith("pipe:") for url in expand_urls(e))]


def local(url: str, loading: Loading) -> Path:
    """The file of a shard, fetched unless it is here. Raises ShardError with the reason."""
    if not is_remote(url):
        path = Path(url)
        if not path.is_file():
            raise ShardError("no such file")
        return path
    path = _kept(url, loading)
    folder = path.parent
    if path.exists():
        _touch(path)
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(path):
            if not path.exists():
                _fetch(url, path, loading)
                _evict(folder, loading.gigabytes, path)
    except OSError as error:
        raise explain_os_error(error, f"keeping a fetched shard in {folder}") from error
    return path


def fetched_content(url: str, loading: Loading) -> str | None:
    """SHA-256 of a remote shard as it was last fetched into this cache, still there or not; None
    where it never was."""
    try:
        return (_kept(url, loading).with_suffix(".sha256")).read_text()
    except OSError:
        return None


def fetched_at(url: str, loading: Loading) -> int:
    """When that was, in ns. Raises OSError where it never was."""
    return _kept(url, loading).with_suffix(".sha256").stat().st_mtime_ns


def fetched_version(url: str, loading: Loading) -> Version | None:
    """What its server said of a remote shard when it was last fetched; None where that is not
    known."""
    return _read_version(_kept(url, loading).with_suffix(".version"))


def _read_version(path: Path) -> Version | None:
    try:
        about = parse_json(path.read_bytes())
        return {key: str(value) for key, value in about.items()}
    except (OSError, ValueError, AttributeError):
        return None


def server_version(url: str, loading: Loading) -> Version | None:
    """What the server of a remote shard says that it has, asked once a process and without fetching
    it; None of a command, and where it does not answer."""
    if url not in _said:
        _said[url] = _ask(url, loading) if is_address(url) else None
    return _said[url]


def ask_servers(urls: Iterable[str], loading: Loading) -> None:
    """`server_version` of all of these, several at a time."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        list(pool.map(partial(server_version, loading=loading), dict.fromkeys(urls)))


def _ask(url: str, loading: Loading) -> Version | None:
    server = urllib.parse.urlsplit(url).netloc
    if server in _silent:
        return None
    try:
        if _in_store(url):
            from jestcli.data.remote import version

            return version(url, loading.timeout)
        (found,) = in_time(partial(_head, url, loading.timeout), loading.timeout)
        about: Version = json.loads(found)
        return about
    except urllib.error.HTTPError:
        return None  # some forbid it, or do not know HEAD
    except (ShardError, OSError, http.client.HTTPException, ValueError):
        _silent.add(server)
        return None


def _head(url: str, timeout: float) -> Iterator[bytes]:
    asked = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(asked, timeout=timeout) as answer:
        yield json.dumps(of_headers(answer.headers)).encode()


def forget_outdated(url: str, loading: Loading) -> None:
    """Remove the fetched copy of a shard of which the server has another version."""
    kept = _kept(url, loading)
    if differ(fetched_version(url, loading), server_version(url, loading)):
        kept.unlink(missing_ok=True)


def _kept(url: str, loading: Loading) -> Path:
    name = hashlib.sha256(url.encode()).hexdigest()[:24]
    return loading.cache / "shards" / f"{name}.tar"


def opened(url: str, loading: Loading) -> IO[bytes]:
    """The shard, open for reading: what is open outlives its eviction from the cache.

    Another reader may evict it between fetching and opening; then it is fetched again. Raises
    ShardError with the reason.
    """
    for _ in range(ATTEMPTS):
        try:
            return local(url, loading).open("rb")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ShardError(f"cannot be read ({error.strerror})") from None
    raise ShardError("evicted before it could be opened: the cache of shards is too small")


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Of all processes that want this file, one makes it; the others wait and find it."""
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _touch(path: Path) -> None:
    with suppress(OSError):  # evicted between two looks: the caller fetches again
        os.utime(path)


def _fetch(url: str, path: Path, loading: Loading) -> None:
    """Fetch into `path`, atomically; a failure is remembered for a while, for all processes."""
    failed = path.with_suffix(".failed")
    if failed.exists() and time.time() - failed.stat().st_mtime < PATIENCE:
        raise ShardError(failed.read_text())
    temporary = path.with_suffix(f".part{os.getpid()}-{threading.get_ident()}")
    why = ""
    room = shutil.disk_usage(path.parent).free - LEFT_FREE
    most = int(min(loading.gigabytes * 1e9 or math.inf, max(room, 0)))
    try:
        for attempt in range(loading.retries + 1):
            if attempt:
                time.sleep(loading.pause * 2 ** (attempt - 1))
            try:
                with temporary.open("w+b") as file:
                    version: Version = {}
                    if url.startswith("pipe:"):
                        _run(url.removeprefix("pipe:"), file, loading, most)
                    else:
                        version = _download(url, file, loading, most)
                    _check_begins_as_tar(file)
                save_text(path.with_suffix(".sha256"), file_hash(temporary))
                save_text(path.with_suffix(".version"), json.dumps(version))
                if url in _said:
                    _said[url] = version
                os.replace(temporary, path)
                failed.unlink(missing_ok=True)
                return
            except FinalShardError as error:
                why = str(error)
                break
            except ShardError as error:
                why = str(error)
    finally:
        temporary.unlink(missing_ok=True)
    failed.write_text(why)
    raise ShardError(why)


def download_small(url: str, loading: Loading, most: int) -> bytes | None:
    """A small file at an address; None where there is none, or none of at most `most` bytes.

    Tried again as a shard is; what cannot be had in the end counts as not there.
    """
    for attempt in range(loading.retries + 1):
        if attempt:
            time.sleep(loading.pause * 2 ** (attempt - 1))
        file = io.BytesIO()
        try:
            _download(url, file, loading, most)
        except FinalShardError:
            return None
        except ShardError:
            continue
        return file.getvalue()
    return None


class _Within:
    """Limits of one transfer. Raises ShardError past the time, FinalShardError past the bytes."""

    def __init__(self, loading: Loading, most: int):
        self.until, self.most, self.got = time.monotonic() + loading.longest, most, 0

    def __call__(self, block: bytes) -> bytes:
        self.got += len(block)
        if self.got > self.most:
            raise FinalShardError(
                f"larger than the {self.most / 1e9:.3g} GB there are for it (--cache-gb)"
            )
        if time.monotonic() > self.until:
            raise ShardError("the transfer takes too long")
        return block


def in_time(read: Callable[[], Iterator[bytes]], timeout: float) -> Iterator[bytes]:
    """The blocks that `read` gives in a thread, and what it raises. ShardError where none comes for
    `timeout` seconds, whatever it waits for: not every protocol's every wait has a limit."""
    waiting: queue.Queue[bytes | Exception] = queue.Queue(2)
    given_up = threading.Event()

    def put(block: bytes | Exception) -> None:
        while not given_up.is_set():
            with suppress(queue.Full):
                waiting.put(block, timeout=1)
                return

    def work() -> None:
        try:
            for block in read():
                put(block)
                if given_up.is_set():
                    return
            put(b"")
        except Exception as error:  # raised by the reader
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            try:
                block = waiting.get(timeout=timeout)
            except queue.Empty:
                raise ShardError("the server stalls") from None
            if isinstance(block, Exception):
                raise block
            if not block:
                return
            yield block
    finally:
        given_up.set()


def _download(url: str, file: IO[bytes], loading: Loading, most: int) -> Version:
    """Returns which version that was."""
    within = _Within(loading, most)
    if _in_store(url):
        from jestcli.data.remote import blocks

        about: Version = {}
        for block in blocks(url, loading.timeout, about):
            file.write(within(block))
        return about
    length, chunked, about = None, False, {}

    def read() -> Iterator[bytes]:
        nonlocal length, chunked, about
        with urllib.request.urlopen(url, timeout=loading.timeout) as answer:
            length, chunked = answer.headers.get("Content-Length"), answer.chunked
            about = of_headers(answer.headers)
            while block := answer.read1(BLOCK):  # what is there: a slow server is noticed in time
                yield block

    try:
        for block in in_time(read, loading.timeout):
            file.write(within(block))
    except urllib.error.HTTPError as error:
        kind = ShardError if error.code in (408, 429) or error.code >= 500 else FinalShardError
        raise kind(f"the server answers {error.code}") from None
    except TimeoutError:
        raise ShardError("the server stalls") from None
    except urllib.error.URLError as error:
        stalls = isinstance(error.reason, TimeoutError)
        why = "the server stalls" if stalls else f"no connection ({error.reason})"
        raise ShardError(why) from None
    except (http.client.HTTPException, ConnectionError, ValueError) as error:
        raise ShardError(f"the transfer broke off ({type(error).__name__})") from None
    if length is not None and length.isdigit() and within.got != int(length):
        raise ShardError("the transfer broke off")
    if length is None and not chunked:  # only the end of a tar says that all of it came
        _check_ends_as_tar(file)
    return about


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


def _check_ends_as_tar(file: IO[bytes]) -> None:
    """Raises ShardError unless the last block is zeros, as a tar's is."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - tarfile.BLOCKSIZE))
    if any(file.read()):
        raise ShardError("the transfer broke off")


def _run(command: str, file: IO[bytes], loading: Loading, most: int) -> None:
    """The output of the user's own shell command."""
    within = _Within(loading, most)
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
                if not waiting.select(loading.timeout):
                    raise ShardError("the command stalls")
                block = os.read(process.stdout.fileno(), BLOCK)
                if not block:
                    break
                file.write(within(block))
        code = process.wait(loading.timeout)
    except subprocess.TimeoutExpired:
        raise ShardError("the command stalls") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
        process.stdout.close()
    if code:
        raise ShardError(f"the command fails (exit {code})")


def _evict(folder: Path, gigabytes: float, keep: Path) -> None:
    """Remove the shards that were used longest ago until the rest fits, and what a killed process
    left of one."""
    found: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.part*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
    for path in folder.glob("*.tar"):
        try:
            about = path.stat()
        except OSError:
            continue  # another process removed it
        found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= gigabytes * 1e9:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            total -= size


def identity(shards: list[str]) -> str:
    """16 hex digits naming these shards: their addresses, and the sizes of local ones."""
    sizes = [None if is_remote(url) else _size(url) for url in shards]
    text = json.dumps([shards, sizes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
