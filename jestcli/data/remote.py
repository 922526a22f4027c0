"""Shards in stores that fsspec reads: s3://, gs://, hf://, az://, sftp://, …

Credentials are those that fsspec's package for the store finds by itself. Files are kept by
data/sources.py, whose cache is bounded and shared by processes; fsspec's own is not bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from jestcli.data.sources import BLOCK, FinalShardError, ShardError, in_time
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
def listed(url: str) -> tuple[str, ...]:
    """The .tar files of a folder or of a `*` pattern, by name; an address of one file stays.
    Raises DataError."""
    if "*" not in url and url.endswith(".tar"):
        return (url,)
    try:
        system, path = _store(url)
        names = system.glob(path) if "*" in url else system.ls(path, detail=False)
    except Exception as error:  # every store has its own
        raise DataError(f"cannot list {url}: {_why(error)}") from None
    found = sorted(system.unstrip_protocol(name) for name in names if name.endswith(".tar"))
    if not found:
        raise DataError(f"no .tar shard in {url}")
    return tuple(found)


def blocks(url: str, timeout: float) -> Iterator[bytes]:
    """The content of a file. Raises ShardError where it breaks off or nothing comes for `timeout`
    seconds, FinalShardError where trying again will not help."""
    try:
        yield from in_time(partial(_read, url), timeout)
    except ShardError:
        raise
    except Exception as error:  # every store has its own
        final = isinstance(error, FileNotFoundError | PermissionError)
        raise (FinalShardError if final else ShardError)(_why(error)) from None


def _read(url: str) -> Iterator[bytes]:
    system, path = _store(url)
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
