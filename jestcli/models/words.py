"""Words that name an open_clip model with its weights, checked without importing open_clip where
that can be: it takes seconds."""

from __future__ import annotations

import sys
from pathlib import Path

from jestcli.config import ConfigError, did_you_mean
from jestcli.utils import catalogue

FILES = (".pt", ".pth", ".bin", ".safetensors")


def check_word(word: str) -> tuple[str, str]:
    """Model and weights of `MODEL:TAG` or `MODEL:FILE`. Raises ConfigError with the nearest."""
    name, _, weights = word.partition(":")
    own = sys.modules.get("open_clip")  # once it is imported, models may have been added
    models = own.list_models() if own else list(catalogue.known())
    if name not in models:
        raise ConfigError(f"--reference {word}: no model {name!r}{_near(name, models)}")
    if Path(weights).is_file():
        return name, weights
    tags = []
    if not weights.endswith(FILES):
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags:
        raise ConfigError(
            f"--reference {word}: no file and no tag {weights!r}{_near(weights, tags)}"
        )
    return name, weights


def _near(word: str, known: list[str]) -> str:
    """The nearest word, or all where they are few."""
    near = did_you_mean(word, known)
    return near if "did you mean" in near or 0 < len(known) < 20 else ""
