"""The one reader of tar files: an index from the headers, then any sample is one read away.

Only images, texts, JSON and class numbers are read, nothing is unpickled, and a member's name is a
key, never a path. Headers are read here and not by `tarfile`, which follows what they claim: a size
below zero, a thousand names for one member, a comment of gigabytes. Where the tar is damaged or
another begins, reading goes on at the next header that proves itself by its checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from jestcli.data.bad_samples import BadSample
from jestcli.data.fetch import fetched_at, fetched_content, opened
from jestcli.data.images import DECODER
from jestcli.data.remote import ShardError, is_remote
from jestcli.data.sources import Loading, stamp
from jestcli.utils.errors import explain_os_error
from jestcli.utils.io import save_text
from jestcli.utils.layout import PLAIN, TEXTS, Layout
from jestcli.utils.reading import parse_json

FORMAT = 2
LARGEST_FILE = 100_000_000  # bytes of one image file
LARGEST_TEXT = 1_000_000  # bytes of .txt, .json or .cls
MOST_HEADERS = 5_000_000  # of a shard, blocks of zeros included
IN_A_ROW = 16  # headers that only describe the next one
LARGEST_HEADER = 1_000_000  # bytes of such a description
LONGEST_NAME = 4_096
MOST_DAMAGE = 200  # places of a shard where the next header is looked for
MOST_TRIES = 1_000  # bytes that look like a header at one such place

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
COMPRESSED |= {b'\x04"M\x18': "lz4"}
_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_MAGIC, _MAGIC_AT = b"ustar", 257
_LOOKED_AT = 1 << 16  # bytes at a time, for the next header
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# Links, devices and folders: a size that one of them states is not followed by so many bytes.
_WITHOUT_CONTENT = {*tarfile.SUPPORTED_TYPES} - {*tarfile.REGULAR_TYPES, *tarfile.GNU_TYPES}
_DESCRIBING = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE}
_DESCRIBING |= {tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_RECORD = re.compile(rb"(\d{1,7}) ([^=]{1,1000})=")


class Member(NamedTuple):
    """A file in a tar: its name, where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class ShardIndex:
    """The usable samples of one shard, in its order.

    members: for each key, extension -> (offset, bytes). faults: what was left out, by reason.
    content: SHA-256 of a remote one as it was fetched; "" where that is not known.
    """

    size: int
    keys: list[str]
    members: list[dict[str, tuple[int, int]]]
    faults: dict[str, int]
    content: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def identity(self) -> str:
        """Hash of the keys and of the size: what a cache of this shard is checked by."""
        text = json.dumps([FORMAT, DECODER, self.size, self.keys])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_index(url: str, loading: Loading) -> ShardIndex:
    """The index of a shard, made unless it is there already. Raises ShardError.

    Kept in `loading.cache`, not beside the shard: a downloaded data set cannot bring its own.
    """
    kept, seen = _kept_index(url, loading), stamp(url)
    found = _load(kept, seen)
    if found is not None:
        return found
    with opened(url, loading) as file:
        index = replace(scan(file, loading.layout), content=_content(url, loading))
    about = {"format": FORMAT, "url": url, "stamp": seen} | vars(index)
    try:
        save_text(kept, json.dumps(about))
    except OSError as error:
        raise explain_os_error(error, f"keeping an index in {kept.parent}") from error
    return index


def forget_old_index(url: str, loading: Loading) -> None:
    """Remove the index of a remote shard that has been fetched with other content since. A run
    that counted by that index does not call this: the shard has changed for it, which is said."""
    kept = _kept_index(url, loading)
    with suppress(OSError):
        if not is_remote(url) or kept.stat().st_mtime_ns >= fetched_at(url, loading):
            return
        found = _load(kept, None)
        if found is not None and _changed(found, url, loading):
            kept.unlink()
        else:
            os.utime(kept)  # newer than the fetch now: not read again for this


def _kept_index(url: str, loading: Loading) -> Path:
    name = repr((url if is_remote(url) else os.path.abspath(url), loading.layout))
    return loading.cache / "index" / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"


def _content(url: str, loading: Loading) -> str:
    return (fetched_content(url, loading) or "") if is_remote(url) else ""


def _changed(index: ShardIndex, url: str, loading: Loading) -> bool:
    return "" not in (index.content, now := _content(url, loading)) and index.content != now


def _load(kept: Path, seen: list[int] | None) -> ShardIndex | None:
    try:
        about: dict[str, Any] = parse_json(kept.read_bytes())
        if about["format"] != FORMAT or about["stamp"] != seen:
            return None
        members = [{k: (v[0], v[1]) for k, v in each.items()} for each in about["members"]]
        content = str(about.get("content", ""))
        return ShardIndex(about["size"], about["keys"], members, about["faults"], content)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None  # made again


# --- from headers to samples ---------------------------------------------------------------------


def scan(
    source: Path | IO[bytes], layout: Layout = PLAIN, texts: tuple[str, ...] | None = None
) -> ShardIndex:
    """Read the headers of a tar, or of an open one. Raises ShardError when it is no tar.

    A damaged tar is read as far and as often as headers are found. Samples without an image or
    without one of `texts` (None: a caption; ("cls",) for labelled ones), further images of a
    sample, second members of one kind and second samples of one key are left out and counted.
    """
    faults: Counter[str] = Counter()
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            size = os.fstat(file.fileno()).st_size
            found = list(_members(file.fileno(), size, faults))
    except OSError as error:
        raise ShardError(f"cannot be read ({error.strerror})") from None
    usable = _samples(found, layout, texts or layout.texts, faults)
    return ShardIndex(size, list(usable), list(usable.values()), dict(+faults))


def _samples(
    found: Iterable[Member], layout: Layout, texts: tuple[str, ...], faults: Counter[str]
) -> dict[str, dict[str, tuple[int, int]]]:
    """Key -> extension -> (offset, bytes) of the samples that can be used."""
    # A key that comes back later in the shard names another sample (some public sets were joined
    # without renaming): mixing the two would show a caption under a picture it is not of.
    every: dict[str, dict[str, tuple[int, int]]] = {}
    by_first_dot = Layout("first")
    run, current, twice = 0, "", set()  # a run: a.jpg, a.seg.png, a.txt lie together
    runs: dict[str, int] = {}
    for name, offset, size in found:
        key, kind = layout.split(name)
        if kind not in layout.images and kind not in TEXTS:
            if kind.rpartition(".")[2] in layout.images:
                faults["image whose key has dots (data.keys=last reads it)"] += 1
            continue
        group = by_first_dot.split(name)[0]
        run, current = run + (group != current), group
        if runs.setdefault(key, run) != run:
            twice.add((key, run))
            continue
        if kind in every.setdefault(key, {}):
            faults["duplicate member"] += 1
            continue
        every[key][kind] = (offset, size)
    faults["duplicate key"] += len(twice)
    usable, odd = {}, {}
    for key, own in every.items():
        images = [kind for kind in layout.images if kind in own]
        if images and any(kind in own for kind in texts):
            faults[f"further image (read is the first of {', '.join(layout.images)})"] += (
                len(images) - 1
            )
            kinds = (*images[:1], *TEXTS)
            usable[key] = {kind: place for kind, place in own.items() if kind in kinds}
        else:
            odd[key] = "no caption" if images else "no image"
    for key, why in odd.items():
        # x.seg.png beside x.jpg and x.txt belongs to them, and nothing is missing.
        faults[why] += by_first_dot.split(key)[0] not in usable
    return usable


def kinds_in(source: Path) -> str:
    """The endings in a tar, the most frequent first, for a message. Raises ShardError."""
    with source.open("rb") as file:
        members = _members(file.fileno(), os.fstat(file.fileno()).st_size, Counter())
        count = Counter(os.path.splitext(each.name)[1][:12] for each in members)
    return ", ".join(kind or "no ending" for kind, _ in count.most_common(4)) or "nothing"


# --- headers -------------------------------------------------------------------------------------


def _members(fd: int, size: int, faults: Counter[str]) -> Iterator[Member]:
    """The files of the tar that is open as `fd`, in order; what is lost is counted.

    A member is given once the header behind it is found: one that another begins in is not whole.
    """
    at = behind = 0  # the next header; where to look for it when it is not there
    held: Member | None = None
    extra, seen, ended = _Extra(), False, False
    for _ in range(MOST_HEADERS):
        if at + _BLOCK > size:
            break
        block = os.pread(fd, _BLOCK, at)
        if block == _ZEROS:  # the end; where tars were joined, another follows
            ended, at = True, at + _BLOCK
            continue
        info = _header(block)
        length = 0 if info is None else extra.length(info)
        if info is None or at + _BLOCK + length > size:
            if at == 0:
                _refuse_compressed(block)
            if info is not None:
                behind, seen, ended = at + _BLOCK, True, False
            faults["damaged place"] += 1
            # Each search may read the rest of the shard: a hostile one would make it quadratic.
            many = faults["damaged place"] > MOST_DAMAGE
            after = None if many else _next_header(fd, size, behind)
            if held is not None and (after is None or held.offset + held.size <= after):
                yield held
            held, extra = None, _Extra()
            if after is None:
                faults["damaged place"] -= 1  # it breaks off, which is counted below
                break
            at = after
            continue
        if held is not None:
            yield held
        held, seen, ended = None, True, False
        behind = at + _BLOCK
        at = behind - (-length // _BLOCK) * _BLOCK
        if info.type in _DESCRIBING:
            extra.read(fd, info, behind)
            continue
        if info.type in _FILES:
            why = extra.why or ("name too long" if len(extra.name) > LONGEST_NAME else "")
            if why:
                faults[why] += 1
            else:
                held = Member(extra.name or info.name, behind, length)
        extra = _Extra()
    else:
        faults["too many members"] += 1
        ended = True
    if held is not None:
        yield held
    if not ended:
        if not seen:
            raise ShardError("not a tar file")
        faults["shard breaks off"] += 1


def _refuse_compressed(start: bytes) -> None:
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise ShardError(f"compressed by {name}: unpack it to a plain .tar")


class _Header(NamedTuple):
    """What is asked of a header; type: of `tarfile`'s."""

    name: str
    size: int
    type: bytes


def _header(block: bytes) -> _Header | None:
    """What a block says, if its checksum is right and its numbers make sense.

    As `tarfile.TarInfo.frombuf` reads it, without the seven fields that nobody asks for: millions
    of headers are read before a training begins."""
    if len(block) != _BLOCK:
        return None
    name, kind, prefix, sums = block[:100], block[156:157], block[345:500], block[148:156]
    try:
        size, stated = _number(block[124:136]), _number(sums)
    except ValueError:
        return None
    unsigned = sum(block) - sum(sums) + len(sums) * ord(" ")
    if stated != unsigned:  # some old writers summed signed bytes
        high = sum(byte > 127 for byte in block[:148] + block[156:])
        if stated != unsigned - 256 * high:
            return None
    # Base-256 sizes may be negative, and going back would never end; sparse files' bytes are not
    # their content.
    if size < 0 or kind == tarfile.GNUTYPE_SPARSE:
        return None
    path = _name(name)
    if kind == tarfile.AREGTYPE and path.endswith("/"):
        kind = tarfile.DIRTYPE
    if prefix[0] and kind not in tarfile.GNU_TYPES:
        path = f"{_name(prefix)}/{path}"
    return _Header(path, size, kind)


def _number(field: bytes) -> int:
    """Octal digits, or binary behind a first byte that says so. Raises ValueError."""
    if field[0] in (0o200, 0o377):
        return int.from_bytes(field[1:], "big") - (field[0] == 0o377) * 256 ** (len(field) - 1)
    # As text: its white space, which is stripped, is more than that of bytes.
    return int(field.partition(b"\0")[0].decode("ascii").strip() or "0", 8)


def _next_header(fd: int, size: int, start: int) -> int | None:
    """Where the first header at or behind `start` begins: by its magic, then its checksum."""
    at, tries = start + _MAGIC_AT, 0
    while tries < MOST_TRIES:
        block = os.pread(fd, _LOOKED_AT, at)
        found = block.find(_MAGIC)
        if found < 0:
            at += len(block) - len(_MAGIC) + 1  # the magic may lie across two blocks
            if len(block) < _LOOKED_AT:
                return None
            continue
        header = at + found - _MAGIC_AT
        if _header(os.pread(fd, _BLOCK, header)) is not None:
            return header
        at, tries = at + found + 1, tries + 1
    return None


@dataclass
class _Extra:
    """What headers before a member's own say of it. why: it cannot be used."""

    name: str = ""
    size: int | None = None
    why: str = ""
    count: int = 0

    def length(self, info: _Header) -> int:
        """Bytes that follow the header `info`."""
        if info.type in _WITHOUT_CONTENT:
            return 0
        return self.size if info.type in _FILES and self.size is not None else info.size

    def read(self, fd: int, info: _Header, offset: int) -> None:
        self.count += 1
        if self.count > IN_A_ROW:
            self.why = "too many headers"
        elif info.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            return  # links are not followed, and what holds for all members is a comment
        elif info.size > LARGEST_HEADER:
            self.why = "header too large"
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            self.name = _name(os.pread(fd, info.size, offset))
        else:
            self._read_pax(os.pread(fd, info.size, offset))

    def _read_pax(self, content: bytes) -> None:
        at = 0
        while at < len(content) and content[at]:
            record = _RECORD.match(content, at)
            end = at + int(record.group(1)) if record else 0
            if record is None or not record.end() < end <= len(content):
                self.why = "broken header"
                return
            key, value, at = record.group(2), content[record.end() : end - 1], end
            if key == b"path":
                self.name = _name(value)
            elif key == b"size":
                if not re.fullmatch(rb"\d{1,15}", value):
                    self.why = "broken header"
                    return
                self.size = int(value)
            elif key.startswith(b"GNU.sparse"):
                self.why = "sparse file"


def _name(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("utf-8", "backslashreplace")


# --- from a sample to its bytes ------------------------------------------------------------------


def read_members(
    file: int, index: ShardIndex, number: int, url: str, images: bool = True
) -> dict[str, Any]:
    """Sample `number` of a shard that is open as descriptor `file`: extension -> bytes, with
    webdataset's `__key__` and `__url__`; without `images` the words alone. Raises BadSample."""
    found: dict[str, Any] = {"__key__": index.keys[number], "__url__": url}
    for extension, (offset, size) in index.members[number].items():
        image = extension not in TEXTS
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
            if number >= len(index):  # a count that was stated beside a remote shard is a claim
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
        if os.fstat(file).st_size != index.size or _changed(index, url, self.loading):
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
