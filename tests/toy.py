"""The trainer on toy parts: data, reference, scores and costs that a test hands in as functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

import jestcli.train
from jestcli.config import Run
from jestcli.data.loader import SuperBatch
from jestcli.models.flops import Cost
from jestcli.models.towers import Clip
from jestcli.runs.inputs import RunInputs
from jestcli.runs.reference import OpenedReference
from jestcli.runs.workspace import Workspace
from jestcli.train import Trainer
from jestcli.training.distributed import SINGLE_PROCESS, DistEnv
from jestcli.training.reference import Reference
from jestcli.training.step import SubBatch, offered

Report = Callable[[int, int, str], None]


def nothing(*_: Any) -> None:
    """A report that nobody reads."""


class Loader:
    """A function from a step to its super-batch as a loader that never waits."""

    waited, bottleneck = 0.0, ""

    def __init__(self, draw: Callable[[int], SuperBatch]):
        self.draw = draw

    def __call__(self, step: int) -> SuperBatch:
        return self.draw(step)

    def close(self) -> None:
        """Nothing to end."""


class ToyTrainer(Trainer):
    """Its scores are `evaluate(final)`, its costs `cost_after(steps)`."""

    def __init__(self, toys: dict[str, Any], *args: Any, **more: Any):
        self.toys = toys
        super().__init__(*args, **more)

    def open_inputs(self) -> RunInputs:
        draw = self.toys["draw"]
        loader = draw if hasattr(draw, "close") else Loader(draw)
        data = SimpleNamespace(tokenizer=None)
        reference = OpenedReference(self.toys["reference"])
        return RunInputs(self.run, data, loader, reference, [], {}, 0)

    def new_learner(self) -> Clip:
        return self.toys["learner"]

    def scores(self, final: bool) -> dict[str, dict[str, Any]]:
        return self.toys["evaluate"](final)

    def cost_after(self, steps: int) -> Cost:
        return self.toys["cost_after"](steps)

    def draw_chosen(self, super_batch: SuperBatch, choice: SubBatch) -> None:
        if self.toys["show"]:
            there = offered(self.run, super_batch, self.world)
            self.toys["show"](self.step, there, choice.index)

    def finish(self) -> None:
        """Toys have no model to keep."""


class Place(Workspace):
    """A workspace that knows the folder of a run's trunk."""

    def trunk(self, run: Run) -> Path | None:
        return self.__dict__.get("where")


def train(
    run: Run,
    folder: Path,
    learner: Clip,
    draw: Callable[[int], SuperBatch],
    reference: Reference | None,
    evaluate: Callable[[bool], dict[str, dict[str, Any]]],
    cost_after: Callable[[int], Cost],
    report: Report,
    track: Callable[[dict[str, Any]], None],
    world: DistEnv = SINGLE_PROCESS,
    show: Callable[[int, SuperBatch, Tensor], None] | None = None,
    keep_last: int = 1,
    trunk: Path | None = None,
) -> None:
    """Train `learner` on toy parts in `folder`, from its checkpoint if there is one."""
    toys = {
        "learner": learner,
        "draw": draw,
        "reference": reference,
        "evaluate": evaluate,
        "cost_after": cost_after,
        "show": show,
    }
    place = Place()
    place.__dict__["where"] = trunk
    ToyTrainer(toys, run, place, folder, "", report, track, world, keep_last).fit()


def train_run(
    run: Run,
    workspace: Workspace,
    label: str,
    report: Report = nothing,
    wandb: str = "off",
    world: DistEnv = SINGLE_PROCESS,
    keep_last: int = 1,
) -> Path:
    """jestcli.train.train, told to a function."""
    return jestcli.train.train(run, workspace, label, report, wandb, world, keep_last)
