"""Any bytes, through the doors that data come in by: a pair, a counted skip, or one line.

JEST_MUTATIONS sets how many of each kind are tried (thousands once; a few hundred here).
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import time
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_shards import jpeg, sample
from PIL import Image

from jestcli.data.bad_samples import BadSample
from jestcli.data.dataset import Transform
from jestcli.data.images import decode_image, fit
from jestcli.data.shard_dataset import open_shards
from jestcli.data.shards import Report, read_shards
from jestcli.data.sources import Loading
from jestcli.data.tokens import small_tokenizer
from jestcli.evaluation.benchmarks import _read_split, find_benchmarks
from jestcli.utils.errors import DataError

TRIED = int(os.environ.get("JEST_MUTATIONS", "150"))
SECONDS = 20.0  # no input of a few kilobytes takes a hundredth of it, unless it does not end
MANY = settings(
    max_examples=TRIED,
    deadline=None,
    derandomize=TRIED < 1_000,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@cache
def tars() -> list[bytes]:
    """Healthy ones of every format, with long names, folders, links and PAX headers."""
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(
            fileobj=buffer, mode="w", format=form, pax_headers={"comment": "x"}
        ) as tar:
            for number in range(3):
                small = sample(number, jpg=jpeg(number, (24, 16)), cls=b"0")
                for name, content in small.items():
                    long = "n" * 60 + "/" + "d" * 60 + "/" if number == 1 else ""
                    info = tarfile.TarInfo(long + name)
                    info.size = len(content)
                    if form == tarfile.PAX_FORMAT:
                        info.pax_headers = {
                            "mtime": "1.5",
                            "path": info.name,
                            "size": str(info.size),
                        }
                    tar.addfile(info, io.BytesIO(content))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
                info = tarfile.TarInfo("folder")
                info.type, info.linkname = kind, "x" * (130 if form != tarfile.USTAR_FORMAT else 9)
                tar.addfile(info)
        found.append(buffer.getvalue())
    return found


@cache
def images() -> list[bytes]:
    """PNG, JPEG and WebP of several modes, with EXIF, profiles and transparency."""
    rgb = Image.open(io.BytesIO(jpeg(3, (20, 14)))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    asked = [
        (rgb, "PNG", {"exif": exif, "icc_profile": b"profile"}),
        (rgb.quantize(8), "PNG", {"transparency": 3}),
        (rgb.convert("RGBA"), "PNG", {"interlace": 1}),
        (wide, "PNG", {"transparency": 5}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb]}),
        (rgb, "JPEG", {"exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("RGBA"), "WEBP", {"exif": exif}),
        (rgb, "WEBP", {"save_all": True, "append_images": [rgb]}),
    ]
    found = []
    for image, kind, more in asked:
        buffer = io.BytesIO()
        image.save(buffer, kind, **more)
        found.append(buffer.getvalue())
    return found


NUMBERS = [0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]
FIELDS = [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000017\0", b"7" * 12, b"0" * 12, b" " * 12]
KINDS = b"01234567LKxgXSDMNV\0\x05"
PAX = [
    b"size=-1536",
    b"size=" + b"9" * 15,
    b"size=" + b"9" * 200,
    b"path=",
    b"path=\0",
    b"size=",
    b"GNU.sparse.map=0,1",
    b"GNU.sparse.realsize=1",
    b"hdrcharset=BINARY",
    b"path=" + b"/" * 300,
]


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytearray:
    """One of `originals` with some bytes changed, cut out, repeated, or cut off."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["bytes", "number", "cut", "repeat", "end", "noise"])):
            case "bytes":
                new = draw(st.binary(max_size=16))
                content[at : at + len(new)] = new
            case "number":
                new = struct.pack(">Q", draw(st.sampled_from(NUMBERS)))[
                    -draw(st.sampled_from([2, 4])) :
                ]
                content[at : at + len(new)] = new
            case "cut":
                del content[at : at + draw(st.integers(0, 3000))]
            case "repeat":
                part = content[at : at + draw(st.integers(0, 1500))]
                content[at:at] = part * draw(st.integers(1, 4))
            case "end":
                del content[at:]
            case "noise":
                content[at:at] = draw(st.binary(max_size=64))
    return content


def proven(block: bytearray) -> None:
    """Give a header the checksum of what it says."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)


@st.composite
def lying_tars(draw: st.DrawFn) -> bytes:
    """Tars some of whose headers say something else, under a right checksum; then mutated."""
    content = bytearray(draw(st.sampled_from(tars())))
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    for at in draw(st.lists(st.sampled_from(headers), max_size=4)):
        block = content[at : at + 512]
        match draw(st.sampled_from(["size", "kind", "name", "pax", "sparse"])):
            case "size":
                block[124:136] = draw(st.sampled_from(FIELDS))
            case "kind":
                block[156] = draw(st.sampled_from(list(KINDS)))
            case "name":
                block[:100] = draw(st.binary(max_size=100)).ljust(100, b"\0")
            case "pax":
                said = draw(st.sampled_from(PAX))
                length = draw(
                    st.sampled_from([b"0", b"9" * 20, b"%d" % (len(said) + 4), b"11", b"-4"])
                )
                body = length + b" " + said + b"\n"
                block[156:157], block[124:136] = b"x", b"%011o\0" % len(body)
                proven(block)
                times = draw(st.sampled_from([1, 1, 3, 40]))
                content[at:at] = (bytes(block) + body + bytes(-len(body) % 512)) * times
                continue
            case "sparse":
                block[156:157], block[482:483] = b"S", b"\1"
        proven(block)
        content[at : at + 512] = block
    if draw(st.booleans()):
        return bytes(content)
    return bytes(draw(mutated([bytes(content)])))


@st.composite
def lying_images(draw: st.DrawFn) -> bytes:
    """Images with changed bytes; a PNG's chunks often get the checksums of what they now say."""
    content = draw(mutated(images()))
    if content[:4] != b"\x89PNG" or not draw(st.booleans()):
        return bytes(content)
    at = 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return bytes(content)


def check_image(content: bytes) -> None:
    for least in (None, 8):
        try:
            image = decode_image(content, least)
        except BadSample as why:
            refused = ("image too large", "image too thin", "too many scans")
            assert str(why) in ("broken image", *refused)
        else:
            assert image.mode == "RGB" and fit(image, 8).shape == (8, 8, 3)


def check_shard(content: bytes, folder: Path) -> None:
    """As a source of training, as a shard read once, and as a benchmark."""
    shard = folder / "wds_x" / "test" / "0.tar"
    shard.write_bytes(content)
    report = Report()
    try:
        read = sum(1 for _ in read_shards(str(shard), report))
        assert read == report.read
    except DataError as error:
        assert "\n" not in str(error) and report.skipped
    tokenizer = small_tokenizer(600, 8)
    try:
        dataset = open_shards("pool", (str(shard),), Loading(0, cache=folder / "cache"))
        rows = np.arange(len(dataset))
        found = dataset.read(rows, Transform(8, tokenizer))
        assert sorted([*found.place.tolist(), *found.bad]) == rows.tolist()
        assert len(dataset.hashes) == len(dataset.keys_of(rows)) == len(rows)
        tokenizer(dataset.captions_of(rows))
        dataset.close()
    except DataError as error:
        assert "\n" not in str(error)
    try:
        _read_split.cache_clear()
        for each in find_benchmarks(folder, 8):
            each.split()
    except DataError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    (folder / "wds_x" / "test").mkdir(parents=True)
    (folder / "wds_x" / "classnames.txt").write_text("thing\n")
    (folder / "wds_x" / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    return folder


@MANY
@given(lying_images())
def test_any_image_is_a_picture_or_a_reason(content: bytes) -> None:
    started = time.monotonic()
    check_image(content)
    assert time.monotonic() - started < SECONDS


@MANY
@given(lying_tars())
def test_any_tar_is_pairs_and_reasons(folder: Path, content: bytes) -> None:
    started = time.monotonic()
    check_shard(content, folder)
    assert time.monotonic() - started < SECONDS
