"""What scores a run's candidates: its reference, live or from tables, and the tables' making."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jestcli.config import Run
from jestcli.data.dataset import Dataset
from jestcli.models.flexi import Resolution
from jestcli.models.flops import ForwardFlops
from jestcli.models.towers import low_view
from jestcli.runs.run_data import data_of
from jestcli.runs.trained import THREADS, learner_flops, load_run
from jestcli.runs.workspace import Workspace, only_writer, read_done
from jestcli.training.devices import set_threads
from jestcli.training.distributed import SINGLE_PROCESS, DistEnv
from jestcli.training.reference import (
    MICRO_BATCH,
    EmbeddingTable,
    LiveReference,
    Reference,
    RunReference,
    fill,
    open_clip_reference,
)
from jestcli.utils.progress import Progress, bars, silent

if TYPE_CHECKING:
    from rich.console import Console

    from jestcli.runs.run_data import RunData

CPU = torch.device("cpu")


@dataclass(frozen=True)
class OpenedReference:
    """call: a super-batch -> embeddings, by `live` or from `table`; None where nothing is scored.
    flops: of one pair; training_flops: what training the reference took."""

    call: Reference | None = None
    live: LiveReference | None = None
    table: EmbeddingTable | None = None
    flops: ForwardFlops | None = None
    training_flops: float = 0.0


def scores_by_reference(run: Run) -> bool:
    """Whether the run scores pairs with a reference."""
    scored = run.selection.reads_reference or run.source.kind == "filtered"
    return scored and (run.reference is not None or run.reference_model is not None)


def reads_pool_cache(run: Run) -> bool:
    """Whether it does so with the reference's embeddings of the pool, computed before."""
    kept = run.engine.reference_cache or run.source.kind == "filtered"  # which scores all of it
    return scores_by_reference(run) and kept


def reference_view(run: Run) -> Resolution | None:
    """How the reference of `run` sees the candidates; None: at its own full resolution."""
    if run.reference is None or run.selection.reference_resolution == "full":
        return None
    return low_view(run.reference.model, run.reference.data, run.selection)


def run_reference(
    reference: Run,
    workspace: Workspace,
    tokenizer: object,
    view: Resolution | None = None,
    device: torch.device = CPU,
    micro_batch: int = MICRO_BATCH,
) -> RunReference:
    """The trained model of `reference`. view: how it sees candidates. Raises StageError."""
    model = load_run(reference, workspace)
    if view is not None:
        model.set_low(view)
    size = reference.data.image_size
    return RunReference(model.to(device).eval(), tokenizer, size, view, micro_batch)


def open_reference(
    run: Run,
    workspace: Workspace,
    data: RunData,
    world: DistEnv = SINGLE_PROCESS,
    label: str = "",
    report: Progress = silent,
) -> OpenedReference:
    """The run's reference over its pool. Each rank embeds its own candidates, on its own device.

    What `jest cache-reference` has made is read, the rest computed when needed; a small pool is
    embedded now, by one process for all that ask. Raises ConfigError for a model that cannot be
    used, DataError for a table that does not fit.
    """
    live: LiveReference
    if run.reference_model is not None:
        other = open_clip_reference(run.reference_model, world.device, run.engine.scoring_batch)
        live, flops, spent = other, other.flops(), 0.0
    elif run.reference is not None:
        view, micro_batch = reference_view(run), run.engine.scoring_batch
        if world.device.type == "cpu" and reads_pool_cache(run) and not run.data.own:
            # Runs share the table: on a CPU its bits are the same whichever of them makes it.
            micro_batch = MICRO_BATCH
        mine = run_reference(
            run.reference, workspace, data.tokenizer, view, world.device, micro_batch
        )
        flops = learner_flops(run.reference, mine.model)
        spent = read_done(workspace.folder(run.reference))["flops"]["charged"]
        if not scores_by_reference(run):
            return OpenedReference(flops=flops, training_flops=spent)
        live = mine
    else:
        return OpenedReference()
    if data.embeds_first and not reads_pool_cache(run):
        return OpenedReference(live, live, None, flops, spent)
    pool = data.pool_of(run)
    if data.embeds_first:
        with world.main_process_first():
            embed_all(live, pool, data, report, f"{label} · reference embeddings")
    table = EmbeddingTable(pool.table_files(live, data.tables), live)
    if pool.in_memory and world.device.type == "cuda":
        table = table.on_device(world.device)
    return OpenedReference(table, live, table, flops, spent)


def embed_all(
    live: LiveReference, dataset: Dataset, data: RunData, report: Progress = silent, what: str = ""
) -> int:
    """Make what is missing of the tables of `dataset`; returns how many files that was. What
    another process makes meanwhile is waited for."""
    files = dataset.table_files(live, data.tables)
    with ExitStack() as stack:
        # In one order, so that no two processes wait for each other.
        for folder in sorted({file.folder for file in files if not file.current()}):
            report(0, len(dataset), what)
            stack.enter_context(only_writer(folder, wait=True))
        return fill(live, dataset, files, report, what)  # which asks again what is missing


def cache_reference(
    run: Run, workspace: Workspace, console: Console, device: torch.device = CPU
) -> list[str]:
    """Embed the pool with the run's reference, on this device, with a bar; returns what to tell the
    user."""
    data, micro_batch = data_of(run, workspace), run.engine.scoring_batch
    if device.type == "cpu":
        set_threads(THREADS)
    live: LiveReference
    if run.reference is not None:
        view = reference_view(run)
        live = run_reference(run.reference, workspace, data.tokenizer, view, device, micro_batch)
    else:
        live = open_clip_reference(run.reference_model or "", device, micro_batch)
    pool = data.pool_of(run)
    with bars(console) as report:
        made = embed_all(live, pool, data, report, "embedding the pool")
    files = pool.table_files(live, data.tables)
    what = f"{made:,} of {len(files):,} tables made now, {len(pool):,} pairs in all"
    return [f"reference embeddings {live.key}: {what}"]
