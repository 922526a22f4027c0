"""The models of runs: as initialised, and as trained."""

from __future__ import annotations

from pathlib import Path

import torch

from jestcli.config import Run
from jestcli.models.flops import ForwardFlops, forward_flops
from jestcli.models.towers import Clip, build_model, low_view
from jestcli.runs.listing import MODEL as MODEL
from jestcli.runs.workspace import StageError, Workspace
from jestcli.training.checkpoint import load_model

THREADS = 1  # a run is bit-identical for one thread count; runs go side by side instead


def load_run(run: Run, workspace: Workspace) -> Clip:
    """The model of a finished run. Raises StageError if it is not finished."""
    return load_folder(run, workspace.folder(run))


def load_folder(run: Run, folder: Path) -> Clip:
    """The model in the run directory `folder` of `run`, whatever became of the weights that it
    started from. Raises StageError if there is none."""
    path = folder / MODEL
    if not path.exists():
        raise StageError(f"no trained model in {folder}")
    model = new_learner(run, filled=False)
    load_model(path, model)
    return model


def new_learner(run: Run, filled: bool = True) -> Clip:
    """The run's model as initialised: flexible only where the run uses low resolution.

    filled: see `build_model`."""
    selection = run.selection
    flexible = selection.low_res_share > 0 or selection.low_res_scoring
    several = flexible and selection.approximation == "patch"
    patches = run.model.patch_sizes if several else run.model.patch_sizes[:1]
    return build_model(
        run.model,
        run.data,
        patches,
        run.seed,
        low=low_view(run.model, run.data, selection) if flexible else None,
        loss=run.optim.loss,
        stored_patch=patches[0] if run.init_from_reference else None,
        filled=filled,
    )


def learner_flops(run: Run, model: Clip) -> ForwardFlops:
    return forward_flops(model, run.data.image_size, run.data.context_length)


def on_meta(run: Run) -> Clip:
    """The run's model without memory behind it; pretrained weights are not read."""
    model = run.model.model_copy(update={"pretrained": None})
    with torch.device("meta"):
        return new_learner(run.model_copy(update={"model": model}))
