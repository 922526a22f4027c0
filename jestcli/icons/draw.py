"""Fetch the icon package and draw every collection that the world uses, in parallel.

Icons are SVG bodies of a collection; they become uint8 rasters in resumable units, of up to `UNIT`
icons of one collection. A unit's files in the cache are `<unit>.npy` (uint8 [n, S, S, 3]),
`<unit>.signatures.npy` (uint8 [n, 768], see leakage.py) and `<unit>.json` (names, raster digests,
and what could not be drawn), the last written last."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jestcli.icons.fetch import members, read_json
from jestcli.icons.leakage import raster_digest, signatures
from jestcli.icons.spec import World
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.io import save_array, save_text
from jestcli.utils.parallel import unordered
from jestcli.utils.progress import Progress
from jestcli.utils.reading import parse_json

UNIT = 4_000
_MEMBER = re.compile(r"package/json/([a-z0-9]+(?:-[a-z0-9]+)*)\.json")


@dataclass(frozen=True)
class Unit:
    """A piece of work: icons [start, stop) of the collection in `source` (a JSON file)."""

    prefix: str
    start: int
    stop: int
    source: Path
    cache: Path
    size: int

    @property
    def name(self) -> str:
        return f"{self.prefix}-{self.start:06d}"

    @property
    def done(self) -> bool:
        return (self.cache / f"{self.name}.json").exists()


def resvg_version() -> str:
    """Version of the renderer: another one may draw other pixels."""
    return importlib.metadata.version("resvg_py")


def collection_of(member: str) -> str | None:
    """The collection prefix of a tarball member that is one, else None."""
    match = _MEMBER.fullmatch(member)
    return match.group(1) if match else None


def icon_svg(collection: dict[str, Any], icon: dict[str, Any]) -> str:
    """An icon's SVG text: black where it has no colour of its own."""
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    box = [icon.get(side, collection.get(side, value)) for side, value in defaults.items()]
    body = icon["body"].replace("currentColor", "#000")
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' "
        f"viewBox='{' '.join(str(value) for value in box)}'>{body}</svg>"
    )


def draw(svg: str, size: int) -> np.ndarray:
    """Render SVG text on white, centred: uint8 [size, size, 3]. Raises ValueError on a bad SVG."""
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    if image.size != (size, size):
        canvas = Image.new("RGB", (size, size), "white")
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    return np.asarray(image)


def draw_unit(unit: Unit) -> str:
    """Draw one unit into its cache and return its name. Meant for a worker process."""
    collection = parse_json(unit.source.read_text())
    icons = list(collection["icons"].items())[unit.start : unit.stop]
    images = np.empty((len(icons), unit.size, unit.size, 3), np.uint8)
    names: list[str] = []
    failed: dict[str, str] = {}
    for name, icon in icons:
        try:
            raster = draw(icon_svg(collection, icon), unit.size)
        except Exception as error:  # the SVG is someone else's: any failure is that icon's alone
            failed[name] = str(error)[:200]
            continue
        if (raster == raster[0, 0]).all():
            failed[name] = "blank"
        else:
            images[len(names)] = raster
            names.append(name)
    images = images[: len(names)]
    index = {
        "prefix": unit.prefix,
        "names": names,
        "digests": [raster_digest(image) for image in images],
        "failed": failed,
    }
    try:
        unit.cache.mkdir(parents=True, exist_ok=True)
        save_array(unit.cache / f"{unit.name}.npy", images)
        save_array(unit.cache / f"{unit.name}.signatures.npy", signatures(images))
        save_text(unit.cache / f"{unit.name}.json", json.dumps(index))
    except OSError as error:
        raise explain_os_error(error, "writing drawn icons") from error
    return unit.name


@dataclass(frozen=True)
class Collection:
    """One icon collection as its package describes it, without the drawings."""

    prefix: str
    title: str
    licence: str
    category: str
    family: str
    names: tuple[str, ...]  # in the package's order; a Unit counts in it
    hidden: frozenset[str]
    aliases: dict[str, tuple[str, ...]]  # name -> its other names
    characters: dict[str, str]  # name -> emoji code points ("1f415-200d-..."), where known


@dataclass(frozen=True)
class Drawn:
    """An icon in the raster cache: row `row` of unit `unit`."""

    prefix: str
    name: str
    unit: str
    row: int
    digest: str
    collection: Collection = field(compare=False, repr=False)

    @property
    def key(self) -> str:
        return f"{self.prefix}/{self.name}"

    @property
    def hidden(self) -> bool:
        """Whether its set has retired it."""
        return self.name in self.collection.hidden


@dataclass(frozen=True)
class Rastered:
    """All drawn icons: the cache folder, and what it holds."""

    cache: Path
    size: int
    collections: dict[str, Collection]  # by prefix
    icons: tuple[Drawn, ...]
    failed: dict[str, str]  # key -> why it could not be drawn

    def signatures(self, icons: list[Drawn]) -> np.ndarray:
        """uint8 [len(icons), 768] (see leakage.py)."""
        out = np.empty((len(icons), 768), np.uint8)
        rows: dict[str, list[int]] = {}
        for position, icon in enumerate(icons):
            rows.setdefault(icon.unit, []).append(position)
        for unit, positions in rows.items():
            path = self.cache / f"{unit}.signatures.npy"
            table = np.load(path, mmap_mode="r", allow_pickle=False)
            out[positions] = table[[icons[position].row for position in positions]]
        return out


def licence_of(about: dict[str, Any]) -> str:
    """SPDX name of a collection's licence (its title where there is none)."""
    licence = about.get("license", {})
    return str(licence.get("spdx") or licence.get("title") or "unknown")


def describe(world: World, prefix: str, about: dict[str, Any], raw: dict[str, Any]) -> Collection:
    """A collection as `about` (its entry of collections.json) and `raw` (its icons) say it is."""
    aliases: dict[str, list[str]] = {}
    table = raw.get("aliases", {})
    for alias, target in table.items():
        if target.get("hidden") or {"hFlip", "vFlip", "rotate"} & set(target):
            continue  # a retired name, or another picture
        parent = target["parent"]
        for _ in range(5):  # an alias of an alias
            if parent not in table:
                break
            parent = table[parent]["parent"]
        aliases.setdefault(parent, []).append(alias)
    return Collection(
        prefix=prefix,
        title=about.get("name", prefix),
        licence=licence_of(about),
        category=about.get("category") or "Archive / Unmaintained",
        family=world.family(prefix),
        names=tuple(raw["icons"]),
        hidden=frozenset(name for name, icon in raw["icons"].items() if icon.get("hidden")),
        aliases={name: tuple(others) for name, others in aliases.items()},
        characters={
            name: "-".join(part for part in code.lower().split("-") if part != "fe0f")
            for code, name in raw.get("chars", {}).items()
        },
    )


def draw_world(
    world: World, tarball: Path, cache: Path, size: int, workers: int | None, progress: Progress
) -> Rastered:
    """Draw every icon that the world allows; what the cache holds already is not drawn again.
    Raises DataError."""
    text = f"{tarball.name} {size} {resvg_version()} 1"
    name = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    rasters, sources = cache / f"rasters-{size}-{name}", cache / "collections"
    about = {
        prefix: described
        for prefix, described in read_json(tarball, "package/collections.json").items()
        if not any(word in licence_of(described) for word in world.excluded_licences)
    }
    try:
        sources.mkdir(parents=True, exist_ok=True)
        rasters.mkdir(parents=True, exist_ok=True)
        missing = {prefix for prefix in about if not (sources / f"{prefix}.json").exists()}
        if missing:
            wanted = members(tarball, lambda member: collection_of(member) in missing)
            for found, (member, content) in enumerate(wanted, 1):
                save_text(sources / f"{collection_of(member)}.json", content.decode("utf-8"))
                progress(found, len(missing), "unpack")
    except OSError as error:
        raise explain_os_error(error, "unpacking the icon package") from error

    collections: dict[str, Collection] = {}
    units: list[Unit] = []
    for prefix in sorted(about):
        source = sources / f"{prefix}.json"
        if not source.exists():
            raise DataError(f"the icon package lists {prefix} but holds no such collection")
        collections[prefix] = describe(world, prefix, about[prefix], parse_json(source.read_text()))
        n = len(collections[prefix].names)
        for start in range(0, n, UNIT):
            units.append(Unit(prefix, start, min(start + UNIT, n), source, rasters, size))
    total = sum(unit.stop - unit.start for unit in units)
    waiting = [unit for unit in units if not unit.done]
    done = total - sum(unit.stop - unit.start for unit in waiting)
    progress(done, total, "draw")
    waiting.sort(key=lambda unit: unit.start - unit.stop)  # big ones first
    for unit, _ in unordered(draw_unit, waiting, workers):
        done += unit.stop - unit.start
        progress(done, total, "draw")

    icons: list[Drawn] = []
    failed: dict[str, str] = {}
    for each in units:
        index = parse_json((rasters / f"{each.name}.json").read_text())
        for row, (icon, digest) in enumerate(zip(index["names"], index["digests"], strict=True)):
            collection = collections[each.prefix]
            icons.append(Drawn(each.prefix, icon, each.name, row, digest, collection))
        failed |= {f"{each.prefix}/{icon}": why for icon, why in index["failed"].items()}
    return Rastered(rasters, size, collections, tuple(icons), failed)
