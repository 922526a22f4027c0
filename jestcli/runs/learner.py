"""Train one run (a reference, a learner or a control) into its run directory."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from jestcli.config import Run, file_hash
from jestcli.data.contact_sheet import contact_sheet
from jestcli.data.loader import Candidates, Drawing
from jestcli.evaluation.evaluate import evaluate, mean_score
from jestcli.models.flops import Cost, run_cost
from jestcli.models.towers import Clip
from jestcli.runs.export import init_from
from jestcli.runs.inputs import open_inputs
from jestcli.runs.trained import MODEL, THREADS, learner_flops, new_learner
from jestcli.runs.workspace import (
    StageError,
    Workspace,
    is_done,
    only_writer,
    start_folder,
)
from jestcli.training.checkpoint import load_model, save_model, write_json
from jestcli.training.distributed import ALONE, World
from jestcli.training.engine import FromCpu, unsharded
from jestcli.training.loop import Report, last_scores, set_threads
from jestcli.training.loop import train as train_loop
from jestcli.training.tracking import Track, ignore, tracker


def train(
    run: Run,
    workspace: Workspace,
    label: str,
    report: Report,
    wandb: str = "off",
    world: World = ALONE,
    keep_last: int = 1,
) -> Path:
    """Train `run`, and its reference first where it needs one; returns the run directory.

    A finished run is not run again; an interrupted one goes on from its checkpoint. Every rank
    calls it; rank 0 holds and writes the run directory. Raises StageError if the batch or the
    super-batch does not divide by the ranks.
    """
    folder = workspace.folder(run)
    if world.says(is_done(folder)):
        return folder
    drawn = {run.super_batch_at(step) for step in range(run.optim.steps if run.scheduled else 1)}
    sizes = {"batch_size": [run.optim.batch_size], "super-batch": sorted(drawn)}
    if run.selects and run.curated_pairs:
        sizes["curated share of the batch"] = [run.curated_pairs]
    for name, size in ((name, size) for name, each in sizes.items() for size in each):
        if size % world.size:
            raise StageError(f"the {name} of {size} does not divide by {world.size} processes")
    if run.reference is not None:
        train(run.reference, workspace, f"{label}: reference", report, wandb, world, keep_last)
    if world.device.type == "cpu":
        set_threads(THREADS)
    with ExitStack() as stack:
        track: Track = ignore
        if world.main:
            stack.enter_context(only_writer(folder))
            start_folder(folder, run, label)
            track = stack.enter_context(tracker(wandb, folder, label, run))
        world.wait()
        _train(run, workspace, folder, label, report, track, world, keep_last)
        world.wait()
    return folder


def _train(
    run: Run,
    workspace: Workspace,
    folder: Path,
    label: str,
    report: Report,
    track: Track,
    world: World,
    keep_last: int,
) -> None:
    learner = new_learner(run)
    flops = learner_flops(run, learner)
    inputs = open_inputs(run, workspace, folder, world, label, report)
    if run.init_from_reference and run.reference is not None:
        load_model(workspace.folder(run.reference) / MODEL, learner)
    if run.init is not None:
        _start_from(Path(run.init), run.init_sha256, learner)

    def score(final: bool) -> dict[str, dict[str, Any]]:
        model = unsharded(learner, lambda: new_learner(run))  # every rank: shards are put together
        if not world.main:
            return {}
        most = None if final else run.evaluation.max_images
        return evaluate(
            _from_cpu(model), inputs.tokenizer, inputs.benchmarks, most, run.evaluation.part
        )

    def show(step: int, candidates: Candidates, index: Tensor) -> None:
        if world.main and run.selection.sampler != "uniform":
            path = folder / "selected" / f"step-{step:08d}.png"
            track({"step": step, "selected": draw_selected(candidates, index, path)})

    def cost_after(steps: int) -> Cost:
        return run_cost(
            run, steps, flops, inputs.reference_flops, inputs.reference_training_flops,
            inputs.candidates,
        )  # fmt: skip

    started = time.perf_counter()
    try:
        train_loop(
            run, folder, learner, inputs.loader, inputs.reference, score, cost_after,
            lambda done, total, line: report(done, total, _line(label, line, inputs.loader)), track,
            world, show, keep_last, workspace.trunk(run),
        )  # fmt: skip
    finally:
        inputs.close()
    model = unsharded(learner, lambda: new_learner(run))
    if not world.main:
        return
    save_model(folder / MODEL, model, {"run": run.digest()})
    scores = last_scores(folder)
    write_json(
        folder / "done.json",
        {
            "label": label,
            "scores": scores,
            "mean": mean_score(scores) if scores else None,
            "part": run.evaluation.part,
            "steps": run.optim.steps,
            "examples": run.optim.steps * run.optim.batch_size,
            "flops": cost_after(run.optim.steps).as_dict(),
            "flops_per_example": {
                "image_full": flops.image_full, "image_low": flops.image_low, "text": flops.text,
            },
            "rows_drawn_from": inputs.rows_drawn_from,
            "auc": inputs.pool_auc(model),
            "noise_trained_on": inputs.noise_trained_on(folder),
            "curated_trained_on": inputs.curated_trained_on(folder),
            "wall_seconds_of_last_sitting": time.perf_counter() - started,
            "waiting_for_data_of_last_sitting": min(
                1.0, inputs.loader.waited / (time.perf_counter() - started)
            ),
        },
    )  # fmt: skip


def _start_from(path: Path, sha256: str | None, learner: Clip) -> None:
    """Fill `learner` from an open_clip checkpoint. Raises StageError, also if the file changed."""
    try:
        changed = sha256 is not None and file_hash(path) != sha256
    except OSError as error:
        raise StageError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    if changed:
        raise StageError(f"{path} is not the file this run started from")
    init_from(path, learner)


def _from_cpu(model: Clip) -> Clip:
    """`model` as evaluation wants it: itself, if it is on the CPU in float32."""
    at = model.clip.logit_scale
    plain = at.device.type == "cpu" and at.dtype == torch.float32
    return model if plain else cast(Clip, FromCpu(model))


def draw_selected(candidates: Candidates, index: Tensor, path: Path, count: int = 30) -> Path:
    """A contact sheet of the first pairs chosen, and as many that were left, under their keys.

    With several ranks, of those that this one holds.
    """
    chosen = index[index < len(candidates)]  # rank 0 draws
    left = torch.ones(len(candidates), dtype=torch.bool).index_fill_(0, chosen, False)
    rows = [*chosen[:count].tolist(), *torch.nonzero(left).flatten()[:count].tolist()]
    pixels = candidates.images.permute(0, 2, 3, 1)
    names = [candidates.name(i) for i in rows]
    title = f"chosen ({min(count, len(chosen))}), then left"
    return contact_sheet([pixels[i].cpu().numpy() for i in rows], names, path, title=title)


def _line(label: str, line: str, drawing: Drawing) -> str:
    return " · ".join(part for part in (label, line, drawing.bottleneck) if part)
