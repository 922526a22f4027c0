"""Gumbel noise that is a pure function of (seed, step, draw, candidate): no generator, no state.

SplitMix64 (Steele, Lea, Flood 2014) hashes the counter on int64 tensors, whose arithmetic wraps
alike on every device, so the uniform numbers are bit for bit the same on CPU and GPU and for
any number of ranks. Only the two logarithms that follow are a library's, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Noise = Callable[[int, Tensor], Tensor]  # (draw, global indices int64 [n]) -> noise [n]

AHEAD, FEW = 16, 4096  # draws computed at once, of at most so many candidates
_WORD = 1 << 64


def _signed(word: int) -> int:
    """The int64 with the same 64 bits as `word`."""
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word


_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros shifted in (torch shifts the sign in)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = _shift(x, 30).bitwise_xor_(x).mul_(_signed(_MIX1))
    x = _shift(x, 27).bitwise_xor_(x).mul_(_signed(_MIX2))
    return _shift(x, 31).bitwise_xor_(x)


def _mixed(word: int) -> int:
    """`_mix` of one number, as the 64 bits of the result; far cheaper than on a tensor of one."""
    word %= _WORD
    word = (word ^ word >> 30) * _MIX1 % _WORD
    word = (word ^ word >> 27) * _MIX2 % _WORD
    return word ^ word >> 31


def uniform(seed: int, step: int, draw: int, index: Tensor) -> Tensor:
    """One number strictly inside (0, 1) for each index: float64, the shape and device of `index`.

    It has the form (n + 1/2) / 2**52, so neither 0 nor 1 can occur."""
    return _uniform(seed, step, [draw], index).view(index.shape)


def _uniform(seed: int, step: int, draws: Iterable[int], index: Tensor) -> Tensor:
    """`uniform` of several draws, one a row."""
    return _hashed(keys(seed, step, draws).to(index.device), index)


def keys(seed: int, step: int, draws: Iterable[int]) -> Tensor:
    """What the noise of each draw is a hash of, beside the index: int64 [draws, 1], on the CPU."""
    words = []
    for draw in draws:
        word = 0
        for part in (seed, step, draw):
            word = _mixed(word + part * _GOLDEN + _GOLDEN)
        words.append(_signed(word))
    return torch.tensor(words, dtype=torch.int64)[:, None]


def _hashed(key: Tensor, index: Tensor) -> Tensor:
    hashed = _mix(_mix(index.flatten() * _signed(_GOLDEN) + key).add_(key))
    return _shift(hashed, 12).double().add_(0.5).div_(1 << 52)


def rows(key: Tensor, index: Tensor) -> Tensor:
    """Standard Gumbel noise of the draws with these keys, one a row: float64 [draws, n]."""
    return _hashed(key, index).log_().neg_().log_().neg_()


def gumbel(seed: int, step: int) -> Noise:
    """The default noise of `select`: standard Gumbel, -log(-log u), in float64 (-3.6 to 36.7).

    Adding it to log-probabilities and keeping the m largest draws m without replacement.
    Equal on CPU and GPU up to the last bit of the logarithm. Of few candidates the numbers of the
    next draws are computed along: some forty small operations cost as much for all as for one."""
    at, block = -1, torch.empty(0)  # the draws that are kept, and their noise
    of: Tensor | None = None

    def noise(draw: int, index: Tensor) -> Tensor:
        nonlocal at, block, of
        ahead = AHEAD if index.numel() <= FEW else 1
        if draw // ahead != at or index is not of:
            at, of = draw // ahead, index
            draws = range(at * ahead, (at + 1) * ahead)
            block = rows(keys(seed, step, draws).to(index.device), index)
        return block[draw % ahead].view(index.shape)

    return noise


def zero(draw: int, index: Tensor) -> Tensor:
    """No noise: sampling becomes the deterministic greedy choice."""
    return torch.zeros(index.shape, dtype=torch.float64, device=index.device)
