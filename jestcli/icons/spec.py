"""The embedded world as plain tables: which images are pool, curated or withheld, and why.

Everything else in this package is driven by this file. A change here changes the build key, so
the next `jest data build` makes the data anew."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from jestcli.utils.spelling import STYLE_WORDS


@dataclass(frozen=True)
class Package:
    """A registry package, pinned by version and by its tarball's integrity (sha512, base64)."""

    name: str
    version: str
    integrity: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Source:
    """One collection inside a curated level.

    captions: where its words come from: "emoji" (emojibase label + tags, base emoji only),
        "lucide" or "tabler" (name + the set's own tags) or "name" (the icon's name alone).
    skip: regular expressions; an icon whose name matches one is left out."""

    prefix: str
    captions: str
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class World:
    """The whole choice of data. `digest()` names it."""

    packages: dict[str, Package]
    families: dict[str, str]  # collection prefix -> art family; a prefix not named is its own
    withheld: tuple[str, ...]  # art families that only benchmarks may show
    excluded_licences: tuple[str, ...]  # a licence that contains one of these words is left out
    levels: dict[str, tuple[Source, ...]]  # curated level -> its sources
    # Levels whose rasters always leave the pool, and those that leave it only while it stays large.
    removed_from_pool: tuple[str, ...]
    removed_if_pool_allows: tuple[str, ...]
    smallest_pool: int
    level_limit: dict[str, int]  # at most so many samples of a level (first by hash order)
    weak_size: int  # size of the level "weak", a key list into the pool
    weak_without: tuple[str, ...]  # categories that "weak" leaves out
    hidden_in_pool: bool  # icons that their set has retired: real drawings with real names
    alias_captions: bool  # an icon's other human-given names become further captions
    # Benchmarks
    concept_sets: dict[str, tuple[str, ...]]  # family -> collections of `objects`
    concept_weights: tuple[str, ...]  # weights of phosphor that `objects` shows ("" is regular)
    filled_styles: tuple[str, ...]  # last words of names of icons that are filled shapes
    concept_families: int  # a class must be drawn by at least so many of those families
    style_words: tuple[str, ...]  # words that say how an icon is drawn, not what it shows
    templates: tuple[str, ...]
    near_duplicate: float  # see leakage.py
    shard_size: int = 10_000
    seed: int = 0
    extra: dict[str, str] = field(default_factory=dict)

    def family(self, prefix: str) -> str:
        """The art family of a collection."""
        return self.families.get(prefix, prefix)

    def digest(self) -> str:
        """Hash of every choice above (16 hex digits)."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


PACKAGES = {
    # 238 icon collections with human-given names: pool, curated images and benchmarks.
    "icons": Package(
        "@iconify/json",
        "2.2.535",
        "sha512-nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6OCfMNO0uVT5Vrgna9"
        "/NCmXw==",
    ),
    # Names, tags and groups of the emoji.
    "emoji": Package(
        "emojibase-data",
        "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljH"
        "sTygjA==",
    ),
    # Tags of the object sets.
    "lucide": Package(
        "lucide-static",
        "1.62.0",
        "sha512-WBZA/m2PvkFpMGHDtsBck5P2A9G4ehLlYu4GwwICcmEm1BvYVgj00lCDxKRWLlbMlOibLaiwdQ88G5pH"
        "kSWgwA==",
    ),
    "tabler": Package(
        "@tabler/icons",
        "3.51.0",
        "sha512-0pinvPZz7YeX+OSfxuEAbnEPWbocVXW5iU8h5lh41pYG8sZuQfpWECC980lxOT0clGIcNGn8xsBr+zKa"
        "RGdA/g==",
    ),
    "phosphor": Package(
        "@phosphor-icons/core",
        "2.1.1",
        "sha512-v4ARvrip4qBCImOE5rmPUylOEK4iiED9ZyKjcvzuezqMaiRASCHKcRIuvvxL/twvLpkfnEODCOJp5dM4"
        "eZilxQ==",
    ),
}

_STRONG = (Source("twemoji", "emoji"), Source("lucide", "lucide"))
_SKIN_TONE = r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?$|-tone\d|skin-tone"

LEVELS = {
    # Clean captions with tags: about 4k.
    "strong": _STRONG,
    # The same quality, larger (the paper's JEST++): about 11k.
    "strong++": (*_STRONG, Source("noto", "emoji"), Source("tabler", "tabler", (r"-filled$",))),
    # Good sets whose captions are no more than their names: about 12k.
    "moderate": (
        Source("icon-park", "name"),
        Source("flat-color-icons", "name"),
        Source("streamline-color", "name"),
        Source("healthicons", "name", (r"-(24px|negative)$", r"-outline")),
        Source("openmoji", "name", (_SKIN_TONE, r"^flag-")),
        Source("noto-v1", "name", (_SKIN_TONE,)),
        Source("mdi", "name", (r"\d", r"^alpha-", r"(^|-)(outline|box|variant)(-|$)")),
    ),
}

# Sets drawn by the same hands: one is never in training while another is in a benchmark.
_HANDS = {
    "fluent-emoji": ("fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"),
    "phosphor": ("ph",),
    "heroicons": ("heroicons", "heroicons-outline", "heroicons-solid"),
    "noto": ("noto", "noto-v1"),  # noto-v1: the "blob" drawings
    "emojione": ("emojione", "emojione-monotone", "emojione-v1"),
}

WORLD = World(
    packages=PACKAGES,
    families={prefix: family for family, sets in _HANDS.items() for prefix in sets},
    # "fxemoji" is shown by the ninth benchmark alone, which nobody looks at until the end.
    withheld=("fluent-emoji", "phosphor", "heroicons", "iconoir", "fxemoji"),
    excluded_licences=("NC", "GPL"),
    levels=LEVELS,
    removed_from_pool=("strong", "strong++"),
    removed_if_pool_allows=("moderate",),
    smallest_pool=350_000,
    level_limit={"moderate": 12_000},
    weak_size=36_000,
    weak_without=("Logos", "Programming"),
    hidden_in_pool=True,
    alias_captions=True,
    concept_sets={"phosphor": ("ph",), "heroicons": ("heroicons",), "iconoir": ("iconoir",)},
    concept_weights=("", "fill", "duotone"),
    filled_styles=("fill", "duotone", "solid"),
    concept_families=2,
    style_words=STYLE_WORDS,
    templates=("{c}", "{c} icon", "an icon of a {c}", "a {c}", "{c} emoji"),
    near_duplicate=0.03,
)
