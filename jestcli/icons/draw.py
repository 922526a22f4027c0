"""Fetch the icon package and draw every collection that the world uses, in parallel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jestcli.icons.fetch import members, read_json
from jestcli.icons.rasterize import UNIT, Unit, collection_of, draw_unit, resvg_version
from jestcli.icons.spec import World
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.io import save_text
from jestcli.utils.parallel import Progress, unordered
from jestcli.utils.reading import parse_json


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

    @property
    def key(self) -> str:
        return f"{self.prefix}/{self.name}"


@dataclass(frozen=True)
class Rastered:
    """All drawn icons: the cache folder, and what it holds."""

    cache: Path
    size: int
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


def usable_collections(world: World, tarball: Path) -> dict[str, dict[str, Any]]:
    """Descriptions of the collections whose licence the world allows, by prefix."""
    described = read_json(tarball, "package/collections.json")
    return {
        prefix: about
        for prefix, about in described.items()
        if not any(word in licence_of(about) for word in world.excluded_licences)
    }


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
    world: World,
    tarball: Path,
    cache: Path,
    size: int,
    workers: int | None,
    progress: Progress,
) -> tuple[dict[str, Collection], Rastered]:
    """Draw every icon that the world allows; what the cache holds already is not drawn again.

    Returns the collections by prefix and the drawn icons. Raises DataError.
    """
    text = f"{tarball.name} {size} {resvg_version()} 1"
    name = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    rasters, sources = cache / f"rasters-{size}-{name}", cache / "collections"
    about = usable_collections(world, tarball)
    try:
        sources.mkdir(parents=True, exist_ok=True)
        rasters.mkdir(parents=True, exist_ok=True)
        missing = {prefix for prefix in about if not (sources / f"{prefix}.json").exists()}
        found = 0
        if missing:
            wanted = members(tarball, lambda member: collection_of(member) in missing)
            for member, content in wanted:
                save_text(sources / f"{collection_of(member)}.json", content.decode("utf-8"))
                found += 1
                progress("unpack", found, len(missing))
    except OSError as error:
        raise explain_os_error(error, "unpacking the icon package") from error

    collections: dict[str, Collection] = {}
    units: list[Unit] = []
    for prefix in sorted(about):
        source = sources / f"{prefix}.json"
        if not source.exists():
            raise DataError(f"the icon package lists {prefix} but holds no such collection")
        collection = describe(world, prefix, about[prefix], parse_json(source.read_text()))
        collections[prefix] = collection
        units += [
            Unit(prefix, start, min(start + UNIT, len(collection.names)), source, rasters, size)
            for start in range(0, len(collection.names), UNIT)
        ]
    _draw_units(units, workers, progress)

    icons: list[Drawn] = []
    failed: dict[str, str] = {}
    for each in units:
        index = parse_json((rasters / f"{each.name}.json").read_text())
        for row, (icon, digest) in enumerate(zip(index["names"], index["digests"], strict=True)):
            icons.append(Drawn(each.prefix, icon, each.name, row, digest))
        failed |= {f"{each.prefix}/{icon}": why for icon, why in index["failed"].items()}
    return collections, Rastered(rasters, size, tuple(icons), failed)


def _draw_units(units: list[Unit], workers: int | None, progress: Progress) -> None:
    total = sum(unit.stop - unit.start for unit in units)
    waiting = [unit for unit in units if not unit.done]
    done = total - sum(unit.stop - unit.start for unit in waiting)
    progress("draw", done, total)
    waiting.sort(key=lambda unit: unit.start - unit.stop)  # big ones first
    for unit, _ in unordered(draw_unit, waiting, workers):
        done += unit.stop - unit.start
        progress("draw", done, total)
