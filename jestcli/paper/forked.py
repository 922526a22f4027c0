"""Workers without the seconds that importing torch takes: they fork from a server that did it.

Each is as good as a fresh interpreter: it has signals, an exit code, an environment and a device of
its own. The server imports and does nothing else, so no thread and no GPU is forked with it.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from jestcli.utils import quiet

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = ["jestcli.train", "scipy.stats", "clip_benchmark.metrics.zeroshot_retrieval"]
# Read by the libraries when they are imported, so by the server: a run has one thread, and torch
# asks NVML whether there is a GPU. Asked of CUDA, that would leave no fork able to use it.
SETTINGS = {**quiet.SETTINGS, "OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


class Forked:
    """A worker's process as the scheduler wants it (`scheduler.Process`)."""

    def __init__(self, process: ForkServerProcess):
        self.process = process

    def poll(self) -> int | None:
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode


def start(task: str, logs: tuple[Path, Path], env: Mapping[str, str]) -> Forked:
    """A worker with `task` to do, in the environment `env`; its output and errors are appended to
    `logs`."""
    warm_up()
    process = CONTEXT.Process(target=_work, args=(task, logs, dict(env)))
    process.start()
    return Forked(process)


def warm_up() -> None:
    """Let the server begin its imports, beside whatever runs now."""
    before = dict(os.environ)
    CONTEXT.set_forkserver_preload(IMPORTED)
    os.environ.update(SETTINGS)
    try:
        forkserver.ensure_running()
    finally:
        for name in SETTINGS:
            del os.environ[name]
        os.environ.update(before)


def _work(task: str, logs: tuple[Path, Path], env: dict[str, str]) -> None:
    from jestcli.paper.worker import main

    threading.Thread(target=_end_with_scheduler, daemon=True).start()
    os.environ.clear()
    os.environ.update(env)
    for number, log in enumerate(logs, 1):
        with log.open("a") as file:
            os.dup2(file.fileno(), number)
    sys.stdin = io.StringIO(task)
    sys.exit(main())


def _end_with_scheduler() -> None:
    """A worker does not outlive its scheduler, however that ends: it saves and stops."""
    scheduler = multiprocessing.parent_process()  # not the server
    assert scheduler is not None
    scheduler.join()
    os.kill(os.getpid(), signal.SIGTERM)
