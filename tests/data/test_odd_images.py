"""Odd images: one decoder gives training, scoring, references and benchmarks the same bytes."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from own_shards import shard_loader, write_tar
from PIL import Image, ImageOps

from jestcli.data import images
from jestcli.data.bad_samples import BadSample
from jestcli.data.dataset import Transform
from jestcli.data.decoded import build_decoded
from jestcli.data.images import decode_image, fit
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.data.tokens import small_tokenizer
from jestcli.evaluation.benchmarks import find_benchmarks

SIZE, SMALL = 64, 32


def picture(width: int = 90, height: int = 70) -> Image.Image:
    dice = np.random.default_rng(0)
    rough = Image.fromarray(dice.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return rough.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of equal rows, of any claim."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * min(height, 4096)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + chunk(b"IEND", b"")


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def odd_images() -> dict[str, tuple[str, bytes]]:
    """name -> ending, content."""
    image, alpha = picture(), picture().convert("L")
    clear = image.copy()
    clear.putalpha(alpha)
    grey = np.asarray(alpha).astype(np.uint16) * 257
    found = {
        f"jpeg turned {n}": ("jpg", encoded(image, "JPEG", exif=turned(n))) for n in range(1, 9)
    }
    found |= {f"png turned {n}": ("png", encoded(image, "PNG", exif=turned(n))) for n in (3, 6)}
    found |= {f"webp turned {n}": ("webp", encoded(image, "WEBP", exif=turned(n))) for n in (3, 6)}
    found |= {
        f"png {mode}": ("png", encoded(image.convert(mode), "PNG"))
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
    }
    found |= {
        f"jpeg {mode}": ("jpg", encoded(image.convert(mode), "JPEG"))
        for mode in ("L", "CMYK", "YCbCr")
    }
    paletted = image.quantize(16)
    return found | {
        "jpeg large": ("jpg", encoded(picture(700, 500), "JPEG")),
        "jpeg progressive": ("jpg", encoded(picture(700, 500), "JPEG", progressive=True)),
        "jpeg large, turned": ("jpg", encoded(picture(700, 500), "JPEG", exif=turned(6))),
        "jpeg of bad exif": ("jpg", encoded(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")),
        "jpeg named png": ("png", encoded(image, "JPEG")),
        "png of 16 bits": ("png", encoded(Image.fromarray(grey), "PNG")),
        "png of 16 bits, tRNS": ("png", encoded(Image.fromarray(grey), "PNG", transparency=257)),
        "rgb of 16 bits": ("png", png(80, 70, 16, 2, struct.pack(">3H", 60000, 9, 700) * 80)),
        "rgba of 16 bits": ("png", png(80, 70, 16, 6, struct.pack(">4H", 9, 60000, 9, 3000) * 80)),
        "grey of 2 bits": ("png", png(80, 70, 2, 0, bytes([0b00011011]) * 20)),
        "tRNS of RGB": ("png", encoded(image, "PNG", transparency=image.getpixel((3, 3)))),
        "tRNS of L": ("png", encoded(alpha, "PNG", transparency=alpha.getpixel((3, 3)))),
        "tRNS of P": ("png", encoded(paletted, "PNG", transparency=3)),
        "tRNS of P, a list": ("png", encoded(paletted, "PNG", transparency=bytes(range(16)))),
        "alpha": ("png", encoded(clear, "PNG")),
        "alpha of grey": ("png", encoded(clear.convert("LA"), "PNG")),
        "alpha of webp": ("webp", encoded(clear, "WEBP", lossless=True)),
        "alpha, interlaced": ("png", encoded(clear, "PNG", interlace=1)),
        "animation": ("webp", encoded(image, "WEBP", save_all=True, append_images=[alpha])),
        "animated png": ("png", encoded(image, "PNG", save_all=True, append_images=[image])),
        "icc profile of nonsense": ("png", encoded(image, "PNG", icc_profile=b"no profile")),
        "one pixel": ("png", encoded(image.crop((0, 0, 1, 1)), "PNG")),
        "wide": ("png", encoded(picture(400, 8), "PNG")),
        "high": ("jpg", encoded(picture(8, 400), "JPEG")),
        "as large as asked": ("png", encoded(picture(SIZE, SIZE), "PNG")),
    }


def test_all_paths_give_the_same_bytes(tmp_path: Path) -> None:
    images = odd_images()
    assert len(images) >= 40
    members = [
        {f"{n:03d}.{kind}": content, f"{n:03d}.txt": b"a thing", f"{n:03d}.cls": b"0"}
        for n, (kind, content) in enumerate(images.values())
    ]
    shard = write_tar(tmp_path / "wds_odd" / "test" / "0.tar", *members)
    (tmp_path / "wds_odd" / "classnames.txt").write_text("thing\n")
    (tmp_path / "wds_odd" / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    tokenizer = small_tokenizer(600, 8)
    loading = Loading(workers=0, cache=tmp_path / "cache")
    dataset = open_shards("pool", (str(shard),), loading)
    assert len(dataset) == len(images)
    rows = np.arange(len(images))
    second = SimpleNamespace(image=lambda x: torch.from_numpy(fit(x, SIZE).copy()).permute(2, 0, 1))
    trained = dataset.read(rows, Transform(SIZE, tokenizer, second=second))
    assert not trained.bad and trained.second is not None
    benchmark = find_benchmarks(tmp_path, SIZE)[0].split()
    decoded = build_decoded(str(shard), tmp_path / "decoded", SIZE, tokenizer, workers=1)
    scored = dataset.read(rows, Transform(SIZE, tokenizer, SMALL)).images
    loader = shard_loader(dataset, len(rows), size=SIZE, scoring_size=SMALL)
    batch = loader(0)
    chosen = batch.full(torch.arange(len(rows)))[0]
    place = {int(row): i for i, row in enumerate(batch.row)}
    for n, (name, (_, content)) in enumerate(images.items()):
        expected = torch.from_numpy(fit(decode_image(content), SIZE).copy()).permute(2, 0, 1)
        assert torch.equal(trained.images[n], expected), name
        assert torch.equal(trained.second[n], expected), name
        assert torch.equal(benchmark.images[n], expected), name
        assert torch.equal(torch.from_numpy(decoded.images[n]).permute(2, 0, 1), expected), name
        assert torch.equal(chosen[place[n]], expected), name
        reduced = torch.from_numpy(fit(decode_image(content, SMALL), SMALL).copy())
        assert torch.equal(scored[n], reduced.permute(2, 0, 1)), name
        assert torch.equal(batch.images[place[n]], scored[n]), name
    loader.close()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode_image(content)).astype(int)


def test_images_are_upright() -> None:
    upright = picture()
    for n in range(1, 9):
        content = encoded(upright, "PNG", exif=turned(n))
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(pixels(content), np.asarray(expected))


def test_sixteen_bits_keep_their_tones() -> None:
    grey = np.asarray(picture().convert("L"))
    wide = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(pixels(wide)[..., 0], grey)
    wide = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG", transparency=257 * 128)
    np.testing.assert_array_equal(pixels(wide)[..., 1], np.where(grey == 128, 255, grey))


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    contents = [
        encoded(image, "PNG"),
        encoded(image, "WEBP", lossless=True),
        encoded(image.convert("RGB").quantize(2), "PNG", transparency=bytes([0, 0])),
    ]
    for content in contents[:2]:
        assert pixels(content)[0, 0].tolist() == [255, 0, 0]
    for content in contents:
        assert pixels(content)[5, 5].tolist() == [255, 255, 255]
    opaque = np.asarray(picture())
    faint = Image.fromarray(np.dstack([opaque, np.full(opaque.shape[:2], 51, np.uint8)]))
    blended = np.rint(opaque * 0.2 + 255 * 0.8)
    assert np.abs(pixels(encoded(faint, "PNG")) - blended).max() <= 1


def test_strips_are_converted_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = np.random.default_rng(3)
    noise = dice.integers(0, 256, (37, 50, 4), dtype=np.uint8)
    odd = [Image.fromarray(noise), Image.fromarray(noise).convert("LA")]
    palette = Image.fromarray(noise[..., :3]).quantize(16)
    palette.info["transparency"] = 3
    wide = Image.fromarray(dice.integers(0, 2**16, (37, 50), dtype=np.uint16))
    for image in (*odd, palette, wide):
        whole = np.asarray(images._to_rgb(image))
        monkeypatch.setattr(images, "STRIP", 120)
        assert np.array_equal(np.asarray(images._to_rgb(image)), whole)
        monkeypatch.undo()


@pytest.mark.parametrize("shape", [(40, 400), (400, 40), (9, 300)])
def test_of_a_thin_image_only_what_is_shown_is_resized(shape: tuple[int, int]) -> None:
    """The same picture but for a rounding, in one part of the memory."""
    dice = np.random.default_rng(4)
    rough = Image.fromarray(dice.integers(60, 200, (8, 8, 3), dtype=np.uint8))
    rough = rough.resize(shape[::-1], Image.Resampling.BICUBIC)
    shown = fit(rough, 64).astype(int)
    scale = 64 / min(shape)
    height, width = (max(64, round(side * scale)) for side in shape)
    whole = rough.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 64) // 2, (height - 64) // 2
    crop = np.asarray(whole.crop((left, top, left + 64, top + 64)), dtype=int)
    assert np.abs(shown - crop).max() <= 2


@pytest.mark.parametrize(
    ("width", "height", "why"),
    [
        (2**31 - 1, 2**31 - 1, "image too large"),
        (9_999, 9_999, "image too large"),
        (1, 40_000_000, "image too thin"),
        (40_000_000, 1, "image too thin"),
        (0, 5, "broken image"),
    ],
)
def test_absurd_sides_are_refused_before_anything_is_decoded(
    width: int, height: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadSample, match=why):
        decode_image(png(width, height, 8, 6, b"\0" * 40))


def test_a_jpeg_of_a_million_scans_is_refused() -> None:
    content = encoded(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    assert decode_image(content).size == (2000, 2000)
    last = content[content.rindex(b"\xff\xda") : -2]
    with pytest.raises(BadSample, match="too many scans"):
        decode_image(content[:-2] + 5_000 * last + content[-2:])
