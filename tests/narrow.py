"""Towers as open_clip builds them by name, so narrow that they train within milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jestcli.utils import catalogue

TEXT = {"context_length": 8, "vocab_size": 600, "width": 16, "heads": 2, "layers": 1}
NATIVE: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "layers": 1,
    "head_width": 8,
}
TIMM: dict[str, Any] = {"image_size": 32, "timm_proj": "none"}
NO_BIAS = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
# What these names are within `narrow_names`.
NAMED: dict[str, dict[str, Any]] = {
    "ViT-B-32": {"embed_dim": 12, "vision_cfg": NATIVE, "text_cfg": TEXT},
    "ViT-B-16-SigLIP": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {**TIMM, "timm_model_name": "vit_tiny_patch16_siglip", "timm_pool": "map"},
        "text_cfg": TEXT | NO_BIAS,
    },
    "RN50": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32},
        "text_cfg": TEXT,
    },
    "convnext_tiny": {
        "embed_dim": 12,
        "vision_cfg": {**TIMM, "timm_model_name": "test_convnext", "timm_proj": "linear"}
        | {"timm_drop_path": 0.5},
        "text_cfg": TEXT,
    },
    "MobileCLIP-S1": {
        "embed_dim": 12,
        "custom_text": True,
        "vision_cfg": {**TIMM, "timm_model_name": "fastvit_mci", "timm_proj": "linear"},
        "text_cfg": TEXT | NO_BIAS,
    },
}


@contextmanager
def narrow_timm() -> Iterator[None]:
    """timm's VisionTransformer under these names, one layer of 16 channels; and timm's smallest
    tower whose batch norms hold their activations, as MobileCLIP's do."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    variants = {
        "vit_tiny_patch16_siglip": {"class_token": False, "no_embed_class": True},
        "vit_tiny_patch16": {},
        "vit_tiny_patch16_reg": {"reg_tokens": 2, "no_embed_class": True},
    }

    def create(name: str, **more: Any) -> VisionTransformer:
        more.pop("pretrained")
        made = VisionTransformer(
            img_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, **variants[name], **more
        )
        made.default_cfg = {}
        return made

    real = timm.create_model
    timm.create_model = lambda name, **more: (
        create(name, **more)
        if name in variants
        else real("test_efficientnet" if name == "fastvit_mci" else name, **more)
    )
    try:
        yield
    finally:
        timm.create_model = real


@contextmanager
def narrow_names() -> Iterator[None]:
    """The names in NAMED give those configs."""
    real = catalogue.read
    catalogue.read = lambda name: NAMED[name]
    try:
        with narrow_timm():
            yield
    finally:
        catalogue.read = real
