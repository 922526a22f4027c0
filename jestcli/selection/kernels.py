"""The tile reductions as one fused Triton kernel: matmul, softplus or log-sum-exp, reduction.

One program owns a block of candidates and walks over all members of the chunk, so nothing of
size members x candidates is written and no atomics are needed: the result is deterministic.
float16/bfloat16 inputs multiply on tensor cores and accumulate in float32; float32 inputs
multiply in full float32. float64 is left to the torch path. Without Triton, or on CPU, `usable`
is False (Triton's interpreter, TRITON_INTERPRET=1, runs the kernel on CPU for the tests)."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
triton: Any = None
if INTERPRETED or torch.cuda.is_available():
    with suppress(ImportError):
        import triton  # type: ignore[no-redef, import-untyped, unused-ignore]
        import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
BLOCK_MEMBERS, BLOCK_CANDIDATES = 128, 128
BLOCK_DIM = 64  # of 2-byte numbers; half as many of 4: 96 KiB of shared memory for 3 stages


def usable(x: Tensor) -> bool:
    """Whether the kernel can take embeddings like `x`."""
    return triton is not None and (x.is_cuda or INTERPRETED) and x.dtype != torch.float64


def sum_softplus(
    members: Tensor, candidates: Tensor, scale: float | Tensor, offset: float | Tensor
) -> Tensor:
    """As `blocks.sum_softplus`."""
    return _launch(members, candidates, scale, offset, softplus=True)


def log_sum_exp(members: Tensor, candidates: Tensor, scale: float | Tensor) -> Tensor:
    """As `blocks.log_sum_exp`."""
    return _launch(members, candidates, scale, 0.0, softplus=False)


def _launch(
    members: Tensor,
    candidates: Tensor,
    scale: float | Tensor,
    offset: float | Tensor,
    softplus: bool,
) -> Tensor:
    count, dim = candidates.shape
    out = torch.empty(count, dtype=torch.float32, device=candidates.device)
    depth = BLOCK_DIM * 2 // members.element_size()
    numbers = [_on(x, out) for x in (scale, offset)]
    given = [x.contiguous() for x in (members, candidates, *numbers)]
    tile = {"BM": BLOCK_MEMBERS, "BN": BLOCK_CANDIDATES, "BK": depth}
    options = {"SOFTPLUS": softplus, "STRIDE": int(numbers[1].dim() > 0)}
    launch = _kernel[(triton.cdiv(count, BLOCK_CANDIDATES),)]
    launch(*given, out, len(members), count, dim, **options, **tile, num_warps=8, num_stages=3)
    return out


def _on(number: float | Tensor, out: Tensor) -> Tensor:
    """Where the kernel can read it, at every launch anew: a CUDA graph (graphs.py) goes on to read
    what it was recorded with."""
    return number if isinstance(number, Tensor) else torch.full((), number, device=out.device)


if triton is not None:

    @triton.jit
    def _kernel(
        members,
        candidates,
        scale_at,
        offset,
        out,
        m,
        n,
        d,
        SOFTPLUS: tl.constexpr,
        STRIDE: tl.constexpr,  # of the offsets: 0, one for all members
        BM: tl.constexpr,
        BN: tl.constexpr,
        BK: tl.constexpr,
    ):
        column = tl.program_id(0) * BN + tl.arange(0, BN)
        column_ok = column < n
        inner = tl.arange(0, BK)
        scale = tl.load(scale_at).to(tl.float32)
        candidate_at = candidates + column.to(tl.int64)[None, :] * d + inner[:, None]
        total = tl.zeros((BN,), tl.float32)  # the sum, or the sum of exp(z - peak)
        peak = tl.full((BN,), -float("inf"), tl.float32)
        for start in range(0, m, BM):
            row = start + tl.arange(0, BM)
            row_ok = row < m
            member_at = members + row.to(tl.int64)[:, None] * d + inner[None, :]
            z = tl.zeros((BM, BN), tl.float32)
            for k in range(0, d, BK):
                a = tl.load(member_at + k, row_ok[:, None] & (inner[None, :] + k < d), 0.0)
                b = tl.load(candidate_at + k, column_ok[None, :] & (inner[:, None] + k < d), 0.0)
                z = tl.dot(a, b, z, input_precision="ieee")
            z = z * scale
            if SOFTPLUS:
                z += tl.load(offset + row * STRIDE, row_ok, 0.0).to(tl.float32)[:, None]
                e = tl.exp(-tl.abs(z))
                # log(1 + e) loses the small e that make up most of the sum: use the series there
                series = e * (1.0 - e * (0.5 - e * (0.33333333 - e * 0.25)))
                value = tl.maximum(z, 0.0) + tl.where(e < 0.02, series, tl.log(1.0 + e))
                total += tl.sum(tl.where(row_ok[:, None], value, 0.0), 0)
            else:
                z = tl.where(row_ok[:, None], z, -float("inf"))
                higher = tl.maximum(peak, tl.max(z, 0))
                total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher[None, :]), 0)
                peak = higher
        if not SOFTPLUS:
            total = peak + tl.log(total)
        tl.store(out + column, total, column_ok)
