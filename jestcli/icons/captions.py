"""Words for images: icon names, emoji labels and tags, and the captions made of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestcli.icons.draw import Collection
from jestcli.icons.fetch import read_json, read_text

LONG_CAPTION_WORDS = 12
SINGLE_TAGS = 3
EMOJI_GROUPS = (
    *("smileys-emotion", "people-body", "component", "animals-nature", "food-drink"),
    *("travel-places", "activities", "objects", "symbols", "flags"),
)


@dataclass(frozen=True)
class Words:
    """What is said of one picture: a label, tags, and for emoji the group they belong to."""

    label: str
    tags: tuple[str, ...] = ()
    group: str = ""


def name_caption(name: str) -> str:
    """An icon's name as its caption: hyphens to spaces, nothing else cleaned."""
    return name.replace("-", " ")


def captions_of(words: Words) -> list[str]:
    """Caption 0: the label; 1: label and tags, up to 12 words; then up to three single tags."""
    captions, parts = [words.label], [words.label]
    used = len(words.label.split())
    for tag in words.tags:
        used += len(tag.split())
        if used > LONG_CAPTION_WORDS:
            break
        if tag.lower() != words.label.lower():
            parts.append(tag)
    if len(parts) > 1:
        captions.append(", ".join(parts))
    label = words.label.lower()
    captions += [tag for tag in words.tags if tag.lower() not in label][:SINGLE_TAGS]
    return list(dict.fromkeys(captions))


def slug(label: str) -> str:
    """A label as an icon would be named: ascii, lower case, hyphens."""
    text = unicodedata.normalize("NFKD", label.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", text.replace("'", "")).strip("-")


@dataclass(frozen=True)
class Emoji:
    """Base emoji (no skin tones) by code points, and their code points by slug of the label."""

    words: dict[str, Words]
    codes: dict[str, str]

    def find(self, collection: Collection) -> dict[str, str]:
        """Icon name -> code points, for the icons of a set that are base emoji; each emoji once.

        The set's own table of code points comes first, then the name compared with the labels."""
        found: dict[str, str] = {}
        by_table = {n: code for n, code in collection.characters.items() if code in self.words}
        by_label = {n: self.codes[n] for n in collection.names if n in self.codes}
        names, taken = set(collection.names) - collection.hidden, set()
        for name, code in (*sorted(by_table.items()), *sorted(by_label.items())):
            if name in names and code not in taken and name not in found:
                found[name] = code
                taken.add(code)
        return found


def read_emoji(tarball: Path) -> Emoji:
    """Labels, tags and groups of all base emoji. Raises DataError."""
    words: dict[str, Words] = {}
    for entry in read_json(tarball, "package/en/data.json"):
        if entry.get("group") is None:  # lone regional indicators
            continue
        code = "-".join(part for part in entry["hexcode"].lower().split("-") if part != "fe0f")
        label = entry["label"]
        words[code] = Words(label, tuple(entry.get("tags", ())), EMOJI_GROUPS[entry["group"]])
    return Emoji(words, {slug(about.label): code for code, about in words.items()})


def read_lucide(tarball: Path) -> dict[str, Words]:
    """Words by icon name. Raises DataError."""
    return _tagged(read_json(tarball, "package/tags.json").items())


def read_tabler(tarball: Path) -> dict[str, Words]:
    """Words by icon name. Raises DataError."""
    table: Any = read_json(tarball, "package/icons.json")
    icons = table.values() if isinstance(table, dict) else table
    return _tagged((icon["name"], icon.get("tags", ())) for icon in icons)


_ENTRY = re.compile(r'name: "([a-z0-9-]+)",\s*pascal_name:.*?tags: \[(.*?)\]', re.DOTALL)


def read_phosphor(tarball: Path) -> dict[str, Words]:
    """Words by icon name, read from the package's JavaScript as text. Raises DataError."""
    entries = _ENTRY.findall(read_text(tarball, "package/dist/index.mjs"))
    listed = ((name, re.findall(r'"([^"]*)"', tags)) for name, tags in entries)
    return _tagged((name, [tag for tag in tags if tag[:1] != "*"]) for name, tags in listed)


def _tagged(entries: Iterable[tuple[str, Iterable[Any]]]) -> dict[str, Words]:
    """Words of (name, tags): the tags as text, in order, without repeats and empty ones."""
    found = {}
    for name, tags in entries:
        texts = (str(tag).replace("-", " ").strip() for tag in tags)
        found[name] = Words(name_caption(name), tuple(dict.fromkeys(t for t in texts if t)))
    return found
