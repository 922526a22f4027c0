"""Checkpoints: one safetensors file, written atomically, read without unpickling anything."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message is one line for the user."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write and sync beside `path`, then rename: a reader sees the old or the new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def save_model(path: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """Weights alone, with `about` as the file's metadata."""
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    write_atomic(path, save(tensors, {"about": json.dumps(about)}))


def save_training(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, about: dict[str, Any]
) -> None:
    """Weights, AdamW's moments and `about` (the step and what has been spent so far)."""
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optim.{i}.{k}": v.contiguous() for k, v in state.items()}
    write_atomic(path, save(tensors, {"about": json.dumps(about)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors by name, and `about`. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot use checkpoint {path}: {error}") from None


def load_model(path: Path, model: nn.Module) -> dict[str, Any]:
    """Fill `model` from a file of save_model or save_training; returns its `about`."""
    tensors, about = read(path)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model: {_first_line(error)}") from None
    return about


def load_training(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Any]:
    """Fill `model` and `optimiser`; returns `about`."""
    about = load_model(path, model)
    tensors, _ = read(path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optim."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    return about


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
