"""Part `selection`: the sampler at the paper's size, its kernel's correctness and its energy."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jestcli.bench import selection as bench
from jestcli.gpu.energy import Meter
from jestcli.gpu.record import Budget, Notes
from jestcli.selection import PairEmbeddings, blocks, kernels, select
from jestcli.selection.noise import gumbel

TARGETS = {"seconds": 0.150, "extra_memory_bytes": 3e9}


@dataclass(frozen=True)
class Shape:
    """One selection: B candidates of width d, b chosen in N chunks."""

    batch: int
    size: int
    dim: int
    chunks: int = 16


PAPER = Shape(163_840, 32_768, 768)
TINY = Shape(256, 64, 16, 4)
ERRORS = {
    "bfloat16": 1e-2,
    "float16": 1e-2,
    "float32": 1e-4,
}  # above these a kernel is wrong, not rounded
LISTINGS = (131_072, 98_304, 65_536, 32_768, 16_384)  # B of the matrix listing, largest first


def measure(
    notes: Notes, device: torch.device, tiny: bool, machine: dict[str, Any], budget: Budget
) -> None:
    """Every measurement of the part, in the order of worth."""
    shape = TINY if tiny else PAPER

    def attempt(name: str, call: Callable[[], dict[str, Any]], seconds: float) -> None:
        notes.attempt(name, call, machine, budget, 0 if tiny else seconds)

    attempt("ceilings", lambda: ceilings(device, tiny), 10)
    attempt("kernel", lambda: kernel_check(device, shape), 60)
    use_kernel_if_right(notes, "kernel")
    attempt("paper", lambda: at_size(device, shape), 60)
    attempt("picks", lambda: picks_check(device, shape), 60)
    attempt("energy", lambda: energy(device, shape, 0.2 if tiny else 5.0), 15)
    attempt("unfused", lambda: unfused(device, shape), 30)
    attempt("oracle", lambda: cpu_oracle(device, tiny), 60)
    sizes = (256, 128) if tiny else LISTINGS
    attempt("listing", lambda: listing(device, sizes, shape), 60)
    attempt("by-size", lambda: by_size(device, shape), 60)


def ceilings(device: torch.device, tiny: bool) -> dict[str, Any]:
    """What the device reaches: a large bfloat16 product, and a copy in its memory."""
    n = 512 if tiny else 8192
    x, y = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = _median(lambda: x @ y, device)
    big = torch.randint(0, 255, (1 << (20 if tiny else 32),), dtype=torch.uint8, device=device)
    copy = _median(big.clone, device)
    return {
        "matmul": n, "matmul_tflops": 2 * n**3 / product / 1e12,
        "copy_bytes": 2 * len(big), "copy_gb_per_second": 2 * len(big) / copy / 1e9,
    }  # fmt: skip


def kernel_check(device: torch.device, shape: Shape, sample: int = 2048) -> dict[str, Any]:
    """The tile reductions at full size against float64 on the CPU, for a sample of candidates.

    Members are all that are chosen before the last chunk. float32 and bfloat16 embeddings; the
    oracle reads the same rounded numbers, so what differs is arithmetic alone.
    """
    members_count = shape.size // shape.chunks * (shape.chunks - 1)
    rows = torch.from_numpy(
        np.random.default_rng(0).choice(shape.batch, min(sample, shape.batch), replace=False)
    )
    found: dict[str, Any] = {"fused": kernels.usable(torch.zeros(1, device=device))}
    half = torch.float16 if kernels.INTERPRETED else torch.bfloat16  # NumPy has no bfloat16
    for dtype in (half, torch.float32):
        pairs = bench._pairs(shape.batch, shape.dim, 0, torch.device("cpu"))
        candidates = pairs.image.to(dtype)
        members = pairs.text[:members_count].to(dtype)
        offset = torch.linspace(-12, -8, members_count)
        there = [x.to(device) for x in (members, candidates, offset)]
        sums = blocks.sum_softplus(there[0], there[1], 10.0, there[2]).cpu()[rows]
        lses = blocks.log_sum_exp(there[0], there[1], 10.0).cpu()[rows]
        exact_sum = torch.zeros(len(rows), dtype=torch.float64)
        exact_lse = torch.full_like(exact_sum, -torch.inf)
        wide = candidates[rows].double()
        for start in range(0, members_count, 2048):
            part = slice(start, start + 2048)
            z = 10.0 * members[part].double() @ wide.T
            exact_sum += F.softplus(z + offset[part].double()[:, None], threshold=40).sum(0)
            exact_lse = torch.logaddexp(exact_lse, z.logsumexp(0))
        found[str(dtype).removeprefix("torch.")] = {
            "sum_softplus_relative_error": float(((sums - exact_sum) / exact_sum).abs().max()),
            "log_sum_exp_error": float((lses - exact_lse).abs().max()),
            "finite": bool(sums.isfinite().all() and lses.isfinite().all()),
        }
    found |= {"members": members_count, "candidates": shape.batch, "sampled": len(rows)}
    return found


def use_kernel_if_right(notes: Notes, name: str) -> bool:
    """Leave the fused kernel out of this process unless the check `name` found it right."""
    found = notes.read(name) or {}
    checks = found.get("result", {})
    right = found.get("state") == "done" and all(
        checks[dtype]["finite"]
        and checks[dtype]["sum_softplus_relative_error"] < limit
        and checks[dtype]["log_sum_exp_error"] < limit
        for dtype, limit in ERRORS.items()
        if dtype in checks
    )
    if not right:
        kernels.triton = None
        print("the fused kernel is left out: its check failed", flush=True)
    return right


def check_kernel(
    notes: Notes, device: torch.device, tiny: bool, machine: dict[str, Any], budget: Budget
) -> None:
    """Before a part trains: whether this machine's compiled kernel can be relied on."""
    shape = TINY if tiny else Shape(4096, 1024, 256)
    notes.attempt("kernel", lambda: kernel_check(device, shape, 512), machine, budget, 0)
    use_kernel_if_right(notes, "kernel")


def at_size(device: torch.device, shape: Shape) -> dict[str, Any]:
    """`jest bench selection` at this size, against the targets."""
    row = bench.bench_selection(
        shape.batch, shape.size, shape.dim, shape.chunks, str(device), None, listing=False
    )["selection"]
    met = {key: row[key] <= target for key, target in TARGETS.items()}
    row["fused"] = kernels.usable(torch.zeros(1, device=device))
    return {**row, "targets": TARGETS, "met": met}


def picks_check(device: torch.device, shape: Shape) -> dict[str, Any]:
    """How many of the picks are those of float64 sums over the same rounded embeddings."""
    learner, reference = (bench._pairs(shape.batch, shape.dim, seed, device) for seed in (0, 1))
    picks = select(learner, reference, size=shape.size, n_chunks=shape.chunks)
    double = [bench._as_double(pairs) for pairs in (learner, reference)]
    exact = select(*double, size=shape.size, n_chunks=shape.chunks)
    again = select(learner, reference, size=shape.size, n_chunks=shape.chunks)
    return {
        "overlap_with_float64": float(torch.isin(picks, exact).double().mean()),
        "same_order": float((picks == exact).double().mean()),
        "repeats_itself": bool(torch.equal(picks, again)),
        "chance": shape.size / shape.batch,
    }


def energy(device: torch.device, shape: Shape, seconds: float) -> dict[str, Any]:
    """Joules of one selection, the mean over several seconds of them."""
    learner, reference = (bench._pairs(shape.batch, shape.dim, seed, device) for seed in (0, 1))
    select(learner, reference, size=shape.size, n_chunks=shape.chunks)
    bench._wait(device)
    meter, started, count = Meter(device), time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        select(learner, reference, size=shape.size, n_chunks=shape.chunks, step=count)
        bench._wait(device)
        count += 1
    spent, wall = meter.spent(), time.perf_counter() - started
    each = spent["joules"] / count if spent["joules"] is not None else None
    return {"selections": count, "seconds": wall, **spent, "joules_each": each}


def unfused(device: torch.device, shape: Shape) -> dict[str, Any]:
    """The same selection in torch's own operations, a tile at a time."""
    with _without_kernel():
        return at_size(device, shape)


@contextmanager
def _without_kernel():
    kept, kernels.triton = kernels.triton, None
    try:
        yield
    finally:
        kernels.triton = kept


def cpu_oracle(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Picks on the device and on the CPU in float64, from the same embeddings, by loss."""
    shape = Shape(256, 64, 16, 4) if tiny else Shape(8192, 1638, 256)
    found: dict[str, Any] = {"batch": shape.batch, "size": shape.size, "dim": shape.dim}
    pairs = [bench._pairs(shape.batch, shape.dim, seed, torch.device("cpu")) for seed in (0, 1)]
    for loss in ("sigmoid", "softmax"):
        exact = select(
            *map(bench._as_double, pairs), size=shape.size, n_chunks=shape.chunks, loss=loss
        )
        there = [p.to(device) for p in pairs]
        picks = select(*there, size=shape.size, n_chunks=shape.chunks, loss=loss).cpu()
        found[loss] = {
            "overlap": float(torch.isin(picks, exact).double().mean()),
            "same_order": float((picks == exact).double().mean()),
        }
    return found


def listing(device: torch.device, sizes: tuple[int, ...], shape: Shape) -> dict[str, Any]:
    """The paper's matrix listing at the largest of these B that fits, and `select` there."""
    too_large = []
    for batch in sizes:
        size = batch * shape.size // shape.batch
        learner, reference = (bench._pairs(batch, shape.dim, seed, device) for seed in (0, 1))
        try:
            theirs, seconds, memory = _listing(learner, reference, size, shape.chunks, device)
        except torch.OutOfMemoryError:
            too_large.append(batch)
            torch.cuda.empty_cache()
            continue
        ours = partial(select, learner, reference, size=size, n_chunks=shape.chunks)
        picks, own_memory = bench._peak_memory(ours, device)
        own = _median(ours, device)
        return {
            "batch": batch, "size": size, "listing_seconds": seconds,
            "listing_memory_bytes": memory, "seconds": own, "extra_memory_bytes": own_memory,
            "speedup_over_listing": seconds / own, "too_large": too_large,
            "overlap": float(torch.isin(picks, theirs).double().mean()),
        }  # fmt: skip
    raise RuntimeError(f"the listing fits at none of {sizes}")


def _listing(
    learner: PairEmbeddings, reference: PairEmbeddings, size: int, chunks: int, device: torch.device
) -> tuple[Tensor, float, int]:
    """Algorithm 1 as printed, on the device: B x B scores, masked sums over all of it each chunk.

    Returns the picks, seconds (the matrices included) and bytes above the inputs.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    bench._wait(device)
    started = time.perf_counter()
    scores = _losses(learner)
    scores -= _losses(reference)
    noise = gumbel(0, 0)
    index = torch.arange(len(scores), device=device)
    diagonal = scores.diagonal().clone()
    n_draws = size // chunks
    chosen = (diagonal + noise(0, index)).topk(n_draws).indices
    for n in range(1, chunks):
        sampled = torch.zeros(len(scores), device=device)
        sampled[chosen] = 1
        logits = (
            diagonal
            + (scores * sampled[:, None]).sum(0)
            + (scores * sampled[None, :]).sum(1)
            - sampled * 1e8
        )
        count = n_draws if n < chunks - 1 else size - len(chosen)
        chosen = torch.cat([chosen, (logits + noise(n, index)).topk(count).indices])
    bench._wait(device)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) - before if on_gpu else 0
    return chosen, seconds, peak


def _losses(pairs: PairEmbeddings) -> Tensor:
    """The B x B sigmoid losses in float32, in place."""
    z = (pairs.image @ pairs.text.T).float().mul_(pairs.scale).add_(pairs.bias)
    positive = F.softplus(-z.diagonal())
    torch.ops.aten.softplus.out(z, 1, 20, out=z)
    z.diagonal().copy_(positive)
    return z


def by_size(device: torch.device, shape: Shape) -> dict[str, Any]:
    """Seconds by B, at the same share chosen and width."""
    rows = []
    for part in (16, 8, 4, 2):
        batch, size = shape.batch // part, shape.size // part
        learner, reference = (bench._pairs(batch, shape.dim, seed, device) for seed in (0, 1))
        ours = partial(select, learner, reference, size=size, n_chunks=shape.chunks)
        seconds = _median(ours, device)
        rows.append({"batch": batch, "size": size, "seconds": seconds})
    return {"rows": rows, "dim": shape.dim}


def _median(call: Callable[[], Any], device: torch.device) -> float:
    """Median wall seconds after a first call."""
    call()
    runs = []
    for _ in range(7 if device.type == "cuda" else 2):
        bench._wait(device)
        started = time.perf_counter()
        call()
        bench._wait(device)
        runs.append(time.perf_counter() - started)
    return float(np.median(runs))
