"""An experiment file: named runs over seeds, expanded into checked `Run`s.

    title: what is shown
    claim: what the paper claims;  refuted_if: what would refute it
    profile: a name in experiments/profiles: settings of the runs, not of the references
    scale: a name in experiments/profiles: settings of runs and references, under `base`
    base: settings of every run
    references: {name: settings}      # trained on curated data
    runs: {name: {method: ..., reference: name, settings...}}
    seeds: [0, 1, 2]
    quick: {runs: [names], seeds: [0]}   # what `jest reproduce` trains itself
    tiers: [{runs: [patterns], seeds: [0]}, ...]   # in order of worth: what runs first
    compact: true   # records hold end points alone, where there are hundreds of runs
    figure: {kind: ..., panels: [...]}   # how it is drawn (paper/panels.py)

A run or reference with `vary: {a.b: [1, 2], c: [x, y]}` stands for one for each place in the lists
(they go together), called name@1 and name@2 after the first of them. `grid: {a.b: [1, 2],
c: [x, y]}` stands for every combination, called name@1@x, name@1@y, ... In place of settings,
`map:name` is the run or reference of that name in another experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.resources import files
from itertools import product
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
from jestcli.paper.panels import Figure


def _shipped() -> Path:
    """`experiments/`: inside the package in a wheel, beside it in a checkout."""
    package = Path(str(files("jestcli")))
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


FOLDER = _shipped()
WORTH = ("map", "table1", "figure3", "figure5", "figure4", "table2", "table3", "figure2")
HEADLINE_REFERENCES = {"strong": "reference", "strong++": "reference++"}
PROFILES = FOLDER / "profiles"
DEFAULT_PROFILE = "cpu"  # what `jest train` takes without --profile


class Quick(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    runs: list[str]
    seeds: list[int]


class Tier(BaseModel):
    """Runs that are worth about the same; runs: names or patterns such as "jest@0.8@*"."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    runs: list[str]
    seeds: list[int] | None = None


class Experiment(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    claim: str
    refuted_if: str
    profile: str | None = None
    scale: str | None = None
    base: dict[str, Any] = {}
    references: dict[str, dict[str, Any] | str] = {}
    runs: dict[str, dict[str, Any] | str]
    seeds: list[int]
    quick: Quick | None = None
    tiers: list[Tier] = []
    compact: bool = False
    figure: Figure = Figure()


@dataclass(frozen=True)
class Job:
    """One run of an experiment under its name and seed. tier: the lower, the more it is worth."""

    name: str
    seed: int
    run: Run
    tier: int = 0

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
        read = Experiment.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Experiment)}") from None
    profile, scale = _of_runs(read.profile), _of_runs(read.scale)
    return read.model_copy(
        update={
            "base": merge(scale, read.base),
            "references": _spread(read.references, {}, path),
            "runs": _spread(read.runs, profile, path),
        }
    )


def list_experiments() -> list[Experiment]:
    """Those in `experiments/`, in order of worth: the headline first."""
    found = [read_experiment(path) for path in sorted(FOLDER.glob("*.yaml"))]
    return sorted(found, key=lambda e: (_worth(e.name), e.name))


def _worth(name: str) -> int:
    return WORTH.index(name) if name in WORTH else len(WORTH)


def _spread(
    named: dict[str, dict[str, Any] | str], profile: dict[str, Any], path: Path
) -> dict[str, dict[str, Any] | str]:
    """Settings laid on `profile`, and every `vary` written out as runs of its own.

    Raises ConfigError for lists that do not fit.
    """
    out: dict[str, dict[str, Any] | str] = {}
    for name, settings in named.items():
        if isinstance(settings, str):
            out[name] = settings
            continue
        rest = merge(profile, {k: v for k, v in settings.items() if k not in ("vary", "grid")})
        if "grid" in settings:
            out |= _combinations(name, settings["grid"], rest, path)
            continue
        vary = settings.get("vary")
        if vary is None:
            out[name] = rest
            continue
        lists = list(vary.values()) if isinstance(vary, dict) else []
        if not lists or any(not isinstance(x, list) or len(x) != len(lists[0]) for x in lists):
            raise ConfigError(f"{path}: {name}.vary: expected lists of one length by setting")
        for values in zip(*lists, strict=True):
            flat = dict(zip(vary, values, strict=True))
            out[f"{name}@{_said(values[0])}"] = merge(rest, _nested(flat))
    return out


def _combinations(
    name: str, grid: Any, rest: dict[str, Any], path: Path
) -> dict[str, dict[str, Any] | str]:
    """One run for every combination of the grid's lists. Raises ConfigError."""
    lists = list(grid.values()) if isinstance(grid, dict) else []
    if not lists or not all(isinstance(x, list) and x for x in lists):
        raise ConfigError(f"{path}: {name}.grid: expected a list of values by setting")
    out: dict[str, dict[str, Any] | str] = {}
    for values in product(*lists):
        flat = dict(zip(grid, values, strict=True))
        out["@".join([name, *map(_said, values)])] = merge(rest, _nested(flat))
    return out


def _said(value: Any) -> str:
    """A varied value as a part of a run's name; a reference's is its last part."""
    return "all" if value is None else str(value).rpartition("@")[2]


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        out = merge(out, value)
    return out


def find_profile(word: str) -> Path:
    """The file of a scale profile. Raises ConfigError with the nearest name."""
    known = {p.stem: p for p in sorted(PROFILES.glob("*.yaml"))}
    if word not in known:
        raise ConfigError(f"no profile {word!r}{did_you_mean(word, list(known))}")
    return known[word]


def read_profile(word: str) -> dict[str, Any]:
    """A scale profile's settings: its file without `about`. Raises ConfigError."""
    settings = read_yaml(find_profile(word))
    return {key: value for key, value in settings.items() if key != "about"}


def _of_runs(word: str | None) -> dict[str, Any]:
    """A profile's settings without its reference's: an experiment names its references."""
    settings = read_profile(word) if word else {}
    return {key: value for key, value in settings.items() if key != "reference"}


def profile_jobs(word: str, overrides: dict[str, Any], seed: int = 0) -> list[Job]:
    """The reference, uniform, JEST and Flexi-JEST runs at a profile's scale."""
    methods = ("uniform", "jest", "flexi")
    for method in methods:
        check_method(method, {"--set": overrides})
    runs = [Job(method, seed, default_run(method, overrides, seed, word)) for method in methods]
    reference = runs[-1].run.reference
    return [Job("reference", seed, reference), *runs] if reference is not None else runs


def planned_jobs(word: str, overrides: dict[str, Any]) -> list[Job]:
    """The runs that `jest plan WORD` counts: a profile's, or an experiment's with its first seed.

    Raises ConfigError with the nearest name.
    """
    profiles = {p.stem for p in PROFILES.glob("*.yaml")}
    if word in profiles:
        return profile_jobs(word, overrides)
    experiments = {p.stem for p in FOLDER.glob("*.yaml")}
    if Path(word).suffix not in (".yaml", ".yml") and word not in experiments:
        known = [*profiles, *experiments]
        raise ConfigError(f"no profile or experiment {word!r}{did_you_mean(word, known)}")
    experiment = read_experiment(find_experiment(word))
    return jobs(experiment, overrides, seeds=experiment.seeds[:1])


def jobs(
    experiment: Experiment,
    overrides: dict[str, Any],
    names: list[str] | None = None,
    seeds: list[int] | None = None,
) -> list[Job]:
    """Every run with every seed (or these), references included under their own names.

    names: of runs, or patterns such as "jest@0.8@*". Without names and seeds: in order of worth,
    first what the file's tiers list. Raises ConfigError for a name that fits nothing, and for an
    override of what tells methods apart.
    """
    for key in _telling(overrides).keys() - {SHARE}:
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
    """The runs that these names or patterns mean, each once. Raises ConfigError."""
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [name for name in experiment.runs if fnmatchcase(name, pattern)]
        if not names:
            raise ConfigError(f"no run {pattern!r}{did_you_mean(pattern, list(experiment.runs))}")
        found |= dict.fromkeys(names)
    return list(found)


def _expanded(experiment: Experiment, name: str, seed: int, overrides: dict[str, Any]) -> list[Job]:
    """The run `name`, its reference first where the file names one."""
    written = experiment.runs[name]
    if isinstance(written, str):
        other, original = _elsewhere(written)
        if original not in other.runs:
            raise ConfigError(f"no run {written!r}{did_you_mean(original, list(other.runs))}")
        *before, job = _expanded(other, original, seed, overrides)
        return [*before, Job(name, seed, job.run)]
    settings = dict(written)
    reference = settings.get("reference")
    if isinstance(reference, str):
        settings["reference"] = _reference(experiment, reference, seed, overrides)
    run = build_run(settings, merge(experiment.base, {"seed": seed}), overrides)
    job = Job(name, seed, run)
    if not isinstance(reference, str) or run.reference is None:
        return [job]
    return [Job(reference_name(reference), seed, run.reference), job]


def _elsewhere(word: str) -> tuple[Experiment, str]:
    """Of "map:jest@0@750" the experiment and the name "jest@0@750"."""
    file, _, name = word.partition(":")
    return read_experiment(find_experiment(file)), name


def reference_name(name: str) -> str:
    """What results call a reference: the headline's by their role, another by its own name."""
    return HEADLINE_REFERENCES.get(name, f"reference {name}")


def _reference(
    experiment: Experiment, name: str, seed: int, overrides: dict[str, Any]
) -> dict[str, Any]:
    if name not in experiment.references:
        near = did_you_mean(name, list(experiment.references))
        raise ConfigError(f"no reference {name!r}{near}")
    written = experiment.references[name]
    if isinstance(written, str):
        other, original = _elsewhere(written)
        return _reference(other, original, seed, overrides)
    base = merge(merge(experiment.base, {"seed": seed}), _for_reference(overrides))
    return merge(merge(base, METHODS["curated"]), written)


LEARNERS_OWN = (
    "optim",
    "selection",
    "source",
    "engine",
    "reference_model",
    "init_from_reference",
    "init",
    "init_sha256",
)


def _for_reference(overrides: dict[str, Any]) -> dict[str, Any]:
    """Those overrides that reach a reference too: not what makes it one, its steps and source."""
    own = (*LEARNERS_OWN, "reference")
    return _without_pool({key: value for key, value in overrides.items() if key not in own})


def check_reaches_reference(pairs: list[str]) -> None:
    """Raise ConfigError for a `--set` of `jest train-reference` that does not reach it."""
    for pair in pairs:
        if pair.split("=")[0].split(".")[0] in LEARNERS_OWN:
            raise ConfigError(f"--set {pair} is the learner's: say --set reference.{pair}")


def _without_pool(overrides: dict[str, Any]) -> dict[str, Any]:
    """A reference reads the curated set alone: the same one, whatever the pool is."""
    data = overrides.get("data")
    if not isinstance(data, dict):
        return overrides
    kept = {key: value for key, value in data.items() if key not in ("train", "weights")}
    return overrides | {"data": kept}


def build_run(settings: dict[str, Any], base: dict[str, Any], overrides: dict[str, Any]) -> Run:
    """A Run from a method's meaning, settings on top and the command line's overrides last."""
    settings = dict(settings)
    method = str(settings.pop("method", "uniform"))
    run = make_run(merge(merge(merge(base, method_settings(method)), settings), overrides))
    _check_sampler(run.selection.sampler)
    return run


def _check_sampler(name: str) -> None:
    """Raise ConfigError for a sampler that is not there, before anything is built or trained."""
    if name in ("uniform", "joint") or ":" in name:  # a user's own is imported where it runs
        return
    from jestcli.selection.registry import find  # imports torch

    try:
        find(name)
    except ValueError as problem:
        raise ConfigError(f"selection.{problem}") from None


def method_settings(method: str) -> dict[str, Any]:
    """What a method's name means; a sampler's name, or `module:function` of the user's own, is
    that sampler. Raises ConfigError."""
    if method in METHODS:
        return METHODS[method]
    if ":" not in method:
        from jestcli.selection.registry import SAMPLERS  # imports torch

        if method not in SAMPLERS:
            raise ConfigError(f"no method {method!r}{did_you_mean(method, list(METHODS))}")
    return {"selection": {"sampler": method}}


SHARE = "selection.low_res_share"
# What tells methods apart, by default; the share does by being zero or not.
TELLING = {
    "selection.sampler": "uniform",
    "selection.criterion": "learnability",
    "selection.low_res_scoring": False,
    SHARE: False,
    "source.kind": "pool",
    "init_from_reference": False,
}


def _at(settings: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _telling(settings: dict[str, Any]) -> dict[str, Any]:
    """Of these settings those that tell methods apart, by dotted key."""
    found = {key: _at(settings, key) for key in TELLING}
    if found[SHARE] is not None:
        found[SHARE] = bool(found[SHARE])
    return {key: value for key, value in found.items() if value is not None}


def _meant_by(telling: dict[str, Any]) -> str | None:
    """The method that these settings are."""
    return next((m for m in METHODS if TELLING | _telling(METHODS[m]) == telling), None)


def method_of(settings: dict[str, Any], default: str = "jest") -> str:
    """The method that settings mean which name none: `default`, unless they say otherwise."""
    given = _telling(settings)
    telling = TELLING | _telling(METHODS[default]) | given
    named = _meant_by(telling) if given else default
    plain = _meant_by(TELLING | {"selection.sampler": telling["selection.sampler"]})
    return named or plain or str(telling["selection.sampler"])


def check_method(method: str, places: dict[str, dict[str, Any]]) -> None:
    """Raise ConfigError where the settings of a place (a file, the command line) contradict what
    `method` means, or make another method of it."""
    own = _telling(method_settings(method))
    meant = TELLING | own
    whole = dict(meant)
    for given in places.values():
        whole |= _telling(given)
    other = _meant_by(whole)
    for place, given in places.items():
        for key, value in _telling(given).items():
            if value != meant[key] and (key in own or other is not None):
                said = f"--method {method} means {key}={meant[key]}, but {place} says {value}"
                near = f"say --method {other}, or " if other else ""
                raise ConfigError(f"{said}: {near}leave {key} out there")


def printed(method: str, run: Run) -> dict[str, Any]:
    """A run's settings as a file states them: its method by name, without what that sets."""
    settings = {"method": method, **run.model_dump(mode="json")}
    plain = Run().model_dump(mode="json")
    for key in (*TELLING, "source.curated_share"):
        meant = _at(method_settings(method), key)
        if _at(settings, key) == (_at(plain, key) if meant is None else meant):
            path, _, last = key.rpartition(".")
            del (_at(settings, path) if path else settings)[last]
    if run.reference is None:
        del settings["reference"]
    elif settings["reference"]["seed"] == run.seed:
        del settings["reference"]["seed"]  # it follows --seed, too
    return settings


def default_run(
    method: str, overrides: dict[str, Any], seed: int, profile: str = DEFAULT_PROFILE
) -> Run:
    """What `jest train --method NAME --profile NAME` trains, with its reference if it reads one.

    overrides: settings on top; what they say under `reference` is for methods that read one.
    Raises ConfigError.
    """
    settings = _of_profile(profile, overrides)
    settings.pop("reference", None)
    source = overrides.get("source")
    filtered = isinstance(source, dict) and source.get("kind") == "filtered"
    reads = needs_reference(method) or filtered or overrides.get("init_from_reference") is True
    if reads and not overrides.get("reference_model"):
        settings["reference"] = default_reference(overrides, seed, profile).model_dump()
    rest = {key: value for key, value in overrides.items() if key != "reference"}
    return build_run({"method": method, "seed": seed}, settings, rest)


def _of_profile(word: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """A profile's settings; its towers only where the overrides do not name others."""
    settings, model = read_profile(word), overrides.get("model")
    if isinstance(model, dict) and not model.keys().isdisjoint(("name", "tower")):
        settings.pop("model", None)  # one tower's width means nothing to another
    return settings


def default_reference(overrides: dict[str, Any], seed: int, profile: str = DEFAULT_PROFILE) -> Run:
    """The one reference that `jest train-reference` and `jest train` mean by these settings: the
    profile's data and towers, and what profile and overrides say under `reference`. `optim`,
    `source` and what else is the learner's own do not reach it. Raises ConfigError."""
    settings = _of_profile(profile, overrides)
    given = overrides.get("reference") or {}
    if not isinstance(given, dict):
        raise ConfigError(f"reference: {given!r} is no mapping of settings")
    own = merge(METHODS["curated"], settings.get("reference", {}))
    base = merge(_for_reference(settings), own) | {"seed": seed}
    return make_run(merge(merge(base, _for_reference(overrides)), given))
