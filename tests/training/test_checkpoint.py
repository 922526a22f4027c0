"""Checkpoints: exact round trip, never half-written, never unpickled."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import draw, fake_pool, tiny_model, tiny_run

from jestcli.config import Run
from jestcli.models.towers import Clip
from jestcli.training.checkpoint import (
    CHECKPOINT,
    CheckpointError,
    Checkpoints,
    checksum,
    load_model,
    load_training,
    pack,
    read,
    save_model,
    training_tensors,
    write_atomic,
)
from jestcli.training.optimiser import make_optimiser
from jestcli.training.step import train_step

RUN = tiny_run()


def step(run: Run, model: Clip, optimiser: torch.optim.Optimizer, number: int) -> float:
    drawn = draw([fake_pool()], [8], 0, number)
    return train_step(model, optimiser, drawn, torch.arange(8), run, number)


def trained() -> tuple[Clip, torch.optim.Optimizer]:
    model = tiny_model(RUN)
    optimiser = make_optimiser(model, RUN.optim)
    for number in range(2):
        step(RUN, model, optimiser, number)
    return model, optimiser


def save_training(path: Path, model: Clip, optimiser: torch.optim.Optimizer, about: Any) -> None:
    write_atomic(path, pack(training_tensors(model, optimiser), about))


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


def header_changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write `path` again with another header: __metadata__ as `change` leaves it."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def old_format(about: Any) -> Callable[[dict[str, Any]], None]:
    """As earlier versions wrote it: a checksum of the tensors within `about`."""

    def change(metadata: dict[str, Any]) -> None:
        metadata["about"] = json.dumps(about)

    return change


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another step": (lambda m: m.update(about=m["about"].replace("2", "5", 1)), "have changed"),
    "another key": (lambda m: m.update(about=m["about"].replace("step", "stop")), "have changed"),
    "no JSON": (lambda m: m.update(about="{"), "cannot use checkpoint"),
    "no about": (lambda m: m.pop("about"), "it has no checksum"),
    "no checksum": (old_format({"step": 2}), "it has no checksum"),
    "a list": (old_format([1]), "its header is damaged"),
    "nested": (lambda m: m.update(about="[" * 20000), "cannot use checkpoint"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_changed_header_is_found_and_an_older_checkpoint_taken(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimiser = trained()
    kept, change = Checkpoints(tmp_path, keep=2), DAMAGE[kind]
    kept.write(training_tensors(model, optimiser), {"step": 1})
    (tmp_path / CHECKPOINT).unlink()
    save_training(tmp_path / CHECKPOINT, model, optimiser, {"step": 2})
    header_changed(tmp_path / CHECKPOINT, change[0])
    with pytest.raises(CheckpointError, match=change[1]) as caught:
        load_training(tmp_path / CHECKPOINT, model, optimiser)
    assert "\n" not in str(caught.value)
    assert kept.load(model, optimiser) == {"step": 1}
    (line,) = caplog.messages
    assert "going on from step 1" in line and "\n" not in line


def test_the_same_weights_are_the_same_bytes() -> None:
    tensors = training_tensors(*trained())
    assert len({pack(tensors, {"run": "a", "step": 2}) for _ in range(8)}) == 1


def test_an_old_file_is_read_with_its_own_checksum(tmp_path: Path) -> None:
    model, optimiser = trained()
    path, tensors = tmp_path / "c", training_tensors(model, optimiser)
    right = checksum(tensors, None)

    def written(about: dict[str, Any]) -> Path:
        save_training(path, model, optimiser, {})
        header_changed(path, old_format(about))
        return path

    assert load_training(written({"step": 2, "crc32": right}), model, optimiser) == {"step": 2}
    for about, words in (
        ({"step": 2, "crc32": "00000000"}, "its numbers have changed"),
        ({"crc32": right}, "its step is damaged or missing"),
        ({"step": "2", "crc32": right}, "its step is damaged or missing"),
        ({"step": 2, "seconds": [1], "crc32": right}, "its seconds is damaged"),
        ({"step": 2, "best": {"step": 1}, "crc32": right}, "its best is damaged"),
        ({"step": 2, "metrics_bytes": -1, "crc32": right}, "its metrics_bytes is damaged"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_training(written(about), model, optimiser)


def test_optimiser_tensors_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    model, optimiser = trained()
    tensors = training_tensors(model, optimiser)
    for name in ("optim.x", "optim.999.exp_avg", "optim.0.exp_avg.more"):
        (tmp_path / "c").write_bytes(pack(tensors | {name: torch.zeros(3)}, {"step": 2}))
        with pytest.raises(CheckpointError, match="does not fit the optimiser"):
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
