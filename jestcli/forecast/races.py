"""Short annealed races on a sample: which runs, how long, and training them as the suite trains.

Two lengths of every recipe, the second twice the first, branching from one trunk each; the shorter
with two seeds, so that there is a variance; uniform training also four and eight times as long, for
a saving is read off its curve. The reference is trained for twice the longer race.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jestcli.config import ConfigError, Run, make_run, merge
from jestcli.models.flops import step_cost
from jestcli.paper.experiment import Job
from jestcli.paper.plan import calibrate
from jestcli.paper.records import Record, collect
from jestcli.paper.scheduler import plan, run_stages
from jestcli.runs.methods import build_run, read_profile
from jestcli.runs.trained import learner_flops, on_meta
from jestcli.runs.workspace import Workspace

LONGER = 2  # the second length over the first
REFERENCE = 2 * LONGER  # the reference's length over the shorter race
# Lengths over the shorter race; the curated set's own longest is the reference.
LENGTHS = {"uniform": (1, LONGER, 4, 8), "curated": (1, LONGER, REFERENCE)}
FEWEST, MOST = 50, 3_000  # steps of the shorter race
BESIDE = 15.0  # processor seconds of a run beside its steps: imports, opening, evaluation
USED = 0.85  # of the time that is left: calibration is one measurement
RECIPES: dict[str, dict[str, Any]] = {
    "uniform": {"method": "uniform", "optim": {"lr": 0.002}},
    "curated": {"method": "curated"},
    "mixed": {"method": "mixed"},
    "filtered": {"method": "filtered"},
    # A higher rate lets a poor pool undo the reference (docs/protocol.md, trials).
    "finetune": {"method": "finetune", "optim": {"lr": 0.001}},
    "easy": {"method": "easy-reference"},
    "jest": {"method": "jest"},
    "jest-curated": {"method": "jest-curated"},
}
FILTERED_AT_RATIO = ("easy", "jest")  # at the filter ratio that the pool asks for
# Nothing is chosen during training.
SIMPLE = ("uniform", "curated", "mixed", "filtered", "finetune")
UNREFERENCED = ("uniform", "curated", "mixed")


def base_settings(data: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Of every race: the profile cpu's tower and rates, the sample's data, then the user's."""
    settings = {k: v for k, v in read_profile("cpu").items() if k != "reference"}
    if overrides.get("model", {}).keys() & {"name", "tower"}:
        settings.pop("model")
    settings = merge(settings, {"data": data, "evaluation": {"points": 1}})
    return merge(settings, {k: v for k, v in overrides.items() if k not in ("data", "source")})


def keep_of(share: float) -> float:
    """What the filter keeps: a quarter of the pairs that the reference can tell, a fifth at most,
    for a filter that keeps as many pairs as are right keeps many wrong ones (docs/protocol.md)."""
    return round(min(0.2, max(0.05, (1 - share) / 4)), 2)


def ratio_of(share: float) -> float:
    """JEST's filter ratio: .9 where two thirds or more of the pool look wrong. On the map f = .9
    ends some points higher with 80 and 90 % wrong captions, level with 50 (results/map)."""
    return 0.9 if share >= 2 / 3 else 0.8


class Dials(NamedTuple):
    """What the pool decides: the share that the filter keeps, and JEST's filter ratio."""

    keep: float = 0.2
    ratio: float = 0.8


USUAL = Dials()


@dataclass(frozen=True)
class Races:
    """settings: of every run (with reference_model where that is an open_clip model); steps: of the
    shorter race; given: settings of a finished run that is the reference."""

    settings: dict[str, Any]
    steps: int
    dials: Dials = USUAL
    given: dict[str, Any] | None = None

    @property
    def reference(self) -> Run | None:
        if self.settings.get("reference_model"):
            return None
        if self.given is not None:
            return make_run(self.given)
        return self.run("curated", REFERENCE * self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """What is raced: fine-tuning goes on from a reference, which is then the races' own."""
        own = self.given is None and not self.settings.get("reference_model")
        return tuple(name for name in RECIPES if own or name != "finetune")

    @property
    def batch(self) -> int:
        return int(self.settings["optim"]["batch_size"])

    @property
    def lengths(self) -> tuple[int, int]:
        return self.steps, LONGER * self.steps

    def run(self, name: str, steps: int, seed: int = 0) -> Run:
        """Of one recipe."""
        recipe, settings = RECIPES[name], self.settings
        if name == "filtered":
            recipe = merge(recipe, {"source": {"keep": self.dials.keep}})
        # A ratio of the user's own holds for all.
        if name in FILTERED_AT_RATIO and "filter_ratio" not in settings.get("selection", {}):
            recipe = merge(recipe, {"selection": {"filter_ratio": self.dials.ratio}})
        if name in UNREFERENCED:
            settings = {k: v for k, v in settings.items() if k != "reference_model"}
        elif (reference := self.reference) is not None:
            recipe = {**recipe, "reference": reference.model_dump(mode="json")}
        warmup = min(int(settings["optim"]["warmup"]), self.steps // 2)
        own = {"seed": seed, "optim": {"steps": steps, "warmup": warmup}}
        return build_run(merge(recipe, own), settings, {})

    def jobs(self, names: Iterable[str]) -> list[Job]:
        """Every race of these recipes."""
        return [
            Job(name, seed, self.run(name, k * self.steps, seed))
            for name in names
            for seed, lengths in enumerate(_by_seed(name))
            for k in lengths
        ]


def _by_seed(name: str) -> tuple[tuple[int, ...], ...]:
    """The lengths that a recipe is raced at with each seed: half as many with the second."""
    lengths = LENGTHS.get(name, (1, LONGER))
    return lengths, lengths[: len(lengths) // 2]


def choose_steps(races: Races, seconds: float, workers: int) -> int:
    """Steps of the shorter race, so that all of it takes about `seconds` on so many processes, by a
    training and a scoring step timed here. Raises ConfigError where that is too short a time."""
    uniform = races.run("uniform", races.steps)
    flops = learner_flops(uniform, on_meta(uniform))
    training, scoring = calibrate(uniform, flops)
    trained = step_cost(uniform, flops, None).cached
    work, longest, count = 0.0, 0.0, 0
    for name in races.names:
        run = races.run(name, races.steps)
        one = trained / training + (step_cost(run, flops, None).cached - trained) / scoring
        for each in _by_seed(name):  # from one trunk
            chain = one * (0.8 * max(each) + 0.2 * sum(each))
            work, longest, count = work + chain, max(longest, chain), count + len(each)
    left = seconds * USED - BESIDE * count / workers
    steps = int(min(left * workers / work, left / longest))
    if steps < FEWEST:
        least = (FEWEST * work + BESIDE * count) / workers / USED / 60
        raise ConfigError(
            f"too little time: races take {least:.0f} minutes or more at the speed measured here; "
            "give more --minutes, or name the shorter race's length (--set optim.steps=100)"
        )
    return min(steps, MOST)


def train_all(jobs: Sequence[Job], workspace: Workspace, workers: int | None, console: Any) -> None:
    """Whatever of these is not finished, side by side."""
    run_stages(plan(list(jobs), workspace), workspace, workers, console)


def records_of(jobs: Iterable[Job], workspace: Workspace) -> list[Record]:
    """Of finished races."""
    return [collect(workspace.folder(job.run), job.name, job.seed) for job in jobs]
