"""`jest bench selection`: time and memory of joint selection, and the same picks as the listing.

Inputs are random unit embeddings with the SigLIP initialisation (scale 10, bias -10): bfloat16 on
a GPU, float32 on a CPU. Everything is timed in one process; what is compared takes turns (ABBA).
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jestcli.bench import save
from jestcli.config import ConfigError
from jestcli.runs.environment import environment, git_commit
from jestcli.selection import PairEmbeddings, select
from jestcli.selection.noise import gumbel
from jestcli.utils.console import Terminal
from jestcli.utils.tables import Table


def bench_selection(
    batch: int = 12_288,
    size: int = 2_458,
    dim: int = 512,
    chunks: int = 16,
    device: str = "cpu",
    out: Path | None = None,
    listing: bool = True,
    against: Path | None = None,
) -> dict[str, Any]:
    """Measure `select` and return, print and, if `out` is given, write the numbers.

    batch, size, dim, chunks: super-batch B, sub-batch b, embedding width d, chunks N.
    out: a path without or with suffix; `.json` and `.md` are written beside each other.
    listing: also run the paper's matrix listing (B x B matrices: 5 GB at B = 12,288), and
        on a GPU compare with float64 sums over the same rounded embeddings.
    against: another checkout of this project, whose `select` is timed as well and must pick the
        same pairs. Raises ConfigError if there is none.
    Seconds are medians over rounds in which all take turns (the listing runs once); the CPU's
    depend less on what else the machine does. Memory is the peak above the inputs (on CPU of the
    resident set, sampled). The GEMM bound is the same matrix products and nothing else.
    """
    where, console = torch.device(device), Terminal()
    learner, reference = (random_pairs(batch, dim, seed, where) for seed in (0, 1))

    def ours() -> Tensor:
        return select(learner, reference, size=size, n_chunks=chunks)

    picks, memory = peak_memory(ours, where)
    calls = {"select": ours, "products": lambda: _products(learner, reference, size, chunks)}
    before = None if against is None else earlier(against)
    if before is not None:
        pairs = [before.PairEmbeddings(*vars(each).values()) for each in (learner, reference)]
        calls["before"] = lambda: before.select(*pairs, size=size, n_chunks=chunks)
    times = take_turns(calls, where)
    selected, products = (_medians(times[name]) for name in ("select", "products"))
    (seconds, cpu_seconds, _), (bound, cpu_bound, _) = selected.values(), products.values()
    # The products that selection needs: two models, two directions, all chunks but the last.
    flop = 2 * 2 * 2 * (size // chunks * (chunks - 1)) * batch * dim
    row: dict[str, Any] = {
        **{"batch": batch, "size": size, "dim": dim, "chunks": chunks},
        "dtype": str(learner.image.dtype).removeprefix("torch."),
        **selected,
        **{"rounds": len(times["select"]), "extra_memory_bytes": memory},
        **{"gemm_seconds": bound, "ratio_to_gemm_bound": seconds / bound},
        **{"gemm_cpu_seconds": cpu_bound, "cpu_ratio_to_gemm_bound": cpu_seconds / cpu_bound},
        "gemm_tflop": flop / 1e12,
    }
    if before is not None and against is not None:
        row["before"] = {
            "commit": git_commit(against / "jestcli") or "unknown",
            **_medians(times["before"]),
            "cpu_speedup": float(np.median(times["before"][:, 1] / times["select"][:, 1])),
            "same_picks": bool(torch.equal(picks, cast(Tensor, calls["before"]()))),
        }
    if listing and where.type == "cpu":
        scores, *matrices = timed(lambda: _losses(learner) - _losses(reference), where)
        listed, *rest = timed(lambda: _listing(scores, size, chunks), where)
        wall, cpu = (a + b for a, b in zip(matrices, rest, strict=True))
        row |= {
            **{"listing_seconds": wall, "listing_cpu_seconds": cpu},
            **{"listing_matrices_seconds": matrices[0], "speedup_over_listing": wall / seconds},
            "cpu_speedup_over_listing": cpu / cpu_seconds,
            "overlap_with_listing": float(np.isin(picks.numpy(), listed).mean()),
            "same_order_as_listing": bool(np.array_equal(picks.numpy(), listed)),
        }
    elif listing:
        double = [as_double(pairs) for pairs in (learner, reference)]
        exact = select(*double, size=size, n_chunks=chunks)
        row["overlap_with_float64"] = float(torch.isin(picks, exact).double().mean())
    result = {"selection": row, "machine": _machine(where)}
    console.print(shown := table(result))
    save(result, shown.markdown() + "\n", out)
    return result


def random_pairs(batch: int, dim: int, seed: int, device: torch.device) -> PairEmbeddings:
    """Random unit embeddings [batch, dim] of pairs that resemble each other: bfloat16 on a GPU."""
    rng = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(batch, dim, generator=rng), dim=1) for _ in range(2))
    text = F.normalize(text + image / 2, dim=1)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return PairEmbeddings(image.to(device, dtype), text.to(device, dtype), 10.0, -10.0)


def as_double(pairs: PairEmbeddings) -> PairEmbeddings:
    """The rounded embeddings, exactly."""
    return PairEmbeddings(pairs.image.double(), pairs.text.double(), pairs.scale, pairs.bias)


def _losses(pairs: PairEmbeddings) -> np.ndarray:
    """The B x B sigmoid losses, by torch, in place: faster than NumPy would be."""
    z = (pairs.image @ pairs.text.T).mul_(pairs.scale).add_(pairs.bias)
    positive = F.softplus(-z.diagonal())
    torch.ops.aten.softplus.out(z, 1, 20, out=z)
    z.diagonal().copy_(positive)
    return cast(np.ndarray, z.numpy())


def _listing(scores: np.ndarray, size: int, chunks: int) -> np.ndarray:
    """The selection of the paper's Algorithm 1 from its B x B score matrix, in NumPy as printed.
    One-hot rows of an identity matrix for membership, masked sums over the whole matrix for every
    chunk; the draws are Gumbel-top-m with the noise of `select`, and the last chunk takes the
    remainder."""
    noise, index = gumbel(0, 0), torch.arange(len(scores))

    def choose(logits: np.ndarray, count: int, draw: int) -> np.ndarray:
        return np.argsort(-(logits + noise(draw, index).numpy()), kind="stable")[:count]

    n_draws = size // chunks
    logits_ii = np.diag(scores)
    inds = choose(logits_ii, n_draws, 0)
    for n in range(1, chunks):
        is_sampled = np.eye(len(scores))[inds].sum(axis=0)
        logits_ij = (scores * is_sampled[:, None]).sum(axis=0)
        logits_ji = (scores * is_sampled[None, :]).sum(axis=1)
        logits = logits_ii + logits_ij + logits_ji - is_sampled * 1e8
        count = n_draws if n < chunks - 1 else size - len(inds)
        inds = np.concatenate((inds, choose(logits, count, n)))
    return inds


def _products(learner: PairEmbeddings, reference: PairEmbeddings, size: int, chunks: int) -> None:
    """The matrix products that selection needs and nothing else, in blocks of one chunk."""
    m = size // chunks
    block = learner.image.new_empty(m, len(learner))
    for _ in range(chunks - 1):
        for pairs in (learner, reference):
            torch.mm(pairs.image[:m], pairs.text.T, out=block)
            torch.mm(pairs.text[:m], pairs.image.T, out=block)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float, float]:
    """Result, wall-clock seconds and this process's CPU seconds of one call."""
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    wait(device)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def median_seconds(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Median wall-clock and CPU seconds of several calls after the first; slow calls: the first."""
    first = timed(call, device)[1:]
    if first[0] > 10:
        return first
    runs = [timed(call, device)[1:] for _ in range(10 if device.type == "cuda" else 3)]
    wall, cpu = np.median(np.array(runs), axis=0)
    return float(wall), float(cpu)


def take_turns(
    calls: dict[str, Callable[[], Any]], device: torch.device, budget: float = 15.0
) -> dict[str, np.ndarray]:
    """Wall and CPU seconds, [rounds, 2], of calls that take turns: there and back, then again.
    After one round to warm up; rounds fill `budget` seconds, between 2 and 40 of them."""
    first = sum(timed(call, device)[1] for call in calls.values())
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(2 * min(20, max(1, round(budget / first / 2)))):
        names = list(calls) if number % 2 == 0 else list(calls)[::-1]
        for name in names:
            found[name].append(timed(calls[name], device)[1:])
    return {name: np.array(rows) for name, rows in found.items()}


def _medians(times: np.ndarray) -> dict[str, Any]:
    wall, cpu = np.median(times, axis=0).tolist()
    quartiles = np.quantile(times[:, 1], (0.25, 0.75)).tolist()
    return {"seconds": wall, "cpu_seconds": cpu, "cpu_quartiles": quartiles}


def earlier(checkout: Path) -> ModuleType:
    """`jestcli.selection` of another checkout, beside this one. Raises ConfigError."""
    if not (checkout / "jestcli" / "selection" / "__init__.py").is_file():
        raise ConfigError(f"--against {checkout} is not a checkout of this project")
    ours = {name: sys.modules.pop(name) for name in _loaded()}
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module("jestcli.selection")
    finally:
        sys.path.remove(str(checkout))
        for name in _loaded():
            del sys.modules[name]
        sys.modules.update(ours)


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "jestcli"]


def peak_memory(call: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, int]:
    """The result of `call` and the most bytes it held above what was there before."""
    if device.type == "cuda":
        call()
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        wait(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    before, seen, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(_resident())

    with ThreadPoolExecutor(1) as watcher:
        watcher.submit(watch)
        try:
            result = call()
        finally:
            done.set()
    return result, max(max(seen) - before, 0)


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:  # no /proc: the high-water mark, in kilobytes on Linux and bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _machine(device: torch.device) -> dict[str, str | float]:
    about = environment()
    cpu = f"{about['cpu']}, {about['threads']} threads"
    return {
        "hardware": about["gpu"] if device.type == "cuda" else cpu,
        "device": str(device),
        "python": about["python"],
        **{"torch": str(torch.__version__), "numpy": np.__version__},
        "commit": about["commit"] or "unknown",
        "load_average": round(os.getloadavg()[0], 1),
    }


def _times(row: dict[str, Any], of: str = "") -> str:
    wall, cpu = (
        f"{x:.3f} s" if x >= 0.1 else f"{1000 * x:.2f} ms"
        for x in (row[f"{of}seconds"], row[f"{of}cpu_seconds"])
    )
    return f"{wall}, {cpu} of CPU"


def table(result: dict[str, Any]) -> Table:
    """The numbers in words."""
    row = result["selection"]
    shape = f"B = {row['batch']:,}, b = {row['size']:,}, d = {row['dim']}, N = {row['chunks']}"
    cells = {
        "input": f"{shape}, {row['dtype']}",
        "select": _times(row),
        "extra memory": f"{row['extra_memory_bytes'] / 2**20:,.0f} MiB",
        "matrix products alone": f"{_times(row, 'gemm_')} ({row['gemm_tflop']:.3g} TFLOP)",
        "select / products": f"{row['ratio_to_gemm_bound']:.2f}, of CPU "
        f"{row['cpu_ratio_to_gemm_bound']:.2f}",
    }
    if "before" in row:
        before = row["before"]
        picks = "the same picks" if before["same_picks"] else "OTHER PICKS"
        speed = f"{before['cpu_speedup']:.2f} times as much"
        cells[f"select at {before['commit']}, in turn"] = f"{_times(before)}: {speed}; {picks}"
    if "listing_seconds" in row:
        order = "same" if row["same_order_as_listing"] else "not the same"
        seconds, cpu = row["listing_seconds"], row["listing_cpu_seconds"]
        wall, of_cpu = row["speedup_over_listing"], row["cpu_speedup_over_listing"]
        matrices = f"{row['listing_matrices_seconds']:.2f} s for its matrices"
        cells["matrix listing"] = f"{seconds:.2f} s, {cpu:.2f} s of CPU; {matrices}"
        cells["listing / select"] = f"{wall:.1f}, of CPU {of_cpu:.1f}"
        cells["picks shared with it"] = f"{row['overlap_with_listing']:.2%}, order {order}"
    if "overlap_with_float64" in row:
        cells["picks shared with float64"] = f"{row['overlap_with_float64']:.2%}"
    cells |= {name: str(value) for name, value in result["machine"].items()}
    return Table("joint selection", ("", "measured"), list(cells.items()))
