"""Files of reference embeddings: of a decoded data set one, of shards one beside each shard.

    <root>/reference-embeddings/<key>/     image.npy, text.npy    float32 [N, d]
                                           cache.json             done, checksums
    <shards>/jest-reference/<key>/         <shard>.npy            float32 [n, 2, d]: image, text
                                           <shard>.json           the shard's content, checksum

The key is the hash of the reference (weights, pixels, preprocessing, tokenizer, precision) and of a
decoded data set: another model's embeddings lie in another folder. A shard's file is used only when
the shard still has the same content: its size and time are compared, and where they differ the hash
that was taken while embedding. Of a remote one the hash of what was fetched last is compared, and
what its server says (ETag, size, time) with what it said when that was fetched. Of one that has
changed the pairs are embedded again. Rows of
samples that could not be read are NaN: not there, like a file that is missing. Where shards are
remote or their folder cannot be written, the data cache is used instead.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jestcli.data.fetch import (
    fetched_content,
    fetched_version,
    forget_outdated,
    opened,
    server_version,
)
from jestcli.data.remote import ShardError, Version, differ, is_remote
from jestcli.data.sources import Loading, stamp
from jestcli.data.tar import forget_old_index, read_index
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.io import save_array, save_text
from jestcli.utils.reading import parse_json, read_json

logger = logging.getLogger(__name__)

FOLDER = "jest-reference"
CHANGED = "are of another version of it"
FLUSHED = 32  # blocks after which a decoded data set's table is safe against a kill
Block = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows of the file, int64 [k], and their image and text embeddings, float32 [k, d]."""
Blocks = Callable[[int], Iterator[tuple[int, Block | None]]]
"""The blocks of a file from this row on: (rows done, what is known of them)."""


class TableFile(Protocol):
    """The embeddings of `n` consecutive rows of a data set."""

    @property
    def n(self) -> int: ...

    @property
    def folder(self) -> Path: ...

    def open(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Memory maps float32 [n, d] of images and texts; None where there is no file, or one of
        another version of the shard. Raises DataError for one that is damaged or another model's.
        """

    def check(self) -> None:
        """Compare the checksum, once. Raises DataError for a file with other bytes."""

    def current(self) -> bool:
        """Whether it is there and fits."""

    def write(self, blocks: Blocks) -> None:
        """Make it. Killed, it goes on from where it was, or the file is not there."""


def checksum(path: Path) -> int:
    """CRC-32 of a file: reads it once, at about 1 GB/s."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def content_hash(url: str, loading: Loading) -> str:
    """SHA-256 of a shard, fetched unless it is here. Raises ShardError."""
    digest = hashlib.sha256()
    with opened(url, loading) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def verify_table(description: Path, loading: Loading) -> None:
    """Read a table again, and the shard that it is of; of a remote one its hash when it was fetched
    last, and what its server says. description: the table's JSON. Raises DataError where either is
    not what it was."""
    about = read_json(description)
    if "shard" not in about:
        for name, known in about.get("crc32", {}).items():
            _compare(description.with_name(f"{name}.npy"), known, f"{description.parent}")
        return
    _compare(description.with_suffix(".npy"), about.get("crc32"), "it")
    url = about["shard"]
    if is_remote(url):
        changed = _is_other(about, url, loading)
    else:  # one that is away for now is no fault of its table
        changed = Path(url).exists() and content_hash(url, loading) != about.get("sha256")
    if changed:
        raise DataError(f"{url} has changed since {description.with_suffix('.npy')} was made")


def _is_other(about: dict[str, Any], url: str, loading: Loading) -> bool:
    """Whether a remote shard is surely another one than its table's description says."""
    # By what is known without fetching: a table serves runs that never need the shard itself.
    content = fetched_content(url, loading)
    if content not in (None, about.get("sha256")):
        return True
    return differ(about.get("version"), server_version(url, loading))


def _compare(path: Path, known: int | None, again: str) -> None:
    if checksum(path) != known:
        raise DataError(f"{path} is damaged (its checksum differs): delete {again}")


@dataclass(frozen=True)
class DecodedTable:
    """Of a whole decoded data set of n rows, in `folder`."""

    folder: Path
    n: int
    identity: str  # of the data set
    checked: list[bool] = field(default_factory=list)

    def current(self) -> bool:
        return (self.folder / "cache.json").exists()  # written last

    def open(self) -> tuple[np.ndarray, np.ndarray] | None:
        if not self.current():
            return None
        try:
            image, text = (
                np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("image", "text")
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"the reference embeddings {self.folder} are damaged ({error}): delete them"
            ) from None
        return image, text

    def check(self) -> None:
        if self.checked or not self.current():
            return
        self.checked.append(True)
        sums = read_json(self.folder / "cache.json", f": delete {self.folder}").get("crc32", {})
        for name in ("image", "text"):
            _compare(self.folder / f"{name}.npy", sums.get(name), f"the folder {self.folder}")

    def write(self, blocks: Blocks) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        position = self.folder / "rows"
        start = int(position.read_text()) if position.exists() else 0
        paths = [self.folder / f"{name}.npy" for name in ("image", "text")]
        arrays: list[np.ndarray] = []
        for number, (done, block) in enumerate(blocks(start), 1):
            assert block is not None  # every row of a decoded data set can be read
            rows, *values = block
            if not arrays:
                mode: Any = "r+" if start else "w+"
                arrays = [
                    np.lib.format.open_memmap(path, mode, np.float32, (self.n, value.shape[1]))
                    for path, value in zip(paths, values, strict=True)
                ]
            for array, value in zip(arrays, values, strict=True):
                array[rows] = value
            if number % FLUSHED == 0:  # the rows first, then how many: a kill repeats, never skips
                for array in arrays:
                    array.flush()  # type: ignore[attr-defined]
                save_text(position, str(done))
        for array in arrays:
            array.flush()  # type: ignore[attr-defined]
        sums = {path.stem: checksum(path) for path in paths}
        about = {"rows": self.n, "store": self.identity, "crc32": sums}
        save_text(self.folder / "cache.json", json.dumps(about, indent=1) + "\n")
        position.unlink(missing_ok=True)


@dataclass(frozen=True)
class ShardTable:
    """Of one shard of n samples."""

    url: str
    n: int
    key: str
    loading: Loading
    checked: list[bool] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self._path(to_write=True).parent

    @property
    def to_ask(self) -> bool:
        """Whether a server must be asked which version it has."""
        return is_remote(self.url) and self._path().with_suffix(".json").exists()

    def current(self) -> bool:
        described = self._path().with_suffix(".json").exists()
        return described and self._stale() is None

    def open(self) -> tuple[np.ndarray, np.ndarray] | None:
        path = self._path()
        if not path.with_suffix(".json").exists():
            return None
        why = self._stale()
        if why == CHANGED:
            logger.warning(
                "%s has changed since it was embedded: its pairs are embedded again as they are "
                "drawn; `jest cache-reference` does it once",
                self.url,
            )
            return None
        if why is not None:
            raise DataError(
                f"the reference embeddings of {self.url} {why}: delete "
                f"{path.parent}, or make them again with `jest cache-reference`"
            )
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array[:, 0], array[:, 1]

    def check(self) -> None:
        if self.checked:
            return
        self.checked.append(True)  # once a process: it reads the whole file
        path = self._path()
        about = read_json(path.with_suffix(".json"))
        _compare(path, about.get("crc32"), "it, then run `jest cache-reference` again")
        # Opened, a table is mapped for the whole run, and its shard may be fetched meanwhile.
        if is_remote(self.url) and not self._same_content(about):
            raise DataError(
                f"{self.url} has changed since it was embedded: run `jest cache-reference` again"
            )

    def write(self, blocks: Blocks) -> None:
        seen, content = stamp(self.url), None  # before it is read: a change meanwhile shows
        if is_remote(self.url):
            forget_outdated(self.url, self.loading)
        with suppress(ShardError):
            content = content_hash(self.url, self.loading)
            forget_old_index(self.url, self.loading)
        version = fetched_version(self.url, self.loading) if is_remote(self.url) else None
        if self._is_still(content, version):
            return  # a server that renames what it serves costs no embedding
        out: np.ndarray | None = None
        for _, block in blocks(0):
            if block is not None:
                rows, image, text = block
                if out is None:
                    out = np.full((self.n, 2, image.shape[1]), np.nan, np.float32)
                out[rows, 0], out[rows, 1] = image, text
        # Of a shard that cannot be read a table of nothing: it is not tried again by every run.
        out = out if out is not None else np.full((self.n, 2, 1), np.nan, np.float32)
        path = self._path(to_write=True)
        try:
            # The description goes first and comes last: without it the array is not there.
            path.with_suffix(".json").unlink(missing_ok=True)
            save_array(path, out)
            about = {
                "key": self.key,
                "shard": self.url,
                "identity": self._identity(),
                "stamp": seen,
                "version": version,
                "sha256": content,
                "crc32": checksum(path),
            }
            save_text(path.with_suffix(".json"), json.dumps(about))
        except OSError as error:
            raise explain_os_error(error, f"writing reference embeddings to {path}") from error

    def _stale(self) -> str | None:
        """Why the file must not be used; None if it may."""
        path = self._path()
        try:
            about = parse_json(path.with_suffix(".json").read_bytes())
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if about["key"] != self.key:
                return "are another model's"
            # In this order: of a remote one the identity may have to be fetched.
            if not self._same_content(about) or about["identity"] != self._identity():
                return CHANGED
            if array.ndim != 3 or array.dtype != np.float32 or array.shape[1] != 2:
                return "have a wrong shape"
            if len(array) != self.n:  # counted anew since
                return CHANGED
        except (OSError, ValueError, KeyError, TypeError):
            return "are damaged"
        except ShardError:
            return None  # without the shard none of its rows is asked for
        return None

    def _same_content(self, about: dict[str, Any]) -> bool:
        """Whether the shard is what was embedded; moved or touched alone, it is that still."""
        if is_remote(self.url):
            return not _is_other(about, self.url, self.loading)
        seen = stamp(self.url)
        if about.get("stamp") == seen and "sha256" in about:
            return True
        if about.get("sha256") != content_hash(self.url, self.loading):
            return False
        with suppress(OSError):  # without the right to write it is hashed again the next time
            save_text(self._path().with_suffix(".json"), json.dumps({**about, "stamp": seen}))
        return True

    def _is_still(self, content: str | None, version: Version | None) -> bool:
        """Whether the table is of this content, which a server only says something else of; then
        it is described so."""
        described = self._path().with_suffix(".json")
        with suppress(OSError, ValueError, AttributeError):
            about = parse_json(described.read_bytes())
            if None not in (content, version) and about.get("sha256") == content:
                save_text(described, json.dumps(about | {"version": version}))
                return self.current()
        return False

    def _identity(self) -> str:
        return read_index(self.url, self.loading).identity

    def _path(self, to_write: bool = False) -> Path:
        url = self.url
        # By a hash, too: shards of several folders share names, and a command has none.
        mark = hashlib.sha256(url.encode()).hexdigest()[:8]
        name = f"{Path(url).stem[:40] if not url.startswith('pipe:') else 'pipe'}-{mark}.npy"
        kept = self.loading.cache / FOLDER / self.key / name
        if is_remote(url):
            return kept
        beside = Path(url).parent / FOLDER / self.key / f"{Path(url).stem}.npy"
        writable = os.access(Path(url).parent, os.W_OK)
        return beside if beside.exists() or (to_write and writable) else kept
