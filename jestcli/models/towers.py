"""The contrastive model: open_clip towers behind `encode_image` and `encode_text`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn

from jestcli.config import ConfigError, Data, Model, Selection, did_you_mean, file_hash
from jestcli.models.cnn import BagOfTokens, BatchNorm, ConvTower, SmallPair
from jestcli.models.flexi import FlexiVisual, OneView, Resolution, is_plain_vit
from jestcli.utils import catalogue


class Clip(nn.Module):
    """Image and text tower, temperature scale and bias.

    The method names are those that clip-benchmark calls. Features are L2-normalised float32.

    full, low: how the image tower sees images at full and at low resolution.
    pixels: mean and standard deviation by channel, of pixels in [0, 1], that the weights
        expect; None is one half of each, which is how images arrive."""

    clip: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: CLIP | CustomTextCLIP | SmallPair,
        full: Resolution,
        low: Resolution | None = None,
        pixels: tuple[Any, Any] | None = None,
    ):
        super().__init__()
        self.full, self.low = full, low or full
        if not isinstance(clip.visual, ConvTower):  # which takes views by itself
            plain = is_plain_vit(clip.visual)
            clip.visual = (FlexiVisual if plain else OneView)(clip.visual, full)
            if not plain and self.low != full:  # a place's towers are not known by name
                raise ConfigError("this image tower sees images at one resolution alone")
            clip.visual.prepare(self.low)
        self.clip = clip
        self.norms = [m for m in clip.modules() if isinstance(m, BatchNorm | nn.BatchNorm2d)]
        self.mode_matters = any(map(_mode_matters, clip.modules()))
        self.expects = pixels is not None
        if pixels is not None:
            for name, value in zip(("mean", "std"), pixels, strict=True):
                self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)

    def encode_image(self, images: Tensor, view: Resolution | None = None) -> Tensor:
        """float [n, 3, S, S] in [-1, 1] -> [n, d]; view None is full resolution."""
        if self.expects:
            images = (images * 0.5 + 0.5 - self.mean) / self.std
        return F.normalize(_wide(self.clip.visual(images, view)), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int [n, L] -> [n, d]."""
        return F.normalize(_wide(self.clip.encode_text(tokens)), dim=-1)

    def forward(
        self, images: Tensor, tokens: Tensor, n_low: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that a training step needs in one call, as DDP and compile want it.

        The first `n_low` of the images float [n, 3, S, S] are seen at low resolution, the rest at
        full; tokens int [n, L]. Returns image [n, d], text [n, d], scale and bias (0-d)."""
        parts = [(images[:n_low], self.low), (images[n_low:], self.full)]
        # Norms that sum over ranks must be asked on all of them, even where one has no such image.
        groups = (getattr(norm, "group", None) for norm in self.norms)
        shared = self.low != self.full and any(group is not None for group in groups)
        seen = [self.encode_image(x, view) for x, view in parts if len(x) or shared]
        return joined(seen), self.encode_text(tokens), self.scale, self.bias

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """In evaluation mode meanwhile, if that makes a difference: what a pair is worth must not
        depend on which others it is scored with, and scoring must not move batch statistics."""
        if not (self.training and self.mode_matters):
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    def set_low(self, view: Resolution) -> None:
        """Make `view` the one of low resolution."""
        self.clip.visual.prepare(view)
        self.low = view

    @property
    def scale(self) -> Tensor:
        """Temperature scale (alpha in the paper), exponentiated, 0-d."""
        return self.clip.logit_scale.exp()

    @property
    def bias(self) -> Tensor:
        """Logit bias (minus the paper's beta), 0-d; zero for a softmax model."""
        if self.clip.logit_bias is None:
            return torch.zeros((), device=self.clip.logit_scale.device)
        return self.clip.logit_bias


def joined(rows: list[Tensor]) -> Tensor:
    """One after the other; a single one as it is, without a copy."""
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _mode_matters(module: nn.Module) -> bool:
    """Whether a module computes something else in training than in evaluation mode."""
    if isinstance(module, BatchNorm | nn.modules.batchnorm._NormBase):
        return True
    # torch's dropout, torch's attention, open_clip's patches, timm's paths
    shares = (module.__dict__.get(name) for name in ("p", "dropout", "prob", "drop_prob"))
    return any(isinstance(share, float) and share > 0 for share in shares)


def _wide(features: Tensor) -> Tensor:
    """float32 at least: what bfloat16 would round away decides which pair is chosen."""
    return features if features.dtype == torch.float64 else features.float()


def low_view(model: Model, data: Data, selection: Selection) -> Resolution:
    """What low resolution means: larger patches, a smaller image or fewer cells.

    Unless `keep_tokens` says otherwise the transformer sees as many cells as at the coarsest patch.
    A convolutional tower has no patches: it sees the image smaller, in the same ratio."""
    side, finest, coarsest = data.image_size, model.patch_sizes[0], model.patch_sizes[-1]
    if selection.approximation == "tokens":
        return Resolution(finest, side, selection.keep_tokens or (finest / coarsest) ** 2)
    if selection.approximation == "resolution" or model.tower == "cnn":
        return Resolution(finest, side // coarsest * finest)
    return Resolution(coarsest, side)


def build_model(
    model: Model,
    data: Data,
    patch_sizes: tuple[int, ...],
    seed: int,
    *,
    low: Resolution | None = None,
    loss: str = "sigmoid",
    stored_patch: int | None = None,
    filled: bool = True,
) -> Clip:
    """A model with fresh weights, or pretrained ones; the same seed gives the same weights.

    patch_sizes: the patch sizes this model will be used at (one for a fixed-patch model).
    low: the view of low resolution; None is the coarsest of `patch_sizes`.
    loss: a softmax model has no bias (nothing would train it).
    stored_patch: patch size at which own towers store their weights; None is the largest, from
        which no size loses anything. A named tower stores its own.
    filled: read the pretrained weights; False where others are put in at once, which must not need
        a file that may have gone or changed since.
    Built in `torch.device("meta")` it allocates nothing. Raises ConfigError."""
    full = Resolution(min(patch_sizes), data.image_size)
    low = low or Resolution(max(patch_sizes), data.image_size)
    head: dict[str, Any] = {
        "init_logit_scale": math.log(model.init_logit_scale),
        "init_logit_bias": model.init_logit_bias if loss == "sigmoid" else None,
    }
    if model.own_tokenizer:
        wanted = catalogue.read(model.name or "")["text_cfg"].get("vocab_size", 49408)
        if data.vocab_size != wanted:
            raise ConfigError(f"{model.name}'s own tokenizer needs data.vocab_size={wanted}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.tower == "cnn":
            visual = ConvTower(model.channels, model.embed_dim, (full.side, low.side))
            text = BagOfTokens(data.vocab_size, model.text_width, model.embed_dim)
            clip = SmallPair(visual, text, **head)
        elif model.name is None:
            clip = _own(model, data, patch_sizes, stored_patch or max(patch_sizes), head)
        else:
            clip = named(catalogue.read(model.name), data, head, model.pretrained is not None)
    if model.pretrained is None:
        return Clip(clip, full, low)
    if filled:
        _load_pretrained(clip, model)
    return Clip(clip, full, low, _pixels(model))


def _own(
    model: Model, data: Data, patch_sizes: tuple[int, ...], stored_patch: int, head: dict[str, Any]
) -> CLIP:
    """The suite's own small towers."""
    clip = CLIP(
        model.embed_dim,
        CLIPVisionCfg(
            image_size=data.image_size,
            patch_size=stored_patch,
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
        **head,
    )
    if len(patch_sizes) > 1:  # positions are stored on the finest grid
        cells = (data.image_size // min(patch_sizes)) ** 2
        position = torch.randn(cells + 1, model.width) * model.width**-0.5
        clip.visual.positional_embedding = nn.Parameter(position)
    return clip


def named(
    config: dict[str, Any], data: Data, head: dict[str, Any], as_pretrained: bool = False
) -> CLIP | CustomTextCLIP:
    """The model of an open_clip config, unmodified.

    Its image size, text length and vocabulary are those of `data`; with `as_pretrained` they stay
    the config's (so that its weights fit), ConfigError if the text's (or the image size, of an
    image tower that takes but one) differ from `data`'s."""
    settings = {k: v for k, v in config.items() if k not in ("custom_text", "preprocess_cfg")}
    vision, text = dict(settings.pop("vision_cfg")), dict(settings.pop("text_cfg"))
    if as_pretrained:
        for key in ("context_length", "vocab_size"):
            wanted = text.get(key, getattr(CLIPTextCfg, key))
            if getattr(data, key) != wanted:
                raise ConfigError(f"these pretrained weights need data.{key}={wanted}")
        side = vision.get("image_size", CLIPVisionCfg.image_size)
        if data.image_size != side and not catalogue.flexible(config):
            raise ConfigError(f"these pretrained weights need data.image_size={side}")
    else:
        vision["image_size"] = data.image_size
        text |= {"context_length": data.context_length, "vocab_size": data.vocab_size}
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    more = settings | head
    clip = kind(vision_cfg=CLIPVisionCfg(**vision), text_cfg=CLIPTextCfg(**text), **more)
    if not as_pretrained and vision.get("timm_model_name"):
        clip.visual.set_input_size(data.image_size)
    return clip


def _load_pretrained(clip: CLIP | CustomTextCLIP, model: Model) -> None:
    """Fill an unmodified open_clip model from a local file, or from one of open_clip's tags.

    Tensors only: open_clip reads them without unpickling anything else. Raises ConfigError."""
    assert model.name is not None and model.pretrained is not None
    path = Path(model.pretrained)
    try:
        found = file_hash(path) if model.pretrained_sha256 and path.exists() else None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if model.pretrained_sha256 != found:
        raise ConfigError(f"{path} is not the file this run was made for")
    if not path.exists():
        path = Path(open_clip.download_pretrained(_tag(model.name, model.pretrained)))
    start = clip.logit_bias.detach().clone() if clip.logit_bias is not None else None
    try:
        result = open_clip.load_checkpoint(clip, str(path), strict=False, weights_only=True)
    except Exception as error:  # torch, safetensors and numpy each raise their own
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} does not fit {model.name}: {why}") from None
    wrong = [*result.missing_keys, *result.unexpected_keys] if result else []
    if set(wrong) - {"logit_bias"}:
        raise ConfigError(f"{path} does not fit {model.name}: {wrong[0]} is missing or unknown")
    if start is not None and clip.logit_bias == 0:  # open_clip's filling for weights without one
        clip.logit_bias.data.copy_(start)


def _tag(name: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of the weights called `tag`. Raises ConfigError with the nearest."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        near = did_you_mean(tag, tags) if tags else f" ({name} has no tags)"
        raise ConfigError(f"model.pretrained: no file and no tag {tag!r}{near}")
    about: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if about.get("quick_gelu", False) != catalogue.read(name).get("quick_gelu", False):
        other = name.removesuffix("-quickgelu") if "quickgelu" in name else f"{name}-quickgelu"
        raise ConfigError(f"the weights {tag!r} need model.name={other}")
    return about


def _pixels(model: Model) -> tuple[Any, Any]:
    """Mean and standard deviation of the pixels in [0, 1] that pretrained weights expect."""
    assert model.name is not None and model.pretrained is not None
    usual: tuple[Any, Any] = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    if catalogue.is_place(model.name):
        about = catalogue.read_place(model.name)["preprocess_cfg"]
    else:
        if "init_logit_bias" in catalogue.read(model.name):  # the SigLIP family: [-1, 1]
            usual = ([0.5] * 3, [0.5] * 3)
        a_file = model.pretrained_sha256 or Path(model.pretrained).exists()
        about = {} if a_file else _tag(model.name, model.pretrained)
    return about.get("mean") or usual[0], about.get("std") or usual[1]
