"""The contrastive model: open_clip towers behind `encode_image` and `encode_text`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from jestcli.config import Data, Model
from jestcli.models.flexi import FlexiVisual


class Clip(nn.Module):
    """Image and text tower, temperature scale and bias.

    The method names are those that clip-benchmark calls. Features are L2-normalised float32.
    """

    def __init__(self, clip: CLIP, image_size: int, patch_sizes: tuple[int, ...]):
        super().__init__()
        clip.visual = FlexiVisual(clip.visual, image_size, patch_sizes)
        self.clip = clip
        self.patch_sizes = clip.visual.patch_sizes

    def encode_image(self, images: Tensor, patch_size: int | None = None) -> Tensor:
        """float [n, 3, S, S] -> [n, d]; patch_size None is the finest, full resolution."""
        return F.normalize(self.clip.visual(images, patch_size).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int [n, L] -> [n, d]."""
        return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)

    @property
    def scale(self) -> Tensor:
        """Temperature scale (alpha in the paper), exponentiated, 0-d."""
        return self.clip.logit_scale.exp()

    @property
    def bias(self) -> Tensor:
        """Logit bias (minus the paper's beta), 0-d; zero for a softmax model."""
        return self.clip.logit_bias if self.clip.logit_bias is not None else torch.zeros(())


def build_model(model: Model, data: Data, patch_sizes: tuple[int, ...], seed: int) -> Clip:
    """A freshly initialised model; the same seed gives the same weights.

    Args:
        patch_sizes: the patch sizes this model will be used at (one for a fixed-patch model).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIP(
            model.embed_dim,
            CLIPVisionCfg(
                image_size=data.image_size,
                patch_size=max(patch_sizes),
                width=model.width,
                layers=model.layers,
                head_width=model.head_width,
                pool_type="avg",
                block_type="custom",  # open_clip's leaner attention: a quarter less CPU time
            ),
            CLIPTextCfg(
                context_length=data.context_length,
                vocab_size=data.vocab_size,
                width=model.text_width,
                heads=model.text_width // model.head_width,
                layers=model.text_layers,
                block_type="custom",
            ),
            init_logit_scale=math.log(model.init_logit_scale),
            init_logit_bias=model.init_logit_bias,
        )
        return Clip(clip, data.image_size, patch_sizes)
