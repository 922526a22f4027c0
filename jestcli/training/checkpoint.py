"""Checkpoints: one safetensors file, written atomically, read without unpickling anything."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from jestcli.training.engine import like, whole
from jestcli.utils.io import replacing
from jestcli.utils.reading import parse_json

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
logger = logging.getLogger(__name__)


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message is one line for the user."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write and sync beside `path`, then rename: a reader sees the old or the new, never half."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def save_model(path: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """Weights alone, with `about` as the file's metadata."""
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    write_atomic(path, pack(tensors, about))


def pack(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """A file's content. The checksum finds what safetensors does not see: changed numbers, in the
    tensors and in `about`."""
    text = json.dumps({**about, "checksum": checksum(tensors, json.dumps(about))})
    return save(tensors, {"about": text})  # one entry: of several, the order on disk is random


def checksum(tensors: dict[str, Tensor], text: str | None) -> str:
    """CRC-32 of `text` and of every tensor's name, type, shape and bytes, by name; without a text
    of the bytes alone, as earlier versions wrote it into `about`."""
    crc = 0 if text is None else zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        if text is not None:
            crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        crc = zlib.crc32(content.numpy().data, crc)
    return f"{crc:08x}"


def training_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and AdamW's moments by name, whole. With shards every rank must ask."""
    tensors = {f"model.{k}": whole(v).contiguous() for k, v in model.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optim.{i}.{k}": whole(v).contiguous() for k, v in state.items()}
    return tensors


@dataclass(frozen=True)
class Checkpoints:
    """The training checkpoints in a run directory.

        checkpoint.safetensors            the newest: what a restart goes on from
        checkpoints/step-00000100.safetensors, ...   the last `keep`, if more than one
        best.safetensors                  the one with the best mean score so far

    Each holds weights, the optimiser's state and, as JSON in its header, what rebuilds the rest:
    the run's settings, the step (from which data order and every random draw follow), the length
    of metrics.jsonl, seconds, cost and skipped steps so far."""

    folder: Path
    keep: int = 1

    def write(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        newest = self.folder / CHECKPOINT
        write_atomic(newest, pack(tensors, about))
        if self.keep > 1:
            older = self.folder / "checkpoints"
            older.mkdir(exist_ok=True)
            _link(newest, older / f"step-{about['step']:08d}.safetensors")
            for path in self._kept()[self.keep :]:
                path.unlink()
        best = about.get("best")
        if best and best["step"] == about["step"]:
            _link(newest, self.folder / BEST)

    def load(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """Fill both from the newest checkpoint that can be read; its `about`, or {} without one.

        Raises CheckpointError if there are some and none can be read."""
        newest = self.folder / CHECKPOINT
        problem = None
        for path in [*([newest] if newest.exists() else []), *self._kept()]:
            try:
                about = load_training(path, model, optimiser)
            except CheckpointError as error:
                problem = problem or error
                continue
            if problem:
                logger.warning("%s; going on from step %d (%s)", problem, about["step"], path.name)
            return about
        if problem:
            raise CheckpointError(f"{problem}; delete {self.folder} to start the run again")
        return {}

    def _kept(self) -> list[Path]:
        """Older checkpoints, newest first."""
        return sorted((self.folder / "checkpoints").glob("step-*.safetensors"), reverse=True)


def _link(source: Path, target: Path) -> None:
    """Another name for a file that will be replaced, never changed; a copy where links fail."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors by name, and `about`. Raises CheckpointError.

    A file of an earlier version, whose checksum lies within `about`, is read with that checksum,
    which covers the tensors alone; a file without any is refused."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = parse_json(header.get("about", "{}"))
        if not isinstance(about, dict):
            raise ValueError("its header is damaged")
        known = header.get("crc32") or about.pop("checksum", None)
        if known is not None:
            found = checksum(tensors, json.dumps(about))
        elif (known := about.pop("crc32", None)) is not None:
            found = checksum(tensors, None)
        else:
            raise ValueError("it has no checksum")
        if known != found:
            raise ValueError("its numbers have changed on disk")
        return tensors, about
    except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot use checkpoint {path}: {_first_line(error)}") from None


def step_of(path: Path) -> int:
    """The step that a training checkpoint holds, from its header alone; 0 if that says none."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(parse_json((file.metadata() or {})["about"])["step"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return 0


def load_model(path: Path, model: nn.Module) -> dict[str, Any]:
    """Fill `model` from a file of save_model or Checkpoints; returns its `about`."""
    tensors, about = read(path)
    _fill_model(path, tensors, model)
    return about


def _fill_model(path: Path, tensors: dict[str, Tensor], model: nn.Module) -> None:
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        current = model.state_dict()
        model.load_state_dict({k: like(v, current.get(k)) for k, v in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model: {_first_line(error)}") from None


def load_training(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill `model` and `optimiser`; returns `about`. Raises CheckpointError."""
    tensors, about = read(path)
    check_state(path, about)
    fill_training(path, tensors, model, optimiser)
    return about


def check_state(path: Path, about: dict[str, Any]) -> None:
    """Raise CheckpointError unless `about` says where a training stands (no old checksum does)."""

    def count(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    def numbers(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(x, int | float) for x in value.values())

    best = about.get("best")
    counts = ("step", "bad_steps", "below", "metrics_bytes")
    wrong = [key for key in counts if not count(about.get(key, 0))]
    wrong += [key for key in ("seconds", "joules") if not numbers(about.get(key, {}))]
    if best is not None and not (numbers(best) and {"step", "mean"} <= best.keys()):
        wrong.append("best")
    if wrong or "step" not in about:
        which = wrong[0] if wrong else "step"
        raise CheckpointError(f"cannot use checkpoint {path}: its {which} is damaged or missing")


def fill_training(
    path: Path, tensors: dict[str, Tensor], model: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Fill both from what `read` found in `path`. Raises CheckpointError."""
    _fill_model(path, tensors, model)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    try:
        for name, tensor in tensors.items():
            if name.startswith("optim."):
                _, i, key = name.split(".")
                target = None if tensor.ndim == 0 else parameters[int(i)]
                state.setdefault(int(i), {})[key] = like(tensor, target)
        optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    except (ValueError, IndexError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit the optimiser: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
