"""Optional tracking by Weights & Biases or TensorBoard; metrics.jsonl is always written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jestcli.config import Run

Track = Callable[[dict[str, Any]], None]
MODES = {"off": "", "offline": "wandb", "online": "wandb", "tensorboard": "tensorboard"}  # package
SETTINGS = {  # wandb's own names for them in the environment
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "tags": "WANDB_TAGS",
}
PAIRS = {"learnability": ("candidates", "chosen"), "wrong": ("candidates", "chosen")}


def ignore(record: dict[str, Any]) -> None:
    """Track nothing."""


@contextmanager
def tracker(mode: str, folder: Path, label: str, run: Run) -> Iterator[Track]:
    """A function that takes each metrics record. mode: a key of MODES.

    The W&B run is named by the run directory, so a resumed run goes on in the same one."""
    if mode == "off":
        yield ignore
        return
    if mode == "tensorboard":
        with _tensorboard(folder) as write:
            yield write
        return
    # Only where it is asked for: the import takes a second and looks at the network.
    import wandb

    tracked = wandb.init(
        project=os.environ.get(SETTINGS["project"], "jest"),
        id=folder.name,
        name=label,
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        dir=str(folder),
        config=run.model_dump(mode="json"),
    )

    def track(record: dict[str, Any]) -> None:
        pictures = {k: wandb.Image(str(x)) for k, x in record.items() if isinstance(x, Path)}
        tracked.log(_flat(record) | pictures, step=record["step"])

    try:
        yield track
    finally:
        tracked.finish()


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Track]:
    """Records as scalars and pictures in `folder/tensorboard`; a resumed run goes on there."""
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def track(record: dict[str, Any]) -> None:
            for key, value in _flat(record).items():
                writer.add_scalar(key, value, record["step"])
            for key, value in record.items():
                if isinstance(value, Path):
                    with Image.open(value) as picture:
                        pixels = np.asarray(picture.convert("RGB"))
                    writer.add_image(key, pixels, record["step"], dataformats="HWC")

        yield track


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
