"""`jest bench train`: a step's time by method against its counted FLOPs, and open_clip's own loop.

Random pixels and tokens, so that nothing but the step is measured. The contenders take turns, one
step each a round; medians over the rounds. On a CPU seconds are the processor's (other jobs on it
do not count), on a GPU the wall clock's between synchronisations.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.loss import SigLipLoss
from rich.console import Console
from rich.table import Table

from jestcli.config import METHODS, Run, make_run, merge
from jestcli.data.loader import SuperBatch
from jestcli.models.flops import forward_flops, step_cost
from jestcli.models.towers import Clip, build_model
from jestcli.runs.environment import environment
from jestcli.training.augment import normalise
from jestcli.training.checkpoint import write_atomic, write_json
from jestcli.training.clock import Stopwatch, peak_flops
from jestcli.training.distributed import DistEnv
from jestcli.training.energy import EnergyMeter
from jestcli.training.engine import make_trainee
from jestcli.training.gradients import autocast
from jestcli.training.optimiser import learning_rate, make_optimiser
from jestcli.training.step import encode_pairs, select_sub_batch, train_step

LIMITS = {"jest": 1.1, "flexi": 1.2}  # measured over counted cost, at most
Step = Callable[[int], None]
CONTENDERS = ("uniform", "jest", "flexi", "open_clip")


def run(
    settings: dict[str, Any], rounds: int, device: torch.device, out: Path | None, console: Console
) -> dict[str, Any]:
    """Measure, print a table and write JSON (and the table, as Markdown) if `out` is given."""
    result = measure(settings, rounds, device)
    console.print(_table(result))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
        write_atomic(out.with_suffix(".md"), _markdown(result).encode())
        console.print(f"wrote {out} and {out.with_suffix('.md')}")
    return result


def measure(
    settings: dict[str, Any],
    rounds: int,
    device: torch.device,
    names: tuple[str, ...] = CONTENDERS,
    resident: bool = False,
) -> dict[str, Any]:
    """Each contender's row (see `_row`), and what it was measured on.

    names: "uniform", the others are relative to it, comes first. resident: the candidates lie on
    the device, as in a run whose data fit there. mfu is of the device's peak (`peak_flops`); joules
    are those of every GPU of the machine, over ten steps of one contender alone.
    """
    contenders: dict[str, Step] = {}
    counted: dict[str, float] = {}
    for name in names:
        if name == "open_clip":
            contenders[name] = _open_clips(_case(settings, "uniform"), device)
            counted[name] = counted["uniform"]
        else:
            contenders[name], counted[name] = _ours(_case(settings, name), device, resident)
    seconds = _take_turns(contenders, rounds, device)
    case, peak = _case(settings, "uniform"), peak_flops(device)
    rows = []
    for name, step in contenders.items():
        row = _row(name, seconds, counted, case.optim.batch_size)
        row |= {"flop_a_step": counted[name], "mfu": counted[name] / row["seconds"] / peak}
        rows.append(row | ({"joules_a_step": _joules(step)} if device.type == "cuda" else {}))
    return {
        "device": str(device),
        "clock": "processor seconds" if device.type == "cpu" else "wall seconds",
        "batch_size": case.optim.batch_size,
        "super_batch_size": _case(settings, "jest").super_batch_size,
        "model": case.model.model_dump(mode="json"),
        "image_size": case.data.image_size,
        "context_length": case.data.context_length,
        "engine": case.engine.model_dump(mode="json"),
        "rounds": rounds,
        "peak_flops": peak,
        "memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "environment": {k: v for k, v in environment().items() if k != "platform"},
        "rows": rows,
    }


def _joules(step: Step, count: int = 10) -> float | None:
    """Of the machine's GPUs, a step; None where none counts them."""
    meter = EnergyMeter()
    for number in range(count):
        step(number)
    torch.cuda.synchronize()
    read = meter.read() or {}
    gpus = [joules for name, joules in read.items() if name.startswith("gpu:")]
    return sum(gpus) / count if gpus else None


def _case(settings: dict[str, Any], method: str) -> Run:
    base = merge(METHODS[method], settings)
    if method != "uniform":
        base["reference"] = merge(METHODS["curated"], settings)
    return make_run(base)


def _candidates(case: Run, seed: int) -> SuperBatch:
    dice, n = np.random.default_rng(seed), case.super_batch_size
    images = dice.integers(0, 256, (n, 3, case.data.image_size, case.data.image_size), np.uint8)
    tokens = dice.integers(1, case.data.vocab_size - 2, (n, case.data.context_length))
    tokens[:, -1] = case.data.vocab_size - 1
    rows = np.arange(n)
    return SuperBatch(
        np.zeros(n, np.int64), rows, rows, torch.from_numpy(images), torch.from_numpy(tokens), str
    )


def _ours(case: Run, device: torch.device, resident: bool = False) -> tuple[Step, float]:
    """The suite's step on the same random candidates every time, reference embeddings cached, and
    its counted FLOPs (what it executes)."""
    flexible = case.selection.low_res_share > 0
    patches = case.model.patch_sizes if flexible else case.model.patch_sizes[:1]
    learner = build_model(case.model, case.data, patches, 0, loss=case.optim.loss)
    flops = forward_flops(learner, case.data.image_size, case.data.context_length)
    world, drawn = DistEnv(device=device), _candidates(case, 0)
    if resident:
        images, tokens = drawn.images.to(device), drawn.tokens.to(device)
        drawn = replace(drawn, images=images, tokens=tokens)
    trainee = make_trainee(learner, case, world)
    optimiser = make_optimiser(learner, case.optim)
    reference = None
    if case.selection.sampler != "uniform":
        model = build_model(case.model, case.data, case.model.patch_sizes[:1], 1)
        model.to(device)
        cached = encode_pairs(model, drawn.images, drawn.tokens, None, case.engine.scoring_batch)
        del model
        reference = lambda _: cached  # noqa: E731

    def step(number: int) -> None:
        choice = select_sub_batch(learner, reference, drawn, case, number, world=world)
        train_step(trainee, optimiser, drawn, choice.index, case, number, world)

    return step, step_cost(case, flops, None).cached


def _open_clips(case: Run, device: torch.device) -> Step:
    """open_clip's training step on its own model class, with the same towers and batch.

    As open_clip_train does it: forward of the CLIP module, SigLipLoss, backward, clipped gradient,
    AdamW without weight decay on vectors, the temperature clamped; autocast (its amp_bf16) and
    compiled (its --torchcompile) where the run says so. Its images come ready, as its
    loader's workers deliver them; the suite's step normalises and augments them itself.
    """
    patches = case.model.patch_sizes[:1]
    clip: Clip = build_model(case.model, case.data, patches, 0)
    model = clip.clip
    model.visual = model.visual.visual  # the plain tower under the flexible one
    model.to(device)
    drawn = _candidates(case, 0)
    images, tokens = normalise(drawn.images).to(device), drawn.tokens.to(device)
    named = list(model.named_parameters())
    vectors = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n]
    known = {id(p) for p in vectors}
    others = [p for _, p in named if id(p) not in known]
    optimiser = torch.optim.AdamW(
        [
            {"params": vectors, "weight_decay": 0.0},
            {"params": others, "weight_decay": case.optim.weight_decay},
        ],
        lr=case.optim.lr,
        betas=(0.9, case.optim.beta2),
    )
    loss_of = SigLipLoss()
    forward = torch.compile(model) if case.engine.compile else model

    def step(number: int) -> None:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(number, case.optim)
        optimiser.zero_grad()
        with autocast(case, device):
            image, text, scale, *bias = forward(images, tokens)
            loss = loss_of(image, text, scale, *bias)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), case.optim.clip_norm, norm_type=2.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        float(loss.detach())

    return step


def _take_turns(
    contenders: dict[str, Step], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each round's step, after two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-2, rounds):
        for name, step in contenders.items():
            watch = Stopwatch(device)
            with watch("update"):
                step(number + 2)
            if number >= 0:
                seconds[name].append(watch.seconds["update"])
    return seconds


def _row(
    name: str, seconds: dict[str, list[float]], counted: dict[str, float], batch: int
) -> dict[str, Any]:
    """Medians; the ratio to uniform is the median over rounds of the same round's ratio."""
    mine = seconds[name]
    ratios = [a / b for a, b in zip(mine, seconds["uniform"], strict=True)]
    measured, expected = statistics.median(ratios), counted[name] / counted["uniform"]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [measured] * 3
    return {
        "name": name,
        "seconds": statistics.median(mine),
        "examples_per_second": batch / statistics.median(mine),
        "ratio": measured,
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "counted_ratio": expected,
        "over_counted": measured / expected,
        "limit": LIMITS.get(name),
    }


COLUMNS = (
    "step",
    "s",
    "examples/s",
    "time, of uniform",
    "quartiles",
    "FLOPs, of uniform",
    "time / FLOPs",
    "at most",
    "of peak",
)


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["ratio_quartiles"]
    return [
        row["name"],
        f"{row['seconds']:.4f}",
        f"{row['examples_per_second']:,.0f}",
        f"{row['ratio']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row['counted_ratio']:.2f}",
        f"{row['over_counted']:.2f}",
        f"{row['limit']:.1f}" if row["limit"] else "",
        f"{100 * row['mfu']:.0f} %",
    ]


def _title(result: dict[str, Any]) -> str:
    return (
        f"Training steps on {result['device']}: b = {result['batch_size']}, "
        f"B = {result['super_batch_size']}, {result['rounds']} rounds, {result['clock']}"
    )


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=_title(result), title_justify="left")
    for k, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="right" if k else "left")
    for row in result["rows"]:
        table.add_row(*_cells(row))
    return table


def _markdown(result: dict[str, Any]) -> str:
    about = result["environment"]
    lines = [
        "# `jest bench train`",
        "",
        f"{_title(result)}. {about['cpu']}, {about['cores']} cores, "
        f"{about['threads']} thread, torch {about['packages']['torch']}, commit {about['commit']}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(_cells(row)) + " |" for row in result["rows"]),
        "",
        "One step each in turn; medians. The reference's embeddings are cached. FLOPs are those "
        "that the step executes (the reference-cached convention without re-use). open_clip's "
        "step gets its images ready as floats, as from its loader's workers; the suite's "
        "normalises and augments bytes within the measured time. Settings: "
        f"`{json.dumps(result['engine'])}`.",
        "",
    ]
    return "\n".join(lines)
