"""The one decoder of images, for training, scoring, references and benchmarks.

What a file holds is a stranger's claim: its pixels and shape are bounded before anything is
decoded, and whatever a decoder raises becomes a BadSample.
"""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from jestcli.data.bad_samples import BadSample

# Counts changes of what is made of odd images and samples, as NUMERICS in config.py those of what a
# run computes; names runs on own shards and what is kept of these (decoded sets, indexes, tables)
# alone, for the embedded data hold no such images.
# 2: EXIF orientation, 16 bits and bounds; the key up to the last dot, photographs before masks, one
# caption a text. 3: of images more than four times as long as wide the centre is cut out first.
DECODER = 3
FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 2**26  # 8192 x 8192; decoded 256 MiB, with transparency twice that
MOST_ASPECT = 50  # long side over short side: the square cut out of more shows next to nothing
THIN = 4  # aspect above which the centre is cut out before, not after, it is resized
STRIP = 2**20  # pixels that are converted at once
MOST_WORK = 2**33  # pixels times scans of a JPEG: a few bytes make a scan, and each takes its time

_EXIF_ORIENTATION = 0x0112
_UPRIGHT: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(content: bytes, least: int | None = None) -> Image.Image:
    """PNG, JPEG or WebP bytes to an upright RGB image, transparency on white. Raises BadSample.

    Of 16 bits the upper 8 are taken, as of colour so of grey; of an animation the first frame.

    least: a JPEG is decoded at a half, a quarter or an eighth of its size, as long as the shorter
    side keeps so many pixels: several times as fast, and nearly the image that was resized to it.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        short, long = sorted(image.size)
        if short * long > MOST_PIXELS:
            raise BadSample("image too large")
        if long > MOST_ASPECT * short:
            raise BadSample("image too thin")
        if image.format in ("JPEG", "MPO"):
            scans = content.count(b"\xff\xda")
            if scans * short * long > MOST_WORK:
                raise BadSample("too many scans")
        if least is not None and image.format == "JPEG":
            scale = least / short
            image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        image = _to_rgb(image)
        return image if turn is None else image.transpose(turn)
    except BadSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadSample("image too large") from None
    except Exception:  # Pillow raises many kinds on broken files
        raise BadSample("broken image") from None


def _orientation(image: Image.Image) -> int | None:
    try:
        found: int | None = image.getexif().get(_EXIF_ORIENTATION)
        return found
    except Exception:  # the pixels are there, whatever the camera wrote beside them
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """In strips: a conversion holds up to four images at once."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        return _converted(image)
    out = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        out.paste(_converted(image.crop(box)), box)
    return out


def _converted(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip or wrap them
        wide = np.asarray(image)
        grey = np.clip(wide >> 8, 0, 255).astype(np.uint8)
        if "transparency" in image.info:
            grey[wide == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "P" or "transparency" in image.info or "A" in image.getbands():
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: int) -> np.ndarray:
    """RGB image -> uint8 [size, size, 3]: shorter side to `size`, centre crop; as is if it fits.

    Of a thin one only what the crop shows is resized, which differs by what is rounded and clipped
    between two passes: a whole strip enlarged to 2,048 pixels takes 800 MiB.
    """
    if image.size != (size, size):
        scale = size / min(image.size)
        width = max(size, round(image.width * scale))
        height = max(size, round(image.height * scale))
        left, top = (width - size) // 2, (height - size) // 2
        box = (left, top, left + size, top + size)
        if max(width, height) <= THIN * size:
            image = image.resize((width, height), Image.Resampling.BICUBIC).crop(box)
        else:
            x, y = image.width / width, image.height / height
            shown = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
            image = image.resize((size, size), Image.Resampling.BICUBIC, shown)
    return np.asarray(image)
