"""A table of text cells, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
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

    def __rich__(self) -> Any:
        """As rich prints it; "not run" is dim."""
        from rich.table import Table as RichTable
        from rich.text import Text

        left: Any = {"title_justify": "left", "caption_justify": "left"}
        shown = RichTable(title=self.title, caption=self.note or None, **left)
        for i, column in enumerate(self.columns):
            shown.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            shown.add_row(*(Text(x, style="dim" if x == "not run" else "") for x in row))
        return shown
