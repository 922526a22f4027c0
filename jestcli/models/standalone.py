"""An exported model of the jest suite (a convolutional image tower and a bag of tokens), with
PyTorch alone. Beside this file lie weights.pt (tensors only), model.json and the vocabulary.

    from jest_model import load
    model = load("this/folder")
    image = model.encode_image(pixels)             # uint8 [n, 3, S, S], S = model.image_size
    text = model.encode_text(["a cat", "a dog"])
    probabilities = (model.scale * image @ text.T).softmax(dim=1)

The features are L2-normalised float32. Images are resized by the caller: the shorter side to S,
centre crop.
"""

from __future__ import annotations

import gzip
import html
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5  # of batch norm and layer norm
# As CLIP's, but by Python's own classes of letters and digits.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)


class Tokenizer:
    """CLIP's byte-pair encoding with a short table: [start, ..., end, 0, ...] of fixed length.

    Broken Unicode is not repaired (open_clip's tokenizer repairs it with ftfy).
    """

    def __init__(self, path: Path, context_length: int):
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1:]
        merges = [tuple(line.split()) for line in lines if line]
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in printable]
        characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
        self.character = dict(zip([*printable, *others], characters, strict=True))
        table = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges)]
        self.number = {token: i for i, token in enumerate(table)}
        self.rank = {merge: i for i, merge in enumerate(merges)}
        self.start, self.context_length = len(table), context_length

    def __call__(self, texts: list[str]) -> Tensor:
        """int64 [n, context_length]."""
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self._encode(text)[: self.context_length - 2], self.start + 1]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def _encode(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(text)).strip().lower()
        ids: list[int] = []
        for word in WORDS.findall(text):
            parts = [self.character[byte] for byte in word.encode()]
            ids += [self.number[part] for part in self._merged([*parts[:-1], parts[-1] + "</w>"])]
        return ids

    def _merged(self, parts: list[str]) -> list[str]:
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            out: list[str] = []
            for part in parts:
                if out and (out[-1], part) == best:
                    out[-1] += part
                else:
                    out.append(part)
            parts = out
        return parts


class Model(nn.Module):
    """Both towers. scale, bias: of the logits, scale * image @ text.T + bias."""

    image_projection_weight: Tensor
    image_projection_bias: Tensor
    text_embedding: Tensor
    text_norm_weight: Tensor
    text_norm_bias: Tensor
    text_projection_weight: Tensor
    text_projection_bias: Tensor

    def __init__(self, weights: dict[str, Tensor], about: dict[str, Any], tokenizer: Tokenizer):
        super().__init__()
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor)
        self.layers, self.image_size = about["layers"], about["image_size"]
        self.scale, self.bias, self.tokenizer = about["scale"], about["bias"], tokenizer

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> float32 [n, d]."""
        x = pixels.to(self.image_projection_weight.device).float().div(127.5).sub(1)
        x = x.contiguous(memory_format=torch.channels_last)
        for k in range(self.layers):
            layer = {
                name: self.get_buffer(f"image_{k}_{name}")
                for name in ("convolution", "weight", "bias", "mean", "var")
            }
            x = F.conv2d(x, layer["convolution"], padding=1)
            x = F.max_pool2d(x, 2) if k < self.layers - 1 else x
            x = F.batch_norm(
                x, layer["mean"], layer["var"], layer["weight"], layer["bias"], eps=EPS
            )
            x = F.relu(x)
        x = F.linear(x.mean((2, 3)), self.image_projection_weight, self.image_projection_bias)
        return F.normalize(x, dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """n texts -> float32 [n, d]."""
        tokens = self.tokenizer(texts).to(self.text_embedding.device)
        there = (tokens != 0).float()[:, :, None]
        mean = (F.embedding(tokens, self.text_embedding) * there).sum(1)
        mean = mean / there.sum(1).clamp(min=1)
        x = F.layer_norm(mean, mean.shape[-1:], self.text_norm_weight, self.text_norm_bias, EPS)
        x = F.linear(x, self.text_projection_weight, self.text_projection_bias)
        return F.normalize(x, dim=-1)


def load(folder: str | Path) -> Model:
    """The model in a folder that `jest export` wrote; nothing is unpickled but tensors."""
    folder = Path(folder)
    about = json.loads((folder / "model.json").read_text())
    weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
    tokenizer = Tokenizer(folder / about["vocabulary"], about["context_length"])
    return Model(weights, about, tokenizer).eval()
