"""Where a run computes."""

from __future__ import annotations

import ctypes

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
    # Convolutions would be rounded to 10 bits (TF32) else, which products of matrices are not:
    # precision=float32 means that, and bfloat16 is there for speed.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if use else "cpu")


def set_threads(threads: int) -> None:
    """Fix what changes floating-point results on one machine: the thread count. And keep freed
    activations of tens of MB in the process: glibc gives them back to the system after every step
    else, and page faults were a fifth of a step of the convolutional tower."""
    torch.set_num_threads(threads)
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(m_mmap_threshold, 1 << 25)
    mallopt(m_trim_threshold, (1 << 31) - 1)
