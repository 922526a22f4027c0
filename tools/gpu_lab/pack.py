"""The built embedded data in a few small files, for machines without a network.

Nothing is drawn there: what runs read is packed, pixel for pixel. Every part is a plain tar:

    part.json        the format, the data's key, which part it is and of how many
    rest.xz          (first part) a tar of manifest, benchmarks and all of the stores but pixels
    <n>.xz           some pixels of a store's images.npy: of pictures that are grey a single channel

The shards themselves, a gigabyte of PNG that the stores were decoded from, stay behind: empty files
of their names and sizes stand for them.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jestcli.icons.build import build_key, is_built, read_manifest
from jestcli.icons.spec import WORLD, World
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.io import save_bytes, save_text
from jestcli.utils.parallel import unordered
from jestcli.utils.progress import Progress, silent

FORMAT = 3
PIXELS = "images.npy"
BLOCK = 8192  # pictures of one member
LARGEST = 1 << 28  # bytes of one member, unpacked
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")
Block = tuple[dict[str, Any], bytes]  # which pictures of which file, and their pixels


def pack(
    root: Path,
    out: Path,
    megabytes: float = 50.0,
    workers: int | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """Write the built data of `root` as out-0.tar, out-1.tar, …, each of about `megabytes` (10^6
    bytes) at most; returns them. Raises DataError where nothing is built."""
    manifest = read_manifest(root)
    stores = sorted(path.parent for path in root.glob(f"store/*/*/{PIXELS}"))
    if not stores:
        raise DataError(f"{root} has no decoded store: run `jest data build` first")
    blocks = [block for store in stores for block in _blocks(root, store)]
    small: dict[int, bytes] = {}
    for (number, _), content in unordered(_squeeze, list(enumerate(blocks)), workers):
        small[number] = content
        progress(len(small), len(blocks), "squeeze")
    parts: list[dict[str, bytes]] = [{"rest.xz": lzma.compress(_rest(root), preset=6)}]
    for number in range(len(blocks)):
        if sum(map(len, parts[-1].values())) + len(small[number]) > megabytes * 1e6:
            parts.append({})
        parts[-1][f"{number}.xz"] = small[number]
    written = []
    for i, members in enumerate(parts):
        about = {"format": FORMAT, "key": manifest["key"], "part": i, "parts": len(parts)}
        path = out.with_name(f"{out.name}-{i}.tar")
        save_bytes(path, _tar({"part.json": json.dumps(about).encode(), **members}))
        written.append(path)
    return written


def _blocks(root: Path, store: Path) -> Iterator[Block]:
    """The pixels of a store: of grey pictures one channel, of the others three."""
    images = np.load(store / PIXELS, mmap_mode="r", allow_pickle=False)
    name = (store / PIXELS).relative_to(root).as_posix()
    for start in range(0, len(images), BLOCK):
        some = images[start : start + BLOCK]
        grey = (some == some[..., :1]).all((1, 2, 3))
        for one, rows in ((True, np.flatnonzero(grey)), (False, np.flatnonzero(~grey))):
            if len(rows):
                about = {"file": name, "shape": images.shape, "rows": (rows + start).tolist()}
                pixels = some[rows][..., :1] if one else some[rows]
                yield {**about, "channels": pixels.shape[-1]}, pixels.tobytes()


def _rest(root: Path) -> bytes:
    """A tar of the small files, and the names and sizes of the shards with their hashes."""
    files = {"manifest.json": (root / "manifest.json").read_bytes()}
    for folder in ("store", "benchmarks"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.name not in (PIXELS, "shards.json"):
                files[path.relative_to(root).as_posix()] = path.read_bytes()
    known = {}
    for memory in root.glob("store/*/shards.json"):
        hashes = {Path(url).name: own for url, (_, own) in json.loads(memory.read_text()).items()}
        known[memory.parent.name] = {
            path.name: [path.stat().st_size, hashes[path.name]]
            for path in sorted((root / "shards" / memory.parent.name).glob("*.tar"))
        }
    return _tar({"shards.json": json.dumps(known).encode(), **files})


def _squeeze(item: tuple[int, Block]) -> bytes:
    about, pixels = item[1]
    return lzma.compress(json.dumps(about).encode() + b"\n" + pixels, preset=6)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)  # mtime, owner: zero, so the bytes are the same
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


# --- there ---------------------------------------------------------------------------------------


def prepare(
    parts: tuple[Path, ...],
    root: Path,
    size: int,
    workers: int | None = None,
    world: World = WORLD,
    progress: Progress = silent,
) -> None:
    """Unpack all parts into `root` unless the data are there. Raises DataError for files that are
    no parts of this version's data."""
    if is_built(root, world, size):
        return
    members: list[bytes] = []
    rest, seen = b"", set()
    for path in parts:
        try:
            found = _members(path.read_bytes())
            about = json.loads(found.pop("part.json"))
            if (about["format"], about["key"]) != (FORMAT, build_key(world, size)):
                raise ValueError("of another version's data")
            seen.add(about["part"])
            rest = _unsqueezed(found.pop("rest.xz")) if "rest.xz" in found else rest
            members += found.values()
        except OSError as error:
            raise explain_os_error(error, f"reading {path}") from error
        except (tarfile.TarError, lzma.LZMAError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path} is not a part of a pack: {error}") from None
    if len(seen) != about["parts"]:
        raise DataError(f"{len(seen)} parts of {about['parts']}: name all of them (--pack)")
    stores: dict[str, np.ndarray] = {}
    for number, (_, block) in enumerate(unordered(_unpacked, members, workers), 1):
        _place(root, block, stores)
        progress(number, len(members), "unpack")
    files = _members(rest)
    shards = json.loads(files.pop("shards.json"))
    for name, content in files.items():
        if name != "manifest.json":  # the last: it says that all is there
            save_bytes(_inside(root, name), content)
    for split, names in shards.items():
        memory = {}
        for name, (length, own) in names.items():
            path = _inside(root, f"shards/{split}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(length)
            about = path.stat()
            memory[str(path)] = [f"{about.st_size} {about.st_mtime_ns}", own]
        save_text(_inside(root, f"store/{split}/shards.json"), json.dumps(memory))
    save_bytes(root / "manifest.json", files["manifest.json"])


def _members(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}


def _unsqueezed(content: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor(memlimit=1 << 28)
    found = unpacker.decompress(content, max_length=LARGEST)
    if not unpacker.eof:
        raise ValueError("a member is cut off, or larger than this reader takes")
    return found


def _unpacked(content: bytes) -> Block:
    about, _, pixels = _unsqueezed(content).partition(b"\n")
    return json.loads(about), pixels


def _place(root: Path, block: Block, stores: dict[str, np.ndarray]) -> None:
    about, pixels = block
    name, shape = about["file"], tuple(about["shape"])
    if name not in stores:
        path = _inside(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        stores[name] = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    some = np.frombuffer(pixels, np.uint8).reshape(-1, *shape[1:3], about["channels"])
    stores[name][about["rows"]] = some  # one channel stands for three


def _inside(root: Path, name: str) -> Path:
    """No name in a pack becomes a path outside `root`."""
    if not _NAME.fullmatch(name) or ".." in name.split("/"):
        raise DataError(f"a pack that names {name!r} is not taken")
    return root / name
