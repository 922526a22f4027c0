"""Read webdataset shards, the embedded ones and a user's own, through one reader.

Their content is untrusted: only images (PNG, JPEG, WebP), UTF-8 text and JSON are looked at, by
handlers named here; no other member is opened, nothing is unpickled, nothing is written. A sample
that cannot be read is skipped, counted by reason, and reported.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from jestcli.data.bad_samples import BadSample
from jestcli.data.fetch import opened
from jestcli.data.images import decode_image
from jestcli.data.remote import ShardError
from jestcli.data.sources import Loading, expand_urls
from jestcli.data.tar import LARGEST_TEXT, read_members, scan
from jestcli.utils.errors import DataError
from jestcli.utils.layout import BY_LINE, IMAGES, PLAIN, TEXTS, Layout
from jestcli.utils.reading import parse_json

LONGEST_CAPTION = 2_000  # characters; the rest is cut
MOST_CAPTIONS = 64

logger = logging.getLogger(__name__)


@dataclass
class Report:
    """Counts what a reader met; the only mutable thing here."""

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, where: str, count: int = 1) -> None:
        if reason not in self.examples:
            self.examples[reason] = where
            logger.warning("skipped %s: %s (more of the same are counted only)", where, reason)
        self.skipped[reason] += count

    def merge(self, other: Report) -> None:
        self.read += other.read
        self.skipped.update(other.skipped)
        self.examples = other.examples | self.examples

    def line(self) -> str:
        """One line for a person."""
        if not self.skipped:
            return f"{self.read:,} samples read, none skipped"
        reasons = ", ".join(f"{count:,} {why}" for why, count in self.skipped.most_common())
        return f"{self.read:,} samples read, {self.skipped.total():,} skipped ({reasons})"


@dataclass(frozen=True)
class Pair:
    """One image with its captions, as read from a shard."""

    key: str  # the JSON's "key" where there is one, else the member's name
    url: str  # the shard
    image: Image.Image  # RGB, decoded
    captions: tuple[str, ...]  # at least one, unless the sample is labelled (meta["cls"])
    meta: dict[str, Any]  # the JSON object, {} where there is none; "cls": int of a .cls member


def read_shards(urls: str | Path | Sequence[str], report: Report | None = None) -> Iterator[Pair]:
    """Yield decoded image-caption pairs, in the shards' order; broken ones are skipped, counted.

    A sample needs an image and a caption (see `BY_LINE`), or a class number in .cls. Of a damaged
    shard all is read that can be. Raises DataError when no shard can be read.
    """
    report = report if report is not None else Report()
    shards = expand_urls(urls)
    if not shards:
        raise DataError("no shards given: name a tar file, or a pattern like data-{000..099}.tar")
    problems = []
    for url in shards:
        try:
            # Indexed anew, not from a kept index: what is read once needs no memory of it.
            with opened(url, Loading()) as file:
                index = scan(file, BY_LINE, TEXTS)
                for reason, count in index.faults.items():
                    report.skip(reason, url, count)
                for number, key in enumerate(index.keys):
                    try:
                        sample = read_members(file.fileno(), index, number, url)
                        pair = decode(sample, None, BY_LINE)
                    except BadSample as reason:
                        report.skip(str(reason), f"{url}:{key}")
                        continue
                    report.read += 1
                    yield pair
        except ShardError as error:
            problems.append(f"{url}: {error}")
            report.skip("unreadable shard", url)
    if len(problems) == len(shards):
        raise DataError(f"no shard could be read; the first: {problems[0]}")


def decode(sample: dict[str, Any], least: int | None = None, layout: Layout = PLAIN) -> Pair:
    """Decode one raw sample. Raises BadSample with the reason when it cannot be used.

    least: pixels of the shorter side that are enough (see `decode_image`).
    """
    key, captions, meta = words_of(sample, layout)
    if not captions and "cls" not in meta:
        raise BadSample("no caption")
    content = next((sample[each] for each in IMAGES if each in sample), None)
    if content is None:
        raise BadSample("no image")
    url = str(sample.get("__url__", ""))
    return Pair(key, url, decode_image(content, least), captions, meta)


def words_of(
    sample: dict[str, Any], layout: Layout = PLAIN
) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Key, captions and JSON of a raw sample, its image unread. Raises BadSample."""
    meta = _meta(sample)
    key = meta.get("key")  # tools that write shards number the members, and put the name here
    key = _whole(key) if isinstance(key, str) and key else str(sample.get("__key__", ""))
    return key, _captions(sample, meta, layout), meta


def _meta(sample: dict[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if "json" in sample:
        try:
            meta = parse_json(_text(sample["json"]))
        except ValueError:
            raise BadSample("broken json") from None
        if not isinstance(meta, dict):
            raise BadSample("json is not an object")
    meta.pop("cls", None)  # a label comes from its own member alone
    if "cls" in sample:
        number = re.fullmatch(r"\s*(\d{1,9})\s*", _text(sample["cls"]))
        if number is None:
            raise BadSample("broken class number")
        meta["cls"] = int(number.group(1))
    return meta


def _text(content: bytes) -> str:
    if len(content) > LARGEST_TEXT:
        raise BadSample("text too large")
    try:
        return bytes(content).decode("utf-8")
    except UnicodeDecodeError:
        raise BadSample("text is not utf-8") from None


def _captions(sample: dict[str, Any], meta: dict[str, Any], layout: Layout) -> tuple[str, ...]:
    found: list[Any] = []
    listed = meta.get(layout.field or "captions")
    if layout.field is not None:  # a misspelt one must not fall back to another caption
        if layout.field not in meta:
            raise BadSample(f"no {layout.field!r} in the json")
        found = listed if isinstance(listed, list) else [listed]
    elif isinstance(listed, list):
        found = listed
    elif "txt" in sample:
        lines = [line.strip() for line in _text(sample["txt"]).splitlines()]
        # In clip-benchmark's files a line is a caption; elsewhere one caption may have line breaks.
        found = lines if layout.lines else [" ".join(filter(None, lines))]
    elif "caption" in meta:
        found = [meta["caption"]]
    texts = (_whole(each.strip()) for each in found[:MOST_CAPTIONS] if isinstance(each, str))
    return tuple(text[:LONGEST_CAPTION] for text in texts if text)


def _whole(text: str) -> str:
    """Without the halves of characters that JSON can spell and no file can hold."""
    return text.encode("utf-8", "replace").decode()
