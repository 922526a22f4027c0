"""The only place where pair logits exist: one tile at a time, reduced before the next.

Both reductions run over the `members` of a chosen chunk and leave one number per candidate.
Memory: one tile, never members x candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from jestcli.selection import kernels

ROWS, COLUMNS = 256, 16_384  # of one tile: 16 MiB in float32


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
    total = _zeros(candidates)
    offset = offset.to(total.dtype)
    for row, column, z in _tiles(members, candidates, scale):
        z += offset[row, None]
        torch.ops.aten.softplus.out(z, 1, 40, out=z)  # as `softplus`, in place
        total[column] += z.sum(0)
    return total


def log_sum_exp(members: Tensor, candidates: Tensor, scale: float | Tensor) -> Tensor:
    """For each candidate k, log of the sum over members i of exp(scale * members_i . k).

    members [m, d], candidates [B, d] -> [B], float32 (float64 for float64 input).
    """
    if kernels.usable(candidates):
        return kernels.log_sum_exp(members, candidates, scale)
    total = _zeros(candidates).fill_(-torch.inf)
    for _, column, z in _tiles(members, candidates, scale):
        total[column] = torch.logaddexp(total[column], z.logsumexp(0))
    return total


def _zeros(candidates: Tensor) -> Tensor:
    wide = torch.float64 if candidates.dtype == torch.float64 else torch.float32
    return torch.zeros(len(candidates), dtype=wide, device=candidates.device)


def _tiles(
    members: Tensor, candidates: Tensor, scale: float | Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, scale * members[rows] @ candidates[columns].T); the tile is re-used."""
    wide = _zeros(candidates[:1]).dtype
    scaled = members.to(wide) * scale
    rows, columns = min(ROWS, len(members)), min(COLUMNS, len(candidates))
    tile = torch.empty(rows * columns, dtype=wide, device=candidates.device)
    for k in range(0, len(candidates), columns):
        block = candidates[k : k + columns].to(wide)
        for i in range(0, len(members), rows):
            part = scaled[i : i + rows]
            z = tile[: len(part) * len(block)].view(len(part), len(block))
            torch.mm(part, block.T, out=z)
            yield slice(i, i + rows), slice(k, k + columns), z
