"""A finished run with all that its choices follow from: weights, reference, candidates."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jestcli.config import Run
from jestcli.data.dataset import Dataset, Transform
from jestcli.data.loader import Source, SuperBatch, SuperBatchLoader
from jestcli.models.towers import Clip
from jestcli.runs.evaluate import list_runs
from jestcli.runs.inputs import sources, transform_of
from jestcli.runs.reference import open_reference
from jestcli.runs.run_data import RunData, data_of
from jestcli.runs.trained import load_folder
from jestcli.runs.workspace import StageError, Workspace, read_run
from jestcli.selection import PairEmbeddings
from jestcli.training.devices import set_threads
from jestcli.training.distributed import DistEnv
from jestcli.training.reference import Reference
from jestcli.training.step import encode_pairs
from jestcli.utils.progress import Progress, silent

ANEW = 1_000  # added to the seed: an order of the pool that was not trained in
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Opened:
    """A finished run. Pairs are named by their row in the pool that it draws from.

    source: that pool, each pair once an epoch, in an order that was not trained in.
    """

    folder: Path
    label: str
    run: Run
    learner: Clip
    reference: Reference
    data: RunData
    source: Source
    transform: Transform

    @property
    def pairs(self) -> Dataset:
        return self.source.dataset

    @property
    def size(self) -> int:
        """How many different pairs there are."""
        return len(self.source.order)

    def embed(self, candidates: SuperBatch) -> PairEmbeddings:
        """The learner's embeddings of candidates, at the resolution at which it scores."""
        learner, batch = self.learner, self.run.engine.scoring_batch
        view = learner.low if self.run.selection.low_res_scoring else learner.full
        return encode_pairs(learner, candidates.images, candidates.tokens, view, batch)

    def drawing(self, size: int) -> AbstractContextManager[SuperBatchLoader]:
        """The loader of super-batches of `size` pairs, closed in the end."""
        source = replace(self.source, per_step=size)
        return closing(SuperBatchLoader([source], self.transform, self.data.loading))


def newest_selecting(workspace: Workspace) -> Path:
    """The newest finished run whose choices from a pool can be looked at. Raises StageError."""
    for folder in reversed(list_runs(workspace)):
        run = read_run(folder)[1]
        if run.selection.scores and run.source.kind != "mixed":
            return folder
    raise StageError(f"no finished run in {workspace.runs} selects: name one, or train one")


def open_run(
    folder: Path, workspace: Workspace, device: torch.device = CPU, report: Progress = silent
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
    reference = open_reference(scoring, here, data, DistEnv(device=device), "inspecting", report)
    assert reference.call is not None
    (source,) = sources(scoring, data, reference, folder)
    # Each pair once an epoch, whatever the weights of several sources.
    order = source.dataset.order(run.seed + ANEW, "pool", source.order.kept, weighted=False)
    source = replace(source, order=order, before=None)
    transform = transform_of(scoring, data, reference)
    return Opened(folder, label, run, learner, reference.call, data, source, transform)
