"""A miniature of the icon packages: a few SVGs in tarballs as a registry serves them."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestcli.icons.fetch import integrity
from jestcli.icons.spec import WORLD, Package, Source, World

THINGS = ("cat", "dog", "bell", "key", "cloud", "truck", "gift", "camera", "flower", "boat")
EMOJI = {
    "1f408": ("cat", ["pet"], 3),
    "1f415": ("dog", ["pet", "puppy"], 3),
    "1f33b": ("flower", ["garden"], 3),
    "1f514": ("bell", ["break", "church"], 7),
    "1f511": ("key", ["lock", "password"], 7),
    "2601": ("cloud", ["weather"], 5),
    "1f381": ("gift", ["birthday", "present"], 6),
    "1f35e": ("bread", ["loaf"], 4),
    "1f35a": ("rice", ["cooked"], 4),
    "1f1e8-1f1f1": ("flag: Chile", ["CL", "flag"], 9),
}
EMOJI_NAMES = [label for label, _, group in EMOJI.values() if group != 9]


def drawing(seed: str) -> str:
    """An SVG body that no other seed draws: a few random shapes."""
    dice = random.Random(seed)
    shapes = []
    for _ in range(5):
        x, y, w, h = (dice.randint(1, 9) for _ in range(4))
        fill = "currentColor" if dice.random() < 0.5 else f"#{dice.randrange(0xC00000):06x}"
        shapes.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{fill}"/>')
    return "".join(shapes)


def collection(prefix: str, names: list[str], **more: Any) -> dict[str, Any]:
    """One collection's JSON; `more` may replace bodies (bodies=), or add keys."""
    bodies: dict[str, str] = more.pop("bodies", {})
    icons = {name: {"body": bodies.get(name) or drawing(f"{prefix}/{name}")} for name in names}
    return {"prefix": prefix, "icons": icons, "width": 16, "height": 16, **more}


def collections() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """prefix -> (what collections.json says, the collection)."""
    chars = {code: label for code, (label, _, group) in EMOJI.items() if group != 9}
    chars["1f1e8-1f1f1"] = "flag-chile"
    emoji = [*EMOJI_NAMES, "flag-chile"]
    weights = ["", "-fill", "-duotone", "-bold"]
    stuff = [f"{thing}-{n}" for thing in THINGS for n in range(8)]
    made: dict[str, tuple[str, str, dict[str, Any]]] = {
        "twemoji": ("CC-BY-4.0", "Emoji", collection("twemoji", emoji, chars=chars)),
        "noto": ("Apache-2.0", "Emoji", collection("noto", EMOJI_NAMES)),
        "lucide": ("ISC", "UI 24px", collection("lucide", ["cat", "truck"])),
        "tabler": ("MIT", "UI 24px", collection("tabler", ["cat", "boat", "boat-filled"])),
        "mdi": ("Apache-2.0", "Material", collection("mdi", ["flower", "boat", "alpha-a"])),
        "stuff": (
            "MIT",
            "UI 24px",
            collection(
                "stuff",
                [*stuff, "copied-bell", "nothing"],
                bodies={"copied-bell": drawing("lucide/cat"), "nothing": "<g/>"},
                aliases={
                    "kitty": {"parent": "cat-0"},
                    "mirror": {"parent": "dog-0", "hFlip": True},
                },
            ),
        ),
        "brands": ("MIT", "Logos", collection("brands", ["acme", "initech"])),
        "closed": ("GPL-3.0", "UI 24px", collection("closed", ["cat"])),
        "ph": (
            "MIT",
            "UI 24px",
            collection(
                "ph",
                [f"{thing}{weight}" for thing in THINGS for weight in weights],
                bodies={"boat-fill": drawing("stuff/boat-3")},
            ),
        ),
        "heroicons": (
            "MIT",
            "UI 24px",
            collection(
                "heroicons", [f"{t}{w}" for t in THINGS[:6] for w in ("", "-solid", "-20-solid")]
            ),
        ),
        "iconoir": ("MIT", "UI 24px", collection("iconoir", [*THINGS[2:], "solo"])),
        "fluent-emoji": ("MIT", "Emoji", collection("fluent-emoji", EMOJI_NAMES)),
        "fluent-emoji-flat": (
            "MIT",
            "Emoji",
            collection("fluent-emoji-flat", EMOJI_NAMES, chars=chars),
        ),
        "fluent-emoji-high-contrast": (
            "MIT",
            "Emoji",
            collection("fluent-emoji-high-contrast", EMOJI_NAMES),
        ),
    }
    return {
        prefix: (
            {"name": prefix.title(), "license": {"spdx": licence}, "category": category},
            content,
        )
        for prefix, (licence, category, content) in made.items()
    }


def tarball(path: Path, files: dict[str, Any]) -> Path:
    """A .tgz as `npm pack` makes it: JSON (or text) members under package/."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@dataclass(frozen=True)
class Miniature:
    """A small world, and a fetcher that serves its packages from a folder."""

    world: World
    folder: Path

    def fetcher(self, package: Package, into: Path, tools: Path) -> Path:
        path = self.folder / f"{package.name.rpartition('/')[2]}.tgz"
        return Path(shutil.copy(path, into / path.name))


def make_miniature(
    folder: Path, change: Callable[[dict[str, tuple[Any, Any]]], None] | None = None
) -> Miniature:
    """Write the packages; `change` may edit the collections first."""
    icons = collections()
    if change:
        change(icons)
    emoji = [
        {"label": label, "tags": tags, "group": group, "hexcode": code.upper()}
        for code, (label, tags, group) in EMOJI.items()
    ]
    phosphor = ",\n".join(
        f'{{ name: "{thing}", pascal_name: "X", tags: ["*new*", "nice {thing}", "thing"] }}'
        for thing in THINGS
    )
    files: dict[str, dict[str, Any]] = {
        "icons": {
            "collections.json": {prefix: about for prefix, (about, _) in icons.items()},
            **{f"json/{prefix}.json": content for prefix, (_, content) in icons.items()},
        },
        "emoji": {"en/data.json": emoji},
        "lucide": {"tags.json": {"cat": ["animal", "pet"], "truck": ["car"]}},
        "tabler": {
            "icons.json": [{"name": "cat", "tags": ["feline"]}, {"name": "boat", "tags": ["ship"]}]
        },
        "phosphor": {"dist/index.mjs": phosphor},
    }
    packages = {}
    for name, content in files.items():
        path = tarball(folder / f"{name}.tgz", content)
        packages[name] = Package(f"@fake/{name}", "1.0.0", integrity(path))
    tweaked = dataclasses.replace(
        WORLD,
        packages=packages,
        levels={
            "strong": (Source("twemoji", "emoji"), Source("lucide", "lucide")),
            "strong++": (
                Source("twemoji", "emoji"),
                Source("lucide", "lucide"),
                Source("noto", "emoji"),
                Source("tabler", "tabler", (r"-filled$",)),
            ),
            "moderate": (Source("mdi", "name", (r"^alpha-",)),),
        },
        smallest_pool=10,
        weak_size=20,
        shard_size=40,
    )
    return Miniature(tweaked, folder)
