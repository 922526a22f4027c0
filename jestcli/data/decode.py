"""What decodes shards into a `DecodedDataset`'s files, in worker processes.

Apart from decoded.py, so that these processes need not import torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jestcli.data.images import fit
from jestcli.data.shards import Report, read_shards
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_text
from jestcli.utils.parallel import unordered
from jestcli.utils.progress import Progress
from jestcli.utils.reading import parse_json

FORMAT = 1
COLUMNS = ("source", "category", "family")
Tokenizer = Callable[[list[str]], Any]


def fingerprints(urls: Sequence[str], folder: Path) -> list[str]:
    """Each shard's `fingerprint`; `folder/shards.json` remembers those of files whose size and
    time of change are the same, so that gigabytes are not read again by every process."""
    memory = folder / "shards.json"
    known: dict[str, list[str]] = {}
    with suppress(OSError, ValueError, TypeError, AttributeError):
        known = {url: [seen, own] for url, (seen, own) in parse_json(memory.read_bytes()).items()}
    found = {}
    for url in urls:
        path = Path(url.removeprefix("file:"))
        state = path.stat() if path.is_file() else None
        seen = f"{state.st_size} {state.st_mtime_ns}" if state else ""
        old, own = known.get(url, ["", ""])
        found[url] = [seen, own if seen and seen == old else fingerprint(url)]
    if found != known and folder.is_dir():
        with suppress(OSError):  # a folder that cannot be written to costs time alone
            save_text(memory, json.dumps(found, indent=1) + "\n")
    return [found[url][1] for url in urls]


def fingerprint(url: str) -> str:
    """A local shard's content hash; the URL itself for anything else (`pipe:`, http)."""
    path = Path(url.removeprefix("file:"))
    if not path.is_file():
        return url
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Part:
    """A task: decode one shard into `<folder>/<number>.npy`."""

    url: str
    number: int
    folder: Path
    size: int


@dataclass(frozen=True)
class _Read:
    """What one shard held, but for the pixels."""

    keys: list[str]
    captions: list[tuple[str, ...]]
    columns: dict[str, list[str]]
    levels: list[tuple[str, ...]]
    report: Report


def _decode_part(part: _Part) -> _Read:
    """Decode one shard in a worker process; the pixels go to disk."""
    report = Report()
    read = _Read([], [], {column: [] for column in COLUMNS}, [], report)
    blocks: list[np.ndarray] = []
    try:
        for pair in read_shards(part.url, report):
            if not pair.captions:
                report.read -= 1
                report.skip("no caption", f"{pair.url}:{pair.key}")
                continue
            blocks.append(fit(pair.image, part.size))
            read.keys.append(pair.key)
            read.captions.append(pair.captions)
            for column in COLUMNS:
                value = pair.meta.get(column)
                read.columns[column].append(value if isinstance(value, str) else "")
            levels = pair.meta.get("levels")
            listed = levels if isinstance(levels, list) else []
            read.levels.append(tuple(each for each in listed if isinstance(each, str)))
    except DataError:
        if not report.skipped:
            raise
    images = np.stack(blocks) if blocks else np.empty((0, part.size, part.size, 3), np.uint8)
    np.save(part.folder / f"{part.number}.npy", images, allow_pickle=False)
    return read


def decode_into(
    staged: Path,
    shards: list[str],
    size: int,
    tokenizer: Tokenizer,
    identity: str,
    workers: int | None,
    progress: Progress,
) -> None:
    """Write a decoded set's files into `staged`, store.json last. Raises DataError when nothing can
    be read."""
    parts_folder = staged.parent / "parts"
    parts_folder.mkdir()
    parts = [_Part(url, number, parts_folder, size) for number, url in enumerate(shards)]
    read: dict[int, _Read] = {}
    tokens: dict[int, np.ndarray] = {}
    progress(0, len(parts), "decode")
    for part, result in unordered(_decode_part, parts, workers):
        read[part.number] = result
        tokens[part.number] = _tokenize([c for row in result.captions for c in row], tokenizer)
        progress(len(read), len(parts), "decode")
    ordered = [read[number] for number in range(len(parts))]
    report = Report()
    for result in ordered:
        report.merge(result.report)
    total = sum(len(result.keys) for result in ordered)
    if not total:
        raise DataError(f"no image-caption pair could be read: {report.line()}")

    images = np.lib.format.open_memmap(
        staged / "images.npy", "w+", np.uint8, (total, size, size, 3)
    )
    at = 0
    for number in range(len(parts)):
        path = parts_folder / f"{number}.npy"
        block = np.load(path, mmap_mode="r", allow_pickle=False)
        images[at : at + len(block)] = block
        at += len(block)
        path.unlink()  # a set and its parts together might not fit on the disk
    images.flush()
    del images
    captions = [row for result in ordered for row in result.captions]
    rows = np.concatenate([tokens[number] for number in range(len(parts)) if len(tokens[number])])
    counts = [len(row) for row in captions]
    _save(staged, "tokens", rows)
    _save(staged, "caption_start", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    names: dict[str, list[str]] = {}
    for column in COLUMNS:
        values = [value for result in ordered for value in result.columns[column]]
        names[column], codes = _codes(values)
        _save(staged, column, codes)
    names["levels"], mask = _mask([row for result in ordered for row in result.levels])
    _save(staged, "levels", mask)
    _dump(staged, "keys", unique([key for result in ordered for key in result.keys]))
    _dump(staged, "captions", [c for row in captions for c in row])
    meta = {
        "format": FORMAT,
        "images": total,
        "captions": sum(counts),
        "size": size,
        "context_length": int(rows.shape[1]),
        "names": names,
        "identity": identity,
        "shards": shards,
        "skipped": dict(report.skipped),
        "examples": report.examples,
    }
    _dump(staged, "store", meta)  # last: without it there is no set


def _tokenize(captions: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """int32 [n, L]."""
    if not captions:
        return np.empty((0, 0), np.int32)
    return np.asarray(tokenizer(captions)).astype(np.int32)


def _codes(values: list[str]) -> tuple[list[str], np.ndarray]:
    """Texts to (names, int32 codes); "" is -1."""
    names = sorted({value for value in values if value})
    number = {name: code for code, name in enumerate(names)} | {"": -1}
    return names, np.array([number[value] for value in values], np.int32)


def _mask(rows: list[tuple[str, ...]]) -> tuple[list[str], np.ndarray]:
    """Lists of level names to (names, uint32 bit masks). Names past the 32nd are left out."""
    names = sorted({name for row in rows for name in row})[:32]
    bit = {name: 1 << k for k, name in enumerate(names)}
    return names, np.array([sum(bit.get(n, 0) for n in set(row)) for row in rows], np.uint32)


def unique(keys: list[str]) -> list[str]:
    """Keys with repeats told apart as `key#2`, `key#3`."""
    seen: dict[str, int] = {}
    out = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        out.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return out


def _save(folder: Path, name: str, array: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", array, allow_pickle=False)


def _dump(folder: Path, name: str, content: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False))
