"""Trained weights for open_clip: at any patch size of the run, with config and vocabulary."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from safetensors.torch import save
from torch import Tensor

from jestcli.config import ConfigError, Run, did_you_mean, file_hash
from jestcli.data.tokens import SmallTokenizer, small_tokenizer
from jestcli.models import standalone
from jestcli.models.cnn import SmallPair
from jestcli.models.flexi import FlexiVisual, OneView, pi_resize_matrix, resize_matrix
from jestcli.models.towers import Clip
from jestcli.runs.card import write_card
from jestcli.runs.given import SMALL, models_in
from jestcli.runs.run_data import tokenizer_of
from jestcli.runs.trained import load_folder
from jestcli.runs.workspace import StageError, Workspace, read_run
from jestcli.training.checkpoint import load_model, write_atomic, write_json
from jestcli.utils import catalogue
from jestcli.utils.reading import parse_json

FORMATS = ("open_clip", "hf")


def export(
    folder: Path, out: Path, patch: int | None, form: str | None, workspace: Workspace
) -> str:
    """Write the model of the run in `folder` to `out`, with a model card; returns Python that loads
    it.

    patch: pixels; one of the run's patch sizes, its finest if None.
    form: "open_clip" (None), a model config NAME.json and a checkpoint NAME.safetensors; or "hf",
        the files of a Hugging Face folder, which `local-dir:OUT` loads with its preprocessing.
    A convolutional tower has no patches, and no form but its own: weights and a short module that
    loads them with PyTorch alone.
    Raises ConfigError for a patch size or format that is not there, and where `out` holds another
    model; StageError for the rest.
    """
    if form is not None and form not in FORMATS:
        raise ConfigError(f"--format {form}{did_you_mean(form, list(FORMATS))}")
    _, run = read_run(folder)
    if run.model.tower == "cnn":
        for option, value in (("--format", form), ("--patch", patch)):
            if value is not None:
                raise ConfigError(
                    f"{option} {value}: {folder.name} is a convolutional tower, which open_clip "
                    "cannot load; without it weights and a module for PyTorch alone are written"
                )
        code = _export_small(run, load_folder(run, folder), out)
    else:
        code = _export_towers(folder, run, load_folder(run, folder), out, patch, form)
    write_card(folder, out, run, code)
    return code


def _export_towers(
    folder: Path, run: Run, model: Clip, out: Path, patch: int | None, form: str | None
) -> str:
    """Write towers of open_clip's, in either form."""
    trained = sorted({model.full.patch, model.low.patch})
    patch = trained[0] if patch is None else patch
    if patch not in trained:
        known = ", ".join(map(str, trained))
        raise ConfigError(f"--patch {patch}: this run was trained at {known}")
    name = f"jest-{folder.name}-patch{patch}"
    tensors = {k: v.contiguous() for k, v in open_clip_weights(model, patch).items()}
    mean, std = (_by_channel(model, name) for name in ("mean", "std"))
    weights = save(tensors, {"image_mean": json.dumps(mean), "image_std": json.dumps(std)})
    if form == "hf":
        _check_alone(out, catalogue.FOLDER_CONFIG, "open_clip_model.safetensors", weights)
    else:
        _check_alone(out, f"{name}.safetensors", f"{name}.safetensors", weights)
    out.mkdir(parents=True, exist_ok=True)
    config = open_clip_config(run, patch, _vocabulary(run, out))
    _check_builds(config, tensors, patch)
    if form == "hf":
        write_atomic(out / "open_clip_model.safetensors", weights)
        preprocess = {"size": run.data.image_size, "mode": "RGB", "mean": mean, "std": std}
        preprocess |= {"interpolation": "bicubic", "resize_mode": "shortest"}
        config = {"model_cfg": config, "preprocess_cfg": preprocess}
        write_json(out / "open_clip_config.json", config)
        where = f"local-dir:{out.resolve()}"
        return (
            "import open_clip\n"
            f"model, _, preprocess = open_clip.create_model_and_transforms({where!r})\n"
            f"tokenizer = open_clip.get_tokenizer({where!r})"
        )
    write_atomic(out / f"{name}.safetensors", weights)
    write_json(out / f"{name}.json", config)
    return (
        "import open_clip\n"
        f"open_clip.add_model_config({str(out.resolve())!r})\n"
        f"model, _, preprocess = open_clip.create_model_and_transforms(\n    {name!r}, "
        f"pretrained={str((out / f'{name}.safetensors').resolve())!r},\n"
        f"    image_mean={tuple(mean)}, image_std={tuple(std)})\n"
        f"tokenizer = open_clip.get_tokenizer({name!r})"
    )


def _export_small(run: Run, model: Clip, out: Path) -> str:
    """Write the convolutional tower and the bag of tokens for PyTorch alone: weights.pt,
    model.json, the vocabulary, and jest_model.py, which loads them."""
    visual, text, side = model.clip.visual, model.clip.text, run.data.image_size
    tensors = {
        "image_projection_weight": visual.projection.weight,
        "image_projection_bias": visual.projection.bias,
        "text_embedding": text.embedding.weight,
        "text_norm_weight": text.norm.weight,
        "text_norm_bias": text.norm.bias,
        "text_projection_weight": text.projection.weight,
        "text_projection_bias": text.projection.bias,
    }
    for k, (convolve, norm) in enumerate(zip(visual.convolutions, visual.norms, strict=True)):
        tensors |= {
            f"image_{k}_convolution": convolve.weight,
            f"image_{k}_weight": norm.weight,
            f"image_{k}_bias": norm.bias,
            f"image_{k}_mean": norm.get_buffer(f"mean_{side}"),
            f"image_{k}_var": norm.get_buffer(f"var_{side}"),
        }
    content = io.BytesIO()
    torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, content)
    _check_alone(out, SMALL, "weights.pt", content.getvalue())
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "weights.pt", content.getvalue())
    about = {
        "layers": len(run.model.channels),
        "image_size": side,
        "context_length": run.data.context_length,
        "vocabulary": _vocabulary(run, out).name,
        "scale": float(model.scale),
        "bias": float(model.bias),
    }
    write_json(out / "model.json", about)
    write_atomic(out / SMALL, Path(standalone.__file__).read_bytes())
    where = str(out.resolve())
    return (
        f"import sys; sys.path.insert(0, {where!r})\n"
        f"import jest_model\nmodel = jest_model.load({where!r})"
    )


def _check_alone(out: Path, own: str, file: str, weights: bytes) -> None:
    """Whether `out` holds no other model than the one to be written: whoever names the folder later
    means one. Raises ConfigError.

    own: what `models_in` calls it; file: its weights, of these bytes.
    """
    there = [name for name in models_in(out) if name != own]
    before = out / file
    if own in models_in(out) and before.is_file() and not _same(before.read_bytes(), weights):
        there.append(file)
    if there:
        raise ConfigError(f"{out} holds another model already: {', '.join(there)}")


def _same(one: bytes, two: bytes) -> bool:
    """Whether two files of weights hold the same: safetensors writes the entries of a header's
    metadata in another order each time."""

    def parts(content: bytes) -> tuple[Any, bytes]:
        end = 8 + int.from_bytes(content[:8], "little")
        return parse_json(content[8:end]), content[end:]

    try:
        return one == two or parts(one) == parts(two)
    except ValueError:  # no safetensors
        return False


def open_clip_weights(model: Clip, patch: int) -> dict[str, Tensor]:
    """The weights under open_clip's names, as a plain tower of this patch size has them."""
    visual, out = model.clip.visual, {}
    convolution, position = _resized_names(visual)
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("clip.").replace("visual.visual.", "visual.", 1)
        if name == convolution:
            tensor = resized_patch(tensor, patch)
        if name == position:
            grid = visual.full.side // patch
            tensor = resized_positions(tensor, grid, visual.prefix_positions)
        out[name] = tensor
    return out


def _resized_names(visual: FlexiVisual | OneView) -> tuple[str, str]:
    """What open_clip calls the patch weights and the positions of this tower; "" if it has none
    that may be resized."""
    if isinstance(visual, OneView):
        return "", ""
    if visual.is_timm:
        return "visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed"
    return "visual.conv1.weight", "visual.positional_embedding"


def _by_channel(model: Clip, name: str) -> list[float]:
    """Mean or standard deviation of the pixels that the weights expect."""
    return getattr(model, name).flatten().tolist() if model.expects else [0.5] * 3


def _check_builds(config: dict[str, Any], weights: dict[str, Tensor], patch: int) -> None:
    """Whether open_clip builds towers from `config` that these weights fit. Raises StageError."""
    settings = {k: v for k, v in config.items() if k not in ("custom_text", "vision_cfg")}
    text = {k: v for k, v in settings.pop("text_cfg").items() if "tokenizer" not in k}
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    try:
        with torch.device("meta"):
            plain = kind(
                vision_cfg=CLIPVisionCfg(**config["vision_cfg"]),
                text_cfg=CLIPTextCfg(**text),
                **settings,
            )
        shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
        fits = shapes == {name: tensor.shape for name, tensor in weights.items()}
    except RuntimeError:  # timm knows no such model
        fits = False
    if not fits:
        tower = config["vision_cfg"].get("timm_model_name", "of its own")
        size = config["vision_cfg"]["image_size"]
        raise StageError(f"open_clip has no image tower {tower} at patch {patch} and {size} pixels")


def resized_patch(weight: Tensor, patch: int) -> Tensor:
    """Patch weights [w, 3, p, p] PI-resized to [w, 3, patch, patch]."""
    old = weight.shape[-1]
    if old == patch:
        return weight
    flat = weight.flatten(2) @ pi_resize_matrix(old, patch).float().T
    return flat.unflatten(2, (patch, patch))


def resized_positions(position: Tensor, grid: int, prefix: int) -> Tensor:
    """Positions [prefix + g * g, w] interpolated to [prefix + grid * grid, w]; timm's have a
    leading 1. prefix: those of class or register tokens."""
    flat = position.flatten(0, -2)
    old = round((len(flat) - prefix) ** 0.5)
    if old == grid:
        return position
    resized = torch.cat([flat[:prefix], resize_matrix(old, grid).float() @ flat[prefix:]])
    return resized.reshape(*position.shape[:-2], *resized.shape)


def open_clip_config(run: Run, patch: int, vocabulary: Path) -> dict[str, Any]:
    """What open_clip builds the same towers from."""
    sigmoid = run.optim.loss == "sigmoid"
    bias = {"init_logit_bias": run.model.init_logit_bias} if sigmoid else {}
    if run.model.name is not None:
        return _named_config(run, patch, vocabulary) | bias
    vision = CLIPVisionCfg(
        image_size=run.data.image_size,
        patch_size=patch,
        width=run.model.width,
        layers=run.model.layers,
        head_width=run.model.head_width,
        pool_type="avg",
        block_type="custom",
    )
    text = CLIPTextCfg(
        context_length=run.data.context_length,
        vocab_size=run.data.vocab_size,
        width=run.model.text_width,
        heads=run.model.text_width // run.model.head_width,
        layers=run.model.text_layers,
        block_type="custom",
        tokenizer_kwargs={"bpe_path": str(vocabulary.resolve())},
    )
    return {
        "embed_dim": run.model.embed_dim,
        **bias,
        "vision_cfg": _changed(vision, CLIPVisionCfg()),
        "text_cfg": _changed(text, CLIPTextCfg()),
    }


def _named_config(run: Run, patch: int, vocabulary: Path) -> dict[str, Any]:
    """The named config, as the run changed it: sizes, patch and vocabulary."""
    assert run.model.name is not None
    config = catalogue.at_patch(catalogue.read(run.model.name), patch)
    for key in ("preprocess_cfg", "init_logit_bias"):
        config.pop(key, None)
    text = dict(config["text_cfg"])
    text |= {"context_length": run.data.context_length, "vocab_size": run.data.vocab_size}
    if vocabulary.is_file():
        text.pop("hf_tokenizer_name", None)
        text["tokenizer_kwargs"] = {"bpe_path": str(vocabulary.resolve())}
    vision = config["vision_cfg"] | {"image_size": run.data.image_size}
    return config | {"vision_cfg": vision, "text_cfg": text}


def _changed(settings: Any, default: Any) -> dict[str, Any]:
    usual = asdict(default)
    return {k: v for k, v in asdict(settings).items() if v != usual[k]}


def _vocabulary(run: Run, out: Path) -> Path:
    """The run's byte-pair table, beside the weights; `out` itself if it used another tokenizer."""
    if run.data.own and not isinstance(tokenizer_of(run.model, run.data), SmallTokenizer):
        return out
    # Past the cache: made before in this process, it writes nothing.
    small_tokenizer.__wrapped__(run.data.vocab_size, run.data.context_length, out)
    return next(out.glob(f"bpe-{run.data.vocab_size}-*.txt.gz"))


def start_from(path: Path, sha256: str | None, learner: Clip) -> None:
    """Fill `learner` from an open_clip checkpoint. Raises StageError, also if the file changed."""
    try:
        changed = sha256 is not None and file_hash(path) != sha256
    except OSError as error:
        raise StageError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    if changed:
        raise StageError(f"{path} is not the file this run started from")
    init_from(path, learner)


def init_from(path: Path, model: Clip) -> None:
    """Start `model` from an open_clip checkpoint of the same towers, at any patch size.

    Tensors only: a .pt or .bin is read with weights_only, a .safetensors as it is. Raises
    StageError in one line for anything that does not fit.
    """
    weights = read_weights(path)
    own = {name for name in weights if name.startswith("model.clip.")}
    if isinstance(model.clip, SmallPair):
        if not own:
            raise StageError(f"{path}: a run with model.tower=cnn starts from another such run")
        load_model(path, model)
        return
    if own:  # a file of this suite
        weights = {name.removeprefix("model.clip."): weights[name] for name in own}
        weights = {n.replace("visual.visual.", "visual.", 1): v for n, v in weights.items()}
    visual = model.clip.visual
    conv, position = _resized_names(visual)
    if conv in weights and position in weights:
        weights[conv] = resized_patch(weights[conv], visual.stored_patch)
        weights[position] = resized_positions(
            weights[position], visual.stored_grid, visual.prefix_positions
        )
    renamed = {
        "clip." + (f"visual.{name}" if name.startswith("visual.") else name): tensor
        for name, tensor in weights.items()
    }
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise StageError(f"{path} does not fit the model: {why}") from None


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
