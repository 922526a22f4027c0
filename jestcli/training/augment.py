"""Pixels in: normalisation for every view, augmentation for the chosen pairs only."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise(images: Tensor) -> Tensor:
    """uint8 [n, 3, S, S] -> float32 in [-1, 1]: the deterministic view that both models score."""
    return images.float().div_(127.5).sub_(1)


def augment(images: Tensor, dice: Tensor) -> Tensor:
    """A slight random zoom (5 %) and shift (5 % of the side).

    images: float [n, 3, S, S] in [-1, 1].
    dice: [3, n] in [0, 1): zoom and shifts of each image.
    Not mirrored: "left" and "right" stand in the captions. Stronger crops and inverted colours
    slowed both baselines down at this budget (a tiny tower is far from having learnt its data)."""
    zoom, shift = 0.95 + 0.1 * dice[0], 0.1 * (dice[1:] - 0.5)
    # As F.affine_grid, but without a product of matrices for every pixel.
    at = _centres(images.shape[-1], images.dtype, images.device)
    across, down = at * zoom[:, None] + shift[:, :, None]
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), -1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@lru_cache(maxsize=4)
def _centres(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where the pixels of a row lie in [-1, 1]; made once, for it is the same at every step."""
    return torch.linspace(-1, 1, side, dtype=dtype, device=device) * (side - 1) / side
