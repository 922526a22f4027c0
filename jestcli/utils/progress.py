"""How far a piece of work is, shown to whoever waits: a bar, lines, JSON lines, or nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
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
        pass


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
    """Two lines on a terminal, lines elsewhere: what is done, a bar, the step, the last score and
    the time that is left; below it the rest of a line, as far as there is room.

    A line's parts are told apart by " · ", the first being the name."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        from rich.live import Live

        self.console, self.clock = console, clock
        self.lines = None if console.is_terminal else Lines(console)
        self.done = self.total = self.first = 0
        self.line, self.started = "", clock()
        self.live = Live(console=console, transient=True, get_renderable=self.render)

    def show(self, done: int, total: int, line: str) -> None:
        """Move the bar; another total is another piece of work."""
        if self.lines is not None:
            self.lines.show(done, total, line)
            return
        if total != self.total or done < self.done:
            self.total, self.first, self.started = total, done, self.clock()
        self.done, self.line = done, line

    def left(self) -> str:
        """The time that is left at the mean speed since this work began here."""
        spent, did = self.clock() - self.started, self.done - self.first
        if not did:
            return ""
        return f"{duration(spent / did * (self.total - self.done))} left"

    def render(self) -> Any:
        """The two lines."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self.total:
            return Text("")
        name, *parts = self.line.split(" · ")
        score = next((part for part in parts if part.startswith("score ")), "")
        left = next((part for part in parts if part.endswith(" left")), "")
        rest = [part for part in parts if part not in (score, left)]
        words = (f"{self.done:,}/{self.total:,}", score, left or self.left())
        about = " · ".join(filter(None, words))
        room = max(8, self.console.width - len(about) - 2 - 12)
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(width=min(len(name), room), no_wrap=True, overflow="ellipsis")
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, width=len(about))
        row.add_row(Text(name), ProgressBar(total=self.total, completed=self.done), Text(about))
        both = Table.grid(expand=True)
        both.add_row(row)
        both.add_row(Text(" · ".join(rest), no_wrap=True, overflow="ellipsis", style="dim"))
        return both

    def __enter__(self) -> Bar:
        if self.lines is None:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.lines is None:
            self.live.stop()


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
