"""A finished run with all that its choices follow from: weights, reference, candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jestcli.config import Run
from jestcli.data.dataset import Dataset
from jestcli.data.loader import SuperBatch, SuperBatchLoader
from jestcli.models.towers import Clip
from jestcli.runs.evaluate import list_runs
from jestcli.runs.inputs import RunData, data_of, sources, transform_of
from jestcli.runs.reference import open_reference
from jestcli.runs.trained import load_folder
from jestcli.runs.workspace import Report, StageError, Workspace, read_run
from jestcli.selection import PairEmbeddings
from jestcli.training.devices import set_threads
from jestcli.training.distributed import DistEnv
from jestcli.training.reference import Reference
from jestcli.training.step import encode_pairs

ANEW = 1_000  # added to the seed: an order of the pool that was not trained in
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Opened:
    """A finished run. Pairs are named by their row in the pool that it draws from.

    size: how many different pairs that is. of_size: B -> the loader of super-batches of B, each
    pair once an epoch, in an order that was not trained in; the caller closes it.
    """

    folder: Path
    label: str
    run: Run
    learner: Clip
    reference: Reference
    data: RunData
    pairs: Dataset
    size: int
    of_size: Callable[[int], SuperBatchLoader]

    def embed(self, candidates: SuperBatch) -> PairEmbeddings:
        """The learner's embeddings of candidates, at the resolution at which it scores."""
        low = self.run.selection.low_res_scoring
        return encode_pairs(
            self.learner,
            candidates.images,
            candidates.tokens,
            self.learner.low if low else self.learner.full,
            self.run.engine.scoring_batch,
        )

    @contextmanager
    def drawing(self, size: int) -> Iterator[SuperBatchLoader]:
        drawing = self.of_size(size)
        try:
            yield drawing
        finally:
            drawing.close()


def newest_selecting(workspace: Workspace) -> Path:
    """The newest finished run whose choices from a pool can be looked at. Raises StageError."""
    for folder in reversed(list_runs(workspace)):
        run = read_run(folder)[1]
        if run.selection.scores and run.source.kind != "mixed":
            return folder
    raise StageError(f"no finished run in {workspace.runs} selects: name one, or train one")


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
    data = data_of(run, here, folder)
    reference = open_reference(
        scoring, here, data, DistEnv(device=device), "inspecting", report or (lambda *_: None)
    )
    assert reference.call is not None
    (source,) = sources(scoring, data, reference, folder)
    dataset, transform = source.dataset, transform_of(scoring, data, reference)
    # Each pair once an epoch, whatever the weights of several sources.
    order = dataset.order(run.seed + ANEW, "pool", source.order.kept, weighted=False)

    def of_size(size: int) -> SuperBatchLoader:
        again = replace(source, order=order, per_step=size, before=None)
        return SuperBatchLoader([again], transform, data.loading)

    learned = (learner, reference.call, data, dataset)
    return Opened(folder, label, run, *learned, len(source.order), of_size)
