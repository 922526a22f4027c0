"""Part `train`: a ViT-B/16's step by method against its FLOPs, the GPU's peak and open_clip's loop.

The towers are open_clip's ViT-B/16 and a text tower of the same width, at 256 px. Random pixels and
tokens. Contenders take turns, one step each a round; medians over the rounds.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jestcli.bench import training as bench
from jestcli.config import Run, merge
from jestcli.data.loader import Part, StoreDrawing
from jestcli.data.store import Store
from jestcli.gpu.energy import Meter
from jestcli.gpu.figures import TINY as TINY_RUN
from jestcli.gpu.record import Budget, Notes
from jestcli.models.flops import forward_flops
from jestcli.training.clock import peak_flops

TARGETS = {"uniform_mfu": 0.40, "jest_over_counted": 1.1, "flexi_over_counted": 1.2}
B16: dict[str, Any] = {
    "data": {"image_size": 256, "context_length": 16, "vocab_size": 32_000},
    "model": {
        "embed_dim": 768, "width": 768, "layers": 12, "head_width": 64, "patch_sizes": [16, 32],
        "text_width": 768, "text_layers": 12,
    },
    "optim": {"batch_size": 512, "lr": 1e-3},
    "selection": {"filter_ratio": 0.8, "n_chunks": 16},
    "engine": {"precision": "bfloat16", "scoring_batch": 512},
}  # fmt: skip
METHODS = ("uniform", "jest", "flexi")


def settings_of(tiny: bool, **engine: Any) -> dict[str, Any]:
    base = merge(merge(B16, TINY_RUN) if tiny else B16, {"engine": engine})
    base.pop("evaluation", None)
    return base


def measure(
    notes: Notes, device: torch.device, tiny: bool, machine: dict[str, Any], budget: Budget
) -> None:
    """Every measurement of the part, in the order of worth."""
    rounds = 2 if tiny else 12

    def attempt(name: str, names: tuple[str, ...], need: float, **engine: Any) -> None:
        settings = settings_of(tiny, **engine)
        notes.attempt(
            name, lambda: turns(settings, names, rounds, device), machine, budget,
            0 if tiny else need,
        )  # fmt: skip

    attempt("eager", (*METHODS, "open_clip"), 40)
    if not tiny:  # minutes of compiling, on a CPU
        attempt("compiled-uniform", ("uniform", "open_clip"), 90, compile=True)
        attempt("compiled-jest", ("uniform", "jest"), 90, compile=True)
        attempt("compiled-flexi", ("uniform", "flexi"), 120, compile=True)
    for name in ("uniform", "jest"):
        notes.attempt(
            f"loader-{name}", partial(from_memory, settings_of(tiny), name, rounds, device),
            machine, budget, 0 if tiny else 40,
        )  # fmt: skip
    attempt("checkpointing", ("uniform",), 30, activation_checkpointing=True)


def turns(
    settings: dict[str, Any], names: tuple[str, ...], rounds: int, device: torch.device
) -> dict[str, Any]:
    """Medians of interleaved steps with the data on the device; a smaller batch if memory ends."""
    while True:
        try:
            return _turns(settings, names, rounds, device)
        except torch.OutOfMemoryError:
            size = settings["optim"]["batch_size"] // 2
            if size < 32:
                raise
            torch.cuda.empty_cache()
            print(f"out of memory: with b = {size}", flush=True)
            settings = merge(
                settings, {"optim": {"batch_size": size}, "engine": {"scoring_batch": size}}
            )


def _turns(
    settings: dict[str, Any], names: tuple[str, ...], rounds: int, device: torch.device
) -> dict[str, Any]:
    started = time.perf_counter()
    contenders: dict[str, bench.Step] = {}
    counted: dict[str, float] = {}
    for name in names:
        if name == "open_clip":
            contenders[name] = bench._open_clips(bench._case(settings, "uniform"), device)
            counted[name] = counted["uniform"]
        else:
            case = bench._case(settings, name)
            contenders[name], counted[name] = bench._ours(case, device, resident=True)
    seconds = bench._take_turns(contenders, rounds, device)
    wall, energy = time.perf_counter() - started, {}
    for name, step in contenders.items():
        meter, count = Meter(device), 3 if device.type == "cpu" else 10
        for number in range(count):
            step(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent = meter.spent()["joules"]
        energy[name] = spent / count if spent is not None else None
    case = bench._case(settings, "uniform")
    rows = []
    for name in names:
        row = bench._row(name, seconds, counted, case.optim.batch_size)
        row |= {"flop_a_step": counted[name], "joules_a_step": energy[name],
                "mfu": counted[name] / row["seconds"] / peak_flops(device)}  # fmt: skip
        rows.append(row)
    by_name = {row["name"]: row for row in rows}
    met = {"uniform_mfu": by_name["uniform"]["mfu"] >= TARGETS["uniform_mfu"]}
    for name in ("jest", "flexi"):
        if name in by_name:
            key = f"{name}_over_counted"
            met[key] = by_name[name]["over_counted"] <= TARGETS[key]
    if "open_clip" in by_name:
        met["as_fast_as_open_clip"] = by_name["open_clip"]["ratio"] >= 1
    return {
        "rows": rows, "rounds": rounds, "targets": TARGETS, "met": met,
        "peak_flops": peak_flops(device), "batch_size": case.optim.batch_size,
        "super_batch_size": bench._case(settings, "jest").super_batch_size,
        "image_size": case.data.image_size, "context_length": case.data.context_length,
        "model": case.model.model_dump(mode="json"), "engine": case.engine.model_dump(mode="json"),
        "seconds_with_warm_up": wall,
        "memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }  # fmt: skip


def from_memory(
    settings: dict[str, Any], method: str, rounds: int, device: torch.device
) -> dict[str, Any]:
    """A step that draws its candidates from a decoded store in the machine's own memory."""
    case = bench._case(settings, method)
    drawing = StoreDrawing([_random_part(case)], [case.super_batch_size], case.seed)
    waited: list[float] = []

    def draw(number: int) -> Any:
        started = time.perf_counter()
        found = drawing(number)
        waited.append(time.perf_counter() - started)
        return found

    step, counted = bench._ours(case, device, draw=draw)
    seconds = bench._take_turns({method: step}, rounds, device)[method]
    median = statistics.median(seconds)
    flops = forward_flops(
        bench.build_model(case.model, case.data, case.model.patch_sizes[:1], 0),
        case.data.image_size, case.data.context_length,
    )  # fmt: skip
    return {
        "seconds": median, "draw_seconds": statistics.median(waited[2:]),
        "examples_per_second": case.optim.batch_size / median,
        "mfu": counted / median / peak_flops(device), "flop_a_forward": flops.full,
        "batch_size": case.optim.batch_size, "super_batch_size": case.super_batch_size,
    }  # fmt: skip


def _random_part(case: Run, least: int = 8192) -> Part:
    """A store of random pixels in memory, of at least a super-batch."""
    n, size, data = max(case.super_batch_size, 64), case.data.image_size, case.data
    n = max(n, least if size > 64 else 0)
    dice = np.random.default_rng(0)
    images = dice.integers(0, 256, (n, size, size, 3), np.uint8)
    tokens = dice.integers(1, data.vocab_size - 2, (n, data.context_length)).astype(np.int32)
    tokens[:, -1] = data.vocab_size - 1
    store = Store(
        Path("/nowhere"), images, tokens, np.arange(n + 1), {}, {"levels": ()},
        np.zeros(n, np.uint32), {"identity": "random"},
    )  # fmt: skip
    return Part(store, np.arange(n), "pool", 1)
