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
from jestcli.selection.embeddings import wide

ROWS, COLUMNS = 256, 1024  # of one tile: at most so many members by a multiple of so many
# Elements of one tile: 1 MiB of float32 stays in a core's cache from the product to the sum.
# Few members take more candidates at a time, so that small super-batches are one tile.
TILE, CUDA_TILE = 1 << 18, 1 << 21
softplus_out = torch.ops.aten.softplus.out


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)), accurate in float64 too (torch's default threshold of 20 is not)."""
    return F.softplus(z, threshold=40)


def sum_softplus(
    members: Tensor, candidates: Tensor, scale: float | Tensor, offset: float | Tensor
) -> Tensor:
    """For each candidate k, the sum over members i of softplus(scale * members_i . k + offset_i).

    members [m, d], candidates [B, d], scale one number, offset one number or [m] -> [B], float32
    (float64 for float64 input). Numbers may be 0-d tensors: they are not read by the host."""
    if kernels.usable(candidates):
        return kernels.sum_softplus(members, candidates, scale, offset)
    scaled = members.to(wide(members)) * scale
    column = None
    if isinstance(offset, Tensor) and offset.dim():
        column = offset.to(scaled.dtype)[:, None]

    def slab(block: Tensor) -> Tensor:
        total = None
        for rows, z in _tiles(scaled, block):
            z += offset if column is None else column[rows]
            softplus_out(z, 1, 40, out=z)  # as `softplus`, in place
            total = z.sum(0) if total is None else total.add_(z.sum(0))
        assert total is not None
        return total

    return _by_slabs(slab, candidates, members.shape[0])


def log_sum_exp(members: Tensor, candidates: Tensor, scale: float | Tensor) -> Tensor:
    """For each candidate k, log of the sum over members i of exp(scale * members_i . k).

    members [m, d], candidates [B, d] -> [B], float32 (float64 for float64 input)."""
    if kernels.usable(candidates):
        return kernels.log_sum_exp(members, candidates, scale)
    scaled = members.to(wide(members)) * scale

    def slab(block: Tensor) -> Tensor:
        total = block.new_full((len(block),), -torch.inf)
        for _, z in _tiles(scaled, block):
            total = torch.logaddexp(total, z.logsumexp(0))
        return total

    return _by_slabs(slab, candidates, members.shape[0])


def _tiles(scaled: Tensor, block: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, scaled[rows] @ block.T); the tile's memory is used again for the next."""
    if scaled.shape[0] <= ROWS:
        yield slice(None), torch.mm(scaled, block.T)
        return
    tile = block.new_empty(min(ROWS, len(scaled)), len(block))
    for i in range(0, len(scaled), ROWS):
        part = scaled[i : i + ROWS]
        yield slice(i, i + ROWS), torch.mm(part, block.T, out=tile[: len(part)])


def _by_slabs(function: Callable[[Tensor], Tensor], candidates: Tensor, members: int) -> Tensor:
    """`function` of each slab of candidates (in the accumulation dtype), one after the other."""
    elements = CUDA_TILE if candidates.is_cuda else TILE
    size = max(1, elements // min(members, ROWS) // COLUMNS) * COLUMNS
    if candidates.shape[0] <= size:  # most users' super-batches: every operation saved shows
        return function(candidates.to(wide(candidates)))
    return torch.cat([function(slab.to(wide(slab))) for slab in candidates.split(size)])
