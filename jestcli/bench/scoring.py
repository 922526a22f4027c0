"""`jest bench scoring`: what cheaper scoring costs, and how far it agrees with full resolution.

For one learner and its reference, over super-batches of the pool: FLOPs and seconds a pair, rank
correlation of each pair's own learnability with that at full resolution, and how much of the
sub-batch chosen by joint selection stays the same (same noise), for every way of scoring.
"""

from __future__ import annotations

import platform
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from jestcli.config import Run
from jestcli.data.loader import SuperBatch, SuperBatchLoader
from jestcli.models.flexi import Resolution
from jestcli.models.flops import forward_flops
from jestcli.models.towers import Clip
from jestcli.paper.inspection import own_learnability
from jestcli.runs.evaluate import list_runs
from jestcli.runs.inputs import sources, transform_of
from jestcli.runs.reference import OpenedReference, open_reference
from jestcli.runs.run_data import data_of
from jestcli.runs.trained import MODEL, THREADS, load_folder, new_learner
from jestcli.runs.workspace import StageError, Workspace, read_run
from jestcli.selection import PairEmbeddings, select
from jestcli.training.devices import set_threads
from jestcli.training.reference import Reference
from jestcli.training.step import encode_pairs
from jestcli.utils.tables import Table


def bench_scoring(
    workspace: Workspace, folder: Path | None, batches: int, fresh: Run | None = None
) -> dict[str, Any]:
    """Rows of every way of scoring, and what they were measured on. Raises StageError.

    Args:
        folder: a run directory; None is the newest finished run that has a reference and selects.
        batches: super-batches of the pool, at steps after the run's last.
        fresh: this run untrained instead, and its reference too (costs are the same, agreement
            means nothing).
    """
    set_threads(THREADS)
    if fresh is not None:
        label = "untrained models: their agreement says nothing about trained ones"
        run, data, learner = fresh, data_of(fresh, workspace), new_learner(fresh)
    else:
        folder, label, run = _trained(workspace, folder)
        workspace = replace(workspace, runs=folder.parent)
        data, learner = data_of(run, workspace, folder), load_folder(run, folder)
    # The whole of the run's pool, whatever it takes of it, at full resolution; its reference scores
    # live, so that costs alone need no embedding of the pool.
    pool = run.source.model_copy(update={"kind": "pool"})
    full = {"low_res_scoring": False, "reference_resolution": "full", "sampler": "joint"}
    selection = run.selection.model_copy(update={**full, "criterion": "learnability"})
    live = run.engine.model_copy(update={"reference_cache": False})
    whole = run.model_copy(update={"source": pool, "selection": selection, "engine": live})
    if fresh is not None and run.reference is not None:
        opened, reference = OpenedReference(), _embeds(_other_seed(run.reference))
    else:
        opened = open_reference(whole, workspace, data)
        assert opened.call is not None
        reference = opened.call
    (source,) = sources(whole, data, opened)
    view = transform_of(whole, data, opened)
    with closing(SuperBatchLoader([source], view, data.loading)) as loader:
        drawn = [loader(run.optim.steps + step) for step in range(batches)]
    what = "pairs from own shards" if run.data.own else "icons and emoji, not photographs"
    threads = torch.get_num_threads()
    about = (
        f"Learner and reference: {label}, {run.optim.steps:,} steps. Pool of "
        f"{len(source.order):,} {what}; {batches} super-batches of B = {run.super_batch_size}, "
        f"b = {run.optim.batch_size}, N = {run.selection.n_chunks} chunks. {platform.machine()}, "
        f"torch {torch.__version__}, {threads} thread(s); CPU seconds, measured beside whatever "
        "else the machine did."
    )
    return {
        "about": about,
        "run": run.digest(),
        **measure(run, learner, [(each, reference(each)) for each in drawn]),
    }


def _other_seed(run: Run) -> Clip:
    """A reference as initialised, and not as the learner is."""
    return new_learner(run.model_copy(update={"seed": run.seed + 1}))


def _embeds(model: Clip) -> Reference:
    return lambda batch: encode_pairs(model, batch.images, batch.tokens, None)


def _trained(workspace: Workspace, folder: Path | None) -> tuple[Path, str, Run]:
    """Folder, label and run of a finished run with its reference (default: the newest)."""
    known = list_runs(workspace)
    finished = {read_run(each)[1] for each in known}
    for each in [folder] if folder is not None else reversed(known):
        label, run = read_run(each)
        scored = run.reference in finished or run.reference_model is not None
        if scored and run.selection.scores and (each / MODEL).exists():
            return each, label, run
    raise StageError(
        f"no finished run with its reference in {folder or workspace.runs}: "
        "`jest train --method jest` makes one (or --untrained, for costs alone)"
    )


def ways(run: Run, learner: Clip) -> dict[str, Resolution]:
    """Full resolution, twice its patch, half its image, and some of its cells; of a tower with
    batch statistics those that it was trained at (a Flexi-JEST run's is two)."""
    if run.model.tower == "cnn":
        low = {f"image {learner.low.side} px": learner.low} if learner.low != learner.full else {}
        return {"full": learner.full, **low}
    if not run.model.flexible:
        return {"full": learner.full}
    patch, side = run.model.patch_sizes[0], run.data.image_size
    return {
        "full": Resolution(patch, side),
        f"patch {2 * patch} px": Resolution(2 * patch, side),
        f"image {side // 2} px": Resolution(patch, side // 2),
        "25 % of the cells": Resolution(patch, side, 0.25),
        "50 % of the cells": Resolution(patch, side, 0.5),
    }


def measure(
    run: Run, learner: Clip, batches: list[tuple[SuperBatch, PairEmbeddings]]
) -> dict[str, Any]:
    """Score every batch in every way. batches: super-batches and their reference embeddings.
    Returns a row a way – image_mflop, text_mflop: a pair's forward pass; milliseconds: of the
    processor, a pair; spearman: of the diagonal learnability with full resolution's; overlap: share
    of the chosen sub-batch that full resolution chooses too – and `noise_overlap`, the share that
    two choices at full resolution with different noise have in common: what an overlap of 1 has to
    be compared with."""
    learner.eval()
    rows: list[dict[str, Any]] = []
    full: list[tuple[np.ndarray, torch.Tensor]] = []
    noise: list[float] = []
    for name, view in ways(run, learner).items():
        learner.set_low(view)
        flops = forward_flops(learner, run.data.image_size, run.data.context_length)
        seconds, correlations, overlaps = 0.0, [], []
        for step, (candidates, reference) in enumerate(batches):
            start = time.process_time()
            pairs = encode_pairs(learner, candidates.images, candidates.tokens, view)
            seconds += time.process_time() - start
            score, chosen = own_learnability(pairs, reference), _choose(run, pairs, reference, step)
            if name == "full":
                full.append((score, chosen))
                other = _choose(run, pairs, reference, step + len(batches))
                noise.append(_shared(chosen, other))
            correlations.append(float(spearmanr(score, full[step][0]).statistic))
            overlaps.append(_shared(chosen, full[step][1]))
        image, text = flops.image_low / 1e6, flops.text / 1e6
        whole = rows[0]["image_mflop"] + rows[0]["text_mflop"] if rows else image + text
        rows.append(
            {
                **{"name": name, "image_mflop": image, "text_mflop": text},
                "milliseconds": 1000 * seconds / sum(len(each) for each, _ in batches),
                "percent_flops": 100 * (image + text) / whole,
                **{"spearman": float(np.mean(correlations)), "overlap": float(np.mean(overlaps))},
            }
        )
    return {"rows": rows, "noise_overlap": float(np.mean(noise))}


def _choose(
    run: Run, learner: PairEmbeddings, reference: PairEmbeddings, step: int
) -> torch.Tensor:
    """By joint learnability, whatever the run's own sampler is."""
    size, loss, chunks = run.optim.batch_size, run.optim.loss, run.selection.n_chunks
    settings: dict[str, Any] = {"size": size, "loss": loss, "n_chunks": chunks, "seed": run.seed}
    return select(learner, reference, step=step, **settings)


def _shared(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.isin(a, b).double().mean())


def as_markdown(result: dict[str, Any]) -> str:
    """The table, and on what it was measured."""
    columns = {
        "image_mflop": ("MFLOP image", ".2f"),
        "text_mflop": ("text", ".2f"),
        "percent_flops": ("% FLOPs", ".0f"),
        "milliseconds": ("CPU ms a pair", ".3f"),
        "spearman": ("Spearman", ".3f"),
        "overlap": ("overlap", ".3f"),
    }
    cells = [
        [row["name"], *(format(row[key], digits) for key, (_, digits) in columns.items())]
        for row in result["rows"]
    ]
    head = ["scoring", *(heading for heading, _ in columns.values())]
    return (
        f"# `jest bench scoring`\n\n{result['about']}\n\n{Table('', head, cells).markdown()}\n\n"
        "Spearman: of every pair's own learnability (the diagonal score) with full resolution's, "
        "mean over super-batches. Overlap: share of the jointly chosen sub-batch that full "
        "resolution chooses too, with the same noise; two choices at full resolution with "
        f"different noise share {result['noise_overlap']:.3f}.\n"
    )
