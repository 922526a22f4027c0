"""The reference over the user's shards: a run's own or any open_clip model, cached or live."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jestcli.config import ConfigError, did_you_mean
from jestcli.data.embeddings import ShardEmbeddings
from jestcli.data.loader import Candidates
from jestcli.data.reading import Reader
from jestcli.data.shards import Skip
from jestcli.data.sources import Loading
from jestcli.data.store import fit
from jestcli.data.stream import Stream
from jestcli.models.flexi import View
from jestcli.models.towers import Clip
from jestcli.selection import PairEmbeddings
from jestcli.training.step import embed

PRECISION = "float32"
VERSION = 1  # of how images and captions are prepared
BLOCK = 512
MICRO_BATCH = 64
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class OwnReference:
    """A run's model: it sees the learner's pixels and tokens, and computes where its weights are.

    view: how its image tower sees them; None is full resolution. micro_batch: pairs at a time.
    """

    model: Clip
    tokenizer: Any
    image_size: int
    view: View | None = None
    micro_batch: int = MICRO_BATCH

    @cached_property
    def key(self) -> str:
        name = getattr(self.tokenizer, "identity", type(self.tokenizer).__name__)
        return _key(self.model, [name, self.image_size, self.view])

    def image(self, image: Any) -> Tensor:
        return torch.from_numpy(fit(image, self.image_size).copy()).permute(2, 0, 1)

    def embed(self, images: Tensor, texts: list[str]) -> PairEmbeddings:
        """uint8 [n, 3, S, S] and n captions."""
        return embed(self.model, images, self.tokenizer(texts), self.view, self.micro_batch)

    def live(self, candidates: Candidates, index: Tensor) -> PairEmbeddings:
        return embed(self.model, *candidates.full(index), self.view, self.micro_batch)


@dataclass(frozen=True)
class ForeignReference:
    """An open_clip model with its own tokenizer and preprocessing.

    It does not see the learner's pixels: candidates carry a second view, made by `image`.
    """

    name: str
    model: Any
    tokenizer: Any
    steps: tuple[Any, ...]  # of its preprocessing, up to pixels in [0, 255]
    mean: Tensor
    std: Tensor
    micro_batch: int = MICRO_BATCH

    @cached_property
    def key(self) -> str:
        steps = [str(step) for step in self.steps]
        return _key(self.model, [self.name, steps, self.mean.tolist(), self.std.tolist()])

    def image(self, image: Any) -> Tensor:
        """PIL -> uint8 [3, s, s]."""
        for step in self.steps:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    @torch.no_grad()
    def embed(self, images: Tensor, texts: list[str]) -> PairEmbeddings:
        """uint8 [n, 3, s, s] and n captions, on the model's device."""
        device = self.model.logit_scale.device
        mean, std = self.mean.to(device), self.std.to(device)
        rows: tuple[list[Tensor], list[Tensor]] = ([], [])
        for start in range(0, len(images), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            pixels = (images[part].to(device).float().div(255) - mean) / std
            rows[0].append(self.model.encode_image(pixels, normalize=True).float())
            tokens = self.tokenizer(texts[part]).to(device)
            rows[1].append(self.model.encode_text(tokens, normalize=True).float())
        return PairEmbeddings(torch.cat(rows[0]), torch.cat(rows[1]), *_scale(self.model))

    def live(self, candidates: Candidates, index: Tensor) -> PairEmbeddings:
        assert candidates.second is not None
        texts = [candidates.texts[i] for i in index.tolist()]
        return self.embed(candidates.second(index.numpy()), texts)


Reference = OwnReference | ForeignReference


def _key(model: torch.nn.Module, about: list[Any]) -> str:
    """16 hex digits of the weights and of everything else that an embedding depends on."""
    digest = hashlib.sha256(repr([VERSION, PRECISION, *about]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_word(word: str) -> tuple[str, str]:
    """Model and weights of `MODEL:TAG` or `MODEL:FILE`. Raises ConfigError with the nearest."""
    import open_clip

    name, _, weights = word.partition(":")
    models = open_clip.list_models()
    if name not in models:
        raise ConfigError(f"--reference {word}: no model {name!r}{_near(name, models)}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not Path(weights).is_file() and weights not in tags:
        raise ConfigError(
            f"--reference {word}: no file and no tag {weights!r}{_near(weights, tags)}"
        )
    return name, weights


def _near(word: str, known: list[str]) -> str:
    """The nearest word, or all where they are few."""
    near = did_you_mean(word, known)
    return near if "did you mean" in near or 0 < len(known) < 20 else ""


def open_clip_reference(word: str) -> ForeignReference:
    """`MODEL:TAG` or `MODEL:FILE`, such as ViT-B-16:laion2b_s34b_b88k or ViT-B-16:mine.pt.

    On the CPU. Files are read as tensors only. Raises ConfigError in one line.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name, weights = check_word(word)
    try:
        model = open_clip.create_model(name, weights, weights_only=True)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # torch, safetensors and the hub each raise their own
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"--reference {word} cannot be used: {why}") from None
    cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    steps: list[Any] = []
    for step in image_transform_v2(cfg, is_train=False).transforms:
        if type(step).__name__ in ("ToTensor", "MaybeToTensor", "PILToTensor"):
            break
        steps.append(step)
    mean, std = (torch.tensor(x)[:, None, None] for x in (cfg.mean, cfg.std))
    return ForeignReference(word, model.eval(), tokenizer, tuple(steps), mean, std)


@dataclass(frozen=True)
class ShardReference:
    """Embeddings of candidates: from the cache, and live where it has none."""

    reference: Reference
    embeddings: ShardEmbeddings

    def __call__(self, candidates: Candidates) -> PairEmbeddings:
        """On the CPU as far as they are cached; all on the model's device where none is."""
        image, text, there = self.embeddings.lookup(candidates.row)
        missing = torch.nonzero(~there).flatten()
        if not len(missing):
            return PairEmbeddings(image, text, *_scale(self.reference.model))
        live = self.reference.live(candidates, missing)
        if len(missing) == len(there):
            return live
        image[missing], text[missing] = live.image.cpu(), live.text.cpu()
        return PairEmbeddings(image, text, live.scale, live.bias)

    def cached(self, rows: np.ndarray) -> PairEmbeddings:
        """Of these rows of the pool, int64 [n], which all are in the cache."""
        image, text, _ = self.embeddings.lookup(rows)
        return PairEmbeddings(image, text, *_scale(self.reference.model))


def _scale(model: Any) -> tuple[Tensor, Tensor]:
    if isinstance(model, Clip):
        return model.scale.detach(), model.bias.detach()
    scale, bias = model.logit_scale.exp().detach(), model.logit_bias
    return scale, torch.zeros_like(scale) if bias is None else bias.detach()


def fill(reference: Reference, stream: Stream, loading: Loading, progress: Progress) -> int:
    """Embed every shard whose embeddings are missing or stale; returns how many those were.

    A killed one goes on after the last whole shard.
    """
    kept = ShardEmbeddings(stream, reference.key, loading, check=False)
    reader, made = Reader(stream, loading), 0
    for shard in range(len(stream.shards)):
        if not kept.current(shard):
            kept.write(shard, _embed_shard(reference, reader, shard))
            made += 1
        progress(shard + 1, len(stream.shards))
    reader.close()
    return made


def _embed_shard(reference: Reference, reader: Reader, shard: int) -> np.ndarray:
    """float32 [n, 2, d]; NaN for samples that cannot be read."""
    starts = reader.stream.starts
    n = int(starts[shard + 1] - starts[shard])
    out: np.ndarray | None = None
    for first in range(0, n, BLOCK):
        rows, images, texts = [], [], []
        for sample in range(first, min(first + BLOCK, n)):
            try:
                pair = reader.pair(shard, sample)
            except Skip:
                continue
            rows.append(sample)
            images.append(reference.image(pair.image))
            texts.append(pair.captions[0])
        if rows:
            pairs = reference.embed(torch.stack(images), texts)
            if out is None:
                out = np.full((n, 2, pairs.image.shape[1]), np.nan, np.float32)
            out[rows, 0], out[rows, 1] = pairs.image.cpu().numpy(), pairs.text.cpu().numpy()
    return out if out is not None else np.full((n, 2, 1), np.nan, np.float32)
