"""Where a run computes."""

from __future__ import annotations

import torch

from jestcli.config import ConfigError, did_you_mean

DEVICES = ("auto", "cpu", "cuda")


def pick_device(word: str) -> torch.device:
    """auto is a GPU if there is one. Raises ConfigError for another word or a GPU that is not."""
    if word not in DEVICES:
        raise ConfigError(f"--device {word}{did_you_mean(word, list(DEVICES))}")
    if word == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU on this machine")
    use = word == "cuda" or (word == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use else "cpu")
