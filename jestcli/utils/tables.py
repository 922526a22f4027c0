"""A table of text cells, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Cells as text, all columns but the first to the right; the note below says how to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """Heading and rows; title and note are left to the page."""
        rule = "|".join(["---", *["---:"] * (len(self.columns) - 1)])
        head, *rows = (f"| {' | '.join(row)} |" for row in (self.columns, *self.rows))
        return "\n".join([head, f"|{rule}|", *rows])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """As rich prints it on a terminal, "not run" dim; in a pipe plain lines, uncut."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        if not console.is_terminal:
            lines = as_table([self.columns, *self.rows], range(1, len(self.columns)))
            yield Text("\n".join(x for x in (self.title, lines, self.note) if x) + "\n")
            return
        look: Any = {"box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
        look |= {"title_justify": "left", "caption_justify": "left"}
        shown = RichTable(title=self.title, caption=self.note or None, **look)
        for i, column in enumerate(self.columns):
            shown.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            shown.add_row(*(Text(x, style="dim" if x == "not run" else "") for x in row))
        yield shown


def as_table(
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    width: int | None = None,
    gives: Sequence[tuple[int, int]] = ((0, 12),),
) -> str:
    """Lines of columns, the first row being headings.

    gives: which columns give way to `width`, in this order, each down to so many characters.
    """
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for i, least in gives:
        over = 0 if width is None else max(0, sum(sizes) + len(sizes) - 1 - width)
        sizes[i] = min(sizes[i], max(least, sizes[i] - over))
    lines = []
    for row in rows:
        cells = (
            cropped(word, size).rjust(size) if i in right else cropped(word, size).ljust(size)
            for i, (word, size) in enumerate(zip(row, sizes, strict=True))
        )
        lines.append(" ".join(cells).rstrip())
    return "\n".join(lines)


def cropped(word: str, size: int) -> str:
    """At most `size` characters (6 or more): the beginning, and the last five, which tell runs and
    shares of wrong captions apart."""
    return word if len(word) <= size else f"{word[: size - 6]}…{word[-5:]}"
