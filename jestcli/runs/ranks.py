"""Training as one of torchrun's ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jestcli.config import Run
from jestcli.paper.experiment import Job
from jestcli.runs import learner
from jestcli.runs.workspace import Workspace
from jestcli.training.devices import pick_device
from jestcli.training.distributed import join
from jestcli.utils.parallel import usable_cores


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
    last = 0.0

    def report(done: int, total: int, line: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 10:
            last = time.monotonic()
            console.print(f"{done}/{total} {line}", highlight=False)

    loading = workspace.loading
    if loading.workers is None:  # the machine's cores, shared by its ranks
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        loading = replace(loading, workers=max(1, usable_cores() // here - 1))
        workspace = replace(workspace, loading=loading)
    with join(pick_device(device)) as world:
        if world.main:
            prepare(job.run, None)
        world.wait()
        learner.train(job.run, workspace, job.name, report, wandb, world, keep_last)
        return world.main
