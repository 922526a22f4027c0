"""Words that name an open_clip model with its weights, checked without importing open_clip where
that can be: it takes seconds."""

from __future__ import annotations

import sys
from pathlib import Path

from jestcli.config import ConfigError, did_you_mean
from jestcli.utils import catalogue

FILES = (".pt", ".pth", ".bin", ".safetensors")


def check_word(word: str, option: str = "--reference") -> tuple[str, str]:
    """Model and weights of `MODEL:TAG` or `MODEL:FILE`, and of local-dir: or hf-hub: the word
    itself and nothing. Raises ConfigError with the nearest.

    A model's config beside the file (`jest export` writes such) makes the model known."""
    if catalogue.is_place(word):
        try:
            catalogue.read_place(word)
        except ValueError as error:
            raise ConfigError(f"{option} {word}: {error}") from None
        return word, ""
    name, _, weights = word.partition(":")
    own = sys.modules.get("open_clip")  # once it is imported, models may have been added
    models = own.list_models() if own else list(catalogue.known())
    config, a_file = Path(weights).parent / f"{name}.json", Path(weights).is_file()
    if name not in models and a_file and config.is_file():
        import open_clip

        open_clip.add_model_config(config)
        models = open_clip.list_models()
    if name not in models:
        raise ConfigError(f"{option} {word}: no model {name!r}{_near(name, models)}")
    if a_file:
        return name, weights
    tags = []
    if not weights.endswith(FILES):
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags:
        lacks = f"no file and no tag {weights!r}" if weights else f"say {name}:TAG or {name}:FILE"
        raise ConfigError(f"{option} {word}: {lacks}{_near(weights, tags)}")
    return name, weights


def weights_file(word: str) -> str:
    """What names the weights of such a word: their file, if it is one here, else the tag or the
    place."""
    if word.startswith(catalogue.LOCAL):
        return catalogue.weights_of(word)
    return word if catalogue.is_place(word) else word.partition(":")[2]


def _near(word: str, known: list[str]) -> str:
    """The nearest word, or all where they are few."""
    near = did_you_mean(word, known)
    return near if "did you mean" in near or 0 < len(known) < 20 else ""
