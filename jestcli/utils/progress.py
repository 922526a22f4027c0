"""How far a piece of work is, shown to whoever waits: a bar, lines, JSON lines, or nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


Progress = Callable[[int, int, str], None]
"""(done, total, what is being done) -> shown; told of every step, it decides by itself when."""


def silent(done: int, total: int, what: str) -> None:
    """Shows nothing."""


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


@dataclass
class Row:
    """A piece of work in a live view: `done` of `total`, `first` of which were done when it began
    at `began` (seconds of the clock). score, left: as words; left "" is by the mean speed.
    percent: say how far it is, not the step."""

    name: str
    total: float
    began: float
    first: float = 0.0
    done: float = 0.0
    score: str = ""
    left: str = ""
    percent: bool = False
    took: float | None = None

    def move(self, done: float, now: float) -> None:
        """So much is done now."""
        self.done = done
        if done >= self.total and self.took is None:
            self.took = now - self.began

    def words(self, now: float) -> str:
        """The step, the last score, and the time that is left or, in the end, was taken."""
        step = f"{self.done:,.0f}/{self.total:,.0f}"
        if self.percent:
            step = f"{100 * self.done / (self.total or 1):.0f} %"
        left = self.left
        if self.took is not None:
            left = left or f"took {duration(self.took)}"
        elif not left and self.done > self.first:
            pace = (now - self.began) / (self.done - self.first)
            left = f"{duration(pace * (self.total - self.done))} left"
        return " · ".join(filter(None, (step, self.score, left)))


def table(rows: list[Row], width: int, now: float) -> Any:
    """Rows of a name, a bar and the words of each, one below the other in `width` columns."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    about = [row.words(now) for row in rows]
    words = max(map(len, about), default=0)
    room = max(8, width - words - 2 - 12)  # of the name; the bar has 12 at least
    out = Table.grid(padding=(0, 1), expand=True)
    longest = max((len(row.name) for row in rows), default=0)
    out.add_column(width=min(longest, room), no_wrap=True, overflow="ellipsis")
    out.add_column(ratio=1)
    out.add_column(no_wrap=True, width=words)
    for row, said in zip(rows, about, strict=True):
        bar = ProgressBar(total=max(row.total, 1e-9), completed=row.done)
        out.add_row(Text(row.name), bar, Text(said))
    return out


class Rows(AbstractContextManager["Rows"]):
    """Several pieces of work on a terminal, a row each; nothing elsewhere."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        from rich.live import Live

        self.console, self.clock = console, clock
        self.rows: dict[str, Row] = {}
        self.live = Live(console=console, get_renderable=self.render)

    def add(self, key: str, row: Row) -> Row:
        """Show it below the others; whoever adds it moves it."""
        self.rows[key] = row
        return row

    def render(self) -> Any:
        """All rows, as far as the terminal is high."""
        shown = list(self.rows.values())[: max(1, self.console.height - 2)]
        return table(shown, self.console.width, self.clock())

    def __enter__(self) -> Rows:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.console.is_terminal:
            self.live.stop()


class Bar(AbstractContextManager["Bar"]):
    """Two lines on a terminal, lines elsewhere: what is done, a bar, the step, the last score and
    the time that is left; below it the rest of a line, as far as there is room.

    A line's parts are told apart by " · ", the first being the name."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        from rich.live import Live

        self.console, self.clock = console, clock
        self.lines = None if console.is_terminal else Lines(console)
        self.row: Row | None = None
        self.rest = ""
        self.live = Live(console=console, transient=True, get_renderable=self.render)

    def show(self, done: int, total: int, line: str) -> None:
        """Move the bar; another total is another piece of work."""
        if self.lines is not None:
            self.lines.show(done, total, line)
            return
        if self.row is None or total != self.row.total or done < self.row.done:
            self.row = Row("", total, self.clock(), done)
        self.row.move(done, self.clock())
        self.row.name, self.row.score, self.row.left, self.rest = parts_of(line)

    def render(self) -> Any:
        """The two lines."""
        from rich.table import Table
        from rich.text import Text

        if self.row is None:
            return Text("")
        both = Table.grid(expand=True)
        both.add_row(table([self.row], self.console.width, self.clock()))
        both.add_row(Text(self.rest, no_wrap=True, overflow="ellipsis", style="dim"))
        return both

    def __enter__(self) -> Bar:
        if self.lines is None:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.lines is None:
            self.live.stop()


def parts_of(line: str) -> tuple[str, str, str, str]:
    """Name, score, time left and the rest of a line whose parts are told apart by " · "."""
    name, *parts = line.split(" · ")
    score = next((part for part in parts if part.startswith("score ")), "")
    left = next((part for part in parts if part.endswith(" left")), "")
    return name, score, left, " · ".join(part for part in parts if part not in (score, left))


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


DOING = {
    "fetch": "fetching packages",
    "unpack": "reading the icon package",
    "draw": "drawing icons",
    "compare": "looking for near-duplicates",
    "write": "writing shards",
    "check": "checking for leakage",
    "decode": "decoding once",
}
SAY_EVERY = 30.0  # seconds between two lines of a log


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """What shows a bar for each stage that it is told of, with the time left.

    Where the console is no terminal, a line when a stage begins and every SAY_EVERY seconds.
    """
    said: dict[str, float] = {}
    with Rows(console) as shown:

        def report(done: int, total: int, stage: str) -> None:
            name, now = DOING.get(stage, stage), shown.clock()
            row = shown.rows.get(stage) or shown.add(stage, Row(name, total, now, done))
            row.total = total
            row.move(done, now)
            if console.is_terminal or now - said.get(stage, -SAY_EVERY) < SAY_EVERY:
                return
            console.print(f"{name}: {row.words(now)}" if stage in said else f"{name} ({total:,})")
            said[stage] = now

        yield report
