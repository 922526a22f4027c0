"""Stopping a run: by a signal, with everything saved, or because it cannot go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """Stopped by a signal with everything saved; the same command goes on from there."""


class TrainingError(Exception):
    """Training cannot go on; the message is one line for the user."""


@contextmanager
def handling(handler: Callable[..., Any]) -> Iterator[None]:
    """`handler` for SIGINT and SIGTERM alike, while inside (in the main thread only).

    Also where a SIGINT was ignored, as a shell has it for what runs in the background."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class Stop:
    """Whether a signal to stop came.

    Not a threading.Event: its lock would wait for itself where a second signal (make passes one on
    to what its group got already) comes while the first sets it."""

    came = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """What SIGINT and SIGTERM set, while inside (in the main thread only)."""
    stop = Stop()
    with handling(lambda *_: setattr(stop, "came", True)):
        yield stop
