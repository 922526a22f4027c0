"""What a method's name, a profile and settings mean together: one checked `Run`.

`jest train`, experiments and forecasts ask here, so that the same words are the same run. A profile
is a file of `experiments/profiles`; settings stand on it, the command line's last.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from jestcli.config import (
    METHODS,
    ConfigError,
    Run,
    did_you_mean,
    make_run,
    merge,
    needs_reference,
    read_yaml,
)
from jestcli.runs.listing import at

T = TypeVar("T")
Settings = dict[str, Any]


def _shipped() -> Path:
    """`experiments/`: inside the package in a wheel, beside it in a checkout."""
    package = Path(str(files("jestcli")))
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


FOLDER = _shipped()
PROFILES = FOLDER / "profiles"
DEFAULT_PROFILE = "cpu"  # what `jest train` takes without --profile
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
LEARNERS_OWN = {"optim", "selection", "source", "engine", "reference_model"}
LEARNERS_OWN |= {"init_from_reference", "init", "init_sha256"}


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
            pick(METHODS, "method", method)
    return {"selection": {"sampler": method}}


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


def default_reference(overrides: Settings, seed: int, profile: str = DEFAULT_PROFILE) -> Run:
    """The one reference that `jest train-reference` and `jest train` mean by these settings: the
    profile's data and towers, and what profile and overrides say under `reference`. `optim`,
    `source` and what else is the learner's own do not reach it. Raises ConfigError."""
    settings = _of_profile(profile, overrides)
    given = overrides.get("reference") or {}
    if not isinstance(given, dict):
        raise ConfigError(f"reference: {given!r} is no mapping of settings")
    own = merge(METHODS["curated"], settings.get("reference", {}))
    base = merge(for_reference(settings), own) | {"seed": seed}
    try:
        return make_run(merge(merge(base, for_reference(overrides)), given))
    except ConfigError as error:  # the learner's settings have the same names
        raise ConfigError(f"reference: {error}" if given else str(error)) from None


def read_profile(word: str) -> Settings:
    """A scale profile's settings: its file without `about`. Raises ConfigError with the nearest
    name."""
    settings = read_yaml(pick(files_in(PROFILES), "profile", word))
    return {key: value for key, value in settings.items() if key != "about"}


def _of_profile(word: str, overrides: Settings) -> Settings:
    """A profile's settings; its towers only where the overrides do not name others."""
    settings, model = read_profile(word), overrides.get("model")
    if isinstance(model, dict) and not model.keys().isdisjoint(("name", "tower")):
        settings.pop("model", None)  # one tower's width means nothing to another
    return settings


def for_reference(overrides: Settings) -> Settings:
    """Those overrides that reach a reference too: not what makes it one, its steps and source."""
    own = {*LEARNERS_OWN, "reference"}
    reaches = {key: value for key, value in overrides.items() if key not in own}
    # A reference reads the curated set alone: the same one, whatever the pool is.
    pools = {"train", "weights", "uids", "uids_sha256"}
    for part, without in (("model", {"lock_image"}), ("data", pools)):
        if isinstance(reaches.get(part), dict):
            reaches[part] = {k: v for k, v in reaches[part].items() if k not in without}
    return reaches


def check_reaches_reference(pairs: list[str]) -> None:
    """Raise ConfigError for a `--set` of `jest train-reference` that does not reach it."""
    for pair in pairs:
        if pair.split("=")[0].split(".")[0] in LEARNERS_OWN:
            raise ConfigError(f"--set {pair} is the learner's: say --set reference.{pair}")


def method_of(settings: Settings) -> str:
    """The method that settings mean which name none: jest, unless they say otherwise."""
    given = telling(settings)
    whole = TELLING | telling(METHODS["jest"]) | given
    named = _meant_by(whole) if given else "jest"
    plain = _meant_by(TELLING | {"selection.sampler": whole["selection.sampler"]})
    return named or plain or str(whole["selection.sampler"])


def check_method(method: str, places: dict[str, Settings]) -> None:
    """Raise ConfigError where the settings of a place (a file, the command line) contradict what
    `method` means, or make another method of it."""
    own = telling(method_settings(method))
    meant = TELLING | own
    whole = dict(meant)
    for given in places.values():
        whole |= telling(given)
    other = _meant_by(whole)
    for place, given in places.items():
        for key, value in telling(given).items():
            if value != meant[key] and (key in own or other is not None):
                means = at(method_settings(method), key) or (0 if key == SHARE else meant[key])
                said = f"--method {method} means {key}={means}, but {place} says {at(given, key)}"
                near = f"say --method {other}, or " if other else ""
                raise ConfigError(f"{said}: {near}leave {key} out there")


def printed(method: str, run: Run) -> Settings:
    """A run's settings as a file states them: its method by name, without what that sets."""
    settings = {"method": method, **run.model_dump(mode="json")}
    plain = Run().model_dump(mode="json")
    for key in (*TELLING, "source.curated_share"):
        meant = at(method_settings(method), key)
        if at(settings, key) == (at(plain, key) if meant is None else meant):
            path, _, last = key.rpartition(".")
            del (at(settings, path) if path else settings)[last]
    if run.reference is None:
        del settings["reference"]
    elif settings["reference"]["seed"] == run.seed:
        del settings["reference"]["seed"]  # it follows --seed, too
    return settings


def telling(settings: Settings) -> Settings:
    """Of these settings those that tell methods apart, by dotted key."""
    found = {key: at(settings, key) for key in TELLING}
    if found[SHARE] is not None:
        found[SHARE] = bool(found[SHARE])
    return {key: value for key, value in found.items() if value is not None}


def _meant_by(whole: Settings) -> str | None:
    """The method that these settings are."""
    return next((m for m in METHODS if TELLING | telling(METHODS[m]) == whole), None)


def pick(known: Mapping[str, T], what: str, word: str, written: str = "") -> T:
    """Raises ConfigError with the nearest name."""
    if word not in known:
        near = did_you_mean(word, list(known))
        raise ConfigError(f"no {what} {(written or word)!r}{near}")
    return known[word]


def files_in(folder: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}
