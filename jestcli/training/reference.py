"""What scores candidates beside the learner: a model that embeds them live, or from tables.

`Reference` is a call: a super-batch -> its embeddings. A `LiveReference` computes them, a run's own
model (`RunReference`) or any open_clip model (`OpenClipReference`). An `EmbeddingTable` looks them
up, and asks the live one for what it has not."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from jestcli.config import ConfigError
from jestcli.data.dataset import Dataset, Samples, Transform
from jestcli.data.embeddings import Block, TableFile
from jestcli.data.loader import SuperBatch
from jestcli.data.tokens import named_tokenizer
from jestcli.models.flexi import Resolution
from jestcli.models.flops import ForwardFlops, count_flops
from jestcli.models.towers import Clip
from jestcli.models.words import check_word
from jestcli.selection import PairEmbeddings
from jestcli.training.step import encode_pairs
from jestcli.utils.progress import Progress, silent
from jestcli.utils.reading import parse_json

PRECISION = "float32"
VERSION = 1  # of how images and captions are prepared
BLOCK = 1024  # pairs that are embedded between two looks at the progress
MICRO_BATCH = 64
Reference = Callable[[SuperBatch], PairEmbeddings]


@dataclass(frozen=True)
class RunReference:
    """A run's model: it sees the learner's pixels and tokens, and computes where its weights are.

    view: how its image tower sees them; None is full resolution. micro_batch: pairs at a time.
    second: itself where a reference needs a view of its own of every image; None here."""

    model: Clip
    tokenizer: Any
    image_size: int
    view: Resolution | None = None
    micro_batch: int = MICRO_BATCH
    second: None = None

    @cached_property
    def key(self) -> str:
        """16 hex digits of the weights and of everything else that an embedding depends on."""
        name = getattr(self.tokenizer, "identity", type(self.tokenizer).__name__)
        return _key(self.model, repr([VERSION, PRECISION, name, self.image_size, self.view]))

    def key_over(self, identity: str) -> str:
        """The same with a decoded data set, whose pixels and tokens are given."""
        return _key(self.model, identity + ("" if self.view is None else repr(self.view)))

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """The temperature scale and the bias."""
        return self.model.scale.detach(), self.model.bias.detach()

    @property
    def transform(self) -> Transform:
        """How it wants to see pairs that it embeds ahead."""
        return Transform(self.image_size, self.tokenizer)

    def embed(self, samples: Samples) -> PairEmbeddings:
        """Pairs as `transform` reads them."""
        return encode_pairs(self.model, samples.images, samples.tokens, self.view, self.micro_batch)

    def __call__(self, batch: SuperBatch, index: Tensor | None = None) -> PairEmbeddings:
        """Candidates `index`, int64 [n]; None: all."""
        index = torch.arange(len(batch)) if index is None else index
        return encode_pairs(self.model, *batch.full(index), self.view, self.micro_batch)


@dataclass(frozen=True)
class OpenClipReference:
    """An open_clip model with its own tokenizer and preprocessing; read as a RunReference is.

    It does not see the learner's pixels: candidates carry a second view, made by `image`."""

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
        about = [VERSION, PRECISION, self.name, steps, self.mean.tolist(), self.std.tolist()]
        return _key(self.model, repr(about))

    def key_over(self, identity: str) -> str:
        return _key(self.model, f"{self.key} {identity}")

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        scale, bias = self.model.logit_scale.exp().detach(), self.model.logit_bias
        return scale, torch.zeros_like(scale) if bias is None else bias.detach()

    @property
    def transform(self) -> Transform:
        return Transform(8, self.tokenizer, second=self)  # the first's pixels are not looked at

    @property
    def second(self) -> OpenClipReference:
        return self

    def image(self, image: Any) -> Tensor:
        """PIL -> uint8 [3, s, s]."""
        for step in self.steps:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def embed(self, samples: Samples) -> PairEmbeddings:
        assert samples.second is not None
        return self.pairs(samples.second, samples.texts)

    @torch.no_grad()
    def pairs(self, images: Tensor, texts: list[str]) -> PairEmbeddings:
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
        return PairEmbeddings(torch.cat(rows[0]), torch.cat(rows[1]), *self.scale)

    def __call__(self, batch: SuperBatch, index: Tensor | None = None) -> PairEmbeddings:
        assert batch.second is not None
        index = torch.arange(len(batch)) if index is None else index
        texts = [batch.texts[i] for i in index.tolist()]
        return self.pairs(batch.second(index.numpy()), texts)

    @torch.no_grad()
    def flops(self) -> ForwardFlops:
        """FLOPs on one pair, counted."""
        device = self.model.logit_scale.device
        view = self.image(Image.new("RGB", (256, 256)))[None]
        pixels = ((view.float().div(255) - self.mean) / self.std).to(device)
        tokens = self.tokenizer(["a"]).to(device)
        image = count_flops(self.model.encode_image, pixels)
        return ForwardFlops(image, image, count_flops(self.model.encode_text, tokens))


LiveReference = RunReference | OpenClipReference


def _key(model: torch.nn.Module, about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_clip_reference(
    word: str, device: torch.device | None = None, micro_batch: int = MICRO_BATCH
) -> OpenClipReference:
    """A model by its word (`check_word`), such as ViT-B-16:laion2b_s34b_b88k or hf-hub:ORG/NAME.

    Files are read as tensors only. Raises ConfigError in one line."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name, weights = check_word(word)
    try:
        model = open_clip.create_model(
            name, weights or None, weights_only=True, require_pretrained=True
        )
        tokenizer = named_tokenizer(name)
    except Exception as error:  # torch, safetensors and the hub each raise their own
        why = " ".join(str(error).split())
        key = re.search(r"(?:_dict: \"|size mismatch for )([\w.]+)", why)
        if key:  # how torch says that keys or shapes are others
            why = f"these weights are not {name}'s: the first key that differs is {key[1]}"
        raise ConfigError(f"--reference {word} cannot be used: {why[:200]}") from None
    cfg = PreprocessCfg(**{**model.visual.preprocess_cfg, **_pixels(weights)})
    steps: list[Any] = []
    for step in image_transform_v2(cfg, is_train=False).transforms:
        if type(step).__name__ in ("ToTensor", "MaybeToTensor", "PILToTensor"):
            break
        steps.append(step)
    mean, std = (torch.tensor(x)[:, None, None] for x in (cfg.mean, cfg.std))
    model = model.eval().to(device or torch.device("cpu"))
    return OpenClipReference(word, model, tokenizer, tuple(steps), mean, std, micro_batch)


def _pixels(weights: str) -> dict[str, Any]:
    """mean and std of the pixels that a file of `jest export` expects (open_clip knows a tag's)."""
    if not weights.endswith(".safetensors"):
        return {}
    with safe_open(weights, framework="pt") as file:
        about = file.metadata() or {}
    names = {"mean": "image_mean", "std": "image_std"}
    return {key: tuple(parse_json(about[name])) for key, name in names.items() if name in about}


class EmbeddingTable:
    """The embeddings that one reference has of a data set, as far as they were computed before.

    files: of consecutive rows of the data set. reference: what embeds the rest. Raises DataError
    for a file that is stale, damaged or another model's."""

    def __init__(self, files: Sequence[TableFile], reference: LiveReference):
        self.files, self.reference = list(files), reference
        self.starts = np.cumsum([0, *(file.n for file in files)])
        self.maps = [file.open() for file in files]
        self.resident: PairEmbeddings | None = None

    @property
    def complete(self) -> bool:
        """Whether every file is there (samples that cannot be read have no embedding)."""
        return all(each is not None for each in self.maps)

    def __call__(self, batch: SuperBatch) -> PairEmbeddings:
        """On the CPU as far as they are in the table, on the model's device where none is."""
        image, text, there = self.lookup(batch.row, batch.caption_row)
        missing = torch.nonzero(~there).flatten()
        if not len(missing):
            return PairEmbeddings(image, text, *self.reference.scale)
        # Rows that could not be embedded ahead, or whose file is not made yet: the model is asked.
        live = self.reference(batch, missing)
        if len(missing) == len(there):
            return live
        image[missing], text[missing] = live.image.to(image.device), live.text.to(text.device)
        return PairEmbeddings(image, text, live.scale, live.bias)

    def lookup(
        self, rows: np.ndarray, caption_rows: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """image, text: float32 [n, d] of these rows, int64 [n], under the captions of
        `caption_rows` (their own); there: bool [n], whether both are known."""
        captions = rows if caption_rows is None else caption_rows
        if self.resident is not None:
            there = self.resident
            at, text_at = (torch.from_numpy(x).to(there.image.device) for x in (rows, captions))
            return there.image[at], there.text[text_at], torch.ones(len(rows), dtype=torch.bool)
        d = max((each[0].shape[1] for each in self.maps if each is not None), default=0)
        # A moved caption has its own row's text: noise needs no second table.
        image, text = self._read(0, rows, d), self._read(1, captions, d)
        known = torch.from_numpy(~(np.isnan(image[:, :1]) | np.isnan(text[:, :1])).any(1) & (d > 0))
        return torch.from_numpy(image), torch.from_numpy(text), known

    def pairs(self, rows: np.ndarray, caption_rows: np.ndarray | None = None) -> PairEmbeddings:
        """Those of rows that all are in the table."""
        image, text, _ = self.lookup(rows, caption_rows)
        return PairEmbeddings(image, text, *self.reference.scale)

    def _read(self, side: int, rows: np.ndarray, d: int) -> np.ndarray:
        out = np.full((len(rows), d), np.nan, np.float32)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(which).tolist():
            maps = self.maps[number]
            if maps is not None and maps[side].shape[1] == d:  # 1 where no sample could be read
                # Only once it is needed: a pool's tables may be larger than the memory.
                self.files[number].check()
                mask = which == number
                out[mask] = maps[side][rows[mask] - self.starts[number]]
        return out

    def readable(self) -> np.ndarray:
        """Rows of the data set that have an embedding, int64, ascending."""
        found = [np.empty(0, np.int64)]
        for start, maps in zip(self.starts, self.maps, strict=False):
            if maps is not None:
                found.append(start + np.flatnonzero(~np.isnan(maps[0][:, 0])))
        return np.concatenate(found)

    def on_device(self, device: torch.device) -> EmbeddingTable:
        """The same from the device's memory, where all of the table is put."""
        out = EmbeddingTable(self.files, self.reference)
        # The embedded pool's table is some hundred MB: on the card a look-up costs no transfer.
        out.resident = self.pairs(np.arange(self.starts[-1])).to(device)
        return out


def fill(
    reference: LiveReference,
    dataset: Dataset,
    files: Sequence[TableFile],
    report: Progress = silent,
    what: str = "",
) -> int:
    """Make every file that is missing or stale; returns how many those were.

    A killed one goes on: of shards after the last whole one, of a decoded data set after the last
    blocks that were flushed. report: rows done, rows, `what`."""
    made, start, total = 0, 0, len(dataset)

    def blocks(done: int) -> Iterator[tuple[int, Block | None]]:
        # Blocks of whole rows: a killed table goes on at the last one that was flushed.
        for first in range(done, file.n, BLOCK):
            last = min(first + BLOCK, file.n)
            rows = np.arange(start + first, start + last)
            samples, block = dataset.read(rows, reference.transform, None), None
            if len(samples.row):
                pairs = reference.embed(samples)
                block = (samples.row - start, pairs.image.cpu().numpy(), pairs.text.cpu().numpy())
            yield last, block
            if last < file.n:
                report(start + last, total, what)

    for file in files:
        # Whole and of these very bytes, or made again: a stale table is another reference.
        if not file.current():
            file.write(blocks)
            made += 1
            report(start + file.n, total, what)
        start += file.n
    return made
