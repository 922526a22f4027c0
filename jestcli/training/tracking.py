"""Optional Weights & Biases tracking; metrics.jsonl is always written, with or without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jestcli.config import Run

Track = Callable[[dict[str, Any]], None]
MODES = ("off", "offline", "online")
PAIRS = {"learnability": ("candidates", "chosen"), "wrong": ("candidates", "chosen")}


def ignore(record: dict[str, Any]) -> None:
    """Track nothing."""


@contextmanager
def tracker(mode: str, folder: Path, label: str, run: Run) -> Iterator[Track]:
    """A function that takes each metrics record. mode: off, offline or online.

    The W&B run is named by the run directory, so a resumed run goes on in the same one.
    """
    if mode == "off":
        yield ignore
        return
    # Only where it is asked for: the import takes a second and looks at the network.
    import wandb

    tracked = wandb.init(
        project="jest",
        id=folder.name,
        name=label,
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        dir=str(folder),
        config=run.model_dump(mode="json"),
    )
    try:
        yield lambda record: tracked.log(
            _flat(record)
            | {key: wandb.Image(str(x)) for key, x in record.items() if isinstance(x, Path)},
            step=record["step"],
        )
    finally:
        tracked.finish()


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """{"a": {"b": 1}} -> {"a/b": 1}, numbers only; pairs of numbers by their names in PAIRS."""
    out: dict[str, float] = {}
    for key, value in record.items():
        if key in PAIRS:
            value = dict(zip(PAIRS[key], value, strict=True))
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            out[f"{prefix}{key}"] = value
    return out
