"""An experiment file: named runs over seeds, expanded into checked `Run`s.

    title: what is shown
    claim: what the paper claims, in words
    claims: {key: {says: ..., refuted_if: ..., core: a > b; ...}}   # what is judged (see `claims`)
    profile: a name in experiments/profiles: settings of the runs, not of the references
    scale: a name in experiments/profiles: settings of runs and references, under `base`
    base: settings of every run
    references: {name: settings}      # trained on curated data
    runs: {name: {method: ..., reference: name, settings...}}
    seeds: [0, 1, 2]
    quick: {runs: [names], seeds: [0]}   # what `jest reproduce` trains itself
    tiers: [{runs: [patterns], seeds: [0]}, ...]   # in order of worth: what runs first
    compact: true   # records hold end points alone, where there are hundreds of runs
    figure: {kind: ..., panels: [...]}   # how it is drawn (see `Figure`)

A run or reference with `vary: {a.b: [1, 2], c: [x, y]}` stands for one for each place in the lists
(they go together), called name@1 and name@2 after the first of them. `grid: {a.b: [1, 2],
c: [x, y]}` stands for every combination, called name@1@x, name@1@y, ... In place of settings,
`map:name` is the run or reference of that name in another experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jestcli.config import METHODS, ConfigError, Run, explain, merge, read_yaml
from jestcli.paper.claims import MOST, Key, Statement, check_names
from jestcli.runs.methods import (
    FOLDER,
    PROFILES,
    SHARE,
    Settings,
    build_run,
    check_method,
    default_run,
    files_in,
    for_reference,
    pick,
    read_profile,
    telling,
)

WORTH = ("map", "table1", "figure3", "figure5", "figure4", "table2", "table3", "figure2")
HEADLINE_REFERENCES = {"strong": "reference", "strong++": "reference++"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Panel(_Strict):
    """Final scores by one setting: a line for each name of runs `name@value`. lines: name -> label;
    levels: runs without a value -> label, drawn as horizontal lines; x: what the axis is called;
    log: a logarithmic axis; ordered: whether the setting's values are more and less of something
    (else their points stand side by side, not joined); metrics: of paper/grid.py, at most two."""

    title: str
    x: str
    lines: dict[str, str]
    levels: dict[str, str] = {}
    log: bool = False
    ordered: bool = True
    metrics: tuple[Literal["mean", "nats", "noise", "curated"], ...] = ("mean", "nats")


class Figure(_Strict):
    """kind: "curves" (score against cost), "grid" (final scores by a setting, in panels), "matrix"
    (Figure 2), "choices" (what was chosen), "map" (savings by pool), "table" (no figure)."""

    kind: Literal["curves", "grid", "matrix", "choices", "table", "map"] = "curves"
    panels: tuple[Panel, ...] = ()


class Tier(_Strict):
    """Runs that are worth about the same; runs: names or patterns such as "jest@0.8@*"."""

    runs: list[str]
    seeds: list[int] | None = None


class Quick(Tier):
    """What `jest reproduce` trains itself: its seeds must be said."""

    seeds: list[int]  # type: ignore[assignment]


class Experiment(_Strict):
    """An experiment's file, its `vary` and `grid` written out. refuted_if: that of its claims; a
    file without claims may say it in words alone. tested_at: the setting that its claims are tested
    at, unless they say another."""

    name: str
    title: str
    claim: str
    claims: dict[Key, Statement] = Field({}, max_length=MOST)
    refuted_if: str = ""
    tested_at: str = Field("", max_length=80)
    profile: str | None = None
    scale: str | None = None
    base: Settings = {}
    references: dict[str, Settings | str] = {}
    runs: dict[str, Settings | str]
    seeds: list[int]
    quick: Quick | None = None
    tiers: list[Tier] = []
    compact: bool = False
    figure: Figure = Figure()

    @model_validator(mode="after")
    def _says_once(self) -> Experiment:
        if self.claims and self.refuted_if:
            raise ValueError("refuted_if: follows from that of each of its claims")
        return self


@dataclass(frozen=True)
class Job:
    """One run of an experiment under its name and seed. tier: the lower, the more it is worth."""

    name: str
    seed: int
    run: Run
    tier: int = 0

    @property
    def label(self) -> str:
        """Such as "jest (seed 0)"."""
        return f"{self.name} (seed {self.seed})"


def find_experiment(word: str) -> Path:
    """A path, or a name in `experiments/`. Raises ConfigError with the nearest name."""
    path = Path(word)
    return path if path.suffix in (".yaml", ".yml") else pick(files_in(FOLDER), "experiment", word)


def read_experiment(path: Path) -> Experiment:
    """Raises ConfigError in one line."""
    try:
        read = Experiment.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Experiment)}") from None
    # An experiment names its references itself.
    profile, scale = (
        {k: v for k, v in read_profile(word).items() if k != "reference"} if word else {}
        for word in (read.profile, read.scale)
    )
    references, runs = _spread(read.references, {}, path), _spread(read.runs, profile, path)
    # What is written in another experiment's words may train that one's references.
    also = HEADLINE_REFERENCES.values() if any(isinstance(r, str) for r in runs.values()) else ()
    try:
        check_names(read.claims, read.figure.kind, [*runs, *map(_called, references), *also])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    changed = {"base": merge(scale, read.base), "references": references, "runs": runs}
    return read.model_copy(update={**changed, "refuted_if": _criterion(read)})


def _criterion(read: Experiment) -> str:
    """What refutes each claim, in one text."""
    said = [f"{key}: {claim.refuted_if}" for key, claim in read.claims.items()]
    if len(said) == 1:
        said = [claim.refuted_if for claim in read.claims.values()]
    return "; ".join(said) + "." if said else read.refuted_if


def list_experiments() -> list[Experiment]:
    """Those in `experiments/`, in order of worth: the headline first."""
    found = [read_experiment(path) for path in files_in(FOLDER).values()]
    worth = {name: i for i, name in enumerate(WORTH)}
    return sorted(found, key=lambda e: (worth.get(e.name, len(WORTH)), e.name))


def _spread(
    named: dict[str, Settings | str], profile: Settings, path: Path
) -> dict[str, Settings | str]:
    """Settings laid on `profile`, every `vary` and `grid` written out as runs of its own. Raises
    ConfigError for lists that do not fit."""
    out: dict[str, Settings | str] = {}
    for name, settings in named.items():
        if isinstance(settings, str):
            out[name] = settings
            continue
        rest = merge(profile, {k: v for k, v in settings.items() if k not in ("vary", "grid")})
        kind = next((k for k in ("grid", "vary") if settings.get(k) is not None), None)
        if kind is None:
            out[name] = rest
            continue
        varied, every = settings[kind], kind == "grid"
        lists = list(varied.values()) if isinstance(varied, dict) else []
        whole = bool(lists) and all(isinstance(x, list) and x for x in lists)
        if not whole or (not every and len(set(map(len, lists))) > 1):
            what = "a list of values" if every else "lists of one length"
            raise ConfigError(f"{path}: {name}.{kind}: expected {what} by setting")
        for values in product(*lists) if every else zip(*lists, strict=True):
            # A reference is called by its last part.
            shown = values if every else values[:1]
            said = ("all" if x is None else str(x).rpartition("@")[2] for x in shown)
            varying = rest
            for key, value in zip(varied, values, strict=True):
                for part in reversed(key.split(".")):  # ("a.b", 1) -> {"a": {"b": 1}}
                    value = {part: value}
                varying = merge(varying, value)
            out["@".join([name, *said])] = varying
    return out


def profile_jobs(word: str, overrides: Settings) -> list[Job]:
    """The reference, uniform, JEST and Flexi-JEST runs at a profile's scale, with seed 0."""
    methods = ("uniform", "jest", "flexi")
    for method in methods:
        check_method(method, {"--set": overrides})
    runs = [Job(method, 0, default_run(method, overrides, 0, word)) for method in methods]
    reference = runs[-1].run.reference
    return [Job("reference", 0, reference), *runs] if reference is not None else runs


def asked_jobs(method: str, overrides: Settings, seed: int, profile: str) -> list[Job]:
    """The one run that `jest train` makes of these, its reference before it."""
    run = default_run(method, overrides, seed, profile)
    before = [Job("reference", seed, run.reference)] if run.reference else []
    return [*before, Job(method, seed, run)]


def planned_jobs(word: str, overrides: Settings) -> list[Job]:
    """The runs that `jest plan WORD` counts: a profile's, or an experiment's with its first seed.
    Raises ConfigError with the nearest name."""
    profiles = files_in(PROFILES)
    if word in profiles:
        return profile_jobs(word, overrides)
    if Path(word).suffix not in (".yaml", ".yml"):
        pick(profiles | files_in(FOLDER), "profile or experiment", word)
    experiment = read_experiment(find_experiment(word))
    return jobs(experiment, overrides, seeds=experiment.seeds[:1])


def jobs(
    experiment: Experiment,
    overrides: Settings,
    names: list[str] | None = None,
    seeds: list[int] | None = None,
) -> list[Job]:
    """Every run with every seed (or these), references included under their own names. names: of
    runs, or patterns such as "jest@0.8@*". Without names and seeds: in order of worth, first what
    the file's tiers list. Raises ConfigError for a name that fits nothing, and for an override of
    what tells methods apart."""
    for key in telling(overrides).keys() - {SHARE}:
        raise ConfigError(f"--set {key}: an experiment's runs are told apart by it")
    tiers = [Tier(runs=names or list(experiment.runs), seeds=seeds)]
    if names is None and seeds is None:
        tiers = [*experiment.tiers, *tiers]
    found: dict[tuple[str, int], Job] = {}
    for number, tier in enumerate(tiers):
        for seed in tier.seeds or experiment.seeds:
            for name in _matching(experiment, tier.runs):
                for job in _expanded(experiment, name, seed, overrides):
                    found.setdefault((job.name, seed), replace(job, tier=number))
    return list(found.values())


def _matching(experiment: Experiment, patterns: list[str]) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [name for name in experiment.runs if fnmatchcase(name, pattern)]
        if not names:
            pick(experiment.runs, "run", pattern)
        found |= dict.fromkeys(names)
    return list(found)


def _expanded(experiment: Experiment, name: str, seed: int, overrides: Settings) -> list[Job]:
    """The run `name`, its reference first where the file names one."""
    written = experiment.runs[name]
    if isinstance(written, str):
        other, original = _elsewhere(written)
        pick(other.runs, "run", original, written)
        *before, job = _expanded(other, original, seed, overrides)
        return [*before, Job(name, seed, job.run)]
    settings, reference = dict(written), written.get("reference")
    if isinstance(reference, str):
        settings["reference"] = _reference(experiment, reference, seed, overrides)
    run = build_run(settings, merge(experiment.base, {"seed": seed}), overrides)
    job = Job(name, seed, run)
    if not isinstance(reference, str) or run.reference is None:
        return [job]
    return [Job(_called(reference), seed, run.reference), job]


def _called(reference: str) -> str:
    """What a reference's own training is called among the runs."""
    return HEADLINE_REFERENCES.get(reference, f"reference {reference}")


def _elsewhere(word: str) -> tuple[Experiment, str]:
    """Of "map:jest@0@750" the experiment and the name "jest@0@750"."""
    file, _, name = word.partition(":")
    return read_experiment(find_experiment(file)), name


def _reference(experiment: Experiment, name: str, seed: int, overrides: Settings) -> Settings:
    written = pick(experiment.references, "reference", name)
    if isinstance(written, str):
        other, original = _elsewhere(written)
        return _reference(other, original, seed, overrides)
    base = merge(merge(experiment.base, {"seed": seed}), for_reference(overrides))
    return merge(merge(base, METHODS["curated"]), written)
