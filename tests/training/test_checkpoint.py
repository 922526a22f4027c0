"""Checkpoints: exact round trip, never half-written, never unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import draw, fake_pool, tiny_model, tiny_run

from jestcli.config import Run
from jestcli.models.towers import Clip
from jestcli.training.checkpoint import (
    CheckpointError,
    load_model,
    load_training,
    read,
    save_model,
    save_training,
    write_atomic,
)
from jestcli.training.optimiser import make_optimiser
from jestcli.training.step import update

RUN = tiny_run()


def step(run: Run, model: Clip, optimiser: torch.optim.Optimizer, number: int) -> float:
    drawn = draw([fake_pool()], [8], 0, number)
    return update(model, optimiser, drawn, torch.arange(8), run, number)


def trained() -> tuple[Clip, torch.optim.Optimizer]:
    model = tiny_model(RUN)
    optimiser = make_optimiser(model, RUN.optim)
    for number in range(2):
        step(RUN, model, optimiser, number)
    return model, optimiser


def test_training_goes_on_exactly_where_it_was(tmp_path: Path) -> None:
    model, optimiser = trained()
    save_training(tmp_path / "c", model, optimiser, {"step": 2, "seconds": {"draw": 0.5}})
    other = tiny_model(RUN, seed=9)
    restored = make_optimiser(other, RUN.optim)
    assert load_training(tmp_path / "c", other, restored) == {"step": 2, "seconds": {"draw": 0.5}}
    for k, v in model.state_dict().items():
        assert torch.equal(other.state_dict()[k], v), k
    for number in (2, 3):
        assert step(RUN, model, optimiser, number) == step(RUN, other, restored, number)
    for k, v in model.state_dict().items():
        assert torch.equal(other.state_dict()[k], v), k


def test_weights_alone_round_trip_and_can_be_read_from_a_training_checkpoint(
    tmp_path: Path,
) -> None:
    model, optimiser = trained()
    save_model(tmp_path / "m", model, {"run": "abc"})
    save_training(tmp_path / "c", model, optimiser, {"step": 2})
    for name, about in (("m", {"run": "abc"}), ("c", {"step": 2})):
        other = tiny_model(RUN, seed=9)
        assert load_model(tmp_path / name, other) == about
        assert all(torch.equal(other.state_dict()[k], v) for k, v in model.state_dict().items())
    assert not [name for name in read(tmp_path / "m")[0] if not name.startswith("model.")]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    monkeypatch.undo()
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_is_refused_and_executes_nothing(tmp_path: Path) -> None:
    path, mark = tmp_path / "checkpoint.safetensors", tmp_path / "executed"
    torch.save({"model.x": Evil(mark)}, path)
    for content in (path.read_bytes(), pickle.dumps(Evil(mark))):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cannot use checkpoint .*checkpoint") as caught:
            load_model(path, tiny_model(RUN))
        assert not mark.exists() and "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists(), "the bait works"


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    model, optimiser = trained()
    path = tmp_path / "c"
    save_training(path, model, optimiser, {"step": 2})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError) as caught:
        load_training(path, model, optimiser)
    assert "\n" not in str(caught.value)


def test_a_changed_number_is_found(tmp_path: Path) -> None:
    """safetensors itself would load it."""
    model, optimiser = trained()
    save_training(tmp_path / "c", model, optimiser, {"step": 2})
    content = bytearray((tmp_path / "c").read_bytes())
    content[-100] ^= 4
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(CheckpointError, match="its numbers have changed on disk"):
        load_training(tmp_path / "c", model, optimiser)


def test_a_missing_file_and_another_model_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot use checkpoint"):
        read(tmp_path / "none")
    model, _ = trained()
    save_model(tmp_path / "m", model, {})
    wider = tiny_run(model={"width": 32})
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        load_model(tmp_path / "m", tiny_model(wider))
    assert "\n" not in str(caught.value)
