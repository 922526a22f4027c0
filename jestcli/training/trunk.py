"""What runs of several lengths share: one trunk, from which each branches off to decay.

With warm-up, stable, decay (optim.schedule=wsd) all that a step does before the decay is a function
of the seed and the step. A run leaves a checkpoint where its own decay starts, in a folder that all
lengths share; a longer one that has none of its own goes on from the last of these:

    trunks/NAME/step-00000800.safetensors, ...

A training checkpoint (training/checkpoint.py) that also holds metrics.jsonl up to there, as bytes
(uint8 [n], under METRICS), without evaluations, which other lengths have at other steps. Seconds
and cost go along, so that the records of a branch are those of a run that was trained alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jestcli.config import Run
from jestcli.training.checkpoint import (
    CheckpointError,
    check_state,
    fill_training,
    pack,
    read,
    write_atomic,
)
from jestcli.training.distributed import DistEnv
from jestcli.training.metrics import evaluation_steps
from jestcli.utils.io import sweep

METRICS = "metrics"
logger = logging.getLogger(__name__)


def shared_steps(run: Run) -> int:
    """Up to which step `run` can go on from what another length has trained: its own decay, and
    its first evaluation, have not begun."""
    return max(0, min(run.optim.trunk_steps, min(evaluation_steps(run)) - 1))


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def steps_there(folder: Path, at_most: int) -> list[int]:
    """Steps of a trunk's checkpoints up to `at_most`, the last first."""
    names = [path.stem.removeprefix("step-") for path in folder.glob("step-*.safetensors")]
    steps = (int(name) for name in names if name.isdecimal())
    return sorted((step for step in steps if step <= at_most), reverse=True)


def leave(
    folder: Path, tensors: dict[str, Tensor], about: dict[str, Any], metrics: Path, world: DistEnv
) -> None:
    """Leave the state after about["step"] steps for other lengths, unless it is there."""
    path = path_of(folder, about["step"])
    # Another length left it, with the same bits: writing again would only race with a reader.
    if _usable(path, world):
        return
    # Evaluations lie at other steps in other lengths: a branch makes its own.
    lines = [x for x in metrics.read_bytes().splitlines(True) if "scores" not in json.loads(x)]
    content = np.frombuffer(b"".join(lines), np.uint8).copy()
    about = about | _where(world) | {"best": None, "metrics_bytes": len(content)}
    folder.mkdir(parents=True, exist_ok=True)
    # What a killed write left; an hour old, so not one that is being written now.
    sweep(folder, idle=3600)
    write_atomic(path, pack(tensors | {METRICS: torch.from_numpy(content)}, about))


def take(
    folder: Path, at_most: int, model: nn.Module, optimiser: torch.optim.Optimizer, world: DistEnv
) -> tuple[dict[str, Any], bytes]:
    """Fill both from the last checkpoint that is of use, at step `at_most` or before it.

    Returns its `about` and the lines of metrics.jsonl up to there; {} and nothing without one.
    Rank 0 says which: one that was computed by as many ranks, on the same kind of device."""
    found = ""
    if world.main:
        there = (path_of(folder, step) for step in steps_there(folder, at_most))
        found = next((path.name for path in there if _usable(path, world)), "")
    # Ranks must not look for themselves: a file may appear between two looks.
    found = world.texts(found)[0]
    if not found:
        return {}, b""
    # Read again by every rank: weights are needed everywhere, and the file system is shared.
    tensors, about = read(folder / found)
    content = tensors.pop(METRICS).numpy().tobytes()
    fill_training(folder / found, tensors, model, optimiser)
    return about, content


def _where(world: DistEnv) -> dict[str, Any]:
    """What else the last bits of a training depend on."""
    return {"ranks": world.size, "device": world.device.type}


def _usable(path: Path, world: DistEnv) -> bool:
    try:
        tensors, about = read(path)
        check_state(path, about)
        if path != path_of(path.parent, about["step"]):
            raise CheckpointError(f"cannot use checkpoint {path}: it is of step {about['step']}")
    except CheckpointError as error:
        if path.exists():
            logger.warning("%s; passed over", error)
        return False
    return METRICS in tensors and about.items() >= _where(world).items()
