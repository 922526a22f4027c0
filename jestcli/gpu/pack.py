"""A selection of the icon sources in one small file, for machines without a network.

The file is a plain tar, so that its members can be unpacked side by side:

    pack.json                      where everything comes from, what was kept and what was not
    words/<package>/<member>.xz    the few files of the word packages, and collections.json
    collections/<prefix>.json.xz   one icon collection, without what drawing it does not need

Whole collections: those that benchmarks and curated levels show, always, then those of the pool in
a pseudo-random order that the seed decides, while they fit. Of art families that only benchmarks
may show, the icons that no benchmark shows are left out: nothing else could use them.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jestcli.icons.benchmarks import make_benchmarks
from jestcli.icons.captions import read_emoji, read_phosphor
from jestcli.icons.draw import Collection, Drawn, Rastered, describe, usable_collections
from jestcli.icons.fetch import integrity, members
from jestcli.icons.rasterize import collection_of
from jestcli.icons.spec import WORLD, Package, World
from jestcli.icons.splits import hash_order
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.parallel import Progress, silent, unordered

FORMAT = 1
WORDS = {
    "icons": ("package/collections.json",),
    "emoji": ("package/en/data.json",),
    "lucide": ("package/tags.json",),
    "tabler": ("package/icons.json",),
    "phosphor": ("package/dist/index.mjs",),
}
NEEDED = ("prefix", "icons", "aliases", "chars", "left", "top", "width", "height")
_PREFIX = re.compile(r"collections/([a-z0-9]+(?:-[a-z0-9]+)*)\.json\.xz")
_WORDS = re.compile(r"words/([a-z]+)/(package/[a-z./]+)\.xz")
LARGEST = 1 << 29  # bytes of one member, unpacked
PRESET = 6


@dataclass(frozen=True)
class Packed:
    """What a pack holds. icons: drawings kept, by prefix."""

    icons: dict[str, int]
    left_out: dict[str, int]  # icons of collections that did not fit, by prefix
    bytes: int


def pack(
    tarballs: dict[str, Path],
    out: Path,
    megabytes: float = 48.0,
    world: World = WORLD,
    workers: int | None = None,
    progress: Progress = silent,
) -> Packed:
    """Write the selection of at most `megabytes` (10^6 bytes) to `out`.

    tarballs: of the world's packages, by their names in the world. Raises DataError when not even
    what benchmarks and curated levels need fits.
    """
    limit = int(megabytes * 1e6)
    texts = _texts(tarballs, world)
    needed = {s.prefix for sources in world.levels.values() for s in sources}
    needed |= {prefix for prefix in texts if world.family(prefix) in world.withheld}
    shown = _shown(tarballs, texts, world)
    for prefix in shown:
        texts[prefix] = _only(texts[prefix], shown[prefix])
    words = [
        (f"words/{name}/{member}.xz", _squeeze(content))
        for name, wanted in WORDS.items()
        for member, content in members(tarballs[name], frozenset(wanted).__contains__)
    ]
    order = sorted(needed & set(texts)) + hash_order(set(texts) - needed, world.seed)
    sizes = {prefix: len(json.loads(text)["icons"]) for prefix, text in texts.items()}
    squeezed: dict[str, bytes] = {}
    for (prefix, _), small in unordered(_squeeze_one, list(texts.items()), workers):
        squeezed[prefix] = small
        progress("squeeze", len(squeezed), len(texts))
    # A tar takes 512 bytes a header, fills members up to 512 and itself up to 10,240.
    used = sum(1024 + len(content) for _, content in words)
    used += len(json.dumps([sizes, world.digest()], indent=1)) + 16_384  # pack.json and the end
    kept: list[str] = []
    for prefix in order:
        if used + 1024 + len(squeezed[prefix]) <= limit:
            used += 1024 + len(squeezed[prefix])
            kept.append(prefix)
        elif prefix in needed:
            raise DataError(f"{megabytes} MB are too few for what benchmarks and levels show")
    left_out = {prefix: sizes[prefix] for prefix in sorted(set(texts) - set(kept))}
    about: dict[str, Any] = {
        "format": FORMAT,
        "packages": {name: asdict(package) for name, package in world.packages.items()},
        "kept": {prefix: sizes[prefix] for prefix in kept},
        "left_out": left_out,
    }
    content = [("pack.json", (json.dumps(about, indent=1) + "\n").encode()), *words]
    content += [(f"collections/{prefix}.json.xz", squeezed[prefix]) for prefix in sorted(kept)]
    _write(out, content)
    return Packed(about["kept"], left_out, out.stat().st_size)


def _texts(tarballs: dict[str, Path], world: World) -> dict[str, str]:
    """The usable collections as JSON texts by prefix, without what drawing does not need."""
    usable = usable_collections(world, tarballs["icons"])
    found = {}
    for member, content in members(tarballs["icons"], lambda m: collection_of(m) in usable):
        raw = json.loads(content)
        slim = {key: raw[key] for key in NEEDED if key in raw}
        found[str(collection_of(member))] = _compact(slim)
    return found


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _shown(tarballs: dict[str, Path], texts: dict[str, str], world: World) -> dict[str, set[str]]:
    """Names of the icons that benchmarks show, for each collection of a withheld family."""
    about = usable_collections(world, tarballs["icons"])
    collections: dict[str, Collection] = {}
    for prefix, text in texts.items():
        if world.family(prefix) in world.withheld:
            collections[prefix] = describe(world, prefix, about[prefix], json.loads(text))
    icons = tuple(
        Drawn(prefix, name, "", 0, "")
        for prefix, each in collections.items()
        for name in each.names
    )
    rastered = Rastered(Path(), 0, icons, {})
    emoji = read_emoji(tarballs["emoji"])
    phosphor = read_phosphor(tarballs["phosphor"])
    names: dict[str, set[str]] = {prefix: set() for prefix in collections}
    for mark in make_benchmarks(world, collections, rastered, emoji, phosphor):
        for item in (*mark.test, *mark.train):
            names[item.icon.prefix].add(item.icon.name)
    return names


def _only(text: str, names: set[str]) -> str:
    """The collection with these icons alone (its table of characters stays whole)."""
    content = json.loads(text)
    content["icons"] = {name: icon for name, icon in content["icons"].items() if name in names}
    return _compact(content)


def _squeeze_one(item: tuple[str, str]) -> bytes:
    return _squeeze(item[1].encode())


def _squeeze(content: bytes) -> bytes:
    return lzma.compress(content, preset=PRESET)


def _write(out: Path, content: list[tuple[str, bytes]]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}")
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in content:
                member = tarfile.TarInfo(name)  # mtime, owner: zero, so the bytes are the same
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        temporary.replace(out)
    except OSError as error:
        raise explain_os_error(error, f"writing {out}") from error


@dataclass(frozen=True)
class Opened:
    """A pack on disk: its world, the word packages as tarballs, and the collections' folder."""

    world: World
    tarballs: dict[str, Path]
    kept: dict[str, int]


def packed_world(path: Path, world: World = WORLD) -> World:
    """The world with the selection in place of its packages, under a digest of its own.

    Every package's integrity is that of the one file that all of it is read from.
    """
    found = integrity(path)
    packages = {
        name: Package(package.name, f"{package.version} (selection)", found)
        for name, package in world.packages.items()
    }
    return replace(world, packages=packages)


def unpack(path: Path, cache: Path, world: World = WORLD, workers: int | None = None) -> Opened:
    """Unpack into `cache`/collections and `cache`/words, what is there already excepted.

    Raises DataError for a file that is no pack. No name in the file becomes a path as it is.
    """
    collections, words = cache / "collections", cache / "words"
    try:
        opened = Opened(packed_world(path, world), {}, _about(path)["kept"])
        for folder in (collections, words):
            folder.mkdir(parents=True, exist_ok=True)
        tasks, texts = [], {}
        for name, offset, size in _members(path):
            if match := _PREFIX.fullmatch(name):
                target = collections / f"{match.group(1)}.json"
                if not target.exists():
                    tasks.append(_Task(path, offset, size, target))
            elif (match := _WORDS.fullmatch(name)) and match.group(1) in WORDS:
                texts[match.group(1), match.group(2)] = _expand(path, offset, size)
        listed = json.loads(texts["icons", "package/collections.json"])
        held = {prefix: listed[prefix] for prefix in opened.kept}
        texts["icons", "package/collections.json"] = json.dumps(held).encode()
        for package, wanted in WORDS.items():
            target = words / f"{package}.tgz"
            _tarball(target, {name: texts[package, name] for name in wanted})
            opened.tarballs[package] = target
        for _ in unordered(_expand_to, tasks, workers):
            pass
    except OSError as error:
        raise explain_os_error(error, f"unpacking {path}") from error
    except (tarfile.TarError, lzma.LZMAError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a pack of `jest gpu pack`: {error}") from None
    return opened


def _about(path: Path) -> dict[str, Any]:
    with tarfile.open(path, "r:") as tar:
        file = tar.extractfile("pack.json")
        about: dict[str, Any] = json.loads(file.read()) if file else {}
    if about.get("format") != FORMAT:
        raise ValueError(f"format {about.get('format')}, not {FORMAT}")
    return about


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.isfile():
                yield member.name, member.offset_data, member.size


@dataclass(frozen=True)
class _Task:
    pack: Path
    offset: int
    size: int
    target: Path


def _expand(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        squeezed = file.read(size)
    unpacker = lzma.LZMADecompressor(memlimit=1 << 28)
    content = unpacker.decompress(squeezed, max_length=LARGEST)
    if not unpacker.eof:
        raise ValueError("a member is cut off or larger than this reader takes")
    return content


def _expand_to(task: _Task) -> None:
    temporary = task.target.with_name(f".{task.target.name}")
    temporary.write_bytes(_expand(task.pack, task.offset, task.size))
    temporary.replace(task.target)


def _tarball(path: Path, files: dict[str, bytes]) -> None:
    """A .tgz as a registry serves it, so that the readers of packages read it."""
    temporary = path.with_name(f".{path.name}")
    with tarfile.open(temporary, "w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    shutil.move(temporary, path)
