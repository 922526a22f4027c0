"""Which drawn icon goes where: curated levels and pool. Pure functions of tables; no pixels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jestcli.icons.captions import Emoji, Words, captions_of, name_caption
from jestcli.icons.draw import Drawn, Rastered
from jestcli.icons.spec import World

WEAK = "weak"


@dataclass(frozen=True)
class Sample:
    """One image with its captions, before it is written."""

    icon: Drawn
    captions: tuple[str, ...]
    levels: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.icon.key


@dataclass(frozen=True)
class Plan:
    """Training splits in writing order."""

    pool: list[Sample]
    curated: list[Sample]
    removed: list[str]  # levels whose rasters are not in the pool


def hash_order(keys: Iterable[str], seed: int) -> list[str]:
    """Keys in a fixed pseudo-random order, the same whatever other keys there are."""
    return sorted(keys, key=lambda key: hash_rank(key, seed))


def hash_rank(key: str, seed: int) -> bytes:
    """A key's place in the pseudo-random order (16 bytes to sort by)."""
    return hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=16).digest()


def make_plan(
    world: World, drawn: Rastered, emoji: Emoji, tags: Mapping[str, Mapping[str, Words]]
) -> Plan:
    """Split every drawn icon that is not withheld into curated samples and pool.

    tags: words by icon name, for each caption kind other than "emoji" and "name"."""
    usable = [icon for icon in drawn.icons if icon.collection.family not in world.withheld]
    curated, digests = _curated(world, usable, emoji, tags)

    base = [icon for icon in usable if world.hidden_in_pool or not icon.hidden]
    removed: list[str] = []
    for level in (*world.removed_from_pool, *world.removed_if_pool_allows):
        smaller = [icon for icon in base if icon.digest not in digests[level]]
        if level in world.removed_from_pool or len(smaller) >= world.smallest_pool:
            base = smaller
            removed.append(level)

    allowed = [icon.key for icon in base if icon.collection.category not in world.weak_without]
    weak = set(hash_order(allowed, world.seed + 1)[: world.weak_size])
    pool = []
    for icon in base:
        aliases = icon.collection.aliases if world.alias_captions else {}
        names = (icon.name, *aliases.get(icon.name, ()))
        captions = tuple(dict.fromkeys(map(name_caption, names)))
        pool.append(Sample(icon, captions, (WEAK,) if icon.key in weak else ()))
    for samples in (pool, curated):
        samples.sort(key=lambda sample: hash_rank(sample.key, world.seed))
    return Plan(pool, curated, removed)


def _curated(
    world: World, usable: list[Drawn], emoji: Emoji, tags: Mapping[str, Mapping[str, Words]]
) -> tuple[list[Sample], dict[str, set[str]]]:
    """Curated samples with their levels, and the raster digests of each level.

    Inside a level every raster occurs once; a sample that is in several levels has the captions of
    the first level in the table that names it."""
    by_prefix: dict[str, list[Drawn]] = {}
    for icon in usable:
        if not icon.hidden:
            by_prefix.setdefault(icon.prefix, []).append(icon)
    captions: dict[str, tuple[str, ...]] = {}
    levels: dict[str, list[str]] = {}
    icons: dict[str, Drawn] = {}
    digests: dict[str, set[str]] = {}
    for level, sources in world.levels.items():
        chosen: dict[str, Drawn] = {}
        for source in sources:
            here = by_prefix.get(source.prefix, [])
            words: Mapping[str, Words] | None = None  # the names themselves
            if source.captions == "emoji" and here:
                codes = emoji.find(here[0].collection)
                words = {name: emoji.words[code] for name, code in codes.items()}
            elif source.captions not in ("emoji", "name"):
                words = tags[source.captions]
            for icon in here:
                if any(re.search(pattern, icon.name) for pattern in source.skip):
                    continue
                if words is None:
                    captions.setdefault(icon.key, (name_caption(icon.name),))
                elif icon.name in words:
                    captions.setdefault(icon.key, tuple(captions_of(words[icon.name])))
                else:
                    continue
                chosen[icon.key] = icon
        first: dict[str, Drawn] = {}  # of each raster
        for key in hash_order(chosen, world.seed):
            first.setdefault(chosen[key].digest, chosen[key])
        kept = list(first.values())[: world.level_limit.get(level)]
        digests[level] = {icon.digest for icon in kept}
        for icon in kept:
            levels.setdefault(icon.key, []).append(level)
            icons[icon.key] = icon
    samples = [Sample(icon, captions[key], tuple(levels[key])) for key, icon in icons.items()]
    return samples, digests
