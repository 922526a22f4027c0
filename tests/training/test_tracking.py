"""What Weights & Biases is told, with a stand-in for it: no network, no account."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tiny import tiny_run
from toy import train_run

from jestcli.commands.options import _wandb_mode
from jestcli.config import ConfigError
from jestcli.runs.workspace import Workspace
from jestcli.training.signals import Interrupted
from jestcli.training.tracking import SETTINGS, ignore, tracker
from jestcli.utils import extras


class Wandb:
    """A server that keeps what it is told: run id -> (step, record)."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **given: Any) -> Any:
        self.begun.append(given)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, record: dict[str, Any], step: int) -> None:
        self.logged.append((step, record))

    def finish(self) -> None:
        self.finished += 1

    def Image(self, path: str) -> tuple[str, bytes]:
        return "image", Path(path).read_bytes()[:4]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    server = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", server)  # type: ignore[arg-type]
    return server


def test_off_loads_nothing(wandb: Wandb, tmp_path: Path) -> None:
    with tracker("off", tmp_path, "x", tiny_run()) as track:
        assert track is ignore
    assert not wandb.begun


def test_a_resumed_run_goes_on_in_the_same_one(
    wandb: Wandb, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and started again: one id, every step once, pictures at the evaluations."""
    run = tiny_run("jest", evaluation={"points": 3})
    assert run.reference is not None
    train_run(run.reference, workspace, "reference", lambda *_: None)
    assert not wandb.begun

    def stop_at_two(done: int, total: int, line: str) -> None:
        if (done, total) == (2, run.optim.steps):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_run(run, workspace, "jest", stop_at_two, "online")
    assert wandb.finished == 1, "finished although it was stopped"
    train_run(run, workspace, "jest", lambda *_: None, "online")
    first, second = wandb.begun
    assert first == second and first["id"] == workspace.folder(run).name
    assert first["resume"] == "allow" and first["mode"] == "online"
    assert first["config"] == run.model_dump(mode="json") and wandb.finished == 2
    pictures = {step: r["selected"] for step, r in wandb.logged if "selected" in r}
    assert set(pictures) == {1, 2, 4} and set(pictures.values()) == {("image", b"\x89PNG")}
    steps = [step for step, _ in wandb.logged]
    assert steps == sorted(steps), "W&B drops what comes late"
    scores = [step for step, r in wandb.logged if any(k.startswith("scores/") for k in r)]
    assert scores == [1, 2, 4]
    losses = [r for _, r in wandb.logged if "loss" in r]
    assert len(losses) == 1 and {"lr", "speed/examples_per_second"} <= set(losses[0])
    assert all(isinstance(v, int | float | tuple) for _, r in wandb.logged for v in r.values())


def test_project_and_the_like_are_settings(
    wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SETTINGS.values():
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(extras, "need", lambda _: None)
    assert _wandb_mode("offline,project=icons,tags=a+b") == "offline"
    assert os.environ["WANDB_TAGS"] == "a,b" and "WANDB_ENTITY" not in os.environ
    with tracker("offline", tmp_path, "x", tiny_run()):
        assert wandb.begun[0]["project"] == "icons"
    for word, message in (("online,projct=x", "did you mean project"), ("onlin", "mean online")):
        with pytest.raises(ConfigError, match=message):
            _wandb_mode(word)


def test_tensorboard_gets_the_same_records(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (4, 4)).save(tmp_path / "sheet.png")
    with tracker("tensorboard", tmp_path, "x", tiny_run()) as track:
        track({"step": 3, "loss": 0.5, "wrong": [0.4, 0.1], "selected": tmp_path / "sheet.png"})
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    found = {tag: [(x.step, x.value) for x in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert found["loss"] == [(3, 0.5)] and found["wrong/chosen"] == [(3, pytest.approx(0.1))]
    assert read.Tags()["images"] == ["selected"]
