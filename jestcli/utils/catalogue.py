"""open_clip's model configs as data, read without importing open_clip (that takes seconds)."""

from __future__ import annotations

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

_TIMM_VIT = re.compile(r"^vit_(?!relpos|pe_core)\w*patch(\d+)")


@cache
def known() -> dict[str, Path]:
    """Name -> JSON file of every config that open_clip ships."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        return {}
    folder = Path(next(iter(found.submodule_search_locations))) / "model_configs"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def read(name: str) -> dict[str, Any]:
    """The config called `name`, one of `known()`."""
    settings: dict[str, Any] = json.loads(known()[name].read_text())
    return settings


def own_tokenizer(name: str | None, pretrained: str | None) -> bool:
    """Whether a model's pretrained weights come with a tokenizer other than CLIP's byte pairs."""
    if name is None or pretrained is None:
        return False
    return bool(read(name)["text_cfg"].get("hf_tokenizer_name"))


def problem(config: dict[str, Any]) -> str | None:
    """Why this config cannot be trained here, in a few words; None if it can."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "multimodal_cfg" in config:
        return "it also generates captions (CoCa)"
    if text.get("hf_model_name"):
        return "its text tower comes from a model hub"
    timm_name = vision.get("timm_model_name")
    if timm_name and not _TIMM_VIT.match(timm_name):
        return f"its image tower, {timm_name}, is not a plain ViT"
    if not timm_name and not isinstance(vision.get("layers", 12), int):
        return "its image tower is a ResNet"
    return None


def patch_size(config: dict[str, Any]) -> int:
    """The patch size in pixels that the config's image tower has."""
    vision = config["vision_cfg"]
    found = _TIMM_VIT.match(vision.get("timm_model_name", ""))
    return int(found[1]) if found else int(vision.get("patch_size", 16))


def at_patch(config: dict[str, Any], patch: int) -> dict[str, Any]:
    """The config with an image tower of this patch size; timm's go by another name."""
    vision = dict(config["vision_cfg"])
    if "timm_model_name" not in vision:
        return {**config, "vision_cfg": vision | {"patch_size": patch}}
    name = re.sub(r"(?<=patch)\d+", str(patch), vision["timm_model_name"], count=1)
    return {**config, "vision_cfg": vision | {"timm_model_name": name}}


@cache
def usable() -> list[str]:
    """Names of the configs that can be trained here: ViTs with a text tower of open_clip's own."""
    return [name for name in known() if problem(read(name)) is None]
