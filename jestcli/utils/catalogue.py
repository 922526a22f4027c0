"""open_clip's model configs as data, read without importing open_clip (that takes seconds)."""

from __future__ import annotations

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jestcli.utils.reading import parse_json

LOCAL, HUB = "local-dir:", "hf-hub:"  # open_clip's words for a model in a folder, and on a hub
FOLDER_CONFIG = "open_clip_config.json"
# Plain ones: not those with relative or rotary positions.
_TIMM_VIT = re.compile(r"^vit_(?!relpos|pe_core)\w*patch(\d+)")


@cache
def known() -> dict[str, Path]:
    """Name -> JSON file of every config that open_clip ships."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        return {}
    folder = Path(next(iter(found.submodule_search_locations))) / "model_configs"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def is_place(name: str) -> bool:
    """Whether a model's name says where it lies: local-dir:DIR or hf-hub:ORG/NAME."""
    return name.startswith((LOCAL, HUB))


def read(name: str) -> dict[str, Any]:
    """The config called `name`: one of `known()`, or that of a place (ValueError without one)."""
    if is_place(name):
        config: dict[str, Any] = read_place(name)["model_cfg"]
        return config
    settings: dict[str, Any] = json.loads(known()[name].read_text())
    return settings


def read_place(name: str) -> dict[str, Any]:
    """model_cfg and preprocess_cfg of local-dir:DIR or hf-hub:ORG/NAME. Raises ValueError."""
    path = _file(name, FOLDER_CONFIG)
    try:
        found = parse_json(path.read_bytes())
        if all(isinstance(found["model_cfg"][key], dict) for key in ("vision_cfg", "text_cfg")):
            return {"preprocess_cfg": {}, **found}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{name} holds no open_clip model ({FOLDER_CONFIG})")


def weights_of(name: str) -> str:
    """The file with the weights of a place. Raises ValueError."""
    for file in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        try:
            path = _file(name, file)
        except ValueError:
            continue
        if path.is_file():
            return str(path)
    raise ValueError(f"{name} holds no weights that open_clip reads")


def _file(name: str, file: str) -> Path:
    """A file of a place; one on a hub is fetched into the hub's own cache. Raises ValueError."""
    if name.startswith(LOCAL):
        return Path(name.removeprefix(LOCAL)).expanduser() / file
    return _from_hub(name, file)


@cache
def _from_hub(name: str, file: str) -> Path:
    """The hub is asked once a process, however often a run's settings are checked."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name.removeprefix(HUB), file))
    except Exception as error:  # no such repository, no network, no right
        raise ValueError(f"{name}: {' '.join(str(error).split())[:160]}") from None


def own_tokenizer(name: str | None, wanted: object) -> bool:
    """Whether a named model comes with a tokenizer other than CLIP's byte pairs, and it is
    `wanted`: it has pretrained weights, or was asked for."""
    if name is None or not wanted:
        return False
    return bool(read(name)["text_cfg"].get("hf_tokenizer_name"))


def problem(config: dict[str, Any]) -> str | None:
    """Why this config cannot be trained here, in a few words; None if it can."""
    if "multimodal_cfg" in config:
        return "it also generates captions (CoCa)"
    if config["text_cfg"].get("hf_model_name"):
        return "its text tower comes from a model hub"
    return None


def flexible(config: dict[str, Any]) -> bool:
    """Whether its image tower is a plain ViT, which can be made to take several patch sizes; any
    other sees images at one resolution."""
    name = config["vision_cfg"].get("timm_model_name")
    return bool(_TIMM_VIT.match(name)) if name else not _resnet(config)


def has_batch_norm(config: dict[str, Any]) -> bool:
    """Whether its image tower couples the examples of a batch: ResNets, and MobileCLIP's."""
    return _resnet(config) or "_mci" in config["vision_cfg"].get("timm_model_name", "")


def _resnet(config: dict[str, Any]) -> bool:
    vision = config["vision_cfg"]
    return "timm_model_name" not in vision and not isinstance(vision.get("layers", 12), int)


def patch_size(config: dict[str, Any]) -> int:
    """The patch size in pixels that the config's image tower has; of a tower without patches, what
    must divide an image's side."""
    vision = config["vision_cfg"]
    if _resnet(config):
        return 32
    found = re.search(r"patch(\d+)", vision.get("timm_model_name", ""))
    return int(found[1]) if found else int(vision.get("patch_size", 16))


def at_patch(config: dict[str, Any], patch: int) -> dict[str, Any]:
    """The config with an image tower of this patch size; timm's go by another name."""
    if not flexible(config):
        return dict(config)
    vision = dict(config["vision_cfg"])
    if "timm_model_name" not in vision:
        return {**config, "vision_cfg": vision | {"patch_size": patch}}
    name = re.sub(r"(?<=patch)\d+", str(patch), vision["timm_model_name"], count=1)
    return {**config, "vision_cfg": vision | {"timm_model_name": name}}


@cache
def usable() -> list[str]:
    """Names of the configs that can be trained here: those with a text tower of open_clip's own."""
    return [name for name in known() if problem(read(name)) is None]
