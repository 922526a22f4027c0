"""One measurement in a process of its own: `python -m tools.gpu_lab.measure NAME FILE`.

So one that crashes, hangs or loses its GPU context costs no other. Selection is measured on random
embeddings, training on random pixels and tokens with open_clip's ViT-B/16 and a text tower of the
same width at 256 px; everything measured is the package's own (jestcli.bench), at the paper's size.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jestcli.bench import selection as bench
from jestcli.config import merge
from jestcli.runs.environment import environment
from jestcli.selection import PairEmbeddings, blocks, kernels, select
from jestcli.selection.noise import gumbel
from jestcli.training.energy import EnergyMeter
from tools.gpu_lab.archive import save_json

TARGETS = {"seconds": 0.150, "extra_memory_bytes": 3e9}
ERRORS = {"bfloat16": 1e-2, "float16": 1e-2, "float32": 1e-4}  # above: wrong, not rounded


@dataclass(frozen=True)
class Shape:
    """One selection: B candidates of width d, b chosen in N chunks."""

    batch: int
    size: int
    dim: int
    chunks: int = 16

    def embeddings(self, device: torch.device) -> list[PairEmbeddings]:
        """Of a learner and a reference."""
        return [bench.random_pairs(self.batch, self.dim, seed, device) for seed in (0, 1)]

    def select(self, pairs: list[PairEmbeddings], **more: Any) -> Tensor:
        return select(*pairs, size=self.size, n_chunks=self.chunks, **more)


PAPER = Shape(163_840, 32_768, 768)
TINY = Shape(256, 64, 16, 4)


def ceilings(device: torch.device, tiny: bool) -> dict[str, Any]:
    """What the device reaches: a large bfloat16 product, and a copy in its memory."""
    n = 512 if tiny else 8192
    x, y = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    product, _ = bench.median_seconds(lambda: x @ y, device)
    big = torch.randint(0, 255, (1 << (20 if tiny else 32),), dtype=torch.uint8, device=device)
    copy, _ = bench.median_seconds(big.clone, device)
    return {
        "matmul": n,
        "matmul_tflops": 2 * n**3 / product / 1e12,
        "copy_bytes": 2 * len(big),
        "copy_gb_per_second": 2 * len(big) / copy / 1e9,
    }


def kernel(device: torch.device, tiny: bool) -> dict[str, Any]:
    """The tile reductions at full size against float64 on the CPU, for a sample of candidates.

    Members are all that are chosen before the last chunk. float32 and bfloat16 embeddings; the
    oracle reads the same rounded numbers, so what differs is arithmetic alone.
    """
    shape = TINY if tiny else PAPER
    count = shape.size // shape.chunks * (shape.chunks - 1)
    sample = min(2048, shape.batch)
    rows = torch.from_numpy(np.random.default_rng(0).choice(shape.batch, sample, replace=False))
    found: dict[str, Any] = {"fused": kernels.usable(torch.zeros(1, device=device))}
    half = torch.float16 if kernels.INTERPRETED else torch.bfloat16  # NumPy has no bfloat16
    for dtype in (half, torch.float32):
        pairs = bench.random_pairs(shape.batch, shape.dim, 0, torch.device("cpu"))
        candidates, members = pairs.image.to(dtype), pairs.text[:count].to(dtype)
        offset = torch.linspace(-12, -8, count)
        there = [x.to(device) for x in (members, candidates, offset)]
        sums = blocks.sum_softplus(there[0], there[1], 10.0, there[2]).cpu()[rows]
        lses = blocks.log_sum_exp(there[0], there[1], 10.0).cpu()[rows]
        exact_sum = torch.zeros(len(rows), dtype=torch.float64)
        exact_lse = torch.full_like(exact_sum, -torch.inf)
        wide = candidates[rows].double()
        for start in range(0, count, 2048):
            part = slice(start, start + 2048)
            z = 10.0 * members[part].double() @ wide.T
            exact_sum += F.softplus(z + offset[part].double()[:, None], threshold=40).sum(0)
            exact_lse = torch.logaddexp(exact_lse, z.logsumexp(0))
        found[str(dtype).removeprefix("torch.")] = {
            "sum_softplus_relative_error": float(((sums - exact_sum) / exact_sum).abs().max()),
            "log_sum_exp_error": float((lses - exact_lse).abs().max()),
            "finite": bool(sums.isfinite().all() and lses.isfinite().all()),
        }
    return found | {"members": count, "candidates": shape.batch, "sampled": sample}


def is_right(check: dict[str, Any]) -> bool:
    """Whether what `kernel` recorded found the kernel right, to rounding."""
    result = check.get("result", {})
    return check["state"] == "done" and all(
        result[dtype]["finite"]
        and result[dtype]["sum_softplus_relative_error"] < limit
        and result[dtype]["log_sum_exp_error"] < limit
        for dtype, limit in ERRORS.items()
        if dtype in result
    )


def paper(device: torch.device, tiny: bool) -> dict[str, Any]:
    """`jest bench selection` at the paper's size, against the targets."""
    shape = TINY if tiny else PAPER
    row = bench.bench_selection(
        shape.batch, shape.size, shape.dim, shape.chunks, device.type, None, listing=False
    )["selection"]
    met = {key: row[key] <= target for key, target in TARGETS.items()}
    fused = kernels.usable(torch.zeros(1, device=device))
    return {**row, "fused": fused, "targets": TARGETS, "met": met}


def unfused(device: torch.device, tiny: bool) -> dict[str, Any]:
    """The same selection in torch's own operations, a tile at a time."""
    kernels.triton = None
    return paper(device, tiny)


def picks(device: torch.device, tiny: bool) -> dict[str, Any]:
    """How many of the picks are those of float64 sums over the same rounded embeddings."""
    shape = TINY if tiny else PAPER
    pairs = shape.embeddings(device)
    chosen, again = shape.select(pairs), shape.select(pairs)
    exact = shape.select([bench.as_double(each) for each in pairs])
    return {
        "overlap_with_float64": float(torch.isin(chosen, exact).double().mean()),
        "same_order": float((chosen == exact).double().mean()),
        "repeats_itself": bool(torch.equal(chosen, again)),
        "chance": shape.size / shape.batch,
    }


def energy(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Joules of one selection, the mean over several seconds of them."""
    shape, seconds = (TINY, 0.2) if tiny else (PAPER, 5.0)
    pairs = shape.embeddings(device)
    shape.select(pairs)
    bench.wait(device)
    meter, started, count = EnergyMeter(), time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        shape.select(pairs, step=count)
        bench.wait(device)
        count += 1
    read, wall = meter.read() or {}, time.perf_counter() - started
    gpus = [joules for name, joules in read.items() if name.startswith("gpu:")]
    joules = sum(gpus) if gpus and device.type == "cuda" else None
    each = joules / count if joules is not None else None
    return {"selections": count, "seconds": wall, "joules": joules, "joules_each": each}


def oracle(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Picks on the device and on the CPU in float64, from the same embeddings, by loss."""
    shape = TINY if tiny else Shape(8192, 1638, 256)
    pairs = shape.embeddings(torch.device("cpu"))
    there, double = [p.to(device) for p in pairs], [bench.as_double(p) for p in pairs]
    found: dict[str, Any] = {"batch": shape.batch, "size": shape.size, "dim": shape.dim}
    for loss in ("sigmoid", "softmax"):
        chosen, exact = shape.select(there, loss=loss).cpu(), shape.select(double, loss=loss)
        found[loss] = {
            "overlap": float(torch.isin(chosen, exact).double().mean()),
            "same_order": float((chosen == exact).double().mean()),
        }
    return found


def listing(device: torch.device, tiny: bool) -> dict[str, Any]:
    """The paper's matrix listing on the device, and `select` on the same embeddings."""
    shape = TINY if tiny else Shape(65_536, 13_107, 768)
    pairs = shape.embeddings(device)
    theirs, seconds, _ = bench.timed(partial(_listing, pairs, shape), device)
    own, _ = bench.median_seconds(partial(shape.select, pairs), device)
    return {
        "batch": shape.batch,
        "size": shape.size,
        "listing_seconds": seconds,
        "seconds": own,
        "speedup_over_listing": seconds / own,
        "overlap": float(torch.isin(shape.select(pairs), theirs).double().mean()),
    }


def _listing(pairs: list[PairEmbeddings], shape: Shape) -> Tensor:
    """Algorithm 1 with its B x B scores; the masked sums over all of them in every chunk are
    products with the mask, which is faster than as printed."""
    scores = _losses(pairs[0])
    scores -= _losses(pairs[1])
    noise, index = gumbel(0, 0), torch.arange(len(scores), device=scores.device)
    diagonal, n_draws = scores.diagonal().clone(), shape.size // shape.chunks
    chosen = (diagonal + noise(0, index)).topk(n_draws).indices
    for n in range(1, shape.chunks):
        sampled = torch.zeros_like(diagonal)
        sampled[chosen] = 1
        logits = diagonal + sampled @ scores + scores @ sampled - sampled * 1e8
        count = n_draws if n < shape.chunks - 1 else shape.size - len(chosen)
        chosen = torch.cat([chosen, (logits + noise(n, index)).topk(count).indices])
    return chosen


def _losses(pairs: PairEmbeddings) -> Tensor:
    """The B x B sigmoid losses in float32, in place."""
    z = (pairs.image @ pairs.text.T).float().mul_(pairs.scale).add_(pairs.bias)
    positive = F.softplus(-z.diagonal())
    torch.ops.aten.softplus.out(z, 1, 20, out=z)
    z.diagonal().copy_(positive)
    return z


def by_size(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Seconds by B, at the same share chosen and width."""
    whole = TINY if tiny else PAPER
    rows = []
    for part in (16, 8, 4, 2):
        shape = Shape(whole.batch // part, whole.size // part, whole.dim, whole.chunks)
        seconds, _ = bench.median_seconds(partial(shape.select, shape.embeddings(device)), device)
        rows.append({"batch": shape.batch, "size": shape.size, "seconds": seconds})
    return {"rows": rows, "dim": whole.dim}


STEP_TARGETS = {"uniform_mfu": 0.40, "jest_over_counted": 1.1, "flexi_over_counted": 1.2}
B16: dict[str, Any] = {
    "data": {"image_size": 256, "context_length": 16, "vocab_size": 32_000},
    "model": {
        "tower": "vit",
        "embed_dim": 768,
        "width": 768,
        "layers": 12,
        "head_width": 64,
        "patch_sizes": [16, 32],
        "text_width": 768,
        "text_layers": 12,
    },
    "optim": {"batch_size": 512, "lr": 1e-3},
    "selection": {"filter_ratio": 0.8, "n_chunks": 16},
    "engine": {"precision": "bfloat16", "scoring_batch": 512},
}
SMALL: dict[str, Any] = {
    "data": {"image_size": 32, "context_length": 8, "vocab_size": 600},
    "model": {
        "embed_dim": 8,
        "width": 16,
        "layers": 1,
        "head_width": 8,
        "patch_sizes": [8, 16],
        "text_width": 16,
        "text_layers": 1,
    },
    "optim": {"batch_size": 8, "warmup": 2},
    "selection": {"n_chunks": 4},
    "engine": {"precision": "float32", "scoring_batch": 8},
}


def steps(
    names: tuple[str, ...], device: torch.device, tiny: bool, **engine: Any
) -> dict[str, Any]:
    """`jest bench train` on a ViT-B/16, the data on the device; smaller batches if memory ends."""
    from jestcli.bench import training  # seconds of imports, which selection does without

    settings = merge(merge(B16, SMALL) if tiny else B16, {"engine": engine})
    while True:
        try:
            found = training.measure(settings, 2 if tiny else 12, device, names, resident=True)
            break
        except torch.OutOfMemoryError:
            size = settings["optim"]["batch_size"] // 2
            if size < 32:
                raise
            torch.cuda.empty_cache()
            print(f"out of memory: with b = {size}", flush=True)
            smaller = {"optim": {"batch_size": size}, "engine": {"scoring_batch": size}}
            settings = merge(settings, smaller)
    del found["environment"]  # the measurement's own
    rows = {row["name"]: row for row in found["rows"]}
    met = {"uniform_mfu": rows["uniform"]["mfu"] >= STEP_TARGETS["uniform_mfu"]}
    for name in {"jest", "flexi"} & set(rows):
        key = f"{name}_over_counted"
        met[key] = rows[name]["over_counted"] <= STEP_TARGETS[key]
    if "open_clip" in rows:
        met["as_fast_as_open_clip"] = rows["open_clip"]["ratio"] >= 1
    return {**found, "targets": STEP_TARGETS, "met": met}


Measure = Callable[[torch.device, bool], dict[str, Any]]
# In the order of worth: what measures, and the seconds that it takes on a large GPU, roughly.
MEASUREMENTS: dict[str, tuple[Measure, float]] = {
    "selection.kernel": (kernel, 60),
    "selection.paper": (paper, 60),
    "selection.picks": (picks, 60),
    "selection.ceilings": (ceilings, 10),
    "selection.energy": (energy, 15),
    "selection.unfused": (unfused, 30),
    "selection.oracle": (oracle, 60),
    "selection.listing": (listing, 60),
    "selection.by-size": (by_size, 60),
    "train.eager": (partial(steps, ("uniform", "jest", "flexi", "open_clip")), 60),
    "train.compiled-uniform": (partial(steps, ("uniform", "open_clip"), compile=True), 90),
    "train.compiled-jest": (partial(steps, ("uniform", "jest"), compile=True), 90),
    "train.compiled-flexi": (partial(steps, ("uniform", "flexi"), compile=True), 120),
    "train.checkpointing": (
        partial(steps, ("uniform",), activation_checkpointing=True),
        30,
    ),
}


def main() -> None:
    """Measure, and write the result with the machine it was measured on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=MEASUREMENTS)
    parser.add_argument("file", type=Path, help="a measurement of the lab's state folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    told = parser.parse_args()
    device, check = torch.device(told.device), told.file.with_name("selection.kernel.json")
    if check.exists() and not is_right(json.loads(check.read_text())):
        kernels.triton = None
        print("the fused kernel is left out: its check failed", flush=True)
    started = time.perf_counter()
    result = MEASUREMENTS[told.name][0](device, told.tiny)
    part, _, name = told.name.partition(".")
    machine = environment() | {"device": str(device), "tiny": told.tiny}
    found = {
        "part": part,
        "name": name,
        "state": "done",
        "measured": datetime.now(timezone.utc).date().isoformat(),
        "seconds": round(time.perf_counter() - started, 2),
        "machine": machine,
        "result": result,
    }
    save_json(told.file, found)


if __name__ == "__main__":
    main()
