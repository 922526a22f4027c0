"""One training run as typed, strict, printable data.

A `Run` holds everything that determines a run's numbers and nothing else; its `digest()` names the
run directory. Files and `--set a.b=c` overrides are checked here: an unknown key or a value of the
wrong type is an error with the nearest correct word."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from jestcli.utils import catalogue
from jestcli.utils.layout import IMAGES, Layout
from jestcli.utils.reading import UNREADABLE

# Raise when a change alters what a run computes: old results then count as missing.
# 2: which captions are wrong follows from each pair's key, and no pool holds the verified pairs;
# the runs recorded before that are another world's.
NUMERICS = 2
VERIFIED = "verified"  # the curated level of pairs set aside from the pool (data/pools.py)
VERIFIED_SIZE = 36_000
Part = Literal["all", "development", "test"]  # of every benchmark's images (evaluation/parts.py)


class ConfigError(Exception):
    """A wrong key, value or file; the message is one line for the user."""


class _Strict(BaseModel):
    """Every number has bounds, which a test asks for: beyond them lie slips, not experiments."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _files_by_content(cls, given: Any) -> Any:
        """Fill in NAME_sha256 of every file that is named and has none yet."""
        for name in cls.model_fields if isinstance(given, dict) else ():
            path, hashed = given.get(name), f"{name}_sha256"
            if hashed not in cls.model_fields or given.get(hashed) or not isinstance(path, str):
                continue
            try:
                if Path(path).is_file():
                    given = {**given, hashed: file_hash(Path(path))}
            except OSError as error:
                raise ValueError(f"{name}: cannot read {path}: {error.strerror}") from None
        return given


CLIPS_VOCABULARY = 49_408
MOST_PAIRS = 10**10
MOST_BATCH = 2**24
MOST_STEPS = 10**8
Size = Annotated[int, Field(ge=1, le=2**16)]  # of a tower
Patch = Annotated[int, Field(ge=1, le=4096)]
Pairs = Annotated[int, Field(ge=1, le=MOST_PAIRS)]
Rows = Annotated[int, Field(ge=1, le=MOST_BATCH)]  # of a batch
Share = Annotated[float, Field(ge=0, le=1)]


def added(default: Any, **about: Any) -> Any:
    """A field added after results were recorded, with the value that changes nothing.

    While it holds that value it is left out of the digest, so recorded runs keep their names."""
    return Field(default, json_schema_extra={"added": True}, **about)


def _determining(settings: BaseModel) -> dict[str, Any]:
    """Plain data of all fields but the `added` ones that change nothing."""
    out: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value, extra = getattr(settings, name), field.json_schema_extra
        if isinstance(extra, dict) and extra.get("added") and value == field.default:
            continue
        if getattr(settings, f"{name}_sha256", None) is not None:
            continue  # a file is known by its content, wherever it lies
        out[name] = _determining(value) if isinstance(value, BaseModel) else value
    return out


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


class Data(_Strict):
    """What the model sees. The embedded data are icons and emoji, not photographs."""

    image_size: int = Field(32, ge=8, le=4096)  # pixels, square
    context_length: int = Field(16, ge=3, le=4096)  # text tokens, start and end included
    vocab_size: int = Field(8192, ge=514, le=2**20)  # entries of the small BPE vocabulary
    level: str = "strong"
    """Curation level of the curated set (`jest data list`); verified: pairs of the pool that are
    out of every run's pool, and whose captions are right."""
    curated_size: Pairs | None = None  # use only the first n curated samples
    train: tuple[str, ...] = added(())
    """The pool in your own shards: folders of .tar files, patterns such as {000..099}.tar,
    addresses (https, s3, gs, hf, ...), pipe: commands (each is run in a shell as it stands: read a
    stranger's configuration first); empty: the embedded data."""
    weights: tuple[Annotated[float, Field(gt=0, le=1e9)], ...] = added(())
    """How often each source in data.train is read; empty: all shards alike."""
    curated: tuple[str, ...] = added(())  # your own curated set, for the reference
    window: int = added(8, ge=1, le=10**6)  # shards that are shuffled together
    decoded: bool = added(False)
    """Decode own shards once, to image_size, and read the pixels from then on: for sets of which a
    small copy fits the cache."""
    benchmarks: str | None = added(None)
    """Folder of benchmarks in clip-benchmark's wds layout, for own shards."""
    keys: Literal["last", "first"] = added("last")
    """Own shards: what a sample's members share is their name up to its last dot, or up to its
    first (webdataset's rule, which takes a.1.jpg and a.2.jpg for one sample)."""
    image_types: tuple[Literal["jpg", "jpeg", "webp", "png"], ...] = added(IMAGES, min_length=1)
    """Own shards: endings that are images; of several in a sample the first in this order is read
    (a PNG beside a JPEG is a mask)."""
    caption_field: str | None = added(None, min_length=1)
    """Own shards: the field of the .json that holds the caption; unset: its captions (a list), else
    the .txt, else its caption."""
    caption_lines: bool = added(False)  # own shards: every line of a .txt is a caption of its own
    shots: int | None = added(None, ge=1, le=10**6)
    """Own benchmarks with a train split also get a few-shot score, of a linear classifier fitted to
    so many images a class (the paper: 10, on ImageNet)."""
    uids: str | None = added(None)
    """A DataComp uid file (.npy; `jest inspect` writes such): only these pairs of the pool."""
    uids_sha256: str | None = added(None)  # of that file; filled in

    @field_validator("train", "weights", "curated", "image_types", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """One value stands for a list of one."""
        return (given,) if isinstance(given, str | int | float) else given

    @property
    def own(self) -> bool:
        """Whether the shards are the user's, not the embedded data."""
        return bool(self.train or self.curated)

    @property
    def layout(self) -> Layout:
        """How samples lie in the user's shards."""
        return Layout(self.keys, self.image_types, self.caption_field, self.caption_lines)

    @model_validator(mode="after")
    def _own_shards(self) -> Data:
        if self.weights and (len(self.weights) != len(self.train)):
            raise ValueError("weights must be one number for each entry of train")
        if self.decoded and (self.weights or not self.own or self.layout != Layout()):
            raise ValueError("decoded is for own shards in the usual layout, without weights")
        if self.benchmarks and not self.own:
            raise ValueError("benchmarks are for own shards: set train or curated")
        if self.shots and not self.benchmarks:
            raise ValueError("shots needs benchmarks: a folder of labelled ones with train splits")
        return self


def patches_of(name: str) -> tuple[int, ...]:
    """The patch sizes that open_clip's model `name` is trained at if none are given: its own and,
    of a plain ViT, twice that. ValueError: no such model, or one that cannot be trained here."""
    if not catalogue.is_place(name) and name not in catalogue.known():
        raise ValueError(f"no model.name {name!r}{did_you_mean(name, catalogue.usable())}")
    config = catalogue.read(name)
    if (why := catalogue.problem(config)) is not None:
        raise ValueError(f"model.name {name!r} cannot be trained here: {why}")
    patch = catalogue.patch_size(config)
    return (patch, 2 * patch) if catalogue.flexible(config) else (patch,)


class Model(_Strict):
    """Two open_clip towers. The default is small enough to train on two CPU cores."""

    name: str | None = None
    """An open_clip config, such as ViT-B-16-SigLIP-256, local-dir:DIR or hf-hub:ORG/NAME, in place
    of the own towers: embed_dim, width, layers, head_width, text_width and text_layers then mean
    nothing, patch_sizes is its own patch and (of a plain ViT, if it divides image_size) twice that
    unless set."""
    tower: Literal["vit", "cnn"] = added("vit")
    """vit: open_clip's own towers, or those of `name`; cnn: a convolutional image tower and a bag
    of tokens, which learn several times faster on a CPU at 32 px."""
    channels: tuple[Size, ...] = added((16, 32, 64, 128))
    """cnn: channels of each 3x3 convolution; all but the last halve the side."""
    embed_dim: Size = 64
    width: Size = 64
    layers: int = Field(3, ge=1, le=1000)
    head_width: Size = 32
    patch_sizes: tuple[Patch, ...] = Field((4, 8), min_length=1)
    """The learner's patch sizes in pixels, finest (full resolution) first."""
    text_width: Size = 64
    text_layers: int = Field(1, ge=1, le=1000)
    init_logit_scale: float = Field(10.0, gt=0, le=1000)  # temperature scale at the start
    init_logit_bias: float = Field(-10.0, ge=-1000, le=1000)
    """Bias at the start (minus the paper's beta)."""
    pretrained: str | None = added(None)
    """Weights for a named model: a local file or one of open_clip's tags."""
    pretrained_sha256: str | None = added(None)  # of that file; filled in
    own_tokenizer: bool = added(False)
    """A named model without pretrained weights: its own tokenizer, not CLIP's byte pairs (with
    pretrained weights that is always so)."""
    lock_image: bool = added(False)  # train the text tower alone, the image tower as it was (LiT)

    @model_validator(mode="before")
    @classmethod
    def _patches_of_name(cls, given: Any) -> Any:
        """A named tower's patch sizes, unless they are given."""
        name = given.get("name") if isinstance(given, dict) else None
        if not isinstance(name, str):
            return given
        return {"patch_sizes": patches_of(name), **given}

    @model_validator(mode="after")
    def _one_tower(self) -> Model:
        if self.tower == "cnn" and self.name is not None:
            raise ValueError("model.tower=cnn and model.name exclude each other")
        if not self.channels:
            raise ValueError("model.channels is empty")
        if (self.pretrained is not None or self.own_tokenizer) and self.name is None:
            which = "pretrained" if self.pretrained is not None else "own_tokenizer"
            raise ValueError(f"model.{which} needs model.name")
        if self.lock_image and self.tower == "cnn":
            raise ValueError("model.lock_image is not for model.tower=cnn")
        if self.name is not None and not self.flexible:
            own = (catalogue.patch_size(catalogue.read(self.name)),)
            if self.patch_sizes != own:
                raise ValueError(
                    f"model.patch_sizes: {self.name}'s image tower sees images at one resolution: "
                    f"{list(own)}, or leave it out"
                )
        return self

    @property
    def flexible(self) -> bool:
        """Whether the image tower can see images at several resolutions."""
        return self.name is None or catalogue.flexible(catalogue.read(self.name))


class Optim(_Strict):
    steps: int = Field(900, ge=1, le=MOST_STEPS)
    batch_size: Rows = 128  # b: pairs in one gradient step
    lr: float = Field(2e-3, gt=0, le=10)
    weight_decay: float = Field(1e-4, ge=0, le=100)
    beta2: float = Field(0.95, ge=0, lt=1)
    warmup: int = Field(100, ge=0, le=MOST_STEPS)
    """Steps of linear warm-up; cosine to zero afterwards."""
    clip_norm: float = Field(1.0, gt=0, le=1e6)
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    augment: bool = True  # random crop and colours, after selection only
    schedule: Literal["cosine", "wsd"] = added("cosine")
    """After the warm-up: a cosine to zero, or wsd: constant, then a decay to zero. Runs with wsd
    that differ in steps alone share what comes before the decay: it is trained once, if
    evaluation.points is 1."""
    decay: float = added(0.2, gt=0, lt=1)
    """wsd: share of the steps, at the end, in which the rate falls to zero as 1 - sqrt (Haegele et
    al. 2024, arXiv 2405.18392)."""

    @property
    def trunk_steps(self) -> int:
        """Steps before the decay, in which nothing depends on `steps`; 0 for a cosine."""
        if self.schedule == "cosine":
            return 0
        return self.steps - max(1, round(self.decay * self.steps))

    @model_validator(mode="after")
    def _decay_after_warmup(self) -> Optim:
        if self.steps < self.warmup:
            raise ValueError(f"steps={self.steps} is shorter than warmup={self.warmup}")
        if self.schedule == "cosine":
            if self.decay != type(self).model_fields["decay"].default:
                raise ValueError("decay needs schedule=wsd")
        elif self.warmup > self.trunk_steps:
            raise ValueError(
                f"a warm-up of {self.warmup} steps does not end before the decay, which starts "
                f"after step {self.trunk_steps} of {self.steps}"
            )
        return self


class Selection(_Strict):
    """How the sub-batch is chosen from the super-batch (paper, Algorithm 1)."""

    sampler: str = "uniform"  # a name of jestcli.selection's registry, or a:b
    criterion: Literal["learnability", "easy_reference", "hard_learner"] = "learnability"
    filter_ratio: float = Field(0.8, ge=0, le=0.999)  # f = 1 - b/B
    n_chunks: Rows = 16
    low_res_scoring: bool = False  # score the super-batch at low resolution
    low_res_share: Share = 0.0  # share of the sub-batch trained at low resolution
    approximation: Literal["patch", "resolution", "tokens"] = added("patch")
    """What low resolution is: the coarsest patch size (the paper), or as many cells by the finest
    patch on a smaller image, or by dropping those of least contrast."""
    keep_tokens: float | None = added(None, gt=0, le=1)
    """tokens: share of the cells that is kept instead."""
    reference_resolution: Literal["full", "low"] = added("full")
    """Resolution at which the reference sees the candidates."""
    filter_ratio_end: float | None = added(None, ge=0, le=0.999)
    """f of the last step: B goes there from filter_ratio's."""
    schedule: Literal["linear", "cosine"] = added("linear")
    """How B goes there (both cost the mean of the two ends)."""
    learner_weight: Share = added(1.0)
    """w in w * learner's loss - reference's loss: a dial of learnability from easy_reference (0,
    and the learner scores nothing) to the paper's (1)."""

    @property
    def scores(self) -> bool:
        """Whether a model embeds the candidates for the choice."""
        return self.sampler not in ("uniform", "cabs")

    @property
    def reads_learner(self) -> bool:
        """Whether the learner does."""
        if not self.scores or self.criterion == "easy_reference":
            return False
        return self.criterion == "hard_learner" or self.learner_weight > 0

    @property
    def reads_reference(self) -> bool:
        """Whether the reference does."""
        return self.scores and self.criterion != "hard_learner"


class Source(_Strict):
    """Where candidates come from."""

    kind: Literal["pool", "curated", "mixed", "filtered"] = "pool"
    curated_share: Share = 0.5
    """mixed: share of curated pairs in the batch, drawn uniformly; a sampler chooses the rest of it
    from candidates of the pool."""
    keep: float = Field(0.2, gt=0, le=1)  # filtered: share of the pool that is kept
    pool_size: Pairs | None = added(None)  # use only a fixed random part of the pool, so many pairs
    noise_share: float = added(0.0, ge=0, lt=1)
    """Share of the pool's pairs that show another's caption, chosen by a hash of the key."""
    relevant_share: float | None = added(None, ge=0.1, le=1)
    """Thin the pool's pairs whose caption names a class of the benchmarks to this share; pools of
    every share are of one size, that of .1."""
    score: Literal["cosine", "negclip"] = added("cosine")
    """filtered: by the reference's cosine, or by negCLIPLoss."""
    curated_in_pool: bool = added(False)
    """Leave the curated sources (all of them, not only those the reference read) in the pool, from
    which they are removed otherwise."""


class Evaluation(_Strict):
    points: int = Field(10, ge=1, le=10**5)  # evaluations along the run, log-spaced, end included
    max_images: Pairs = 2000  # images a benchmark along the run; the end uses all
    part: Part = added("all")
    """Which images of the benchmarks are scored: development (a quarter, by a hash of class name or
    caption, for choosing settings), test (the others), or all."""


class Engine(_Strict):
    """How a step is computed: what it takes, not what it means (up to rounding).

    The device and the number of processes are not settings of a run: they are passed beside it."""

    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of matrix products; bfloat16 by autocast, float64 for comparisons."""
    compile: bool = False  # compile the towers (pays on a GPU)
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory."""
    micro_batch: Rows | None = None
    """Pairs a rank holds activations of at a time; negatives are kept."""
    loss_chunk: Rows | None = None  # rows of the sigmoid loss's logits that exist at a time
    scoring_batch: Rows = 64  # candidates embedded at a time
    reference_cache: bool = added(True)
    """Embed the whole embedded pool with the reference once; false: the candidates of each step,
    which costs less where a run draws fewer than the pool holds."""
    selection_mode: Literal["global", "balanced"] = "global"
    """With several ranks: one choice over all, or an equal share of each."""
    shard: Literal["ddp", "fsdp"] = "ddp"
    """With several ranks: whole towers on each, or towers spread over them."""
    max_bad_steps: int = Field(10, ge=0, le=MOST_STEPS)
    """Steps skipped for values that are not finite before the run stops."""


class Run(_Strict):
    """One model's training, from its data to its last evaluation."""

    seed: int = Field(0, ge=0, lt=2**63)
    data: Data = Data()
    model: Model = Model()
    optim: Optim = Optim()
    selection: Selection = Selection()
    source: Source = Source()
    evaluation: Evaluation = Evaluation()
    engine: Engine = added(Engine())  # how a step is computed
    reference: Run | None = None  # the run that trained the reference model
    init: str | None = added(None)  # checkpoint to start from (`jest train --init`)
    init_sha256: str | None = added(None)  # of that file; filled in
    init_from_reference: bool = False  # start from the reference's weights
    reference_model: str | None = added(None)
    """An open_clip MODEL:TAG or MODEL:FILE as the reference, for own shards."""

    @model_validator(mode="before")
    @classmethod
    def _patches_that_fit(cls, given: Any) -> Any:
        """Twice a named tower's patch size is not one of its patch sizes where nobody asked for it
        and it does not divide the image (ViT-B-32's, of 224 pixels)."""
        model, data = (
            given.get(key, {}) if isinstance(given, dict) else {} for key in ("model", "data")
        )
        if not (isinstance(model, dict) and isinstance(data, dict)) or "patch_sizes" in model:
            return given
        name, side = model.get("name"), data.get("image_size", Data().image_size)
        if not (isinstance(name, str) and isinstance(side, int)):
            return given
        try:
            patches = patches_of(name)
        except ValueError:  # which the model's own settings will say
            return given
        if side % patches[-1] == 0:
            return given
        return {**given, "model": {**model, "patch_sizes": patches[:1]}}

    @model_validator(mode="after")
    def _consistent(self) -> Run:
        selection, model, size = self.selection, self.model, self.data.image_size
        scores = selection.reads_reference
        needs_reference = scores or self.source.kind == "filtered" or self.init_from_reference
        if self.reference_model and (self.reference or not self.data.own):
            raise ValueError("reference_model is for own shards, and instead of a reference run")
        if self.reference_model and self.init_from_reference:
            raise ValueError("init_from_reference needs a reference run, not a reference_model")
        if needs_reference and self.reference is None and self.reference_model is None:
            raise ValueError("this selection or source needs a reference run")
        if scores and self.source.kind == "curated":
            raise ValueError("source.kind=curated leaves no pool to select from by a reference")
        if self.selects and self.curated_pairs == self.optim.batch_size:
            raise ValueError("source.curated_share leaves a sampler nothing of the batch to choose")
        if self.init and self.init_from_reference:
            raise ValueError("init and init_from_reference exclude each other")
        if self.data.own:
            _check_own(self)
        wanted = self.data.curated_size or 0
        if self.data.level == VERIFIED and wanted > VERIFIED_SIZE:
            raise ValueError(
                f"data.curated_size={wanted}: level {VERIFIED} has {VERIFIED_SIZE:,} pairs"
            )
        for key in ("image_size", "vocab_size", "context_length"):
            if self.reference and getattr(self.data, key) != getattr(self.reference.data, key):
                raise ValueError(f"data.{key} differs from the reference's")
        if model.name is not None:
            self._check_named(model.name)
        low = selection.low_res_share > 0 or selection.low_res_scoring
        if low and selection.keep_tokens is None and len(model.patch_sizes) < 2:
            only = model.patch_sizes[0]
            raise ValueError(
                "model.patch_sizes needs a second patch size for low resolution, one that divides "
                f"{size} px beside {only}"
            )
        if model.tower == "cnn":
            self._check_cnn()
        if selection.reference_resolution == "low" and self.reference:
            other = self.reference
            if not other.model.flexible:
                raise ValueError(
                    "selection.reference_resolution=low: the reference's image tower, "
                    f"{other.model.name}, sees images at one resolution"
                )
            if other.model.tower == "cnn" and not other.selection.low_res_share:
                raise ValueError(
                    "selection.reference_resolution=low needs a cnn reference that was trained at "
                    "low resolution too (its batch statistics differ): set its low_res_share"
                )
        patches = list(model.patch_sizes)
        if not patches or patches != sorted(patches) or any(p < 1 or size % p for p in patches):
            raise ValueError("model.patch_sizes must divide data.image_size, finest first")
        if self.source.curated_in_pool and self.source.kind not in ("pool", "filtered"):
            raise ValueError("source.curated_in_pool needs source.kind pool or filtered")
        own_words = catalogue.own_tokenizer(model.name, model.pretrained or model.own_tokenizer)
        if model.lock_image and not (self.init or model.pretrained or self.init_from_reference):
            raise ValueError("model.lock_image needs an image tower that is trained: --init")
        if self.data.vocab_size > CLIPS_VOCABULARY and not own_words:
            raise ValueError(f"data.vocab_size: CLIP's byte pairs are {CLIPS_VOCABULARY:,}")
        if selection.sampler == "cabs" and own_words:
            raise ValueError(
                "selection.sampler cabs reads words as CLIP's byte pairs, but "
                f"{model.name} brings its own tokenizer"
            )
        if selection.learner_weight != 1 and selection.criterion != "learnability":
            raise ValueError("selection.learner_weight needs selection.criterion=learnability")
        if selection.schedule != "linear" and selection.filter_ratio_end is None:
            raise ValueError("selection.schedule needs selection.filter_ratio_end")
        if self.scheduled and self.optim.schedule == "wsd":
            raise ValueError(
                "optim.schedule=wsd and selection.filter_ratio_end exclude each other:"
                " a filter ratio that changes depends on the run's length"
            )
        if selection.keep_tokens is not None and selection.approximation != "tokens":
            raise ValueError("selection.keep_tokens needs selection.approximation=tokens")
        if self.engine.loss_chunk and self.optim.loss != "sigmoid":
            raise ValueError("engine.loss_chunk is for optim.loss=sigmoid")
        heads = (model.width % model.head_width, model.text_width % model.head_width)
        if model.tower == "vit" and any(heads):
            raise ValueError("model.head_width must divide model.width and model.text_width")
        return self

    def _check_named(self, name: str) -> None:
        """What an open_clip tower that is no plain ViT rules out. Raises ValueError."""
        selection, engine = self.selection, self.engine
        low = selection.low_res_share > 0 or selection.low_res_scoring
        if not self.model.flexible and (low or selection.keep_tokens is not None):
            raise ValueError(
                f"model.name={name} sees images at one resolution, so it has no low one "
                "(low_res_share, low_res_scoring, keep_tokens): JEST, not Flexi-JEST"
            )
        if not catalogue.has_batch_norm(catalogue.read(name)):
            return
        for key, on in (
            ("micro_batch", engine.micro_batch is not None),
            ("activation_checkpointing", engine.activation_checkpointing),
            ("shard=fsdp", engine.shard == "fsdp"),
        ):
            if on:
                raise ValueError(
                    f"engine.{key} is not for model.name={name}: its batch norms need the whole "
                    "batch at once, and once"
                )

    def _check_cnn(self) -> None:
        """What batch statistics rule out. Raises ValueError."""
        selection, engine = self.selection, self.engine
        coarsest, finest = self.model.patch_sizes[-1], self.model.patch_sizes[0]
        smallest = self.data.image_size // coarsest * finest
        if smallest < 2 ** (len(self.model.channels) - 1):
            raise ValueError(f"model.channels halves images of {smallest} px too often")
        if engine.micro_batch is not None:
            raise ValueError(
                "engine.micro_batch is not for model.tower=cnn: its batch norm needs "
                "the whole batch at once"
            )
        if engine.shard == "fsdp":
            raise ValueError("engine.shard=fsdp is not for model.tower=cnn, which is small")
        if selection.approximation == "tokens":
            raise ValueError("selection.approximation=tokens is not for model.tower=cnn")
        if selection.low_res_scoring and not selection.low_res_share:
            raise ValueError(
                "selection.low_res_scoring with model.tower=cnn needs a low_res_share "
                "above 0: its batch statistics at low resolution come from training"
            )

    @property
    def selects(self) -> bool:
        """Whether a sampler chooses what is trained on."""
        return self.selection.sampler != "uniform"

    @property
    def curated_pairs(self) -> int:
        """Pairs of every batch that come from the curated set beside a pool."""
        if self.source.kind != "mixed":
            return 0
        return round(self.optim.batch_size * self.source.curated_share)

    @property
    def super_batch_size(self) -> int:
        """Pairs drawn for a step: B = b / (1 - f), rounded (paper.md: floating point leaves int()
        one short); with source.kind=mixed the sampler has b - curated_pairs to choose, and the
        curated ones are drawn beside its candidates.

        The largest of the run where f has a schedule (see `super_batch_at`)."""
        if not self.selects:
            return self.optim.batch_size
        if self.scheduled:
            return max(self.super_batch_at(0), self.super_batch_at(self.optim.steps))
        chosen = self.optim.batch_size - self.curated_pairs
        return self.curated_pairs + round(chosen / (1 - self.selection.filter_ratio))

    @property
    def scheduled(self) -> bool:
        """Whether the super-batch changes size along the run; b never does."""
        return self.selects and self.selection.filter_ratio_end is not None

    def super_batch_at(self, step: int) -> int:
        """B of `step` (0-based); from the last step on it stays.

        A schedule moves B, and with it the cost of scoring, from b / (1 - filter_ratio) to
        b / (1 - filter_ratio_end), in multiples of gcd(b, 16) so that up to 16 ranks share it."""
        if not self.scheduled:
            return self.super_batch_size
        return self.candidates_before(step + 1) - self.candidates_before(step)

    def candidates_before(self, step: int) -> int:
        """Pairs drawn for all steps before `step`: where the reading of the data stands then."""
        end = self.selection.filter_ratio_end
        if not self.scheduled or end is None:
            return step * self.super_batch_size
        b, steps = self.optim.batch_size - self.curated_pairs, self.optim.steps
        starts = _starts(b, self.selection.filter_ratio, end, self.selection.schedule, steps)
        last = starts[-1] - starts[-2]
        chosen_from = starts[min(step, steps)] + max(0, step - steps) * last
        return chosen_from + step * self.curated_pairs

    def scored_before(self, step: int) -> int:
        """Those of them that a sampler chose from: all but the curated pairs; 0 without one."""
        if not self.selects:
            return 0
        return self.candidates_before(step) - step * self.curated_pairs

    def digest(self) -> str:
        """16 hex digits naming everything that determines this run's numbers."""
        text = json.dumps([NUMERICS, _determining(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _starts(b: int, first: float, last: float, schedule: str, steps: int) -> tuple[int, ...]:
    """Candidates before each of `steps` steps and after the last: B summed up (super_batch_at)."""
    unit, sizes = math.gcd(b, 16), []
    ends = b / (1 - first), b / (1 - last)
    for step in range(steps):
        share = step / max(1, steps - 1)
        if schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        sizes.append(unit * round((ends[0] + share * (ends[1] - ends[0])) / unit))
    return tuple(accumulate(sizes, initial=0))


def _check_own(run: Run) -> None:
    """Whether the user's shards are what this run reads. Raises ValueError."""
    kind, data = run.source.kind, run.data
    if run.source.relevant_share is not None:
        raise ValueError("source.relevant_share is for the embedded data")
    if run.source.curated_in_pool:
        raise ValueError(
            "source.curated_in_pool is for the embedded data: name the curated shards "
            "in data.train, too"
        )
    if kind != "curated" and not data.train:
        raise ValueError("data.train is empty: name the shards of the pool")
    if kind != "pool" and not data.curated:
        raise ValueError("data.curated is empty: name the shards of the curated set")
    if run.reference is not None and not run.reference.data.own:
        raise ValueError("data.curated is empty: a reference needs a curated set of your own")


# --- methods: what `jest train --method NAME` means ---------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "uniform": {"selection": {"sampler": "uniform"}},
    "jest": {"selection": {"sampler": "joint"}},
    "flexi": {"selection": {"sampler": "joint", "low_res_scoring": True, "low_res_share": 0.5}},
    "flexi-uniform": {"selection": {"sampler": "uniform", "low_res_share": 0.5}},
    "independent": {"selection": {"sampler": "independent"}},
    "topk": {"selection": {"sampler": "topk"}},
    "easy-reference": {"selection": {"sampler": "joint", "criterion": "easy_reference"}},
    "hard-learner": {"selection": {"sampler": "joint", "criterion": "hard_learner"}},
    "jest-curated": {
        "selection": {"sampler": "joint"},
        "source": {"kind": "mixed", "curated_share": 0.25},
    },
    "cabs": {"selection": {"sampler": "cabs"}},
    "curated": {"selection": {"sampler": "uniform"}, "source": {"kind": "curated"}},
    "mixed": {"selection": {"sampler": "uniform"}, "source": {"kind": "mixed"}},
    "filtered": {"selection": {"sampler": "uniform"}, "source": {"kind": "filtered"}},
    "finetune": {"selection": {"sampler": "uniform"}, "init_from_reference": True},
}


def needs_reference(method: str) -> bool:
    """Whether `method` (a key of METHODS) reads a reference model."""
    return method not in ("uniform", "flexi-uniform", "hard-learner", "cabs", "curated", "mixed")


# --- reading -------------------------------------------------------------------------------------


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, dictionaries merged key by key; neither is changed."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(out.get(key), dict) and isinstance(value, dict)
        out[key] = merge(out[key], value) if both else value
    return out


DEEPEST = 32  # levels of settings
MOST_SETTINGS = 100_000


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["a.b=1"]` -> `{"a": {"b": 1}}`; values are YAML scalars. Raises ConfigError.

    Shards that are named several times, as a shell does of {000..099}, are all meant."""
    out: dict[str, Any] = {}
    shards: dict[str, list[Any]] = {"data.train": [], "data.curated": []}
    for pair in pairs:
        key, sep, text = pair.partition("=")
        if not sep or not key or key.count(".") > DEEPEST:
            raise ConfigError(f"--set {pair[:200]}: expected key=value, such as optim.steps=200")
        try:
            value = _from_yaml(text)
        except (yaml.YAMLError, *UNREADABLE):
            shown = " ".join(pair[:200].split())
            raise ConfigError(f"--set {shown}: the value is not a YAML scalar") from None
        if key in shards:
            shards[key] += value if isinstance(value, list) else [value]
            value = shards[key] if len(shards[key]) > 1 else value
        out = merge(out, nested(key, value))
    return out


def nested(key: str, value: Any) -> dict[str, Any]:
    """`"a.b", 1` -> `{"a": {"b": 1}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _from_yaml(text: str) -> Any:
    """Plain data. Raises ValueError, too, for what an alias makes endless, or thousandfold."""
    value = yaml.safe_load(text)
    level = [value]
    for _ in range(DEEPEST):
        nested = [x for x in level if isinstance(x, dict | list | tuple | set)]
        level = [c for x in nested for c in (x.values() if isinstance(x, dict) else x)]
        if not level:
            return value
        if len(level) > MOST_SETTINGS:
            break
    raise ValueError("it is nested too deeply")


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file, safely. Raises ConfigError in one line."""
    try:
        value = _from_yaml(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}{_neighbour(path)}") from None
    except (yaml.YAMLError, *UNREADABLE) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a mapping of settings")
    return value


def _neighbour(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, 1, 0.4)
    return f" (did you mean {folder / close[0]}?)" if close else ""


def make_run(settings: dict[str, Any]) -> Run:
    """A checked Run from nested plain data. Raises ConfigError naming the key and a near one."""
    try:
        return Run.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(explain(error, Run)) from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem in one line."""
    first = error.errors()[0]
    # pydantic names the branch of a union, too, such as dict[str,any]: no word of the user's
    where = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
    where = " ".join(where.split())[:200]  # keys are a stranger's
    if first["type"] == "extra_forbidden":
        return f"unknown setting {where}{_nearest(first['loc'], model)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _nearest(loc: tuple[Any, ...], model: type[BaseModel]) -> str:
    owner: Any = model
    for part in loc[:-1]:
        field = owner.model_fields.get(part)
        if field is None:  # a key of a mapping, a place in a list
            continue
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        owner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if owner is None:
            return ""
    return did_you_mean(str(loc[-1]), list(owner.model_fields))


def did_you_mean(word: str, known: list[str]) -> str:
    """' (did you mean X?)' or the list of what is known."""
    close = difflib.get_close_matches(word, known, 1, 0.5)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(sorted(known))})"
