"""Processes of their own without the seconds that importing torch takes.

They fork from a server that has done the imports and nothing else, so each is as good as a fresh
interpreter: it can be killed, sent signals and asked for its exit code.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from jestcli.paper import forked as server
from jestcli.paper.forked import CONTEXT, warm_up

# The tests' processes and the scheduler's workers fork from one server.
server.IMPORTED += [
    "tiny",
    "clip_benchmark.datasets.builder",
    "clip_benchmark.metrics.zeroshot_classification",
]


def start(function: Callable[..., None], *args: Any) -> BaseProcess:
    warm_up()
    process = CONTEXT.Process(target=function, args=args, daemon=True)
    process.start()
    return process
