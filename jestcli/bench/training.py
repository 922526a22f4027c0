"""`jest bench train`: a step's time by method against its counted FLOPs, and open_clip's own loop.

Random pixels and tokens, so that nothing but the step is measured. The contenders take turns, one
step each a round; medians over the rounds. On a CPU seconds are the processor's (other jobs on it
do not count), on a GPU the wall clock's between synchronisations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.loss import SigLipLoss
from rich.console import Console

from jestcli.bench import save
from jestcli.config import Run
from jestcli.data.loader import SuperBatch
from jestcli.models.flops import step_cost
from jestcli.models.towers import Clip, build_model
from jestcli.runs.environment import environment
from jestcli.runs.methods import DEFAULT_PROFILE, default_run
from jestcli.runs.trained import learner_flops, new_learner
from jestcli.training.augment import normalise
from jestcli.training.clock import Stopwatch, Timer, no_timer, peak_flops
from jestcli.training.distributed import DistEnv
from jestcli.training.energy import EnergyMeter
from jestcli.training.engine import make_trainee
from jestcli.training.loss import autocast
from jestcli.training.optimiser import learning_rate, make_optimiser
from jestcli.training.step import encode_pairs, select_sub_batch, train_step
from jestcli.utils.tables import Table

LIMITS = {"jest": 1.05, "flexi": 1.15}  # measured over counted cost, at most
Step = Callable[[int, Timer], None]
CONTENDERS = ("uniform", "jest", "flexi", "open_clip")


def bench_training(
    settings: dict[str, Any],
    rounds: int,
    device: torch.device,
    out: Path | None,
    console: Console,
    profile: str = DEFAULT_PROFILE,
) -> dict[str, Any]:
    """Measure, print a table and write JSON (and the table, as Markdown) if `out` is given."""
    result = measure(settings, rounds, device, profile=profile)
    console.print(table(result))
    for path in save(result, _markdown(result), out):
        console.print(f"wrote {path}")
    return result


def measure(
    settings: dict[str, Any],
    rounds: int,
    device: torch.device,
    names: tuple[str, ...] = CONTENDERS,
    resident: bool = False,
    profile: str = DEFAULT_PROFILE,
) -> dict[str, Any]:
    """Each contender's row (see `_row`), and what it was measured on. names: "uniform", the others
    are relative to it, comes first. resident: the candidates lie on the device, as in a run whose
    data fit there. settings stand on those of the scale profile. mfu is of the device's peak
    (`peak_flops`); joules are those of every GPU of the machine, over ten steps of one contender
    alone."""
    contenders: dict[str, Step] = {}
    counted: dict[str, float] = {}

    def of(method: str) -> Run:
        return default_run(method, settings, 0, profile)

    case, peak = of("uniform"), peak_flops(device)
    for name in names:
        if name == "flexi" and len(case.model.patch_sizes) < 2:
            continue  # it has no low resolution
        if name == "open_clip":
            contenders[name], counted[name] = _open_clips(case, device), counted["uniform"]
        else:
            contenders[name], counted[name] = _ours(of(name), device, resident)
    seconds, selecting = _take_turns(contenders, rounds, device)
    rows = []
    for name, step in contenders.items():
        row = _row(name, seconds, counted, case.optim.batch_size)
        row |= {"flop_a_step": counted[name], "mfu": counted[name] / row["seconds"] / peak}
        row["select_share"] = selecting[name]
        rows.append(row | ({"joules_a_step": _joules(step)} if device.type == "cuda" else {}))
    return {
        "device": str(device),
        "clock": "processor seconds" if device.type == "cpu" else "wall seconds",
        "batch_size": case.optim.batch_size,
        "super_batch_size": of("jest").super_batch_size,
        "model": case.model.model_dump(mode="json"),
        **case.data.model_dump(include={"image_size", "context_length"}),
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
        step(number, no_timer)
    torch.cuda.synchronize()
    gpus = [joules for name, joules in (meter.read() or {}).items() if name.startswith("gpu:")]
    return sum(gpus) / count if gpus else None


def _candidates(case: Run, seed: int) -> SuperBatch:
    rng, n, size = np.random.default_rng(seed), case.super_batch_size, case.data.image_size
    images = torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), np.uint8))
    tokens = rng.integers(1, case.data.vocab_size - 2, (n, case.data.context_length))
    tokens[:, -1] = case.data.vocab_size - 1
    rows, source = np.arange(n), np.zeros(n, np.int64)
    return SuperBatch(source, rows, rows, images, torch.from_numpy(tokens), str)


def _ours(case: Run, device: torch.device, resident: bool = False) -> tuple[Step, float]:
    """The suite's step on the same random candidates every time, reference embeddings cached, and
    its counted FLOPs (what it executes)."""
    learner = new_learner(case)
    flops = learner_flops(case, learner)
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

    def step(number: int, watch: Timer) -> None:
        choice = select_sub_batch(learner, reference, drawn, case, number, world=world, watch=watch)
        train_step(trainee, optimiser, drawn, choice.index, case, number, world)

    return step, step_cost(case, flops, None).cached


def _open_clips(case: Run, device: torch.device) -> Step:
    """open_clip's training step with the same towers (in its own model class where it has them)
    and batch, as open_clip_train does it: forward of the CLIP module, SigLipLoss, backward, clipped
    gradient, AdamW without weight decay on vectors, the temperature clamped; autocast (its
    amp_bf16) and compiled (its --torchcompile) where the run says so. Its images come ready, as
    its loader's workers deliver them; the suite's step normalises and augments them itself."""
    clip: Clip = build_model(case.model, case.data, case.model.patch_sizes[:1], 0)
    model: Any = clip
    if case.model.tower != "cnn":
        model = clip.clip
        model.visual = model.visual.visual  # the plain tower under the flexible one
    model.to(device)
    drawn = _candidates(case, 0)
    images, tokens = normalise(drawn.images).to(device), drawn.tokens.to(device)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": decay} for decay in (case.optim.weight_decay, 0.0)
    ]
    for n, p in model.named_parameters():
        plain = p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n
        groups[plain]["params"].append(p)
    optimiser = torch.optim.AdamW(groups, lr=case.optim.lr, betas=(0.9, case.optim.beta2))
    loss_of = SigLipLoss()
    forward = torch.compile(model) if case.engine.compile else model

    def step(number: int, watch: Timer) -> None:
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
            clip.clip.logit_scale.clamp_(0, math.log(100))
        float(loss.detach())

    return step


def _take_turns(
    contenders: dict[str, Step], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Seconds of each round's step, after two rounds of warm-up, and the median share of a step
    that choosing takes. On a GPU None: to time a part there is to wait for it."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 2):
        for name, step in contenders.items():
            watch = Stopwatch(device)
            with watch("update"):
                step(number, no_timer if device.type == "cuda" else watch)
            total = sum(watch.seconds.values())
            seconds[name].append(total)
            shares[name].append(watch.seconds["select"] / total)
    cpu = device.type == "cpu"
    share = {name: float(np.median(s[2:])) if cpu else None for name, s in shares.items()}
    return {name: spent[2:] for name, spent in seconds.items()}, share


def _row(
    name: str, seconds: dict[str, list[float]], counted: dict[str, float], batch: int
) -> dict[str, Any]:
    """Medians; the ratio to uniform is the median over rounds of the same round's ratio."""
    mine, ratios = seconds[name], np.divide(seconds[name], seconds["uniform"])
    measured, expected = float(np.median(ratios)), counted[name] / counted["uniform"]
    quartiles = np.quantile(ratios, (0.25, 0.75), method="weibull")
    return {
        "name": name,
        "seconds": float(np.median(mine)),
        "examples_per_second": batch / float(np.median(mine)),
        "ratio": measured,
        "ratio_quartiles": [float(x) for x in quartiles],
        "counted_ratio": expected,
        "over_counted": measured / expected,
        "limit": LIMITS.get(name),
    }


def table(result: dict[str, Any]) -> Table:
    """A row a contender."""
    rows = []
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        speed = (f"{row['seconds']:.4f}", f"{row['examples_per_second']:,.0f}")
        ratios = (f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}", f"{row['counted_ratio']:.2f}")
        limit = f"{row['limit']:.2f}" if row["limit"] else ""
        choosing = f"{100 * row['select_share']:.1f} %" if row["select_share"] else ""
        over = (f"{row['over_counted']:.2f}", limit, choosing, f"{100 * row['mfu']:.0f} %")
        rows.append((row["name"], *speed, *ratios, *over))
    title = (
        f"Training steps on {result['device']}: b = {result['batch_size']}, "
        f"B = {result['super_batch_size']}, {result['rounds']} rounds, {result['clock']}"
    )
    columns = ("step", "s", "examples/s", "time, of uniform", "quartiles", "FLOPs, of uniform")
    return Table(title, (*columns, "time / FLOPs", "at most", "choosing", "of peak"), rows)


def _markdown(result: dict[str, Any]) -> str:
    shown, about = table(result), result["environment"]
    return (
        f"# `jest bench train`\n\n{shown.title}. {about['cpu']}, {about['cores']} cores, "
        f"{about['threads']} thread, torch {about['packages']['torch']}, commit {about['commit']}."
        f"\n\n{shown.markdown()}\n\n"
        "One step each in turn; medians. The reference's embeddings are cached. FLOPs are those "
        "that the step executes (the reference-cached convention without re-use). open_clip's "
        "step gets its images ready as floats, as from its loader's workers; the suite's "
        "normalises and augments bytes within the measured time. Peak: on a CPU the speed of a "
        "large float32 matrix product, which convolutions may exceed. Settings: "
        f"`{json.dumps(result['engine'])}`.\n"
    )
