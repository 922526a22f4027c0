"""Shards in stores that fsspec reads: s3://, gs://, hf://, az://, sftp://, …

Credentials are those that fsspec's package for the store finds by itself. Files are kept by
data/sources.py, whose cache is bounded and shared by processes; fsspec's own is not bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, partial
from typing import Any

from jestcli.data.sources import BLOCK, PACKED, FinalShardError, ShardError, in_time, not_taken
from jestcli.data.versions import Version, of_info
from jestcli.utils.errors import DataError

PACKAGE = ": pip install 'jest-suite[cloud]'"


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
def _lies_in(url: str) -> list[tuple[str, bool]]:
    """What a folder or a `*` pattern holds, by name: addresses, and which are folders. Raises
    DataError."""
    try:
        system, path = _store(url)
        found = system.glob(path, detail=True) if "*" in url else system.ls(path, detail=True)
        about = found.values() if isinstance(found, dict) else found
        return sorted((system.unstrip_protocol(x["name"]), x["type"] == "directory") for x in about)
    except Exception as error:  # every store has its own
        raise DataError(f"cannot list {url}: {_why(error)}") from None


def _is_file(url: str) -> bool:
    return "*" not in url and url.endswith(".tar")


def listed(url: str) -> tuple[str, ...]:
    """The .tar (or .TAR) files of a folder or of a `*` pattern, by name; an address of one file
    stays. Raises DataError."""
    if _is_file(url):
        return (url,)
    lies = _lies_in(url)
    found = tuple(name for name, folder in lies if name.lower().endswith(".tar") and not folder)
    if not found:
        raise DataError(f"no .tar shard in {url}{not_taken(url)}")
    return found


def beside(url: str) -> tuple[int, int]:
    """How many compressed tars and how many folders lie beside the shards of a folder. Raises
    DataError."""
    lies = [] if _is_file(url) or "{" in url or "::" in url else _lies_in(url)
    packed = sum(name.lower().endswith(PACKED) for name, folder in lies if not folder)
    return packed, sum(folder for _, folder in lies)


def blocks(url: str, timeout: float, about: Version) -> Iterator[bytes]:
    """The content of a file; `about` gets what the store says of it. Raises ShardError where it
    breaks off or nothing comes for `timeout` seconds, FinalShardError where trying again will not
    help."""
    try:
        yield from in_time(partial(_read, url, about), timeout)
    except ShardError:
        raise
    except Exception as error:  # every store has its own
        final = isinstance(error, FileNotFoundError | PermissionError)
        raise (FinalShardError if final else ShardError)(_why(error)) from None


def version(url: str, timeout: float) -> Version | None:
    """What the store says of a file; None where it says nothing. Raises ShardError where no answer
    comes in time."""
    try:
        (found,) = in_time(partial(_ask, url), timeout)
        about: Version = json.loads(found)
        return about
    except ShardError:
        raise
    except Exception:  # every store has its own
        return None


def _ask(url: str) -> Iterator[bytes]:
    system, path = _store(url)
    yield json.dumps(of_info(system.info(path))).encode()


def _read(url: str, about: Version) -> Iterator[bytes]:
    system, path = _store(url)
    # Asked before: where it changes meanwhile, what is read counts as older than it is.
    with suppress(Exception):
        about.update(of_info(system.info(path)))
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
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
