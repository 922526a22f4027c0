"""What comes from outside – names of files, words of servers – is shown, never obeyed."""

from __future__ import annotations

import logging

SHOWN = "\n\t\u00a0\u202f"  # beside what is printable: breaks, and spaces that do not break


def plain(text: str) -> str:
    """`text` with control characters and the like as escapes: "\\x1b[2J" is five characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in SHOWN else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """The same without its line breaks."""
    return " ".join(plain(text).split("\n"))


def say(text: object) -> None:
    """Print it, plain."""
    print(plain(str(text)))


class PlainFormatter(logging.Formatter):
    """A log's message in one plain line."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))
