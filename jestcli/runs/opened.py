"""A finished run with all that its choices follow from: weights, reference, candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from jestcli.config import Run
from jestcli.data.described import Described, ShardPairs, StorePairs
from jestcli.data.drawing import Portion, StreamDrawing
from jestcli.data.faults import FaultLog
from jestcli.data.loader import Candidates, Drawing, StoreDrawing
from jestcli.models.towers import Clip
from jestcli.runs import own
from jestcli.runs.cache import Cache
from jestcli.runs.drawn_from import sources
from jestcli.runs.evaluate import list_runs
from jestcli.runs.own import OwnInputs
from jestcli.runs.scored_with import (
    live_reference,
    open_reference,
    own_reference,
    reads_pool_cache,
)
from jestcli.runs.trained import load_folder
from jestcli.runs.workspace import Inputs, Report, StageError, Workspace, read_run
from jestcli.selection import PairEmbeddings
from jestcli.training.devices import set_threads
from jestcli.training.distributed import World
from jestcli.training.step import EmbedReference, embed

ANEW = 1_000  # added to the seed: an order of the pool that was not trained in
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Opened:
    """A finished run. Pairs are named by their row in the pool that it draws from.

    size: how many different pairs that is. of_size: B -> the drawing of super-batches of B, each
    pair once an epoch, in an order that was not trained in; the caller closes it.
    """

    folder: Path
    label: str
    run: Run
    learner: Clip
    reference: EmbedReference
    pairs: Described
    size: int
    of_size: Callable[[int], Drawing]

    def embed(self, candidates: Candidates) -> PairEmbeddings:
        """The learner's embeddings of candidates, at the resolution at which it scores."""
        low = self.run.selection.low_res_scoring
        return embed(
            self.learner, candidates.images, candidates.tokens,
            self.learner.low if low else self.learner.full, self.run.engine.scoring_batch,
        )  # fmt: skip

    @contextmanager
    def drawing(self, size: int) -> Iterator[Drawing]:
        drawing = self.of_size(size)
        try:
            yield drawing
        finally:
            drawing.close()


def find_run(word: str | None, workspace: Workspace) -> Path:
    """A run directory by path or the beginning of its name; default: the newest that selects.

    Raises StageError.
    """
    if word is None:
        for folder in reversed(list_runs(workspace)):
            run = read_run(folder)[1]
            if run.selection.scores and run.source.kind != "mixed":
                return folder
        raise StageError(f"no finished run in {workspace.runs} selects: name one, or train one")
    if (Path(word) / "config.json").exists():
        return Path(word)
    found = [p for p in list_runs(workspace) if p.name.startswith(word)]
    if len(found) != 1:
        some = "several runs" if found else "no finished run"
        raise StageError(f"{some} in {workspace.runs} called {word!r}")
    return found[0]


def open_run(
    folder: Path, workspace: Workspace, device: torch.device = CPU, report: Report | None = None
) -> Opened:
    """Open a run to look at, on the embedded data or on own shards.

    report: shown how far the embedding of the pool is, where that has to be done first.
    Raises StageError for a run that is not finished, has no reference to score with, or draws from
    its curated set.
    """
    label, run = read_run(folder)
    if run.reference is None and run.reference_model is None:
        raise StageError(f"{folder} has no reference: there is no learnability to look at")
    if run.source.kind in ("curated", "mixed"):
        raise StageError(
            f"{folder} draws from the curated set: only choices from a pool can be shown"
        )
    if device.type == "cpu":
        set_threads(1)
    here = replace(workspace, runs=folder.parent)
    learner = load_folder(run, folder).to(device).eval()
    # A run that reads no embeddings (fine-tuning, say) is scored with its reference all the same.
    chosen = {"sampler": "joint", "criterion": "learnability"}
    scoring = run.model_copy(update={"selection": run.selection.model_copy(update=chosen)})
    make = _own_pairs if run.data.own else _embedded_pairs
    reference, pairs, size, of_size = make(
        scoring, here, folder, World(device=device), report or (lambda *_: None)
    )
    return Opened(folder, label, run, learner, reference, pairs, size, of_size)


Parts = tuple[EmbedReference, Described, int, Callable[[int], Drawing]]


def _embedded_pairs(
    run: Run, workspace: Workspace, folder: Path, world: World, report: Report
) -> Parts:
    inputs: Inputs = workspace.embedded(run)
    cache: Cache | None = None
    reference: EmbedReference
    if reads_pool_cache(run):
        cache, _, _ = open_reference(run, workspace, inputs, "inspecting", report, world)
        assert cache is not None
        reference = cache.on(world.device) if world.device.type == "cuda" else cache
    else:
        reference, _, _ = live_reference(run, workspace, world)
    (part,), _ = sources(run, inputs, cache)

    def of_size(size: int) -> Drawing:
        return StoreDrawing([part], [size], run.seed + ANEW)

    return reference, StorePairs(part.store), len(part.rows), of_size


def _own_pairs(run: Run, workspace: Workspace, folder: Path, world: World, report: Report) -> Parts:
    inputs = OwnInputs(run.data, run.model, workspace.loading, folder)
    reference, _, _ = own_reference(run, workspace, inputs, world)
    assert reference is not None
    stream = inputs.pool
    # As one source, whatever the weights of several: each pair comes once an epoch.
    counts = tuple(np.diff(stream.starts).tolist())
    plain = replace(stream, sources=(tuple(stream.shards),), counts=(counts,), weights=())
    rows = own.kept_rows(run, reference, folder) if run.source.kind == "filtered" else None
    view = own.view_of(run, inputs, reference)

    def of_size(size: int) -> Drawing:
        log = FaultLog(limit=inputs.loading.max_faults)
        portion = Portion(plain, size, rows=rows)
        return StreamDrawing([portion], view, run.seed + ANEW, inputs.loading, log)

    pairs = ShardPairs(plain, run.data.train, inputs.loading)
    return reference, pairs, len(plain if rows is None else rows), of_size
