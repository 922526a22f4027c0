"""The terminal that everything is printed on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from jestcli.utils.plain import plain


class Terminal(Console):
    """Rich's console, for which no text is markup, an emoji's code or a command: only what our own
    code styles (Text, Table, Progress) has a style."""

    def __init__(self, **more: Any):
        super().__init__(soft_wrap=True, markup=False, emoji=False, **more)

    def render_str(self, text: str, **more: Any) -> Text:
        """As text of the width that is shown."""
        return super().render_str(plain(text), **more)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is shown, every text of it plain."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)
