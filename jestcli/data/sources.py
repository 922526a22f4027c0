"""Where shards are: folders, patterns, `pipe:`, http URLs and stores, listed one by one."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from jestcli.config import Run
from jestcli.data.remote import ShardError, in_store, is_remote, lies_in
from jestcli.utils.errors import DataError
from jestcli.utils.layout import PLAIN, Layout
from jestcli.utils.plain import one_line

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
FOLDERS = 1_000  # of a sub-folder's own that are looked into for more tars


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

    Braces ({000..099}), `*` and webdataset's `::` lists are expanded; so are `?` and `[01]` of a
    local name, where there is no file of that very name. Raises DataError when a folder or a `*`
    pattern holds none.
    """
    path = _path(entry)
    if not is_remote(entry) and path.is_dir():
        found = [
            _of_file(str(path / name)) for name, folder in _lies(path) if _is_tar(name, folder)
        ]
        if not found:  # often they are compressed, or one folder deeper: it is said
            raise DataError(f"no .tar shard in the folder {path}{not_taken(entry)}")
        return sorted(found)
    return [shard for url in expand_urls(entry) for shard in _matches(url)]


def _matches(url: str) -> list[str]:
    if in_store(url) and not _one_file(url):
        found = [name for name, folder in lies_in(url) if _is_tar(name, folder)]
        if not found:
            raise DataError(f"no .tar shard in {url}{not_taken(url)}")
        return found
    if is_remote(url):
        return [url]
    name = str(_path(url))
    if "*" in name:
        matches = sorted(glob.glob(name))
        if not matches:
            raise DataError(f"no shard matches {name}")
    elif os.path.lexists(name):  # `?` and `[` may stand in a name
        matches = [name]
    else:
        matches = sorted(glob.glob(name)) or [name]
    return list(map(_of_file, matches))


def all_shards(entries: Iterable[str]) -> list[str]:
    """The shards of all these sources, in order. Raises DataError."""
    return [shard for entry in entries for shard in list_shards(entry)]


def not_taken(entry: str) -> str:
    """What lies in a folder beside the shards that are read and looks like more of them, in words
    that can follow others; "" for nothing, and for what is no folder."""
    path, lies, deeper = _path(entry), [], 0
    if in_store(entry):  # of a pattern of braces there is no folder to look into
        if not _one_file(entry) and "{" not in entry and "::" not in entry:
            lies = lies_in(entry)
        deeper = sum(folder for _, folder in lies)  # to look into each would take an answer each
    elif not is_remote(entry) and path.is_dir():
        lies = list(_lies(path))
        deeper = sum(folder and _holds_tars(path / name) for name, folder in lies)
    packed = sum(not folder and name.lower().endswith(PACKED) for name, folder in lies)
    words = [f"{packed:,} compressed tars (unpack them)"] if packed else []
    words += [f"{deeper:,} sub-folders of tars (name them, or write */*.tar)"] if deeper else []
    return f"; not read: {' and '.join(words)}" if words else ""


def _path(entry: str) -> Path:
    return Path(entry.removeprefix("file:")).expanduser()


def _lies(folder: Path) -> Iterator[tuple[str, bool]]:
    """Names in a folder, and which are folders; what is neither that nor a file is not shown."""
    for each in folder.iterdir():
        if not each.name.startswith(".") and (each.is_dir() or each.is_file()):
            yield each.name, each.is_dir()


def _is_tar(name: str, folder: bool) -> bool:
    return name.lower().endswith(".tar") and not folder


def _one_file(url: str) -> bool:
    return "*" not in url and url.endswith(".tar")


def _holds_tars(folder: Path) -> bool:
    """Whether tars lie in a folder, at any depth."""
    return any(
        name.lower().endswith((".tar", *PACKED))
        for _, _, names in islice(os.walk(folder), FOLDERS)
        for name in names
    )


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
        # As webdataset: from the environment's WDS_NAME, and from no other variable.
        named = re.sub(r"\$\{(\w+)\}", lambda found: os.environ[f"WDS_{found[1]}"], url)
        found = [each for part in named.split("::") for each in braceexpand(part)]
    except KeyError as missing:
        raise DataError(f"no shards can be meant by {url}: {missing} is not set") from None
    except ValueError as error:  # a brace alone
        raise DataError(f"no shards can be meant by {url}: {error}") from None
    own = "file:"
    return [_of_file(each.removeprefix(own)) if each.startswith(own) else each for each in found]


def runs_beside(run: Run) -> list[str]:
    """What a configuration runs beside this suite, a line each: shell commands (`pipe:`) and
    samplers that are somebody's own (`module:function`), its reference's too."""
    found = []
    for each in (run, run.reference):
        if each is not None:  # a configuration may be a stranger's: it is shown before it runs
            commands = shell_commands((*each.data.train, *each.data.curated))
            found += [f"runs in a shell: {one_line(command)}" for command in commands]
            if ":" in each.selection.sampler:
                found.append(f"imports and calls: {one_line(each.selection.sampler)}")
    return list(dict.fromkeys(found))


def shell_commands(entries: Sequence[str]) -> list[str]:
    """Those of these sources that run a shell command, however their patterns are written."""
    return [e for e in entries if any(url.startswith("pipe:") for url in expand_urls(e))]


def identity(shards: list[str], times: bool = False) -> str:
    """16 hex digits naming these shards: their addresses, and the sizes of local ones; with `times`
    also when they were last written."""
    seen: list[Any] = []
    for url in shards:
        try:
            state = stamp(url)
            seen.append(state if state is None or times else state[0])
        except ShardError:
            seen.append(-1)
    return hashlib.sha256(json.dumps([shards, seen]).encode()).hexdigest()[:16]


def stamp(url: str) -> list[int] | None:
    """Size and time of a local shard, which show that it changed; None of a remote one, which is
    taken as it was. Raises ShardError where there is none."""
    if is_remote(url):
        return None
    try:
        about = os.stat(url)
    except OSError:
        raise ShardError("no such file") from None
    return [about.st_size, about.st_mtime_ns]
