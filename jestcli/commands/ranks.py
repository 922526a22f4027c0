"""Training as one of torchrun's ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jestcli.config import Run
from jestcli.paper.experiment import Job
from jestcli.runs.workspace import Workspace
from jestcli.train import train
from jestcli.training.devices import pick_device
from jestcli.training.distributed import join
from jestcli.utils.parallel import usable_cores
from jestcli.utils.progress import Lines


def train_as_rank(
    job: Job,
    workspace: Workspace,
    console: Any,
    wandb: str,
    device: str,
    keep_last: int,
    prepare: Callable[[Run, int | None], None],
) -> bool:
    """Train `job` together with the other ranks; whether this is rank 0.

    prepare: makes the data of a run; rank 0 calls it while the others wait.
    """
    loading = workspace.loading
    if loading.workers is None:  # the machine's cores, shared by its ranks
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        loading = replace(loading, workers=max(1, usable_cores() // here - 1))
        workspace = replace(workspace, loading=loading)
    with join(pick_device(device)) as world:
        if world.main:
            prepare(job.run, None)
        world.wait()
        train(job.run, workspace, job.name, Lines(console), wandb, world, keep_last)
        return world.main
