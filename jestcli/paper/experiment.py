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
    figure: {kind: ..., panels: [...]}   # how it is drawn (see `Figure`)

A run or reference with `vary: {a.b: [1, 2], c: [x, y]}` stands for one for each place in the lists
(they go together), called name@1 and name@2 after the first of them. `grid: {a.b: [1, 2],
c: [x, y]}` stands for every combination, called name@1@x, name@1@y, ... In place of settings,
`map:name` is the run or reference of that name in another experiment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

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

T = TypeVar("T")
Settings = dict[str, Any]


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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Panel(_Strict):
    """Final scores by one setting: a line for each name of runs `name@value`.

    lines: name -> label; levels: runs without a value -> label, drawn as horizontal lines; x: what
    the axis is called; log: a logarithmic axis; ordered: whether the setting's values are more and
    less of something (else their points stand side by side and are not joined); metrics: of
    paper/grid.py, at most two.
    """

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
    """An experiment's file, its `vary` and `grid` written out."""

    name: str
    title: str
    claim: str
    refuted_if: str
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


def _pick(known: Mapping[str, T], what: str, word: str, written: str = "") -> T:
    """Raises ConfigError with the nearest name."""
    if word not in known:
        near = did_you_mean(word, list(known))
        raise ConfigError(f"no {what} {(written or word)!r}{near}")
    return known[word]


def _in(folder: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


# --- files ---------------------------------------------------------------------------------------


def find_experiment(word: str) -> Path:
    """A path, or a name in `experiments/`. Raises ConfigError with the nearest name."""
    path = Path(word)
    return path if path.suffix in (".yaml", ".yml") else _pick(_in(FOLDER), "experiment", word)


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
    changed = {
        "base": merge(scale, read.base),
        "references": _spread(read.references, {}, path),
        "runs": _spread(read.runs, profile, path),
    }
    return read.model_copy(update=changed)


def list_experiments() -> list[Experiment]:
    """Those in `experiments/`, in order of worth: the headline first."""
    found = [read_experiment(path) for path in _in(FOLDER).values()]
    worth = {name: i for i, name in enumerate(WORTH)}
    return sorted(found, key=lambda e: (worth.get(e.name, len(WORTH)), e.name))


def _spread(
    named: dict[str, Settings | str], profile: Settings, path: Path
) -> dict[str, Settings | str]:
    """Settings laid on `profile`, every `vary` and `grid` written out as runs of its own.

    Raises ConfigError for lists that do not fit.
    """
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
            said = [_said(value) for value in (values if every else values[:1])]
            out["@".join([name, *said])] = merge(rest, _nested(zip(varied, values, strict=True)))
    return out


def _said(value: Any) -> str:
    """A varied value as a part of a run's name; a reference's is its last part."""
    return "all" if value is None else str(value).rpartition("@")[2]


def _nested(flat: Iterable[tuple[str, Any]]) -> Settings:
    """("a.b", 1) -> {"a": {"b": 1}}."""
    out: Settings = {}
    for key, value in flat:
        for part in reversed(key.split(".")):
            value = {part: value}
        out = merge(out, value)
    return out


def read_profile(word: str) -> Settings:
    """A scale profile's settings: its file without `about`. Raises ConfigError with the nearest
    name."""
    settings = read_yaml(_pick(_in(PROFILES), "profile", word))
    return {key: value for key, value in settings.items() if key != "about"}


# --- jobs ----------------------------------------------------------------------------------------


def profile_jobs(word: str, overrides: Settings, seed: int = 0) -> list[Job]:
    """The reference, uniform, JEST and Flexi-JEST runs at a profile's scale."""
    methods = ("uniform", "jest", "flexi")
    for method in methods:
        check_method(method, {"--set": overrides})
    runs = [Job(method, seed, default_run(method, overrides, seed, word)) for method in methods]
    reference = runs[-1].run.reference
    return [Job("reference", seed, reference), *runs] if reference is not None else runs


def asked_jobs(method: str, overrides: Settings, seed: int, profile: str) -> list[Job]:
    """The one run that `jest train` makes of these, its reference before it."""
    run = default_run(method, overrides, seed, profile)
    before = [Job("reference", seed, run.reference)] if run.reference else []
    return [*before, Job(method, seed, run)]


def planned_jobs(word: str, overrides: Settings) -> list[Job]:
    """The runs that `jest plan WORD` counts: a profile's, or an experiment's with its first seed.

    Raises ConfigError with the nearest name.
    """
    profiles = _in(PROFILES)
    if word in profiles:
        return profile_jobs(word, overrides)
    if Path(word).suffix not in (".yaml", ".yml"):
        _pick(profiles | _in(FOLDER), "profile or experiment", word)
    experiment = read_experiment(find_experiment(word))
    return jobs(experiment, overrides, seeds=experiment.seeds[:1])


def jobs(
    experiment: Experiment,
    overrides: Settings,
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
            _pick(experiment.runs, "run", pattern)
        found |= dict.fromkeys(names)
    return list(found)


def _expanded(experiment: Experiment, name: str, seed: int, overrides: Settings) -> list[Job]:
    """The run `name`, its reference first where the file names one."""
    written = experiment.runs[name]
    if isinstance(written, str):
        other, original = _elsewhere(written)
        _pick(other.runs, "run", original, written)
        *before, job = _expanded(other, original, seed, overrides)
        return [*before, Job(name, seed, job.run)]
    settings = dict(written)
    reference = settings.get("reference")
    if isinstance(reference, str):
        settings["reference"] = _reference(experiment, reference, seed, overrides)
    run = build_run(settings, merge(experiment.base, {"seed": seed}), overrides)
    if not isinstance(reference, str) or run.reference is None:
        return [Job(name, seed, run)]
    called = HEADLINE_REFERENCES.get(reference, f"reference {reference}")
    return [Job(called, seed, run.reference), Job(name, seed, run)]


def _elsewhere(word: str) -> tuple[Experiment, str]:
    """Of "map:jest@0@750" the experiment and the name "jest@0@750"."""
    file, _, name = word.partition(":")
    return read_experiment(find_experiment(file)), name


def _reference(experiment: Experiment, name: str, seed: int, overrides: Settings) -> Settings:
    written = _pick(experiment.references, "reference", name)
    if isinstance(written, str):
        other, original = _elsewhere(written)
        return _reference(other, original, seed, overrides)
    base = merge(merge(experiment.base, {"seed": seed}), _for_reference(overrides))
    return merge(merge(base, METHODS["curated"]), written)


LEARNERS_OWN = {"optim", "selection", "source", "engine", "reference_model"}
LEARNERS_OWN |= {"init_from_reference", "init", "init_sha256"}


def check_reaches_reference(pairs: list[str]) -> None:
    """Raise ConfigError for a `--set` of `jest train-reference` that does not reach it."""
    for pair in pairs:
        if pair.split("=")[0].split(".")[0] in LEARNERS_OWN:
            raise ConfigError(f"--set {pair} is the learner's: say --set reference.{pair}")


def _for_reference(overrides: Settings) -> Settings:
    """Those overrides that reach a reference too: not what makes it one, its steps and source."""
    own = {*LEARNERS_OWN, "reference"}
    reaches = {key: value for key, value in overrides.items() if key not in own}
    if isinstance(reaches.get("model"), dict):
        reaches["model"] = {k: v for k, v in reaches["model"].items() if k != "lock_image"}
    return _without_pool(reaches)


def _without_pool(overrides: Settings) -> Settings:
    """A reference reads the curated set alone: the same one, whatever the pool is."""
    data = overrides.get("data")
    if not isinstance(data, dict):
        return overrides
    pools = ("train", "weights", "uids", "uids_sha256")
    kept = {key: value for key, value in data.items() if key not in pools}
    return overrides | {"data": kept}


# --- one run -------------------------------------------------------------------------------------


def build_run(settings: Settings, base: Settings, overrides: Settings) -> Run:
    """A Run from a method's meaning, settings on top and the command line's overrides last.

    Raises ConfigError, also for a sampler that is not there, before anything is built or trained.
    """
    settings = dict(settings)
    method = str(settings.pop("method", "uniform"))
    run = make_run(merge(merge(merge(base, method_settings(method)), settings), overrides))
    sampler = run.selection.sampler
    if sampler not in ("uniform", "joint") and ":" not in sampler:  # own ones: where they run
        from jestcli.selection.registry import find  # imports torch

        try:
            find(sampler)
        except ValueError as problem:
            raise ConfigError(f"selection.{problem}") from None
    return run


def method_settings(method: str) -> Settings:
    """What a method's name means; a sampler's name, or `module:function` of the user's own, is
    that sampler. Raises ConfigError."""
    if method in METHODS:
        return METHODS[method]
    if ":" not in method:
        from jestcli.selection.registry import SAMPLERS  # imports torch

        if method not in SAMPLERS:
            _pick(METHODS, "method", method)
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


def _at(settings: Settings, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _telling(settings: Settings) -> Settings:
    """Of these settings those that tell methods apart, by dotted key."""
    found = {key: _at(settings, key) for key in TELLING}
    if found[SHARE] is not None:
        found[SHARE] = bool(found[SHARE])
    return {key: value for key, value in found.items() if value is not None}


def _meant_by(telling: Settings) -> str | None:
    """The method that these settings are."""
    return next((m for m in METHODS if TELLING | _telling(METHODS[m]) == telling), None)


def method_of(settings: Settings, default: str = "jest") -> str:
    """The method that settings mean which name none: `default`, unless they say otherwise."""
    given = _telling(settings)
    telling = TELLING | _telling(METHODS[default]) | given
    named = _meant_by(telling) if given else default
    plain = _meant_by(TELLING | {"selection.sampler": telling["selection.sampler"]})
    return named or plain or str(telling["selection.sampler"])


def check_method(method: str, places: dict[str, Settings]) -> None:
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
                means = _at(method_settings(method), key) or (0 if key == SHARE else meant[key])
                said = f"--method {method} means {key}={means}, but {place} says {_at(given, key)}"
                near = f"say --method {other}, or " if other else ""
                raise ConfigError(f"{said}: {near}leave {key} out there")


def printed(method: str, run: Run) -> Settings:
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


def default_run(method: str, overrides: Settings, seed: int, profile: str = DEFAULT_PROFILE) -> Run:
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
        whole = overrides.get("reference")
        # A run's own settings stand as they are; some settings are laid on the profile's.
        if not isinstance(whole, dict) or not whole.keys() >= Run.model_fields.keys():
            whole = default_reference(overrides, seed, profile).model_dump()
        settings["reference"] = whole
    rest = {key: value for key, value in overrides.items() if key != "reference"}
    return build_run({"method": method, "seed": seed}, settings, rest)


def _of_profile(word: str, overrides: Settings) -> Settings:
    """A profile's settings; its towers only where the overrides do not name others."""
    settings, model = read_profile(word), overrides.get("model")
    if isinstance(model, dict) and not model.keys().isdisjoint(("name", "tower")):
        settings.pop("model", None)  # one tower's width means nothing to another
    return settings


def default_reference(overrides: Settings, seed: int, profile: str = DEFAULT_PROFILE) -> Run:
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
