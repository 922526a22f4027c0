"""Tars as they come: dots in names, joined, damaged, compressed, and headers that lie."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from own_shards import jpeg, sample, write_tar

from jestcli.data.bad_samples import BadSample
from jestcli.data.remote import ShardError
from jestcli.data.shard_dataset import open_shards
from jestcli.data.shards import decode, read_shards
from jestcli.data.sources import Loading
from jestcli.data.tar import IN_A_ROW, MOST_DAMAGE, ShardIndex, _header, scan
from jestcli.utils.errors import DataError
from jestcli.utils.layout import Layout

BLOCK = 512


def named(*names: str) -> dict[str, bytes]:
    return {name: b"x" for name in names}


def keys(index: ShardIndex) -> list[str]:
    return [key.removeprefix("00000000") for key in index.keys]


# --- which members are one sample -----------------------------------------------------------------


def test_a_key_ends_at_the_last_dot(tmp_path: Path) -> None:
    names = [f"im.{n:04d}.{kind}" for n in range(40) for kind in ("jpg", "txt")]
    path = write_tar(tmp_path / "a.tar", named(*names))
    index = scan(path)
    assert len(index) == 40 and index.keys[1] == "im.0001" and not index.faults
    (why,) = scan(path, Layout(keys="first")).faults
    assert not len(scan(path, Layout(keys="first"))) and "data.keys=last" in why


def test_what_lies_beside_a_sample_is_no_loss(tmp_path: Path) -> None:
    beside = named(
        "a.jpg", "a.seg.png", "a.txt", "b.jpg", "b.txt", "b.seg.png", "._b.jpg", ".DS_Store"
    )
    path = write_tar(tmp_path / "a.tar", beside)
    assert scan(path).keys == ["a", "b"] and not scan(path).faults
    both = write_tar(tmp_path / "b.tar", named("a.jpg", "a.txt", "a.seg.png", "a.seg.txt"))
    assert scan(both).keys == ["a", "a.seg"]
    first = scan(both, Layout(keys="first"))
    assert first.keys == ["a"] and sum(first.faults.values()) == 1
    alone = write_tar(tmp_path / "c.tar", named("a.jpg", "a.txt", "b.seg.png", "c.v1.txt"))
    assert scan(alone).faults == {"no caption": 1, "no image": 1}


def test_of_several_images_the_photograph_is_read(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", named("a.png", "a.jpg", "a.txt", "b.webp", "b.png", "b.txt")
    )
    index = scan(path)
    assert [sorted(each) for each in index.members] == [["jpg", "txt"], ["txt", "webp"]]
    assert list(index.faults.values()) == [2] and "jpg, jpeg, webp, png" in str(index.faults)
    masks = scan(path, Layout(images=("png",)))
    assert [sorted(each) for each in masks.members] == [["png", "txt"]] * 2 and not masks.faults


def captions(layout: Layout, **members: bytes) -> tuple[str, ...]:
    return decode({"__key__": "k", "jpg": jpeg(1), **members}, None, layout).captions


def test_captions_are_what_the_settings_say() -> None:
    text = b"a cat \n\n on a mat\r\n"
    assert captions(Layout(), txt=text) == ("a cat on a mat",)
    assert captions(Layout(lines=True), txt=text) == ("a cat", "on a mat")
    about = b'{"caption": "short", "long": "a longer one", "many": ["a", "", "b", 3]}'
    assert captions(Layout(), json=about) == ("short",)
    assert captions(Layout(field="long"), json=about, txt=b"else") == ("a longer one",)
    assert captions(Layout(field="many"), json=about) == ("a", "b")
    with pytest.raises(BadSample, match="no 'tall' in the json"):
        captions(Layout(field="tall"), json=about, txt=b"else")
    assert captions(Layout(), json=rb'{"caption": "half \ud83d"}') == ("half ?",)


def test_samples_without_the_field_are_counted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample(0), sample(1, json=None), sample(2, json=b"{}"))
    loading = Loading(workers=0, cache=tmp_path / "cache", layout=Layout(field="caption"))
    dataset = open_shards("pool", (str(path),), loading)
    assert len(dataset) == 2 and dataset.files.index(str(path)).faults == {"no caption": 1}
    assert dataset.pair(0).captions and dataset.captions_of(np.arange(2))[1] == ""
    with pytest.raises(BadSample, match="no 'caption'"):
        dataset.pair(1)


# --- damaged and joined ---------------------------------------------------------------------------


def shard(tmp_path: Path, first: int = 0, n: int = 10, name: str = "a.tar") -> Path:
    return write_tar(tmp_path / name, *[sample(i, json=None) for i in range(first, first + n)])


@pytest.mark.parametrize("cut", [None, 0, 700, 10_240 + 3, 30_000])
def test_joined_tars_are_read_to_the_end(cut: int | None, tmp_path: Path) -> None:
    """cut: bytes that the first one lacks at its end; None: it is whole."""
    first, second = shard(tmp_path), shard(tmp_path, 100, name="b.tar")
    content = first.read_bytes()
    if cut is not None:
        content = content.rstrip(b"\0") if cut == 0 else content[: len(content) - cut]
    first.write_bytes(content + second.read_bytes())
    index = scan(first)
    assert {f"{n:09d}" for n in range(100, 110)} <= set(index.keys)
    lost = 10 - (len(index) - 10)
    assert lost == 0 if cut is None else lost < 10
    assert bool(index.faults) == (cut not in (None, 0)) or lost == 0
    if cut is None:
        assert not index.faults
    assert len(list(read_shards(str(first)))) == len(index), "nothing of another tar is read"


def test_damage_in_the_middle_costs_what_it_hits(tmp_path: Path) -> None:
    path = shard(tmp_path)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        fourth = [member.offset for member in tar][6]
    content[fourth + 100 : fourth + 200] = b"\xff" * 100  # the header of 3.jpg
    path.write_bytes(content)
    index = scan(path)
    assert len(index) == 9 and index.faults == {"damaged place": 1, "no image": 1}
    content[fourth : fourth + 5_000] = b"\xff" * 5_000
    path.write_bytes(content)
    assert 5 < len(scan(path)) < 10 and scan(path).faults["damaged place"] == 1
    path.write_bytes(content[:fourth] + content[fourth + 1_000 :])  # bytes are missing
    assert 5 < len(scan(path)) < 10 and scan(path).faults["damaged place"] == 1


def test_a_tar_without_its_end_is_said(tmp_path: Path) -> None:
    path = shard(tmp_path)
    with tarfile.open(path) as tar:
        last = list(tar)[-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + 512])
    assert len(scan(path)) == 10 and scan(path).faults == {"shard breaks off": 1}
    path.write_bytes(b"\0" * 10_240)
    assert len(scan(path)) == 0 and not scan(path).faults


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_a_compressed_tar_is_refused_by_name(name: str, tmp_path: Path) -> None:
    import bz2
    import lzma

    squeeze = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}[name]
    path = shard(tmp_path)
    path.write_bytes(squeeze(path.read_bytes()))
    with pytest.raises(ShardError, match=f"compressed by {name}: unpack it"):
        scan(path)


def test_a_folder_says_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packed = tmp_path / "pool" / "b.tar.gz"
    write_tar(tmp_path / "pool" / "deeper" / "and" / "deeper" / "a.tar", sample(5))
    packed.write_bytes(gzip.compress(shard(tmp_path).read_bytes()))
    loading = Loading(workers=0, cache=tmp_path / "cache")
    left = "not read: 1 compressed tars (unpack them) and 1 sub-folders of tars"
    with pytest.raises(DataError, match=r"no \.tar shard in the folder .*; ") as none:
        open_shards("pool", (str(tmp_path / "pool"),), loading)
    assert left in str(none.value)
    shard(tmp_path / "pool", name="A.TAR")
    write_tar(tmp_path / "pool" / "._A.TAR", named("x.jpg"))
    assert len(open_shards("pool", (str(tmp_path / "pool"),), loading)) == 10
    assert f"1 shards are read; {left}" in caplog.text
    with pytest.raises(DataError, match=r"b\.tar\.gz: compressed by gzip: unpack it"):
        open_shards("pool", (str(packed),), loading)


# --- headers that lie -----------------------------------------------------------------------------


def header(name: str, size: int | str, kind: bytes = b"0", **more: bytes) -> bytes:
    """One block; size: an octal number, or what stands in its place. more: at=bytes."""
    block = bytearray(tarfile.TarInfo(name[:100]).tobuf(tarfile.USTAR_FORMAT))
    field = b"%011o\0" % size if isinstance(size, int) else size.encode("latin1")
    block[124:136] = field.ljust(12, b"\0")[:12]
    block[156:157] = kind
    for at, content in more.items():
        block[int(at[1:]) : int(at[1:]) + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def pax(content: bytes, kind: bytes = b"x") -> bytes:
    return header("pax", len(content), kind) + padded(content)


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n"
    length = len(body) + len(str(len(body) + 2))
    return f"{length}{body}".encode()


LONG = header("long", 3, b"L") + padded(b"ab\0")
LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "size below zero": (lambda: header("a.jpg", "\xff" * 12), "damaged place"),
    "size of exabytes": (lambda: header("a.jpg", "\x80" + "\x7f" * 11), "damaged place"),
    "size of letters": (lambda: header("a.jpg", "cafe"), "damaged place"),
    "pax size below zero": (
        lambda: pax(record("size", "-1536")) + header("a.jpg", 0),
        "broken header",
    ),
    "pax size of exabytes": (
        lambda: pax(record("size", "9" * 15)) + header("a.jpg", 0),
        "damaged place",
    ),
    "pax length of 20 digits": (
        lambda: pax(b"9" * 20 + b" path=a.jpg\n") + header("a.jpg", 0),
        "broken header",
    ),
    "pax length of zero": (lambda: pax(b"0 path=a.jpg\n") + header("a.jpg", 0), "broken header"),
    "pax of nonsense": (lambda: pax(b"\xff\xfe=" * 90) + header("a.jpg", 0), "broken header"),
    "pax sparse": (
        lambda: pax(record("GNU.sparse.major", "1")) + header("a.jpg", 0),
        "sparse file",
    ),
    "400 long names": (lambda: LONG * 400 + header("a.jpg", 0), "too many headers"),
    "400 pax headers": (
        lambda: pax(record("path", "a.jpg")) * 400 + header("b.jpg", 0),
        "too many headers",
    ),
    "a comment of 64 MB": (
        lambda: pax(record("comment", "x" * 64_000_000)) + header("a.jpg", 0),
        "header too large",
    ),
    "a name of 9,000 letters": (
        lambda: pax(record("path", "x" * 9_000)) + header("a.jpg", 0),
        "name too long",
    ),
    "endless sparse headers": (
        lambda: header("a.jpg", 512, b"S", _482=b"\1") + (bytes(504) + b"\1" + bytes(7)) * 5_000,
        "damaged place",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_cost_their_member(lie: str, tmp_path: Path) -> None:
    make, why = LIES[lie]
    good, more = shard(tmp_path, 0, 3), shard(tmp_path, 5, 3, "b.tar").read_bytes()
    front = good.read_bytes().rstrip(b"\0")
    good.write_bytes(padded(front) + make() + more)
    index = scan(good)
    assert keys(index) == ["0", "1", "2", "5", "6", "7"] and index.faults == {why: 1}


def test_long_and_foreign_names_are_names(tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "n" * 150
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form, pax_headers={"comment": "of all"}) as tar:
            for name in (f"{long}.jpg", f"{long}.txt", "d/\u00e9\u732b.jpg", "d/\u00e9\u732b.txt"):
                tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        assert scan(path).keys == [long, "d/\u00e9\u732b"] and not scan(path).faults
    bytes_of = header("", 0, _0=b"caf\xe9.jpg") + header("", 0, _0=b"caf\xe9.txt") + bytes(1024)
    path.write_bytes(bytes_of)
    (key,) = scan(path).keys
    assert key == "caf\\xe9", "what is not UTF-8 can be written down all the same"


def test_links_and_folders_have_no_content(tmp_path: Path) -> None:
    path = shard(tmp_path, 0, 2)
    parts = b"".join(header("b.jpg", 9_999, kind) for kind in (b"1", b"2", b"5"))
    path.write_bytes(parts + path.read_bytes())
    assert keys(scan(path)) == ["0", "1"] and not scan(path).faults


def test_damage_without_end_ends(tmp_path: Path) -> None:
    """Every header claims more than there is: each would be searched behind, block by block."""
    path = tmp_path / "a.tar"
    path.write_bytes(header("a.jpg", 10**9) * (3 * MOST_DAMAGE))
    index = scan(path)
    assert not len(index) and index.faults["damaged place"] == MOST_DAMAGE
    path.write_bytes(b"ustar" * 500_000)
    with pytest.raises(ShardError, match="not a tar file"):
        scan(path)


def test_a_few_headers_for_one_member_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    many = pax(record("mtime", "1.5")) * (IN_A_ROW - 1)
    path.write_bytes(
        many + pax(record("path", "b.jpg")) + header("x", 0) + header("b.txt", 0) + bytes(1024)
    )
    assert scan(path).keys == ["b"]


def test_a_reader_of_any_layout_has_its_own_index(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.x.jpg": jpeg(1), "a.x.txt": b"one\ntwo"})
    counts: list[Any] = []
    for layout in (Layout(), Layout(lines=True)):
        loading = Loading(workers=0, cache=tmp_path / "cache", layout=layout)
        dataset = open_shards("pool", (str(path),), loading)
        counts += dataset.caption_counts(np.arange(1)).tolist()
    assert counts == [1, 2]


@settings(max_examples=300, deadline=None)
@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=140),
    size=st.integers(0, 1 << 40),
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
    at=st.integers(0, 511),
    byte=st.integers(-1, 255),
    signed=st.booleans(),
)
@example(name="0", size=0, kind=tarfile.REGTYPE, form=0, at=134, byte=28, signed=False)
def test_headers_are_read_as_tarfile_reads_them(
    name: str, size: int, kind: bytes, form: int, at: int, byte: int, signed: bool
) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    try:
        written = info.tobuf(form, "utf-8", "surrogateescape")[-512:]
    except ValueError:
        return  # too long for this format
    block = bytearray(written)
    if byte >= 0:  # any one byte another, and the checksum right again
        block[at] = byte
        block[148:156] = b" " * 8
        total = sum(block) - (256 * sum(b > 127 for b in block) if signed else 0)
        block[148:156] = b"%06o\0 " % max(total, 0)
    try:
        theirs = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError):
        return  # they also refuse for fields that nobody asks for
    ours = _header(bytes(block))
    if theirs.type == tarfile.GNUTYPE_SPARSE or theirs.size < 0:
        assert ours is None
    else:
        assert ours is not None
        name = ours.name.rstrip("/") if theirs.isdir() else ours.name
        assert (name, ours.size, ours.type) == (theirs.name, theirs.size, theirs.type)
