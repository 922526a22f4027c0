"""A run on the user's own shards: its inputs, and what it draws from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jestcli.config import Data, Model, Run
from jestcli.data.drawing import Portion, StreamDrawing, View
from jestcli.data.embeddings import ShardEmbeddings
from jestcli.data.faults import FaultLog
from jestcli.data.sources import Loading, identity, list_shards
from jestcli.data.store import fingerprint
from jestcli.data.stream import RECORD, Stream, open_stream
from jestcli.data.tokens import small_tokenizer
from jestcli.evaluation.benchmarks import Benchmark, find_benchmarks
from jestcli.models import flexi as models
from jestcli.models.flops import ForwardFlops
from jestcli.models.towers import Clip, low_view
from jestcli.runs.filters import FILTERS
from jestcli.runs.references import (
    MICRO_BATCH,
    ForeignReference,
    OwnReference,
    Reference,
    ShardReference,
    open_clip_reference,
)
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_array
from jestcli.utils.parallel import Progress, silent

CPU = torch.device("cpu")
KEPT = "kept.npy"


@dataclass(frozen=True)
class OwnInputs:
    """What runs on the user's shards read. folder: the run directory, which keeps the counts."""

    data: Data
    model: Model
    loading: Loading
    folder: Path

    @cached_property
    def tokenizer(self) -> Any:
        return tokenizer_of(self.model, self.data)

    @cached_property
    def pool(self) -> Stream:
        return self.stream("pool")

    @cached_property
    def curated(self) -> Stream:
        return self.stream("curated")

    def stream(self, split: str, progress: Progress = silent) -> Stream:
        """ "pool" or "curated", its samples counted. Raises DataError."""
        data, pool = self.data, split == "pool"
        return open_stream(
            split, data.train if pool else data.curated, self.loading,
            weights=data.weights if pool else (), window=data.window, captions=1 if pool else 2,
            record=self.folder / RECORD, progress=progress,
        )  # fmt: skip

    def benchmarks(self) -> list[Benchmark]:
        """Those of data.benchmarks; none without."""
        if self.data.benchmarks is None:
            return []
        return find_benchmarks(Path(self.data.benchmarks), self.data.image_size, self.data.shots)


def data_identity(run: Run) -> str:
    """Names the shards and the weights that a run reads: part of its directory's name."""
    data, weights = run.data, (run.reference_model or "").partition(":")[2]
    shards = [shard for entry in (*data.train, *data.curated) for shard in list_shards(entry)]
    return identity(shards) + (fingerprint(weights) if weights else "")


def tokenizer_of(model: Model, data: Data) -> Any:
    """CLIP's byte pairs, cut to data.vocab_size (49,408 is CLIP's own tokenizer); for pretrained
    weights of a model with another tokenizer, that one."""
    if model.name is not None and model.pretrained is not None:
        import open_clip

        text = (open_clip.get_model_config(model.name) or {}).get("text_cfg", {})
        if text.get("hf_tokenizer_name"):
            return open_clip.get_tokenizer(model.name, context_length=data.context_length)
    return small_tokenizer(data.vocab_size, data.context_length)


def splits(run: Run) -> dict[str, int]:
    """Pairs of the pool and of the curated set in every super-batch (with a schedule, in the
    largest), those that are read."""
    total, kind = run.super_batch_size, run.source.kind
    if kind != "mixed":
        return {"curated" if kind == "curated" else "pool": total}
    return {"pool": total - run.curated_pairs, "curated": run.curated_pairs}


def drawn_before(run: Run, split: str, step: int) -> int:
    """Pairs of a split that the steps before `step` draw, where f has a schedule."""
    total = run.candidates_before(step)
    if run.source.kind != "mixed":
        return total
    curated = step * run.curated_pairs
    return curated if split == "curated" else total - curated


def open_reference(
    inputs: OwnInputs,
    model: Clip | str,
    seen: models.View | None = None,
    device: torch.device = CPU,
    micro_batch: int = MICRO_BATCH,
) -> ShardReference:
    """A reference over the pool: a run's model, or an open_clip model by its word.

    seen: how a run's model sees images; None is full resolution. device: where it embeds what is
    not cached, `micro_batch` pairs at a time.
    What `jest cache-reference` has made is read, the rest computed when needed. Raises ConfigError
    for a model that cannot be used, DataError for a cache that does not fit.
    """
    reference = open_model(inputs, model, seen, device, micro_batch)
    return ShardReference(reference, ShardEmbeddings(inputs.pool, reference.key, inputs.loading))


def open_model(
    inputs: OwnInputs,
    model: Clip | str,
    seen: models.View | None = None,
    device: torch.device = CPU,
    micro_batch: int = MICRO_BATCH,
) -> Reference:
    """What embeds: a run's model, or an open_clip model by its word. Raises ConfigError."""
    if isinstance(model, str):
        foreign = open_clip_reference(model)
        foreign.model.to(device)
        return replace(foreign, micro_batch=micro_batch)
    return OwnReference(
        model.eval().to(device), inputs.tokenizer, inputs.data.image_size, seen, micro_batch
    )


def foreign_flops(reference: ShardReference) -> ForwardFlops:
    """FLOPs of an open_clip reference on one pair, counted."""
    foreign = reference.reference
    assert isinstance(foreign, ForeignReference)
    device = foreign.model.logit_scale.device
    view = foreign.image(Image.new("RGB", (256, 256)))[None]
    pixels = ((view.float().div(255) - foreign.mean) / foreign.std).to(device)
    tokens = foreign.tokenizer(["a"]).to(device)
    counts: list[int] = []
    for call, given in ((foreign.model.encode_image, pixels), (foreign.model.encode_text, tokens)):
        # Plain attention: the counter does not know every fused kernel.
        plain = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            call(given)
        counts.append(counter.get_total_flops())
    return ForwardFlops(counts[0], counts[0], counts[1])


def open_drawing(
    run: Run,
    inputs: OwnInputs,
    reference: ShardReference | None,
    folder: Path,
    rank: int = 0,
    world: int = 1,
) -> StreamDrawing:
    """The run's candidates, straight from the shards; faults go to `folder`/faults.jsonl.

    A run that scores at low resolution decodes reduced, unless its reference must see every pixel.
    """
    rows = kept_rows(run, reference, folder) if run.source.kind == "filtered" else None
    portions = [
        Portion(
            inputs.pool if split == "pool" else inputs.curated, count,
            partial(drawn_before, run, split) if run.scheduled else None, rows,
        )
        for split, count in splits(run).items()
    ]  # fmt: skip
    view = view_of(run, inputs, reference)
    log = FaultLog(folder, rank, inputs.loading.max_faults)
    return StreamDrawing(portions, view, run.seed, inputs.loading, log, rank, world, run.selects)


def kept_rows(run: Run, reference: ShardReference | None, folder: Path) -> np.ndarray:
    """Rows of the pool that an offline filter keeps, int64, ascending: the best by the reference
    of those that can be read. Kept in `folder`, so that a resumed run has the same.

    Raises DataError unless the whole pool has been embedded.
    """
    path = folder / KEPT
    if path.exists():
        rows: np.ndarray = np.load(path, allow_pickle=False)
        return rows
    assert reference is not None
    if not reference.embeddings.complete:
        raise DataError(
            "a filter scores the whole pool: embed it with the reference first (`jest "
            "cache-reference`, with the same settings)"
        )
    there = reference.embeddings.readable()
    score = FILTERS[run.source.score](lambda i: reference.cached(there[i]), len(there))
    best = np.argsort(-score, kind="stable")[: max(1, round(run.source.keep * len(there)))]
    rows = there[np.sort(best)]
    save_array(path, rows)
    return rows


def view_of(run: Run, inputs: OwnInputs, reference: ShardReference | None) -> View:
    """What the run's candidates are turned into."""
    cached = reference is None or reference.embeddings.complete
    second = reference.reference if reference is not None else None
    return View(
        run.data.image_size, inputs.tokenizer, scoring_size(run) if cached else None,
        second if isinstance(second, ForeignReference) else None, seldom=cached,
    )  # fmt: skip


def scoring_size(run: Run) -> int | None:
    """Pixels at which the learner scores candidates, where that is a smaller image."""
    if not (run.selection.low_res_scoring and run.selection.scores):
        return None
    side = low_view(run.model, run.data, run.selection).side
    return side if side < run.data.image_size else None
