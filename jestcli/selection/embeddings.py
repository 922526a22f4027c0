"""What selection reads: the unit embeddings of image–text pairs, and how to spot wrong ones."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Largest |norm - 1| that rounding can explain, with room to spare: of float32, too, to bfloat16,
# which mixed precision widens again.
NORM_TOLERANCE = {
    torch.float64: 1e-2,
    torch.float32: 1e-2,
    torch.float16: 1e-2,
    torch.bfloat16: 2e-2,
}
OPEN_CLIP_NAMES = ("image_features", "text_features", "logit_scale", "logit_bias")


@dataclass(frozen=True, eq=False)
class PairEmbeddings:
    """B image–text pairs as one model sees them; row i of `image` belongs to row i of `text`.

    image, text: [B, d], rows of unit L2 norm, one floating dtype, one device.
    scale, bias: numbers or 0-d tensors; the logits are z_ij = scale * image_i . text_j + bias.
        `scale` is the exponentiated temperature and `bias` is open_clip's `logit_bias` (which
        SigLIP starts at -10): minus the beta of the JEST paper (eq. 2). The softmax losses do
        not depend on `bias`.

    Nothing is checked here: `select` checks, so that under torch.distributed every rank hears
    of one rank's wrong input."""

    image: Tensor
    text: Tensor
    scale: float | Tensor
    bias: float | Tensor = 0.0

    @classmethod
    def from_open_clip(cls, out: Mapping[str, Any] | Sequence[Any]) -> PairEmbeddings:
        """The pairs of what an open_clip model returns for images and texts.

        out: model(images, texts): (image features, text features, exponentiated scale) and,
            of SigLIP's kind, the bias; or the mapping that `output_dict=True` gives, whose other
            entries (CoCa's logits, distillation's) are passed over. No bias counts as 0.
        Features are normalised by open_clip already. No gradient flows through the result.
        Raises ValueError where image or text features or the scale are missing."""
        if isinstance(out, Mapping):
            found = [out.get(name) for name in OPEN_CLIP_NAMES]
        else:
            found = [*out, *[None] * len(OPEN_CLIP_NAMES)][: len(OPEN_CLIP_NAMES)]
        for name, value in zip(OPEN_CLIP_NAMES[:3], found, strict=False):
            if value is None:
                raise ValueError(f"open_clip's output has no {name}: call model(images, texts)")
        free: list[Any] = [x.detach() if isinstance(x, Tensor) else x for x in found]
        image, text, scale, bias = free
        return cls(image, text, scale, 0.0 if bias is None else bias)

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device) -> PairEmbeddings:
        """The pairs on `device`."""
        given: list[Any] = [self.image, self.text, self.scale, self.bias]
        return PairEmbeddings(*(x.to(device) if isinstance(x, Tensor) else x for x in given))

    def rows(self, index: Tensor) -> PairEmbeddings:
        """The pairs at `index` (int64 [n]), in that order."""
        return PairEmbeddings(self.image[index], self.text[index], self.scale, self.bias)


def checked(pairs: PairEmbeddings, name: str) -> PairEmbeddings:
    """`pairs` with scale and bias as floats and no autograd history.

    Raises ValueError, naming `name` and the field, for anything that is not a set of pairs."""
    if not isinstance(pairs, PairEmbeddings):
        raise ValueError(f"{name} must be PairEmbeddings, got {type(pairs).__name__}")
    numbers = {}
    for field in ("scale", "bias"):
        value = getattr(pairs, field)
        value = value.detach() if isinstance(value, Tensor) else value
        try:
            numbers[field] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name}.{field} must be one number, got {value!r}") from None
        if not math.isfinite(numbers[field]):
            raise ValueError(f"{name}.{field} must be finite, got {numbers[field]}")
    if numbers["scale"] <= 0:
        raise ValueError(f"{name}.scale must be positive, got {numbers['scale']} (is it the log?)")
    for field in ("image", "text"):
        _check_form(getattr(pairs, field), f"{name}.{field}")
    image, text = pairs.image.detach(), pairs.text.detach()
    for what in ("shape", "dtype", "device"):
        mine, other = getattr(image, what), getattr(text, what)
        if mine != other:
            raise ValueError(f"{name}.text has {what} {_show(other)}, {name}.image {_show(mine)}")
    _check_norms(image, f"{name}.image")
    _check_norms(text, f"{name}.text")
    return PairEmbeddings(image, text, numbers["scale"], numbers["bias"])


def check_name(argument: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError, with the nearest known name, unless `value` is in `known`."""
    known = list(known)
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
        raise ValueError(f"{argument} {value!r} is not known; {hint}")


def _check_form(side: Tensor, name: str) -> None:
    if not isinstance(side, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(side).__name__}")
    if side.dim() != 2 or 0 in side.shape:
        raise ValueError(f"{name} must have shape [B, d], both at least 1, got {_show(side.shape)}")
    if side.dtype not in NORM_TOLERANCE:
        raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {side.dtype}")


def norms_and_good(side: Tensor) -> tuple[Tensor, Tensor]:
    """The L2 norms of rows, [B], and which of them are 1, bool [B]."""
    norms = torch.linalg.vector_norm(side, dim=1, dtype=wide(side))
    return norms, (norms - 1).abs() <= NORM_TOLERANCE[side.dtype]  # a NaN compares false


def _check_norms(side: Tensor, name: str) -> None:
    norms, good = norms_and_good(side)
    if good.all():
        return
    row = int((~good).nonzero()[0, 0])
    if not norms.isfinite().all():
        row = int((~norms.isfinite()).nonzero()[0, 0])
        raise ValueError(f"{name} must be finite: row {row} holds a NaN or an infinity")
    raise ValueError(f"{name} must be L2-normalised: row {row} has norm {float(norms[row]):.4g}")


def wide(x: Tensor) -> torch.dtype:
    """What numbers like `x` are summed in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _show(value: object) -> str:
    return str(list(value)) if isinstance(value, torch.Size) else str(value)
