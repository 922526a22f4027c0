"""FlexiViT: one vision tower at several patch sizes (Beyer et al., CVPR 2023).

Patch weights are stored at the largest patch and PI-resized to a smaller one; position embeddings
are stored on the finest grid and interpolated to a coarser one. Both are fixed linear maps, made
once and kept as buffers, so gradients flow through them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn


def resize_matrix(old: int, new: int) -> Tensor:
    """Bilinear resize of an old x old image as a matrix, float64 [new*new, old*old]."""
    basis = torch.eye(old * old, dtype=torch.float64).reshape(old * old, 1, old, old)
    resized = F.interpolate(basis, size=(new, new), mode="bilinear", antialias=new < old)
    return resized.reshape(old * old, new * new).T


def pi_resize_matrix(old: int, new: int) -> Tensor:
    """Pseudo-inverse resize of patch weights, float64 [new*new, old*old] (FlexiViT, section 3.4).

    The new weights give, for every patch, the inner product that the old weights give for that
    patch resized back to `old` (exactly when new > old, in the least-squares sense otherwise).
    """
    return torch.linalg.pinv(resize_matrix(old, new).T)


class FlexiVisual(nn.Module):
    """An open_clip VisionTransformer that takes its patch size at every call.

    With one patch size it computes exactly what the unmodified tower computes.

    Args:
        visual: native tower, built with the largest patch size.
        image_size: pixels; every patch size divides it.
        patch_sizes: finest first. ValueError if one does not divide image_size.
    """

    def __init__(self, visual: VisionTransformer, image_size: int, patch_sizes: tuple[int, ...]):
        super().__init__()
        bad = [p for p in patch_sizes if image_size % p]
        if bad:
            raise ValueError(f"patch size {bad[0]} does not divide image size {image_size}")
        self.visual = visual
        self.image_size = image_size
        self.patch_sizes = tuple(sorted(patch_sizes))
        stored_patch, finest_grid = self.patch_sizes[-1], image_size // self.patch_sizes[0]
        width = visual.conv1.out_channels
        if len(self.patch_sizes) > 1:
            cells = torch.randn(finest_grid**2 + 1, width) * width**-0.5
            visual.positional_embedding = nn.Parameter(cells)
        for patch in self.patch_sizes:
            if patch != stored_patch:
                weight_map = pi_resize_matrix(stored_patch, patch).float()
                self.register_buffer(f"weight_map_{patch}", weight_map, persistent=False)
            if patch != self.patch_sizes[0]:
                position_map = resize_matrix(finest_grid, image_size // patch).float()
                self.register_buffer(f"position_map_{patch}", position_map, persistent=False)

    def forward(self, images: Tensor, patch_size: int | None = None) -> Tensor:
        """Images float [n, 3, S, S] -> features [n, embed_dim]; patch_size None is the finest."""
        patch = patch_size or self.patch_sizes[0]
        weight, position = self.visual.conv1.weight, self.visual.positional_embedding
        if patch != self.patch_sizes[-1]:
            flat = weight.flatten(2) @ self.get_buffer(f"weight_map_{patch}").T
            weight = flat.unflatten(2, (patch, patch))
        if patch != self.patch_sizes[0]:
            cells = self.get_buffer(f"position_map_{patch}") @ position[1:]
            position = torch.cat([position[:1], cells])
        x = F.conv2d(images, weight, stride=patch).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.expand(len(x), 1, -1)
        x = self.visual.ln_pre(torch.cat([first.to(x.dtype), x], dim=1) + position.to(x.dtype))
        pooled, _ = self.visual._pool(self.visual.transformer(x))
        return pooled @ self.visual.proj
