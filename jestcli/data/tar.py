"""The one reader of tar files: an index from the headers, then any sample is one read away.

Only images, texts, JSON and class numbers are read, nothing is unpickled, and a member's name is a
key, never a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import threading
from collections import Counter, OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jestcli.data.bad_samples import BadSample
from jestcli.data.sources import Loading, ShardError, is_remote, opened
from jestcli.utils.errors import explain_os_error
from jestcli.utils.io import save_text

FORMAT = 1
IMAGES = ("png", "jpg", "jpeg", "webp")
TEXTS = ("txt", "json", "cls")
LARGEST_FILE = 100_000_000  # bytes of one image file
LARGEST_TEXT = 1_000_000  # bytes of .txt, .json or .cls


@dataclass(frozen=True)
class ShardIndex:
    """The usable samples of one shard, in its order.

    members: for each key, extension -> (offset, bytes). faults: what was left out, by reason.
    """

    size: int
    keys: list[str]
    members: list[dict[str, tuple[int, int]]]
    faults: dict[str, int]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def identity(self) -> str:
        """Hash of the keys and of the size: what a cache of this shard is checked by."""
        text = json.dumps([FORMAT, self.size, self.keys])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_index(url: str, loading: Loading) -> ShardIndex:
    """The index of a shard, made unless it is there already. Raises ShardError.

    Kept in `loading.cache`, not beside the shard: a downloaded data set cannot bring its own.
    """
    kept = (
        loading.cache / "index" / f"{hashlib.sha256(_absolute(url).encode()).hexdigest()[:24]}.json"
    )
    stamp = _stamp(url)
    found = _load(kept, stamp)
    if found is not None:
        return found
    with opened(url, loading) as file:
        index = scan(file)
    text = json.dumps(
        {
            "format": FORMAT,
            "url": url,
            "stamp": stamp,
            "size": index.size,
            "keys": index.keys,
            "members": index.members,
            "faults": index.faults,
        }
    )
    try:
        save_text(kept, text)
    except OSError as error:
        raise explain_os_error(error, f"keeping an index in {kept.parent}") from error
    return index


def _absolute(url: str) -> str:
    return url if is_remote(url) else os.path.abspath(url)


def _stamp(url: str) -> list[int] | None:
    """What shows that a local file changed; None for a remote one, which is taken as it was."""
    if is_remote(url):
        return None
    try:
        about = os.stat(url)
    except OSError:
        raise ShardError("no such file") from None
    return [about.st_size, about.st_mtime_ns]


def _load(kept: Path, stamp: list[int] | None) -> ShardIndex | None:
    try:
        about: dict[str, Any] = json.loads(kept.read_text())
        if about["format"] != FORMAT or about["stamp"] != stamp:
            return None
        members = [{k: (v[0], v[1]) for k, v in each.items()} for each in about["members"]]
        return ShardIndex(about["size"], about["keys"], members, about["faults"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None  # made again


def scan(source: Path | IO[bytes], texts: tuple[str, ...] = ("txt", "json")) -> ShardIndex:
    """Read the headers of a tar, or of an open one. Raises ShardError when it is no tar.

    A tar that breaks off keeps what came before. Samples without an image or without one of
    `texts` (("cls",) for labelled ones), second members of one kind and second samples of one key
    are left out and counted.
    """
    faults: Counter[str] = Counter()
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    current, repeated = None, False
    try:
        with (
            source.open("rb") if isinstance(source, Path) else nullcontext(source) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            size = os.fstat(file.fileno()).st_size
            for member in _headers(tar, faults):
                if not member.isreg():
                    continue
                key, extension = split_name(member.name)
                if extension not in IMAGES and extension not in TEXTS:
                    continue
                if member.offset_data + member.size > size:
                    faults["shard breaks off"] += 1
                    break
                if key != current:
                    current, repeated = key, key in samples
                    faults["duplicate key"] += repeated
                if repeated:
                    continue
                own = samples.setdefault(key, {})
                if extension in own:
                    faults["duplicate member"] += 1
                    continue
                own[extension] = (member.offset_data, member.size)
    except tarfile.TarError:
        raise ShardError("not a tar file") from None
    except OSError as error:
        raise ShardError(f"cannot be read ({error.strerror})") from None
    usable = {}
    for key, own in samples.items():
        if not any(extension in own for extension in IMAGES):
            faults["no image"] += 1
        elif not any(extension in own for extension in texts):
            faults["no caption"] += 1
        else:
            usable[key] = own
    return ShardIndex(size, list(usable), list(usable.values()), dict(+faults))


def _headers(tar: tarfile.TarFile, faults: Counter[str]) -> Any:
    """The members, as far as the tar can be read."""
    try:
        while (member := tar.next()) is not None:
            yield member
            tar.members = []  # type: ignore[attr-defined] # it would keep every header
    except (tarfile.TarError, EOFError, ValueError):
        faults["shard breaks off"] += 1


def split_name(name: str) -> tuple[str, str]:
    """`a/b.c.jpg` -> (`a/b`, `c.jpg`): webdataset's rule, the extension in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def read_members(
    file: int, index: ShardIndex, number: int, url: str, images: bool = True
) -> dict[str, Any]:
    """Sample `number` of a shard that is open as descriptor `file`: extension -> bytes, with
    webdataset's `__key__` and `__url__`; without `images` the words alone. Raises BadSample."""
    found: dict[str, Any] = {"__key__": index.keys[number], "__url__": url}
    for extension, (offset, size) in index.members[number].items():
        image = extension in IMAGES
        if image and not images:
            continue
        if size > (LARGEST_FILE if image else LARGEST_TEXT):
            raise BadSample("image file too large" if image else "text too large")
        try:
            # pread: processes and threads that share a descriptor do not share a position
            found[extension] = os.pread(file, size, offset)
        except OSError as error:
            raise BadSample(f"cannot be read ({error.strerror})") from None
        if len(found[extension]) != size:
            raise BadSample("shard breaks off")
    return found


class TarFiles:
    """Samples by (shard, number), from open files and indexes that are kept for a while."""

    def __init__(self, loading: Loading, keep: int = 32):
        self.loading, self.keep = loading, keep
        self.open: OrderedDict[str, tuple[ShardIndex, int]] = OrderedDict()
        self.lock = threading.Lock()  # another thread's read must not close this one's descriptor

    def index(self, url: str) -> ShardIndex:
        """What the shard holds. Raises ShardError."""
        with self.lock:
            return self._opened(url)[0]

    def sample(self, url: str, number: int, images: bool = True) -> dict[str, Any]:
        """See `read_members`. Raises BadSample, `whole` where the shard cannot be had."""
        with self.lock:
            try:
                index, file = self._opened(url)
            except ShardError as error:
                raise BadSample(str(error), whole=True) from None
            if number >= len(index):
                raise BadSample(
                    f"the shard holds only {len(index):,} samples, fewer than were counted"
                )
            return read_members(file, index, number, url, images)

    def key(self, url: str, number: int) -> str:
        """The sample's name in logs, without the shard."""
        try:
            return self.index(url).keys[number]
        except (ShardError, IndexError):
            return f"sample {number}"

    def _opened(self, url: str) -> tuple[ShardIndex, int]:
        if url in self.open:
            self.open.move_to_end(url)
            return self.open[url]
        index = read_index(url, self.loading)
        # An own descriptor outlives the file's eviction from the cache of fetched shards.
        with opened(url, self.loading) as held:
            file = os.dup(held.fileno())
        if os.fstat(file).st_size != index.size:
            os.close(file)
            raise ShardError("the shard has changed")
        self.open[url] = index, file
        if len(self.open) > self.keep:
            os.close(self.open.popitem(last=False)[1][1])
        return self.open[url]

    def close(self) -> None:
        for _, file in self.open.values():
            os.close(file)
        self.open.clear()
