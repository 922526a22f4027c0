"""An experiment file: named runs over seeds, expanded into checked `Run`s.

    title: what is shown
    claim: what the paper claims;  refuted_if: what would refute it
    base: settings of every run
    references: {name: settings}      # trained on curated data
    runs: {name: {method: ..., reference: name, settings...}}
    seeds: [0, 1, 2]
    quick: {runs: [names], seeds: [0]}   # what `jest reproduce` trains itself
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jestcli.config import (
    METHODS,
    ConfigError,
    Run,
    did_you_mean,
    explain,
    make_run,
    merge,
    needs_reference,
    read_yaml,
)

FOLDER = Path(__file__).parents[2] / "experiments"


class Quick(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    runs: list[str]
    seeds: list[int]


class Experiment(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    claim: str
    refuted_if: str
    base: dict[str, Any] = {}
    references: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]]
    seeds: list[int]
    quick: Quick | None = None


@dataclass(frozen=True)
class Job:
    """One run of an experiment under its name and seed."""

    name: str
    seed: int
    run: Run

    @property
    def label(self) -> str:
        return f"{self.name} (seed {self.seed})"


def find_experiment(word: str) -> Path:
    """A path, or a name in `experiments/`. Raises ConfigError with the nearest name."""
    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        return path
    known = {p.stem: p for p in sorted(FOLDER.glob("*.yaml"))}
    if word not in known:
        raise ConfigError(f"no experiment {word!r}{did_you_mean(word, list(known))}")
    return known[word]


def read_experiment(path: Path) -> Experiment:
    """Raises ConfigError in one line."""
    try:
        return Experiment.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Experiment)}") from None


def jobs(
    experiment: Experiment,
    overrides: dict[str, Any],
    names: list[str] | None = None,
    seeds: list[int] | None = None,
) -> list[Job]:
    """Every run with every seed (or these), references included under their own names."""
    names, seeds = names or list(experiment.runs), seeds or experiment.seeds
    found: dict[tuple[str, int], Job] = {}
    for seed in seeds:
        for name in names:
            if name not in experiment.runs:
                raise ConfigError(f"no run {name!r}{did_you_mean(name, list(experiment.runs))}")
            settings = dict(experiment.runs[name])
            reference = settings.get("reference")
            if isinstance(reference, str):
                settings["reference"] = _reference(experiment, reference, seed, overrides)
            run = build_run(settings, merge(experiment.base, {"seed": seed}), overrides)
            if isinstance(reference, str) and run.reference is not None:
                title = reference_name(reference)
                found[title, seed] = Job(title, seed, run.reference)
            found[name, seed] = Job(name, seed, run)
    return list(found.values())


def reference_name(name: str) -> str:
    return "reference++" if name.endswith("++") else "reference"


def _reference(
    experiment: Experiment, name: str, seed: int, overrides: dict[str, Any]
) -> dict[str, Any]:
    if name not in experiment.references:
        near = did_you_mean(name, list(experiment.references))
        raise ConfigError(f"no reference {name!r}{near}")
    base = merge(merge(experiment.base, {"seed": seed}), _for_reference(overrides))
    return merge(merge(base, METHODS["curated"]), experiment.references[name])


def _for_reference(overrides: dict[str, Any]) -> dict[str, Any]:
    """Those overrides that reach a reference too: not what makes it one, its steps and source."""
    own = ("optim", "selection", "source", "reference", "init_from_reference")
    return {key: value for key, value in overrides.items() if key not in own}


def build_run(settings: dict[str, Any], base: dict[str, Any], overrides: dict[str, Any]) -> Run:
    """A Run from a method's meaning, settings on top and the command line's overrides last."""
    settings = dict(settings)
    method = str(settings.pop("method", "uniform"))
    return make_run(merge(merge(merge(base, method_settings(method)), settings), overrides))


def method_settings(method: str) -> dict[str, Any]:
    """What a method's name means; `module:function` is a sampler of the user's own."""
    if method in METHODS:
        return METHODS[method]
    if ":" in method:
        return {"selection": {"sampler": method}}
    raise ConfigError(f"no method {method!r}{did_you_mean(method, list(METHODS))}")


def default_run(method: str, overrides: dict[str, Any], seed: int) -> Run:
    """What `jest train --method NAME` trains: the headline's settings of that method."""
    settings: dict[str, Any] = {"method": method, "seed": seed}
    if (method in METHODS and needs_reference(method)) or ":" in method:
        settings["reference"] = default_reference(_for_reference(overrides), seed).model_dump()
    return build_run(settings, read_experiment(FOLDER / "figure1.yaml").base, overrides)


def default_reference(overrides: dict[str, Any], seed: int) -> Run:
    """What `jest train-reference` trains: the headline's reference."""
    headline = read_experiment(FOLDER / "figure1.yaml")
    base = merge(headline.base, METHODS["curated"])
    settings = merge(merge(base, headline.references["strong"]), {"seed": seed})
    return make_run(merge(settings, overrides))
