"""Read webdataset shards, the embedded ones and a user's own, through one reader.

Their content is untrusted: only images (PNG, JPEG, WebP), UTF-8 text and JSON are looked at, by
handlers named here; no other member is opened, nothing is unpickled, nothing is written. A sample
that cannot be read is skipped, counted by reason, and reported.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from jestcli.data.bad_samples import BadSample
from jestcli.data.sources import Loading, ShardError, expand_urls, opened
from jestcli.data.tar import IMAGES, LARGEST_TEXT, TEXTS, ShardIndex, read_members, scan
from jestcli.utils.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_IMAGE = 100_000_000  # pixels
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

    A sample needs an image and a caption: the JSON's "captions" (a list), or its "caption", or the
    lines of .txt; or a class number in .cls. A shard that breaks off keeps what came before. Raises
    DataError when no shard can be read.
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
                index = scan(file, TEXTS)
                for reason, count in index.faults.items():
                    report.skip(reason, url, count)
                for number in range(len(index)):
                    pair = _decoded(file, index, number, url, report)
                    if pair is not None:
                        yield pair
        except ShardError as error:
            problems.append(f"{url}: {error}")
            report.skip("unreadable shard", url)
    if len(problems) == len(shards):
        raise DataError(f"no shard could be read; the first: {problems[0]}")


def _decoded(
    file: IO[bytes], index: ShardIndex, number: int, url: str, report: Report
) -> Pair | None:
    try:
        pair = decode(read_members(file.fileno(), index, number, url))
    except BadSample as reason:
        report.skip(str(reason), f"{url}:{index.keys[number]}")
        return None
    report.read += 1
    return pair


def decode(sample: dict[str, Any], least: int | None = None) -> Pair:
    """Decode one raw sample. Raises BadSample with the reason when it cannot be used.

    least: pixels of the shorter side that are enough (see `decode_image`).
    """
    key, captions, meta = words_of(sample)
    if not captions and "cls" not in meta:
        raise BadSample("no caption")
    extension = next((each for each in IMAGES if each in sample), None)
    if extension is None:
        raise BadSample("no image")
    return Pair(
        key=key,
        url=str(sample.get("__url__", "")),
        image=decode_image(sample[extension], least),
        captions=captions,
        meta=meta,
    )


def words_of(sample: dict[str, Any]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Key, captions and JSON of a raw sample, its image unread. Raises BadSample."""
    meta = _meta(sample)
    key = meta.get("key")
    key = key if isinstance(key, str) and key else str(sample.get("__key__", ""))
    return key, _captions(sample, meta), meta


def decode_image(content: bytes, least: int | None = None) -> Image.Image:
    """PNG, JPEG or WebP bytes to an RGB image, transparency on white. Raises BadSample.

    least: a JPEG is decoded at a half, a quarter or an eighth of its size, as long as the shorter
    side keeps so many pixels: several times as fast, and nearly the image that was resized to it.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > LARGEST_IMAGE:
            raise BadSample("image too large")
        if least is not None and image.format == "JPEG":
            scale = least / min(image.size)
            image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        if image.mode == "RGB":
            image.load()
            return image
        if image.mode == "P" or "transparency" in image.info or "A" in image.getbands():
            image = image.convert("RGBA")
            canvas = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(canvas, image).convert("RGB")
        return image.convert("RGB")
    except BadSample:
        raise
    except Image.DecompressionBombError:
        raise BadSample("image too large") from None
    except Exception:  # Pillow raises many kinds on broken files
        raise BadSample("broken image") from None


def fit(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> uint8 [size, size, 3]: shorter side to `size`, centre crop; as is if it fits."""
    if image.size != (size, size):
        scale = size / min(image.size)
        width = max(size, round(image.width * scale))
        height = max(size, round(image.height * scale))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def _meta(sample: dict[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if "json" in sample:
        try:
            found = json.loads(_text(sample["json"]))
        except (ValueError, RecursionError):
            raise BadSample("broken json") from None
        if not isinstance(found, dict):
            raise BadSample("json is not an object")
        meta = found
    meta.pop("cls", None)
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


def _captions(sample: dict[str, Any], meta: dict[str, Any]) -> tuple[str, ...]:
    found: list[Any] = []
    listed = meta.get("captions")
    if isinstance(listed, list):
        found = listed
    elif "txt" in sample:
        found = _text(sample["txt"]).splitlines()
    elif "caption" in meta:
        found = [meta["caption"]]
    texts = (each.strip() for each in found[:MOST_CAPTIONS] if isinstance(each, str))
    return tuple(text[:LONGEST_CAPTION] for text in texts if text)
