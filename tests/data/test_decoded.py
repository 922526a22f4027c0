"""The reader on good, broken and hostile shards; the decoded set against direct decoding."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jestcli.data import decode, decoded
from jestcli.data.decode import fingerprint, fingerprints
from jestcli.data.decoded import build_decoded, open_decoded
from jestcli.data.images import DECODER, fit
from jestcli.data.shards import Report, read_shards
from jestcli.data.tokens import small_tokenizer
from jestcli.utils.errors import DataError


def png(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    dice = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0]) if bands == 1 else (size[1], size[0], bands)
    buffer = io.BytesIO()
    Image.fromarray(dice.integers(0, 255, shape, np.uint8), mode).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes | str]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_reads_captions_from_json_or_text(tmp_path: Path) -> None:
    url = shard(
        tmp_path / "a.tar",
        {
            "1.png": png(1),
            "1.txt": "first",
            "1.json": json.dumps({"key": "k", "captions": ["a", "b"]}),
            "2.png": png(2, mode="RGBA"),
            "2.txt": "one\ntwo\n",
            "3.jpg": png(3, (40, 20), "L"),
            "3.json": json.dumps({"caption": "grey"}),
            "4.png": png(4),
            "4.cls": "7",
        },
    )
    report = Report()
    found = list(read_shards(url, report))
    assert [(pair.key, pair.captions) for pair in found] == [
        ("k", ("a", "b")),
        ("2", ("one", "two")),
        ("3", ("grey",)),
        ("4", ()),
    ]
    assert all(pair.image.mode == "RGB" for pair in found) and found[3].meta["cls"] == 7
    assert report.read == 4 and not report.skipped


def test_broken_samples_are_skipped_and_counted(tmp_path: Path) -> None:
    good = png(1)
    url = shard(
        tmp_path / "a.tar",
        {
            "0.png": good,
            "0.txt": "fine",
            "1.png": good[:60],
            "1.txt": "cut off",
            "2.png": b"not an image",
            "2.txt": "text",
            "3.txt": "no picture",
            "4.png": good,
            "5.png": good,
            "5.txt": b"\xff\xfe\xfa",
            "6.png": good,
            "6.json": "{",
            "6.txt": "x",
            "7.png": good,
            "7.json": "[1]",
            "7.txt": "x",
            "8.png": good,
            "8.json": "[" * 200_000,
            "8.txt": "x",
            "9.png": good,
            "9.txt": "also fine",
        },
    )
    report = Report()
    assert [pair.key for pair in read_shards(url, report)] == ["0", "9"]
    assert report.skipped == {
        "broken image": 2,
        "no image": 1,
        "no caption": 1,
        "text is not utf-8": 1,
        "broken json": 2,
        "json is not an object": 1,
    }
    assert "2 samples read, 8 skipped" in report.line()


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_shard_executes_and_writes_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    mark = inside / "executed"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists(), "the bomb works"
    mark.rmdir()
    members: dict[str, bytes | str] = {"1.png": png(1), "1.txt": "fine"}
    endings = ("pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "ten", "mp", "cbor", "json.pyd")
    for ending in endings:
        members[f"1.{ending}"] = bomb
    members |= {"../escape.png": png(2), "../escape.txt": "up", f"{tmp_path}/abs.png": png(3)}
    url = shard(inside / "a.tar", members)
    with tarfile.open(inside / "a.tar", "a") as tar:
        link = tarfile.TarInfo("5.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    store = build_decoded(url, tmp_path / "store", 32, small_tokenizer(), workers=1)
    after = [path for path in sorted(tmp_path.rglob("*")) if "store" not in path.parts[-3:]]
    assert not mark.exists() and [p for p in after if "store" not in str(p)] == before
    assert store.keys == ["1", "../escape"], "an odd name is a key, never a path"


def test_a_bomb_of_an_image_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    url = shard(
        tmp_path / "a.tar",
        {"1.png": buffer.getvalue(), "1.txt": "big", "2.png": png(1), "2.txt": "ok"},
    )
    report = Report()
    assert [pair.key for pair in read_shards(url, report)] == ["2"]
    assert report.skipped.total() == 1


def test_urls_patterns_and_pipes(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"{number}.tar", {f"{number}.png": png(1), f"{number}.txt": "x"})
    assert [p.key for p in read_shards(f"{tmp_path}/{{0..2}}.tar")] == ["0", "1", "2"]
    assert [p.key for p in read_shards(f"pipe:cat {tmp_path}/1.tar")] == ["1"]
    report = Report()
    urls = [f"{tmp_path}/missing.tar", f"{tmp_path}/2.tar"]
    assert [p.key for p in read_shards(urls, report)] == ["2"]
    assert report.skipped == {"unreadable shard": 1}
    with pytest.raises(DataError, match="no shard could be read"):
        list(read_shards(f"{tmp_path}/missing.tar"))


def test_a_cut_off_shard_keeps_what_came_before(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {}
    for number in range(20):
        members |= {f"{number:02}.png": png(number), f"{number:02}.txt": "x"}
    path = Path(shard(tmp_path / "a.tar", members))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 700])
    report = Report()
    found = list(read_shards(str(path), report))
    assert 5 < len(found) < 15 and report.skipped["shard breaks off"] == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_store_equals_direct_decoding(tmp_path: Path, workers: int) -> None:
    urls = []
    for number in range(3):
        members: dict[str, bytes | str] = {}
        for k in range(4):
            meta = {
                "key": f"s/{number}-{k}",
                "source": f"s{k % 2}",
                "family": "f",
                "captions": [f"thing {k}"] + ["second name"] * (k == 2),
                "levels": ["strong"] if k < 2 else [],
            }
            members |= {
                f"{number}{k}.png": png(10 * number + k, (32 + 8 * k, 32)),
                f"{number}{k}.json": json.dumps(meta),
            }
        members |= {f"{number}9.png": b"broken", f"{number}9.txt": "x"}
        urls.append(shard(tmp_path / f"{number}.tar", members))
    tokenizer = small_tokenizer()
    store = build_decoded(urls, tmp_path / "store", 32, tokenizer, workers=workers)
    direct = list(read_shards(urls))
    assert len(store) == len(direct) == 12 and store.keys == [pair.key for pair in direct]
    assert store.images.dtype == np.uint8 and store.tokens.dtype == np.int32
    for row, pair in enumerate(direct):
        np.testing.assert_array_equal(store.images[row], fit(pair.image, 32))
        first, last = store.caption_start[row : row + 2]
        np.testing.assert_array_equal(
            store.tokens[first:last], tokenizer(list(pair.captions)).numpy()
        )
        assert store.captions[first:last] == list(pair.captions)
        assert store.level_names["source"][store.codes["source"][row]] == pair.meta["source"]
        assert store.codes["category"][row] == -1
    assert store.meta["skipped"] == {"broken image": 3}
    assert store.choose("strong").tolist() == [0, 1, 4, 5, 8, 9]
    small, large = store.choose("strong", 2), store.choose("strong", 4)
    assert set(small) < set(large) <= set(store.choose("strong"))
    with pytest.raises(DataError, match="no level"):
        store.choose("weak")
    with pytest.raises(DataError, match="has 6"):
        store.choose("strong", 7)


def test_a_store_that_another_process_built_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = shard(tmp_path / "a.tar", {"1.png": png(1), "1.txt": "x"}), tmp_path / "store", 32
    decode_into, stamps = decoded.decode_into, []

    def slower(*args: object) -> None:
        decode_into(*args)
        monkeypatch.setattr(decoded, "decode_into", decode_into)
        other = build_decoded(*asked, small_tokenizer(), workers=1)
        stamps.append((other.folder / "images.npy").stat().st_ino)

    monkeypatch.setattr(decoded, "decode_into", slower)
    mine = build_decoded(*asked, small_tokenizer(), workers=1)
    assert [(mine.folder / "images.npy").stat().st_ino] == stamps and len(mine) == 1


def test_store_is_built_once_and_keyed_by_content(tmp_path: Path) -> None:
    url = shard(tmp_path / "a.tar", {"1.png": png(1), "1.txt": "x"})
    folder = tmp_path / "store"
    first = build_decoded(url, folder, 32, small_tokenizer(), workers=1)
    stamp = (first.folder / "images.npy").stat().st_mtime_ns
    again = build_decoded(url, folder, 32, small_tokenizer(), workers=1)
    assert again.identity == first.identity
    assert (again.folder / "images.npy").stat().st_mtime_ns == stamp
    assert build_decoded(url, folder, 16, small_tokenizer(), workers=1).identity != first.identity
    longer = small_tokenizer(context_length=24)
    assert build_decoded(url, folder, 32, longer, workers=1).identity != first.identity
    for decoder in (None, DECODER + 1):
        other = build_decoded(url, folder, 32, small_tokenizer(), decoder=decoder, workers=1)
        assert other.identity != first.identity
    shard(tmp_path / "a.tar", {"1.png": png(2), "1.txt": "x"})
    assert build_decoded(url, folder, 32, small_tokenizer(), workers=1).identity != first.identity
    assert not list(folder.glob(".store-*"))


def test_unchanged_shards_are_not_read_again_and_changed_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [shard(tmp_path / f"{n}.tar", {"1.png": png(1), "1.txt": n}) for n in "ab"]
    expected, read = [fingerprint(url) for url in urls], []
    monkeypatch.setattr(decode, "fingerprint", lambda url: read.append(url) or fingerprint(url))
    assert fingerprints(urls, tmp_path) == expected and fingerprints(urls, tmp_path) == expected
    assert read == urls
    shard(tmp_path / "a.tar", {"1.png": png(2), "1.txt": "a"})
    assert fingerprints(urls, tmp_path) == [fingerprint(urls[0]), expected[1]] != expected
    assert read == [*urls, urls[0]]
    for bad in ("[]", "{", json.dumps({urls[0]: 3}), "null"):
        (tmp_path / "shards.json").write_text(bad)
        assert fingerprints(urls, tmp_path)[1] == expected[1]


def test_store_refuses_what_it_cannot_open(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no decoded data set"):
        open_decoded(tmp_path)
    url = shard(tmp_path / "a.tar", {"1.png": b"broken", "1.txt": "x"})
    with pytest.raises(DataError, match="no image-caption pair"):
        build_decoded(url, tmp_path / "store", 32, small_tokenizer(), workers=1)
    assert not [p for p in (tmp_path / "store").iterdir()]
    with pytest.raises(DataError, match="no identity"):
        build_decoded(url, tmp_path / "store", 32, lambda texts: np.zeros((len(texts), 4)))
    good = shard(tmp_path / "b.tar", {"1.png": png(1), "1.txt": "x"})
    store = build_decoded(good, tmp_path / "store", 32, small_tokenizer(), workers=1)
    array = np.array([{"a": 1}], dtype=object)
    np.save(store.folder / "levels.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match="damaged"):
        open_decoded(store.folder)


def test_images_keep_their_shape_and_are_cropped() -> None:
    image = Image.new("RGB", (100, 50), "white")
    image.paste("black", (40, 0, 60, 50))
    fitted = fit(image, 32)
    assert fitted.shape == (32, 32, 3) and (fitted[:, 15:17] == 0).all()
    assert (fitted[:, 0] == 255).all()
