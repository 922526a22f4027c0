"""Processes of their own without the seconds that importing torch takes.

They fork from a server that has done the imports and nothing else, so each is as good as a fresh
interpreter: it can be killed, sent signals and asked for its exit code.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tiny",
        "jestcli.train",
        "clip_benchmark.datasets.builder",
        "clip_benchmark.metrics.zeroshot_classification",
        "clip_benchmark.metrics.zeroshot_retrieval",
    ]
)


def warm_up() -> None:
    """Let the server begin its imports, beside whatever runs now."""
    forkserver.ensure_running()


def start(function: Callable[..., None], *args: Any) -> BaseProcess:
    process = CONTEXT.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def worker(task: str, out: Connection | Path, errors: Path, env: dict[str, str]) -> None:
    """`python -m jestcli.paper.worker` with `task` on its standard input."""
    from jestcli.paper.worker import main

    os.environ.clear()
    os.environ.update(env)
    if env.get("PYTHONWARNINGS") == "ignore":  # a fresh interpreter would see it by itself
        warnings.simplefilter("ignore")
    sys.stdin = io.StringIO(task)
    sys.stdout = out.open("a") if isinstance(out, Path) else _Sender(out)
    with errors.open("a") as sys.stderr:
        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Sender(io.StringIO):
    def __init__(self, out: Connection):
        super().__init__()
        self.out = out

    def write(self, text: str) -> int:
        self.out.send(text)
        return len(text)


class _Task(io.StringIO):
    """Starts the worker when what it shall read is complete."""

    def __init__(self, go: Callable[[str], None]):
        super().__init__()
        self.go = go

    def close(self) -> None:
        if not self.closed:
            self.go(self.getvalue())
        super().close()


class ForkedPopen:
    """What the scheduler needs of subprocess.Popen to start a worker."""

    def __init__(self, command: list[str], stdout: Any, stderr: Any, env: dict[str, str], **_: Any):
        assert command[1:] == ["-m", "jestcli.paper.worker"]
        self.stdin = _Task(self._go)
        self.env, self.logs = env, (Path(stdout.name), Path(stderr.name))

    def _go(self, task: str) -> None:
        self.process = start(worker, task, *self.logs, dict(self.env))

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()
