"""Trained weights for open_clip: at any patch size of the run, with config and vocabulary."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save
from torch import Tensor

from jestcli.config import ConfigError, Run, did_you_mean
from jestcli.data.tokens import small_tokenizer
from jestcli.models.flexi import pi_resize_matrix, resize_matrix
from jestcli.models.towers import Clip
from jestcli.stages.evaluate import read_run
from jestcli.stages.learner import load_folder
from jestcli.stages.workspace import StageError, Workspace
from jestcli.training.checkpoint import write_atomic, write_json

FORMATS = ("open_clip", "hf")
PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3}


def export(folder: Path, out: Path, patch: int | None, form: str, workspace: Workspace) -> str:
    """Write the model of the run in `folder` to `out`; returns Python that loads it.

    patch: pixels; one of the run's patch sizes, its finest if None.
    form: "open_clip", a model config NAME.json and a checkpoint NAME.safetensors; or "hf", the
        files of a Hugging Face folder, which `local-dir:OUT` loads with its preprocessing.
    Raises ConfigError for a patch size or format that is not there, StageError for the rest.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {form}{did_you_mean(form, list(FORMATS))}")
    _, run = read_run(folder)
    if run.model.name is not None:
        raise StageError("only the suite's own towers are exported so far, not named ones")
    model = load_folder(run, folder)
    trained = sorted({model.full.patch, model.low.patch})
    patch = patch or trained[0]
    if patch not in trained:
        known = ", ".join(map(str, trained))
        raise ConfigError(f"--patch {patch}: this run was trained at {known}")
    name = f"jest-{folder.name}-patch{patch}"
    weights = save({k: v.contiguous() for k, v in open_clip_weights(model, patch).items()})
    out.mkdir(parents=True, exist_ok=True)
    config = open_clip_config(run, patch, _vocabulary(run, out))
    if form == "hf":
        write_atomic(out / "open_clip_model.safetensors", weights)
        preprocess = {"size": run.data.image_size, "mode": "RGB", **PIXELS,
                      "interpolation": "bicubic", "resize_mode": "shortest"}  # fmt: skip
        write_json(
            out / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess}
        )
        where = f"local-dir:{out.resolve()}"
        return (f"model, _, preprocess = open_clip.create_model_and_transforms({where!r})\n"
                f"tokenizer = open_clip.get_tokenizer({where!r})")  # fmt: skip
    write_atomic(out / f"{name}.safetensors", weights)
    write_json(out / f"{name}.json", config)
    return (
        f"open_clip.add_model_config({str(out.resolve())!r})\n"
        f"model, _, preprocess = open_clip.create_model_and_transforms(\n    {name!r}, "
        f"pretrained={str((out / f'{name}.safetensors').resolve())!r},\n"
        f"    image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))\n"
        f"tokenizer = open_clip.get_tokenizer({name!r})"
    )


def open_clip_weights(model: Clip, patch: int) -> dict[str, Tensor]:
    """The weights under open_clip's names, as a plain tower of this patch size has them."""
    visual, out = model.clip.visual, {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("clip.").replace("visual.visual.", "visual.", 1)
        if name == "visual.conv1.weight":
            tensor = resized_patch(tensor, patch)
        if name == "visual.positional_embedding":
            tensor = resized_positions(tensor, visual.full.side // patch)
        out[name] = tensor
    return out


def resized_patch(weight: Tensor, patch: int) -> Tensor:
    """Patch weights [w, 3, p, p] PI-resized to [w, 3, patch, patch]."""
    old = weight.shape[-1]
    if old == patch:
        return weight
    flat = weight.flatten(2) @ pi_resize_matrix(old, patch).float().T
    return flat.unflatten(2, (patch, patch))


def resized_positions(position: Tensor, grid: int) -> Tensor:
    """Class and cell positions [1 + g * g, w] interpolated to [1 + grid * grid, w]."""
    old = round((len(position) - 1) ** 0.5)
    if old == grid:
        return position
    return torch.cat([position[:1], resize_matrix(old, grid).float() @ position[1:]])


def open_clip_config(run: Run, patch: int, vocabulary: Path) -> dict[str, Any]:
    """What open_clip builds the same towers from."""
    vision = CLIPVisionCfg(
        image_size=run.data.image_size, patch_size=patch, width=run.model.width,
        layers=run.model.layers, head_width=run.model.head_width, pool_type="avg",
        block_type="custom",
    )  # fmt: skip
    text = CLIPTextCfg(
        context_length=run.data.context_length, vocab_size=run.data.vocab_size,
        width=run.model.text_width, heads=run.model.text_width // run.model.head_width,
        layers=run.model.text_layers, block_type="custom",
        tokenizer_kwargs={"bpe_path": str(vocabulary.resolve())},
    )  # fmt: skip
    return {
        "embed_dim": run.model.embed_dim,
        "init_logit_bias": run.model.init_logit_bias,
        "vision_cfg": _changed(vision, CLIPVisionCfg()),
        "text_cfg": _changed(text, CLIPTextCfg()),
    }


def _changed(settings: Any, default: Any) -> dict[str, Any]:
    usual = asdict(default)
    return {k: v for k, v in asdict(settings).items() if v != usual[k]}


def _vocabulary(run: Run, out: Path) -> Path:
    """The run's byte-pair table, beside the weights."""
    small_tokenizer(run.data.vocab_size, run.data.context_length, out)
    found = next(out.glob(f"bpe-{run.data.vocab_size}-*.txt.gz"), None)
    if found is None:  # made before in this process, for another folder
        small_tokenizer.__wrapped__(run.data.vocab_size, run.data.context_length, out)
        found = next(out.glob(f"bpe-{run.data.vocab_size}-*.txt.gz"))
    return found


def init_from(path: Path, model: Clip) -> None:
    """Start `model` from an open_clip checkpoint of the same towers, at any patch size.

    Tensors only: a .pt or .bin is read with weights_only, a .safetensors as it is. Raises
    StageError in one line for anything that does not fit.
    """
    weights = read_weights(path)
    own = {name for name in weights if name.startswith("model.clip.")}
    if own:  # a file of this suite
        weights = {name.removeprefix("model.clip."): weights[name] for name in own}
        weights = {n.replace("visual.visual.", "visual.", 1): v for n, v in weights.items()}
    visual = model.clip.visual
    conv, position = "visual.conv1.weight", "visual.positional_embedding"
    if conv in weights and position in weights:
        weights[conv] = resized_patch(weights[conv], visual.stored_patch)
        weights[position] = resized_positions(weights[position], visual.stored_grid)
    renamed = {
        "clip." + (f"visual.{name}" if name.startswith("visual.") else name): tensor
        for name, tensor in weights.items()
    }
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise StageError(f"{path} does not fit the model: {why}") from None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises StageError if it cannot be read."""
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise StageError(f"cannot read the checkpoint {path}: {error.strerror}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name, "module." and "state_dict" unwrapped. Raises StageError."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
            found = found.get("state_dict", found)
        return {
            name.removeprefix("module."): tensor
            for name, tensor in found.items()
            if isinstance(tensor, Tensor)
        }
    except Exception as error:  # zip, pickle and safetensors each raise their own
        why = " ".join(str(error).split())[:160]
        raise StageError(f"cannot read the checkpoint {path}: {why}") from None
