"""FlexiViT: one vision tower at several patch sizes (Beyer et al., CVPR 2023), and other savings.

Patch weights are stored at one patch size and PI-resized to another; position embeddings are
stored on one grid and interpolated to another. Both are fixed linear maps, made once and kept as
buffers, so gradients flow through them. Besides larger patches, an image can be looked at smaller
or with only some of its cells (see `Resolution`): three ways to the same number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer as TimmVit
from torch import Tensor, nn


@dataclass(frozen=True)
class Resolution:
    """How a tower looks at an image.

    patch: patch size in pixels. side: the image is resized to this many pixels first.
    keep: share of the cells that the transformer sees, those with the most contrast (the highest
    variance of their pixels: deterministic, and blank background goes first); 1.0 is all of them.
    """

    patch: int
    side: int
    keep: float = 1.0

    @property
    def grid(self) -> int:
        return self.side // self.patch

    @property
    def tokens(self) -> int:
        """Cells that the transformer sees."""
        return max(1, round(self.keep * self.grid**2))


def resize_matrix(old: int, new: int) -> Tensor:
    """Bilinear resize of an old x old image as a matrix, float64 [new*new, old*old]."""
    axis = _axis_matrix(old, new)
    return torch.kron(axis, axis)


def pi_resize_matrix(old: int, new: int) -> Tensor:
    """Pseudo-inverse resize of patch weights, float64 [new*new, old*old] (FlexiViT, section 3.4).

    The new weights give, for every patch, the inner product that the old weights give for that
    patch resized back to `old` (exactly when new > old, in the least-squares sense otherwise)."""
    if max(old, new) <= 16:  # what recorded runs computed, to the last bit
        return torch.linalg.pinv(resize_matrix(old, new).T)
    axis = torch.linalg.pinv(_axis_matrix(old, new).T)  # pinv(a x a) = pinv(a) x pinv(a): no wait
    return torch.kron(axis, axis)


def _axis_matrix(old: int, new: int) -> Tensor:
    """Linear resize of `old` pixels in a row, float64 [new, old]; an image's is its square."""
    basis = torch.eye(old, dtype=torch.float64, device="cpu").reshape(old, 1, 1, old)
    resized = F.interpolate(basis, size=(1, new), mode="bilinear", antialias=new < old)
    return resized.reshape(old, new).T.contiguous()


def is_plain_vit(visual: nn.Module) -> bool:
    """Whether `FlexiVisual` can take this tower to other patch sizes."""
    if isinstance(visual, TimmModel):
        trunk = visual.trunk
        plain = type(trunk) is TimmVit and isinstance(trunk.patch_embed, PatchEmbed)
        return plain and trunk.pos_embed is not None
    return isinstance(visual, VisionTransformer)


class FlexiVisual(nn.Module):
    """An open_clip image tower that takes its `Resolution` at every call.

    At the patch size and grid that it stores it computes exactly what the unmodified tower does.

    visual: open_clip's VisionTransformer, or its TimmModel around timm's VisionTransformer.
        TypeError for anything else (`is_plain_vit`).
    full: the view of full resolution, the default.
    others: further views that will be used (`prepare` adds one later).
    ValueError if a view's patch does not divide its side."""

    visual: Any

    def __init__(self, visual: nn.Module, full: Resolution, others: tuple[Resolution, ...] = ()):
        super().__init__()
        self.visual, self.full = visual, full
        self.is_timm = isinstance(visual, TimmModel)
        if not is_plain_vit(visual):
            raise TypeError(f"{type(visual).__name__} is not a plain ViT")
        self.stored_patch = self._convolution.kernel_size[0]
        self.stored_grid = round((self._position.shape[-2] - self.prefix_positions) ** 0.5)
        for view in (full, *others):
            self.prepare(view)

    @property
    def _convolution(self) -> nn.Conv2d:
        return self.visual.trunk.patch_embed.proj if self.is_timm else self.visual.conv1

    @property
    def _position(self) -> Tensor:
        """[prefix + cells, width], or with a leading 1."""
        return self.visual.trunk.pos_embed if self.is_timm else self.visual.positional_embedding

    @property
    def prefix_positions(self) -> int:
        """Positions that belong to class or register tokens."""
        if not self.is_timm:
            return 1
        trunk = self.visual.trunk
        return 0 if trunk.no_embed_class else trunk.num_prefix_tokens

    def prepare(self, view: Resolution) -> None:
        """Make the resize maps of `view`, once. ValueError if its patch does not fit its side."""
        if view.side % view.patch:
            raise ValueError(f"patch size {view.patch} does not divide image size {view.side}")
        for name, make, stored, wanted in (
            ("weight_map", pi_resize_matrix, self.stored_patch, view.patch),
            ("position_map", resize_matrix, self.stored_grid, view.grid),
        ):
            if wanted != stored and not hasattr(self, f"{name}_{wanted}"):
                map_ = make(stored, wanted).float().to(self._position.device)
                self.register_buffer(f"{name}_{wanted}", map_, persistent=False)

    def forward(self, images: Tensor, view: Resolution | None = None) -> Tensor:
        """Images float [n, 3, S, S] -> features [n, embed_dim]; view None is full resolution."""
        view = view or self.full
        if images.shape[-1] != view.side:
            size = (view.side, view.side)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        if view == Resolution(self.stored_patch, self.stored_patch * self.stored_grid):
            return self.visual(images)
        x = self._patches(images, view.patch)
        return self._timm(x, images, view) if self.is_timm else self._native(x, images, view)

    def _patches(self, images: Tensor, patch: int) -> Tensor:
        """Patch embeddings [n, grid * grid, width], by weights resized to `patch`."""
        weight, bias = self._convolution.weight, self._convolution.bias
        if patch != self.stored_patch:
            flat = weight.flatten(2) @ self.get_buffer(f"weight_map_{patch}").T
            weight = flat.unflatten(2, (patch, patch))
        return F.conv2d(images, weight, bias, stride=patch).flatten(2).transpose(1, 2)

    def _positions(self, grid: int) -> Tensor:
        """Position embeddings [prefix + grid * grid, width], interpolated from the stored grid."""
        position, prefix = self._position.flatten(0, -2), self.prefix_positions
        if grid == self.stored_grid:
            return position
        cells = self.get_buffer(f"position_map_{grid}") @ position[prefix:]
        return torch.cat([position[:prefix], cells])

    def _native(self, x: Tensor, images: Tensor, view: Resolution) -> Tensor:
        visual = self.visual
        first = visual.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first.to(x.dtype), x], dim=1) + self._positions(view.grid).to(x.dtype)
        x = visual.ln_pre(drop_tokens(x, images, view, prefix=1))
        pooled, _ = visual._pool(visual.transformer(x))
        return pooled @ visual.proj

    def _timm(self, x: Tensor, images: Tensor, view: Resolution) -> Tensor:
        trunk, position = self.visual.trunk, self._positions(view.grid)
        x = trunk.patch_embed.norm(x)
        tokens = [t for t in (trunk.cls_token, trunk.reg_token) if t is not None]
        prefix = [t.expand(len(x), -1, -1).to(x.dtype) for t in tokens]
        if trunk.no_embed_class:
            x = torch.cat([*prefix, x + position.to(x.dtype)], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + position.to(x.dtype)
        x = trunk.norm_pre(drop_tokens(x, images, view, trunk.num_prefix_tokens))
        return self.visual.head(trunk.forward_head(trunk.norm(trunk.blocks(x))))


class OneView(nn.Module):
    """An open_clip image tower that is no plain ViT (a ResNet, a ConvNeXt, timm's others),
    unmodified: it sees images at full resolution, and at no other."""

    def __init__(self, visual: nn.Module, full: Resolution):
        super().__init__()
        self.visual, self.full = visual, full

    def prepare(self, view: Resolution) -> None:
        """ValueError for any view but the full one."""
        if view != self.full:
            raise ValueError(f"this tower sees images at {self.full.side} px alone")

    def train(self, mode: bool = True) -> OneView:
        """A locked tower stays in evaluation mode: its batch statistics are its weights, too."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def forward(self, images: Tensor, view: Resolution | None = None) -> Tensor:
        """Images float [n, 3, S, S] -> features [n, embed_dim]."""
        features: Tensor = self.visual(images)
        return features


def drop_tokens(x: Tensor, images: Tensor, view: Resolution, prefix: int) -> Tensor:
    """Keep `view.tokens` of the cells, those whose pixels vary most, and all prefix tokens.

    x: [n, prefix + grid * grid, width]; images: float [n, 3, side, side]."""
    if view.tokens == view.grid**2:
        return x
    pixels = images.float()
    mean, of_squares = (F.avg_pool2d(p, view.patch) for p in (pixels, pixels.square()))
    variance = (of_squares - mean.square()).sum(dim=1).flatten(1)
    kept = variance.topk(view.tokens, dim=1).indices.sort(dim=1).values + prefix
    rows = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[-1]))
    return torch.cat([x[:, :prefix], rows], dim=1)
