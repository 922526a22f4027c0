"""A selection of the icon sources in one small file, for machines without a network.

The file is a plain tar:

    pack.json                      what was kept of what, and what was not
    packages/<name>.tgz            of each registry package what building the data reads
    collections/<prefix>.json.xz   one icon collection, without what drawing it does not need

Whole collections: those that benchmarks and curated levels show, always, then those of the pool in
a pseudo-random order that the seed decides, while they fit. Of art families that only benchmarks
may show, the icons that no benchmark shows are left out: nothing else could use them.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jestcli.icons.benchmarks import make_benchmarks
from jestcli.icons.build import build, is_built, selection_of
from jestcli.icons.captions import read_emoji, read_phosphor
from jestcli.icons.draw import Drawn, Rastered, describe, usable_collections
from jestcli.icons.fetch import integrity, members
from jestcli.icons.rasterize import collection_of
from jestcli.icons.spec import WORLD, World
from jestcli.icons.splits import hash_order
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.io import save_bytes
from jestcli.utils.parallel import Progress, silent, unordered

FORMAT = 2
LISTED = "package/collections.json"
WORDS = {
    "emoji": "package/en/data.json",
    "lucide": "package/tags.json",
    "tabler": "package/icons.json",
    "phosphor": "package/dist/index.mjs",
}
NEEDED = ("prefix", "icons", "aliases", "chars", "left", "top", "width", "height")
_NAME = re.compile(r"packages/[a-z]+\.tgz|collections/[a-z0-9]+(?:-[a-z0-9]+)*\.json\.xz")
LARGEST = 1 << 29  # bytes of one member, unpacked


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
    """Write the selection of at most `megabytes` (10^6 bytes) to `out`, the same bytes every time.

    tarballs: of the world's packages, by their names in the world. Raises DataError when not even
    what benchmarks and curated levels need fits.
    """
    listed = usable_collections(world, tarballs["icons"])
    texts = _texts(tarballs["icons"], listed)
    needed = {s.prefix for sources in world.levels.values() for s in sources}
    needed |= {prefix for prefix in texts if world.family(prefix) in world.withheld}
    texts |= _only_shown(tarballs, texts, listed, world)
    packages = {
        name: _tgz({member: _member(tarballs[name], member)}) for name, member in WORDS.items()
    }
    squeezed: dict[str, bytes] = {}
    for (prefix, _), small in unordered(_squeeze, list(texts.items()), workers):
        squeezed[prefix] = small
        progress("squeeze", len(squeezed), len(texts))
    sizes = {prefix: len(json.loads(text)["icons"]) for prefix, text in texts.items()}
    # A tar takes 512 bytes a header, fills members up to 512 and itself up to 10,240.
    packages["icons"] = _tgz({LISTED: _compact(listed)})  # all of them: at most as large
    used = sum(1024 + len(content) for content in packages.values())
    used += 2 * len(_compact(sizes)) + 16_384  # pack.json and the end
    kept: list[str] = []
    for prefix in sorted(needed & set(texts)) + hash_order(set(texts) - needed, world.seed):
        if used + 1024 + len(squeezed[prefix]) <= megabytes * 1e6:
            used += 1024 + len(squeezed[prefix])
            kept.append(prefix)
        elif prefix in needed:
            raise DataError(f"{megabytes} MB are too few for what benchmarks and levels show")
    packages["icons"] = _tgz({LISTED: _compact({prefix: listed[prefix] for prefix in kept})})
    left_out = {prefix: sizes[prefix] for prefix in sorted(set(texts) - set(kept))}
    about = {
        "format": FORMAT,
        "packages": {name: asdict(package) for name, package in world.packages.items()},
        "kept": {prefix: sizes[prefix] for prefix in kept},
        "left_out": left_out,
    }
    content = {"pack.json": _compact(about)}
    content |= {f"packages/{name}.tgz": packages[name] for name in sorted(packages)}
    content |= {f"collections/{prefix}.json.xz": squeezed[prefix] for prefix in sorted(kept)}
    try:
        save_bytes(out, _tar(content))
    except OSError as error:
        raise explain_os_error(error, f"writing {out}") from error
    return Packed({prefix: sizes[prefix] for prefix in kept}, left_out, out.stat().st_size)


def _texts(tarball: Path, listed: dict[str, Any]) -> dict[str, bytes]:
    """The listed collections as JSON by prefix, without what drawing does not need."""
    found = {}
    for member, content in members(tarball, lambda m: collection_of(m) in listed):
        raw = json.loads(content)
        found[str(collection_of(member))] = _compact({k: raw[k] for k in NEEDED if k in raw})
    return found


def _only_shown(
    tarballs: dict[str, Path], texts: dict[str, bytes], listed: dict[str, Any], world: World
) -> dict[str, bytes]:
    """The collections of withheld families, with the icons alone that a benchmark shows."""
    whole = {p: json.loads(t) for p, t in texts.items() if world.family(p) in world.withheld}
    collections = {p: describe(world, p, listed[p], raw) for p, raw in whole.items()}
    icons = tuple(Drawn(p, name, "", 0, "") for p, c in collections.items() for name in c.names)
    emoji, phosphor = read_emoji(tarballs["emoji"]), read_phosphor(tarballs["phosphor"])
    shown: dict[str, set[str]] = {prefix: set() for prefix in whole}
    for benchmark in make_benchmarks(
        world, collections, Rastered(Path(), 0, icons, {}), emoji, phosphor
    ):
        for item in (*benchmark.test, *benchmark.train):
            shown[item.icon.prefix].add(item.icon.name)
    for prefix, raw in whole.items():
        raw["icons"] = {k: icon for k, icon in raw["icons"].items() if k in shown[prefix]}
    return {prefix: _compact(raw) for prefix, raw in whole.items()}


def _member(tarball: Path, name: str) -> bytes:
    for _, content in members(tarball, name.__eq__):
        return content
    raise DataError(f"{tarball.name} holds no {name}")


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _squeeze(item: tuple[str, bytes]) -> bytes:
    return lzma.compress(item[1], preset=6)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)  # mtime, owner: zero, so the bytes are the same
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _tgz(files: dict[str, bytes]) -> bytes:
    """As a registry serves a package, so that the readers of packages read it."""
    return gzip.compress(_tar(files), mtime=0)


def prepare(
    path: Path,
    root: Path,
    size: int,
    workers: int | None = None,
    world: World = WORLD,
    progress: Progress = silent,
) -> None:
    """Build the data of a pack in `root` unless they are there, as `jest data build` does.

    Their world is named by the pack's own hash: runs on them do not pass for runs on all icons.
    Raises DataError for a file that is no pack.
    """
    try:
        chosen = selection_of(world, integrity(path))
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
    if is_built(root, chosen, size):
        return
    tarballs = _unpack(path, root / ".cache", set(world.packages))
    build(root, size=size, workers=workers, world=chosen, progress=progress, tarballs=tarballs)


def _unpack(path: Path, cache: Path, packages: set[str]) -> dict[str, Path]:
    """Packages and collections into `cache`, where a build looks for them; returns the packages.

    Raises DataError for what is no pack. No name in the file becomes a path unless it is as above.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            about = json.loads(_read(tar, tar.getmember("pack.json")))
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, not {FORMAT}")
            for member in tar:
                if member.isfile() and _NAME.fullmatch(member.name):
                    save_bytes(cache / member.name.removesuffix(".xz"), _read(tar, member))
    except OSError as error:
        raise explain_os_error(error, f"unpacking {path}") from error
    except (tarfile.TarError, lzma.LZMAError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a pack of the GPU lab: {error}") from None
    tarballs = {name: cache / "packages" / f"{name}.tgz" for name in packages}
    missing = sorted(name for name, tarball in tarballs.items() if not tarball.is_file())
    if missing:
        raise DataError(f"{path} is not a pack of the GPU lab: it lacks {', '.join(missing)}")
    return tarballs


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None or member.size > LARGEST:
        raise ValueError(f"{member.name} is no file, or larger than this reader takes")
    content = file.read()
    if not member.name.endswith(".xz"):
        return content
    unpacker = lzma.LZMADecompressor(memlimit=1 << 28)
    content = unpacker.decompress(content, max_length=LARGEST)
    if not unpacker.eof:
        raise ValueError(f"{member.name} is cut off, or larger than this reader takes")
    return content
