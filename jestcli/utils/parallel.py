"""Work over processes: results as they come, and errors as they are."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from jestcli.utils.errors import DataError

PR_SET_PDEATHSIG = 1  # of linux/prctl.h

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def end_with(parent: int) -> None:
    """Kill this process when `parent`, which started it, is no more, however that ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the kernel was asked
            os.kill(os.getpid(), signal.SIGKILL)


def unordered(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, result) as they finish; in this process when one worker is asked for.

    Processes are spawned, not forked: the caller may have threads running. A task's exception is
    raised here, and what was not started yet is dropped."""
    workers = min(workers or usable_cores(), max(1, len(tasks)))
    if workers == 1:
        for task in tasks:
            yield task, work(task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, end_with, (os.getpid(),)) as pool:
        futures = {pool.submit(work, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process died (often: out of memory); run the command again with fewer "
                "workers, it goes on from where it stopped"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
