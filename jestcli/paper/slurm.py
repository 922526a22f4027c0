"""Stages as Slurm jobs, through submitit (`pip install 'jest-suite[slurm]'`).

Each stage is one job that runs the worker the scheduler would have started here; results, resuming
and sharing are the same, for they lie in the run directories, on a file system that all nodes see.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jestcli.config import ConfigError, did_you_mean

# What submitit calls alike on every cluster; anything else is Slurm's own option.
GENERAL = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "nodes", "name")
CLUSTERS = ("slurm", "local", "debug")
POLL = 5.0  # seconds between two looks at a job


def parse_options(text: str) -> dict[str, Any]:
    """`partition=gpu,timeout_min=60` -> options of `launcher`. Raises ConfigError."""
    options: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        key, sep, value = pair.partition("=")
        if not sep or not key or not value:
            raise ConfigError(f"--slurm {pair}: expected key=value, such as partition=gpu")
        options[key.strip()] = int(value) if value.isdigit() else value
    cluster = options.get("cluster", "slurm")
    if cluster not in CLUSTERS:
        raise ConfigError(f"--slurm cluster={cluster}{did_you_mean(str(cluster), list(CLUSTERS))}")
    return options


def launcher(options: dict[str, Any], logs: Path) -> Callable[[str, tuple[Path, Path]], OnCluster]:
    """A function (task, logs) -> running job, for `run_stages`. options: of `parse_options`;
    "cluster" is slurm, or local and debug to try it here. logs: folder of submitit's scripts and
    logs, visible to all nodes. Raises ConfigError where submitit or Slurm is not there."""
    try:
        import submitit
    except ImportError:
        raise ConfigError("--slurm needs submitit: pip install 'jest-suite[slurm]'") from None
    given = dict(options)
    cluster = str(given.pop("cluster", "slurm"))
    try:
        executor = submitit.AutoExecutor(folder=str(logs), cluster=cluster)
        plain = {"cpus_per_task": 1, "timeout_min": 120, "name": "jest"}
        plain |= {k if k in GENERAL else f"slurm_{k}": v for k, v in given.items()}
        executor.update_parameters(**plain)
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise ConfigError(f"--slurm: {' '.join(str(error).split())}") from None
    return lambda task, logs: OnCluster(executor.submit(run_worker, task, *map(str, logs)))


def run_worker(task: str, progress: str, errors: str) -> int:
    """On the node: the worker with `task` as its input; returns its exit code."""
    with Path(progress).open("a") as out, Path(errors).open("a") as err:
        worker = [sys.executable, "-m", "jestcli.paper.worker"]
        done = subprocess.run(worker, input=task, text=True, stdout=out, stderr=err, check=False)
    return done.returncode


class OnCluster:
    """A submitted stage, with the part of subprocess.Popen's interface that the scheduler uses."""

    def __init__(self, job: Any) -> None:
        self.job, self.looked = job, 0.0
        self.code: int | None = None

    def poll(self) -> int | None:
        """The worker's exit code, 1 for a job that Slurm ended, None while it waits or runs."""
        if self.code is None and time.monotonic() - self.looked >= POLL:
            self.looked = time.monotonic()
            if self.job.done():
                error = self.job.exception()
                self.code = 1 if error is not None else int(self.job.result())
        return self.code

    def terminate(self) -> None:
        """Cancel the job: its worker saves and stops, as on Ctrl-C."""
        if self.code is None and not self.job.done():
            self.job.cancel(check=False)

    def wait(self) -> None:
        """Until a cancelled job is gone, at most a minute."""
        for _ in range(60):
            if self.job.done():
                return
            time.sleep(1)
