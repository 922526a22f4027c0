"""How samples lie in a shard: what names, image types and captions mean. A user's settings."""

from __future__ import annotations

from dataclasses import dataclass

IMAGES = ("jpg", "jpeg", "webp", "png")  # photographs before PNG, which beside them is a mask
TEXTS = ("txt", "json", "cls")


@dataclass(frozen=True)
class Layout:
    """keys: a member's key is its name up to the "last" or the "first" dot. images: types that are
    read; of several in a sample the first in this order. field: of the JSON, which alone holds the
    caption; None: its "captions" (a list), the .txt, or its "caption". lines: each line of a .txt
    is a caption of its own."""

    keys: str = "last"
    images: tuple[str, ...] = IMAGES
    field: str | None = None
    lines: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """Members of which a captioned sample needs one."""
        return ("json",) if self.field else ("txt", "json")

    def split(self, name: str) -> tuple[str, str]:
        """`a/b.c.jpg` -> (`a/b.c`, `jpg`), or (`a/b`, `c.jpg`); ("", "") for a hidden file, such as
        the `._b.jpg` that macOS writes beside each."""
        folder, slash, base = name.rpartition("/")
        if base.startswith("."):
            return "", ""
        last = self.keys == "last"
        stem, _, kind = base.rpartition(".") if last else base.partition(".")
        return folder + slash + stem, kind.lower()


PLAIN = Layout()
BY_LINE = Layout(lines=True)  # clip-benchmark's
