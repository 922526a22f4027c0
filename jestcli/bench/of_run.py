"""Measure ways of scoring on a finished run's learner and reference: `jest bench scoring`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jestcli.bench.scoring import machine, measure
from jestcli.config import Run
from jestcli.data.loader import SuperBatchLoader
from jestcli.models.towers import Clip
from jestcli.paper.experiment import default_run
from jestcli.runs.evaluate import list_runs
from jestcli.runs.inputs import sources, transform_of
from jestcli.runs.reference import OpenedReference
from jestcli.runs.trained import MODEL, THREADS, new_learner
from jestcli.runs.workspace import StageError, Workspace, read_run
from jestcli.training.checkpoint import load_model
from jestcli.training.devices import set_threads
from jestcli.training.step import encode_pairs


def bench_scoring(
    workspace: Workspace, folder: Path | None, batches: int, untrained: bool
) -> dict[str, Any]:
    """Rows of every way of scoring, and what they were measured on.

    Args:
        folder: a run directory; None is the newest finished run that has a reference and selects.
        batches: super-batches of the pool, at steps after the run's last.
        untrained: fresh weights for both models instead (costs are the same, agreement means
            nothing).
    Raises StageError.
    """
    set_threads(THREADS)
    if untrained:
        run = default_run("jest", {}, 0)
        assert run.reference is not None
        label = "untrained models: their agreement says nothing about trained ones"
        learner, reference = new_learner(run), new_learner(_reseeded(run.reference))
    else:
        label, run, learner, reference = _trained(workspace, folder)
    data = workspace.inputs(run)
    # The whole of the run's pool, whatever it takes of it, at full resolution.
    whole = run.model_copy(update={"source": run.source.model_copy(update={"kind": "pool"})})
    whole = whole.model_copy(
        update={"selection": run.selection.model_copy(update={"low_res_scoring": False})}
    )
    (source,) = sources(whole, data, OpenedReference())
    loader = SuperBatchLoader(
        [source], transform_of(whole, data, OpenedReference()), run.seed, data.loading
    )
    drawn = [loader(run.optim.steps + step) for step in range(batches)]
    loader.close()
    what = "pairs from own shards" if run.data.own else "icons and emoji, not photographs"
    about = (
        f"Learner and reference: {label}, {run.optim.steps:,} steps. Pool of "
        f"{len(source.order):,} {what}; {batches} super-batches of B = {run.super_batch_size}, "
        f"b = {run.optim.batch_size}, N = {run.selection.n_chunks} chunks. {machine()}; CPU "
        "seconds, measured beside whatever else the machine did."
    )
    pairs = [(each, encode_pairs(reference, each.images, each.tokens, None)) for each in drawn]
    return {"about": about, "run": run.digest(), **measure(run, learner, pairs)}


def _reseeded(run: Run) -> Run:
    return run.model_copy(update={"seed": run.seed + 1})


def _trained(workspace: Workspace, folder: Path | None) -> tuple[str, Run, Clip, Clip]:
    """Label, run, learner and reference of a finished run directory (default: the newest)."""
    found = [folder] if folder is not None else list(reversed(list_runs(workspace)))
    finished = {}
    for each in list_runs(workspace):
        finished[read_run(each)[1]] = each
    for each in found:
        label, run = read_run(each)
        selects = run.selection.scores and run.reference is not None
        if not selects or run.reference not in finished or not (each / MODEL).exists():
            continue
        learner, reference = new_learner(run), new_learner(run.reference)
        load_model(each / MODEL, learner)
        load_model(finished[run.reference] / MODEL, reference)
        return label, run, learner, reference
    where = folder or workspace.runs
    raise StageError(
        f"no finished run with its reference in {where}: `jest train --method jest` makes one "
        "(or --untrained, for costs alone)"
    )
