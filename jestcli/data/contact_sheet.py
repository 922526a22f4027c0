"""Contact sheets: images with their captions underneath, as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from jestcli.data.loader import SuperBatch

CELL = 112  # pixels, width of a cell
PICTURE = 72  # side of the shown image
SHOWN = 30  # pairs chosen, and pairs left
LINES, LINE = 3, 12  # of caption
TITLE = 28


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    path: Path,
    columns: int = 10,
    title: str = "",
) -> Path:
    """Draw images (uint8 [H, W, 3], any sizes) in a grid, each over its caption; returns `path`.

    Raises ValueError when the counts differ.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    height = PICTURE + LINES * LINE + 12
    top = TITLE if title else 4
    sheet = Image.new("RGB", (columns * CELL, top + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    font, heading = ImageFont.load_default(10), ImageFont.load_default(14)
    if title:
        pen.text((8, 6), title, fill="black", font=heading)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = number % columns * CELL, top + number // columns * height
        picture = Image.fromarray(np.ascontiguousarray(image)).resize(
            (PICTURE, PICTURE), Image.Resampling.NEAREST
        )
        left = x + (CELL - PICTURE) // 2
        sheet.paste(picture, (left, y))
        pen.rectangle((left - 1, y - 1, left + PICTURE, y + PICTURE), outline="#cccccc")
        shown = textwrap.wrap(caption, 20, max_lines=LINES, placeholder="…") or [""]
        for line, text in enumerate(shown):
            pen.text((x + 4, y + PICTURE + 3 + line * LINE), text, fill="#222222", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")
    return path


def of_choice(super_batch: SuperBatch, index: torch.Tensor, path: Path) -> Path:
    """A contact sheet of the first pairs chosen, and as many that were left, under their keys.

    index: int64 [b], global; with several ranks those that this one, rank 0, holds are drawn.
    """
    chosen = index[index < len(super_batch)]
    left = torch.ones(len(super_batch), dtype=torch.bool).index_fill_(0, chosen, False)
    rows = [*chosen[:SHOWN].tolist(), *torch.nonzero(left).flatten()[:SHOWN].tolist()]
    pixels = super_batch.images.permute(0, 2, 3, 1)
    names = [super_batch.name(i) for i in rows]
    title = f"chosen ({min(SHOWN, len(chosen))}), then left"
    return contact_sheet([pixels[i].cpu().numpy() for i in rows], names, path, title=title)
