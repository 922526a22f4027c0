"""Read webdataset shards, the embedded ones and a user's own, through one reader.

Their content is untrusted: only images (PNG, JPEG, WebP), UTF-8 text and JSON are looked at, by
handlers named here; no other member is opened, nothing is unpickled, nothing is written. A sample
that cannot be read is skipped, counted by reason, and reported.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from jestcli.utils.errors import DataError

IMAGES = ("png", "jpg", "jpeg", "webp")
FORMATS = ("PNG", "JPEG", "WEBP")
TEXTS = ("txt", "json", "cls")
LARGEST_IMAGE = 100_000_000  # pixels
LARGEST_TEXT = 1_000_000  # bytes of .txt or .json
LONGEST_CAPTION = 2_000  # characters; the rest is cut
MOST_CAPTIONS = 64

logger = logging.getLogger(__name__)


class Skip(Exception):
    """A sample cannot be used; the message is the reason it is counted under."""


@dataclass
class Report:
    """Counts what a reader met; the only mutable thing here."""

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, where: str) -> None:
        if reason not in self.examples:
            self.examples[reason] = where
            logger.warning("skipped %s: %s (more of the same are counted only)", where, reason)
        self.skipped[reason] += 1

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


def expand_urls(urls: str | Sequence[str]) -> list[str]:
    """Brace patterns and `::` lists to single shards, as webdataset reads them; in order."""
    import webdataset.shardlists as shardlists

    given = [urls] if isinstance(urls, str) else list(urls)
    return [each for url in given for each in _expand(url, shardlists.expand_urls)]


def _expand(url: str, expand: Callable[[str], list[str]]) -> list[str]:
    if url.startswith("pipe:") and "{" not in url:
        return [url]  # a shell command may hold "::" and "$"
    return list(expand(url))


def read_samples(
    urls: str | Sequence[str], report: Report | None = None
) -> Iterator[dict[str, Any]]:
    """Yield raw samples (member extension -> bytes, `__key__`, `__url__`), in the shards' order.

    Paths, brace patterns, `pipe:` and http URLs work as webdataset opens them. Members of other
    kinds are dropped unread. A shard that breaks off is counted as "unreadable shard"; what came
    before is kept. Raises DataError when not one shard can be opened.
    """
    from webdataset import tariterators

    report = report if report is not None else Report()
    shards = expand_urls(urls)
    if not shards:
        raise DataError("no shards given: name a tar file, or a pattern like data-{000..099}.tar")
    problems: list[str] = []
    opened = 0
    for url in shards:
        current: list[BaseException] = []
        handler = functools.partial(_note, current)
        stream = tariterators.url_opener(iter([{"url": url}]), handler=handler)
        files = tariterators.tar_file_expander(stream, handler=handler, select_files=_wanted)
        count = 0
        for sample in tariterators.group_by_keys(files, handler=handler):
            count += 1
            yield sample
        for error in current:
            problems.append(f"{url}: {_plain(error)}")
        duplicates = sum("duplicate file name" in str(error) for error in current)
        for _ in range(duplicates):
            report.skip("duplicate member", url)
        if len(current) > duplicates:  # one broken tar may be complained of twice
            report.skip("unreadable shard", url)
        opened += bool(count) or not current
    if not opened:
        raise DataError(f"no shard could be read; the first: {problems[0]}")


def _note(into: list[BaseException], error: BaseException) -> bool:
    into.append(error)
    return True


def _plain(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (str(error.args[0]) if error.args else type(error).__name__).split(" @ ")[0][:200]


def _wanted(member: str) -> bool:
    extension = member.rsplit("/", 1)[-1].partition(".")[2].lower()
    return extension in IMAGES or extension in TEXTS


def read_shards(urls: str | Sequence[str], report: Report | None = None) -> Iterator[Pair]:
    """Yield decoded image-caption pairs, in the shards' order; broken ones are skipped, counted.

    A sample needs an image and a caption: the JSON's "captions" (a list), or its "caption", or the
    lines of .txt; or a class number in .cls. Raises DataError when no shard can be read.
    """
    report = report if report is not None else Report()
    for sample in read_samples(urls, report):
        try:
            pair = decode(sample)
        except Skip as reason:
            report.skip(str(reason), f"{sample.get('__url__')}:{sample.get('__key__')}")
            continue
        report.read += 1
        yield pair


def decode(sample: dict[str, Any], least: int | None = None) -> Pair:
    """Decode one raw sample. Raises Skip with the reason when it cannot be used.

    least: pixels of the shorter side that are enough (see `decode_image`).
    """
    key, captions, meta = words_of(sample)
    if not captions and "cls" not in meta:
        raise Skip("no caption")
    extension = next((each for each in IMAGES if each in sample), None)
    if extension is None:
        raise Skip("no image")
    return Pair(
        key=key,
        url=str(sample.get("__url__", "")),
        image=decode_image(sample[extension], least),
        captions=captions,
        meta=meta,
    )


def words_of(sample: dict[str, Any]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Key, captions and JSON of a raw sample, its image unread. Raises Skip."""
    meta = _meta(sample)
    key = meta.get("key")
    key = key if isinstance(key, str) and key else str(sample.get("__key__", ""))
    return key, _captions(sample, meta), meta


def decode_image(content: bytes, least: int | None = None) -> Image.Image:
    """PNG, JPEG or WebP bytes to an RGB image, transparency on white. Raises Skip.

    least: a JPEG is decoded at a half, a quarter or an eighth of its size, as long as the shorter
    side keeps so many pixels: several times as fast, and nearly the image that was resized to it.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > LARGEST_IMAGE:
            raise Skip("image too large")
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
    except Skip:
        raise
    except Image.DecompressionBombError:
        raise Skip("image too large") from None
    except Exception:  # Pillow raises many kinds on broken files
        raise Skip("broken image") from None


def _meta(sample: dict[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if "json" in sample:
        try:
            found = json.loads(_text(sample["json"]))
        except (ValueError, RecursionError):
            raise Skip("broken json") from None
        if not isinstance(found, dict):
            raise Skip("json is not an object")
        meta = found
    meta.pop("cls", None)
    if "cls" in sample:
        number = re.fullmatch(r"\s*(\d{1,9})\s*", _text(sample["cls"]))
        if number is None:
            raise Skip("broken class number")
        meta["cls"] = int(number.group(1))
    return meta


def _text(content: bytes) -> str:
    if len(content) > LARGEST_TEXT:
        raise Skip("text too large")
    try:
        return bytes(content).decode("utf-8")
    except UnicodeDecodeError:
        raise Skip("text is not utf-8") from None


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
