"""The only place where pair logits exist: one tile at a time, reduced before the next.

Both reductions run over the `members` of a chosen chunk and leave one number per candidate.
Memory: one tile, never members x candidates. On a GPU the fused kernel of `kernels` does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from jestcli.selection import kernels

ROWS, COLUMNS = 256, 8192  # of one tile: 8 MiB in float32


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)), accurate in float64 too (torch's default threshold of 20 is not)."""
    return F.softplus(z, threshold=40)


def sum_softplus(
    members: Tensor, candidates: Tensor, scale: float | Tensor, offset: Tensor
) -> Tensor:
    """For each candidate k, the sum over members i of softplus(scale * members_i . k + offset_i).

    members [m, d], candidates [B, d], offset [m] -> [B], float32 (float64 for float64 input).
    """
    if kernels.usable(candidates):
        return kernels.sum_softplus(members, candidates, scale, offset)
    scaled = members.to(_wide(members)) * scale
    offset = offset.to(scaled.dtype)

    def slab(block: Tensor) -> Tensor:
        total = block.new_zeros(len(block))
        for rows, z in _tiles(scaled, block):
            z += offset[rows, None]
            torch.ops.aten.softplus.out(z, 1, 40, out=z)  # as `softplus`, in place
            total += z.sum(0)
        return total

    return _by_slabs(slab, candidates)


def log_sum_exp(members: Tensor, candidates: Tensor, scale: float | Tensor) -> Tensor:
    """For each candidate k, log of the sum over members i of exp(scale * members_i . k).

    members [m, d], candidates [B, d] -> [B], float32 (float64 for float64 input).
    """
    if kernels.usable(candidates):
        return kernels.log_sum_exp(members, candidates, scale)
    scaled = members.to(_wide(members)) * scale

    def slab(block: Tensor) -> Tensor:
        total = block.new_full((len(block),), -torch.inf)
        for _, z in _tiles(scaled, block):
            total = torch.logaddexp(total, z.logsumexp(0))
        return total

    return _by_slabs(slab, candidates)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _tiles(scaled: Tensor, block: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, scaled[rows] @ block.T); the tile's memory is used again for the next."""
    tile = block.new_empty(min(ROWS, len(scaled)), len(block))
    for i in range(0, len(scaled), ROWS):
        part = scaled[i : i + ROWS]
        yield slice(i, i + ROWS), torch.mm(part, block.T, out=tile[: len(part)])


def _by_slabs(function: Callable[[Tensor], Tensor], candidates: Tensor) -> Tensor:
    """`function` of each slab of candidates (in the accumulation dtype), one after the other."""
    slabs = candidates.split(COLUMNS)
    return torch.cat([function(slab.to(_wide(slab))) for slab in slabs])
