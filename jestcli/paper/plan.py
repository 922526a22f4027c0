"""What runs would cost, counted before anything runs: `jest plan`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from jestcli.config import Run
from jestcli.models.flops import (
    ForwardFlops,
    Memory,
    forward_flops,
    per_iteration,
    run_cost,
    step_cost,
    training_memory,
)
from jestcli.paper.experiment import Job
from jestcli.runs.reference import reference_view
from jestcli.runs.trained import learner_flops, new_learner, on_meta
from jestcli.utils.io import save_text
from jestcli.utils.tables import Table

CONVENTIONS = {
    "cached_reuse": "reference cached, forwards of the chosen pairs re-used "
    "(the paper's 233 %; at low resolution it re-uses none)",
    "cached_text_reuse": "reference cached, only the text forwards of the chosen pairs re-used "
    "(they are the same at every image resolution)",
    "cached": "reference cached, nothing re-used: what runs here",
    "uncached_reuse": "reference not cached, forwards of the chosen pairs re-used",
    "uncached": "reference not cached, nothing re-used",
    "charged": "cached, plus the reference's own training and its one pass over the pairs seen",
}
CALIBRATION_FLOPS = 1.5e11  # about so many in the step that is timed, one pair at least


@dataclass(frozen=True)
class Plan:
    """One run: counts, FLOPs and bytes. percent: of a uniform full-resolution step of the same
    model, by convention; flops: of the whole run; seconds: None where it was not estimated."""

    name: str
    steps: int
    batch_size: int
    super_batch_size: int
    examples_trained: int
    examples_seen: int
    parameters: int
    per_example: ForwardFlops
    percent: dict[str, float]
    flops: dict[str, float]
    memory_bytes: int
    seconds: float | None


class Counted(NamedTuple):
    """What a run's towers take, counted on the meta device."""

    flops: ForwardFlops
    memory: Memory
    parameters: int


_COUNTED: dict[str, Counted] = {}


def counted(run: Run) -> Counted:
    """Counted once for all runs of the same towers."""
    selection, sizes = run.selection, (run.data.image_size, run.data.context_length)
    low = (selection.low_res_scoring, selection.low_res_share > 0)
    key = repr((run.model, sizes, low, selection.approximation, selection.keep_tokens))
    if key not in _COUNTED:
        model = on_meta(run)
        each = forward_flops(model, *sizes), training_memory(model, *sizes)
        _COUNTED[key] = Counted(*each, sum(p.numel() for p in model.parameters()))
    return _COUNTED[key]


def make_plans(
    jobs: list[Job], pool_size: int | None = None, devices: int = 1, timed: bool = True
) -> list[Plan]:
    """A plan of every job, from models on the meta device. pool_size: pairs of the pool (a cache
    scores each once); None: no pair comes twice. devices: data-parallel ones that share a batch.
    timed: time a calibration step on this machine, and estimate seconds from it."""
    rates: dict[str, tuple[float, float]] = {}
    return [_plan(job, pool_size, devices, rates if timed else None) for job in jobs]


def _plan(
    job: Job, pool_size: int | None, devices: int, rates: dict[str, tuple[float, float]] | None
) -> Plan:
    run, (flops, memory, parameters) = job.run, counted(job.run)
    steps, b, share = run.optim.steps, run.optim.batch_size, run.selection.low_res_share
    seen, reference, spent = run.candidates_before(steps), None, 0.0
    pool = min(seen, pool_size or seen)
    if run.reference is not None:
        reference, training = counted(run.reference).flops, run.reference.optim.steps
        spent = run_cost(run.reference, training, reference, None, 0.0, pool).cached
        if view := reference_view(run):  # at the resolution at which `run` would read it
            model = on_meta(run.reference)
            model.set_low(view)
            reference = learner_flops(run, model)
    cost = run_cost(run, steps, flops, reference, spent, pool)
    one, whole = step_cost(run, flops, reference), 3 * b * flops.full * steps
    percent = per_iteration(run, flops, reference) | {"charged": 100 * cost.charged / whole}
    more = {"cached_text_reuse": percent["cached_text_reuse"] / 100 * whole}
    more["uncached_reuse"] = cost.uncached_reuse
    seconds = None
    if rates is not None:
        key = run.model.model_dump_json() + run.data.model_dump_json()
        rates[key] = training_rate, scoring_rate = rates.get(key) or calibrate(run, flops)
        plain = run.selection.model_copy(update={"sampler": "uniform"})
        alone = run.model_copy(update={"selection": plain})  # the same training, no selection
        trained = step_cost(alone, flops, None).cached
        seconds = trained / training_rate + (one.cached - trained) / scoring_rate
        seconds *= steps / devices
    return Plan(
        name=job.name,
        steps=steps,
        batch_size=b,
        super_batch_size=run.super_batch_size,
        examples_trained=steps * b,
        examples_seen=seen,
        parameters=parameters,
        per_example=flops,
        percent=percent,
        flops=cost.as_dict() | more,
        memory_bytes=memory.training(-(-b // devices), share),
        seconds=seconds,
    )


def calibrate(run: Run, flops: ForwardFlops) -> tuple[float, float]:
    """FLOP/s of training and of scoring, timed on the real model with a few random pairs. One
    warm-up, one measurement: an order of magnitude, on whatever else the machine does now."""
    from jestcli.training.loss import contrastive_loss

    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = max(1, min(run.optim.batch_size, round(CALIBRATION_FLOPS / (3 * flops.full))))
    model = run.model.model_copy(update={"pretrained": None})
    learner = new_learner(run.model_copy(update={"model": model})).to(device)
    images = torch.rand(n, 3, run.data.image_size, run.data.image_size, device=device)
    tokens = torch.ones(n, run.data.context_length, dtype=torch.long, device=device)

    def train() -> None:
        image, text, scale, bias = learner(images, tokens)
        contrastive_loss(image, text, scale, bias, run.optim.loss).backward()

    @torch.no_grad()
    def score() -> None:
        learner(images, tokens)

    return 3 * n * flops.full / _seconds(train), n * flops.full / _seconds(score)


def _seconds(call: Callable[[], None]) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(2):
        wait()
        start = time.perf_counter()
        call()
        wait()
        seconds = time.perf_counter() - start
    return seconds


def tables(plans: list[Plan]) -> list[Table]:
    """The runs in examples, memory and time; GFLOP of one pair; an iteration in % of a uniform one
    and the whole run in TFLOP, by convention."""
    runs, pairs, iterations, totals = [], [], [], []
    for p in plans:
        counts = [f"{n:,}" for n in (p.steps, p.examples_trained, p.examples_seen)]
        sizes = [f"{p.parameters / 1e6:.3g}", f"{p.memory_bytes / 1e9:.3g}", duration(p.seconds)]
        runs.append([p.name, *counts, *sizes])
        pairs.append([p.name, *(f"{x / 1e9:.3g}" for x in asdict(p.per_example).values())])
        iterations.append([p.name, *(f"{p.percent[c]:.1f}" for c in CONVENTIONS)])
        totals.append([p.name, *(f"{p.flops[c] / 1e12:.4g}" for c in CONVENTIONS)])
    counted = ["run", "steps", "trained", "seen", "M params", "GB a device", "time"]
    conventions = ["run", *(c.replace("_", " ") for c in CONVENTIONS)]
    return [
        Table("Runs, in pairs", counted, runs),
        Table("GFLOP of one pair", ["run", "image", "image low", "text"], pairs),
        Table("An iteration, % of a uniform one's FLOPs", conventions, iterations),
        Table("The whole run, TFLOP", conventions, totals),
    ]


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, size in (("years", 31_557_600), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def notes(run: Run, devices: int, timed: bool) -> list[str]:
    """How every number came about, one sentence each."""
    tower = run.model.name or "the suite's own towers"
    device = "one GPU" if torch.cuda.is_available() else "one process on this CPU"
    patches = f"patches of {'/'.join(map(str, run.model.patch_sizes))} px, "
    lines = [
        f"Model: {tower}, images of {run.data.image_size} px, "
        f"{patches if run.model.flexible and run.model.tower == 'vit' else ''}"
        f"text of {run.data.context_length} tokens.",
        "FLOPs: torch's counter over the real modules, one multiply-add being two; a training step "
        "is three forward passes; % is of a uniform step of the same model at full resolution.",
        *(f"{name.replace('_', ' ')}: {words}." for name, words in CONVENTIONS.items()),
        f"Memory: float32 weights, gradients and AdamW's moments, and what autograd keeps of a "
        f"batch over {devices} device(s), no gradient checkpointing: an upper estimate, for "
        "attention matrices are counted that fused kernels never store; bf16 takes about half of "
        "the activations.",
    ]
    if timed:
        lines.append(
            f"Time: from one training and one scoring step of the real model timed on {device}, "
            f"over {devices} device(s); loading, selection and evaluation are not in it."
        )
    return lines


def write(path: Path, title: str, plans: list[Plan], lines: list[str]) -> list[Path]:
    """The plan as Markdown and JSON beside each other; returns both paths."""
    parts = [f"## {table.title}\n\n{table.markdown()}" for table in tables(plans)]
    text = "\n\n".join([f"# {title}", *parts, "\n".join(f"- {line}" for line in lines)]) + "\n"
    made = [path.with_suffix(".md"), path.with_suffix(".json")]
    save_text(made[0], text)
    save_text(made[1], json.dumps({"notes": lines, "plans": [asdict(p) for p in plans]}, indent=1))
    return made
