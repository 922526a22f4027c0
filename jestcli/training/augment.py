"""Pixels in: normalisation for every view, augmentation for the chosen pairs only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def normalise(images: Tensor) -> Tensor:
    """uint8 [n, 3, S, S] -> float32 in [-1, 1]: the deterministic view that both models score."""
    return images.float().div_(127.5).sub_(1)


def augment(images: Tensor, dice: Tensor) -> Tensor:
    """A slight random zoom (5 %) and shift (5 % of the side).

    Args:
        images: float [n, 3, S, S] in [-1, 1].
        dice: [3, n] in [0, 1): zoom and shifts of each image.
    Not mirrored: "left" and "right" stand in the captions. Stronger crops and inverted colours
    slowed both baselines down at this budget (a tiny tower is far from having learnt its data).
    """
    n = len(images)
    zoom, shift_x, shift_y = dice
    theta = images.new_zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 0.95 + 0.1 * zoom
    theta[:, 0, 2], theta[:, 1, 2] = 0.1 * (shift_x - 0.5), 0.1 * (shift_y - 0.5)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
