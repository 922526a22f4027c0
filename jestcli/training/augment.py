"""Pixels in: normalisation for every view, augmentation for the chosen pairs only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise(images: Tensor) -> Tensor:
    """uint8 [n, 3, S, S] -> float32 in [-1, 1]: the deterministic view that both models score."""
    return images.float().div_(127.5).sub_(1)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop or shrink, shift, and (for a third of the images) inverted colours.

    Args:
        images: float32 [n, 3, S, S] in [-1, 1].
    Icons are drawn dark on light or light on dark, tight or loose; they are not mirrored, because
    "left" and "right" stand in the captions.
    """
    n = len(images)
    zoom, shift_x, shift_y, invert = torch.rand(4, n, generator=generator)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 0.75 + 0.4 * zoom
    theta[:, 0, 2], theta[:, 1, 2] = 0.3 * (shift_x - 0.5), 0.3 * (shift_y - 0.5)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    sign = torch.where(invert < 1 / 3, -1.0, 1.0)
    return moved * sign[:, None, None, None]
