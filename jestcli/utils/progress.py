"""How far a piece of work is, shown to whoever waits: a bar, lines, JSON lines, or nothing."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """Told of every step; decides by itself what to show."""

    def show(self, done: int, total: int, line: str) -> None:
        """done of total steps; one line about now."""


class Silent:
    """Shows nothing."""

    def show(self, done: int, total: int, line: str) -> None:
        """Nothing."""


SILENT = Silent()


class Lines:
    """A line every `seconds`, and the last one: for logs, and ranks."""

    def __init__(self, console: Console, seconds: float = 10.0):
        self.console, self.seconds, self.last = console, seconds, 0.0

    def show(self, done: int, total: int, line: str) -> None:
        """A line, unless one was shown just now."""
        if done == total or time.monotonic() - self.last > self.seconds:
            self.last = time.monotonic()
            self.console.print(f"{done}/{total} {line}", highlight=False)


class JsonLines:
    """A JSON object a line on standard output, twice a second: what a scheduler reads."""

    def __init__(self) -> None:
        self.last = 0.0

    def show(self, done: int, total: int, line: str) -> None:
        """{"done": ..., "total": ..., "line": ...}."""
        if done == total or time.monotonic() - self.last > 0.5:
            self.last = time.monotonic()
            print(json.dumps({"done": done, "total": total, "line": line}), flush=True)


class Bar(AbstractContextManager["Bar"]):
    """A bar for each thing that is being done, on a terminal; lines elsewhere."""

    def __init__(self, console: Console):
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.lines = None if console.is_terminal else Lines(console)
        self.rich = RichProgress(
            BarColumn(bar_width=16),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self.task: Any = None
        self.total = 0

    def show(self, done: int, total: int, line: str) -> None:
        """Move the bar; another total is another piece of work."""
        if self.lines is not None:
            self.lines.show(done, total, line)
            return
        if self.task is None or total != self.total:
            if self.task is not None:
                self.rich.remove_task(self.task)
            self.task, self.total = self.rich.add_task("", total=total), total
        self.rich.update(self.task, completed=done, description=line)

    def __enter__(self) -> Bar:
        if self.lines is None:
            self.rich.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.lines is None:
            self.rich.stop()
