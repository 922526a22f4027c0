"""`jest forecast`, top to bottom: sample, reference, what it sees, races, answer, page."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from jestcli.config import ConfigError, Model, Run, explain, make_run, merge
from jestcli.data.caption_noise import CaptionNoise
from jestcli.data.dataset import Dataset
from jestcli.data.decoded import DecodedDataset, build_decoded
from jestcli.data.remote import ShardError, is_remote
from jestcli.data.shard_dataset import ShardDataset
from jestcli.data.sources import list_shards
from jestcli.data.tar import read_index
from jestcli.evaluation.folders import check_all
from jestcli.forecast import page
from jestcli.forecast import races as racing
from jestcli.forecast.answer import answer
from jestcli.forecast.page import SIZES, Asked
from jestcli.forecast.races import Races
from jestcli.forecast.sample import Sample, hold_out, rates_of, take, without_held
from jestcli.forecast.seen import look
from jestcli.runs.given import find_reference
from jestcli.runs.inputs import pool_rows
from jestcli.runs.listing import at
from jestcli.runs.methods import TELLING, default_run, read_profile
from jestcli.runs.run_data import data_of
from jestcli.runs.same_data import difference, stamps
from jestcli.runs.trained import THREADS
from jestcli.runs.workspace import Workspace, read_run
from jestcli.training.devices import set_threads
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_text
from jestcli.utils.parallel import usable_cores
from jestcli.utils.progress import bars
from jestcli.utils.randomness import generator
from jestcli.utils.reading import parse_json, read_json, reading

SHARDS = 64  # of a large set that are looked at
POOL, CURATED, HELD = 60_000, 40_000, 2_000  # pairs at most
READING = 0.2  # share of the time for reading the pool
FEWEST = {"pool": 100, "curated": 40}
SECOND_LOOK = 224  # pixels of the copy where the reference is an open_clip model
# Of a run's file: what the races set themselves, and what is its open_clip tower's.
RACES_OWN = (
    *("method", "seed", "reference", "init", "init_sha256", "evaluation", "optim.steps"),
    *(*TELLING, "source.keep", "source.curated_share"),
)
TOWERS_OWN = (
    *("model", "optim", "engine", *(f"data.{size}" for size in SIZES), "selection.approximation"),
    *("selection.keep_tokens", "selection.n_chunks", "selection.reference_resolution"),
)


def of_a_run(file: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What a forecast takes of a run's settings (`--config`): those that its races keep; the tower
    and the number of examples to answer for, of a run of an open_clip tower, which no race trains;
    and the names of what it sets aside."""
    kept, tower, asked = deepcopy(file), at(file, "model.name"), {}
    if tower:
        asked = {"tower": tower}
        size = at(file, "optim.steps"), at(file, "optim.batch_size")
        if all(isinstance(n, int) for n in size):
            asked["examples"] = math.prod(size)
    aside = []
    for key in (*RACES_OWN, *(TOWERS_OWN if tower else ())):
        path, _, last = key.rpartition(".")
        part = kept.get(path) if path else kept
        if isinstance(part, dict) and last in part:
            aside += [key] if part.pop(last) not in (None, False) else []
    return kept, asked, aside


def source_run(overrides: dict[str, Any]) -> Run:
    """The pool and the curated set as the user has them. Raises ConfigError."""
    profile = read_profile("cpu")
    kept = {k: v for k, v in overrides.items() if k in ("data", "source")}
    named = {name for name in ("train", "curated") if kept.get("data", {}).get(name)}
    if len(named) == 1:
        missing = "--pool" if "curated" in named else "--curated"
        raise ConfigError(f"a forecast needs a pool and a curated set: give {missing}, too")
    run = make_run(merge({"data": profile["data"]}, kept))
    few: dict[str, Any] = {"curated": tuple(shard for shard, _ in _some(run.data.curated))}
    pool = _some(run.data.train)
    few["train"] = tuple(shard for shard, _ in pool)
    if weights := run.data.weights:  # each source's, over those of its shards that are looked at
        looked = Counter(source for _, source in pool)
        few["weights"] = tuple(weights[source] / looked[source] for _, source in pool)
    return run.model_copy(update={"data": run.data.model_copy(update=few)})


def _some(entries: tuple[str, ...]) -> list[tuple[str, int]]:
    """Shards to look at, each with the number of the entry that it is of. Raises ConfigError where
    an entry on this machine has none."""
    shards = [(shard, i) for i, entry in enumerate(entries) for shard in _shards_of(entry)]
    dice = generator(0, "shards to look at")
    return [shards[i] for i in sorted(dice.permutation(len(shards))[:SHARDS].tolist())]


def _shards_of(entry: str) -> list[str]:
    try:
        shards = list_shards(entry)
    except DataError as error:
        if is_remote(entry):  # that a store does not answer is no fault of the command
            raise
        raise ConfigError(str(error)) from None
    if not any(is_remote(shard) or Path(shard).is_file() for shard in shards):
        raise ConfigError(f"no such file: {shards[0] if shards else entry}")
    return shards


def forecast(asked: Asked, workspace: Workspace, console: Console) -> list[Path]:
    """Everything; returns what was written. Killed, the same call goes on. Raises ConfigError,
    DataError, StageError in one line."""
    started, out = time.time(), asked.out
    end = started + 60 * asked.minutes
    try:
        Model.model_validate({"name": asked.tower})
    except ValidationError as error:
        raise ConfigError(f"--tower: {explain(error, Model)}") from None
    source = source_run(asked.overrides)
    question = _question(asked, source)
    named = {"train": ["pool"], "curated": ["curated"], "image_size": source.data.image_size}
    tried = merge(asked.overrides, {"optim": {"steps": racing.MOST}})
    race = make_run(racing.base_settings(named, tried))  # a wrong setting is said at once
    _check_benchmarks(asked, race)
    loading = replace(workspace.loading, cache=out / "cache")
    place = replace(workspace, runs=out / "runs", loading=loading)
    console.print(f"ends by about {_clock(end)}; stopped, the same command goes on")
    word, given = _reference(asked, workspace, place)
    samples = _sample(asked, source, workspace, word is not None, question, console)

    sizes = given["data"] if given is not None else source.data.model_dump()
    data = {
        "train": [str(samples["pool"].folder)],
        "curated": [str(samples["curated"].folder)],
        "decoded": True,
        **{k: sizes[k] for k in SIZES},
    }
    settings = racing.base_settings(data, asked.overrides)
    settings |= {"reference_model": word} if word else {}
    run = make_run({"data": {k: v for k, v in settings["data"].items() if k != "benchmarks"}})
    read = place.loading.cache / "decoded", run.data.image_size, data_of(run, place).tokenizer
    made = {
        name: build_decoded(list_shards(str(sample.folder)), *read, workers=1)
        for name, sample in samples.items()
    }
    settings["data"]["benchmarks"] = asked.benchmarks or _benchmarks(source, made, out, workspace)

    races = _lengths(Races(settings, racing.FEWEST, given=given), asked, end)
    steps = max(1, round(asked.examples / races.batch))
    for name in races.names:  # whichever wins can be run as it will be written
        default_run(page.METHOD[name], page.recipe(asked, races, name, steps), 0)
    first = races.jobs(("curated",))  # its longest is the reference
    first += [job for job in races.jobs(("uniform",)) if job.run.optim.steps <= races.lengths[1]]
    racing.train_all(first, place, asked.workers, console)

    seen = look(races.run("jest", races.steps), made["held"], str(samples["held"].folder), place)
    wrong = seen.share.looks_wrong.value
    races = replace(races, dials=racing.Dials(racing.keep_of(wrong), racing.ratio_of(wrong)))
    for line in page.seen_lines(seen, samples):
        console.print(line, highlight=False)
    jobs = races.jobs(races.names)
    short, long = races.lengths
    console.print(f"races of {short:,} and {long:,} steps; ends by about {_clock(end)}")
    racing.train_all(jobs, place, asked.workers, console)
    records = racing.records_of(jobs, place)
    found = answer(records, own=word is None and given is None)
    lines = page.answer_lines(asked, races, found)
    written = page.write(asked, source, races, samples, seen, made["pool"], records, found, lines)
    for line in ("", *lines):
        console.print(line, highlight=False)
    return written


def _clock(when: float) -> str:
    return time.strftime("%H:%M", time.localtime(when))


def _check_benchmarks(asked: Asked, run: Run) -> None:
    """Whether the races can be scored on what the user names. Raises ConfigError."""
    if asked.benchmarks:
        try:
            check_all(Path(asked.benchmarks), run.data.shots)
        except DataError as error:
            raise ConfigError(str(error)) from None


def _question(asked: Asked, source: Run) -> str:
    """What `asked.out` answers, and of which shards. Raises ConfigError where that is another
    question, or where the shards have changed since."""
    path, another = asked.out / "asked.json", "name another folder with --out"
    mine = [_of_any_length(asked.overrides), asked.reference, asked.benchmarks]
    shards = stamps(source) if source.data.own else {}
    question = json.dumps({"asked": mine, "shards": shards}, sort_keys=True)
    if path.exists():
        before = read_json(path, f": {another}")
        theirs = before.get("asked")
        if isinstance(theirs, list) and theirs and isinstance(theirs[0], dict):
            theirs = [_of_any_length(theirs[0]), *theirs[1:]]  # it was once part of the question
        if theirs != parse_json(question.encode())["asked"]:
            raise ConfigError(f"{asked.out} holds another forecast: {another}")
        if (why := difference(before.get("shards", {}), shards)) is not None:
            raise ConfigError(f"{why} since the forecast {asked.out} began: {another}")
    return question


def _of_any_length(overrides: dict[str, Any]) -> dict[str, Any]:
    """Without the length of the shorter race: races of another length are other runs, but on the
    same sample."""
    kept = deepcopy(overrides)
    if isinstance(optim := kept.get("optim"), dict):
        optim.pop("steps", None)
        if not optim:
            del kept["optim"]
    return kept


def _reference(
    asked: Asked, workspace: Workspace, place: Workspace
) -> tuple[str | None, dict[str, Any] | None]:
    """An open_clip model's name, or the settings of a finished run, whose model is copied beside
    the races; neither: one is trained. Raises ConfigError, StageError."""
    word = asked.reference
    if word is None:
        return None, None
    folder = find_reference(word, workspace.runs)
    if isinstance(folder, str):
        return folder, None
    _, run = read_run(folder)
    if not run.data.own:
        raise ConfigError(f"--reference {word}: it knows the embedded data, not shards of your own")
    there = place.folder(run)
    if not there.exists():
        shutil.copytree(folder, there, ignore=shutil.ignore_patterns("*checkpoint*", "selected"))
    return None, run.model_dump(mode="json")


def _sample(
    asked: Asked, source: Run, workspace: Workspace, large: bool, question: str, console: Console
) -> dict[str, Sample]:
    """The pool, the curated pairs, and those held out of them, copied small; of the pool what
    shows none of those held out."""
    folder, size = asked.out / "sample", SECOND_LOOK if large else source.data.image_size
    weights = source.data.weights  # of a shard here, so that an empty one is no empty source
    evenly = source.data.model_copy(update={"weights": ()})
    data = data_of(source.model_copy(update={"data": evenly}), workspace, asked.out / "counted")
    pool: Dataset = data.pool_of(source)
    rows = pool_rows(source, data)
    rates = None
    if weights and isinstance(data.pool, ShardDataset):  # nothing else has them
        rates = rates_of(weights, np.diff(data.pool.starts))
    if share := source.source.noise_share:
        pool = CaptionNoise(pool, share, data.tokenizer, data.may_be_wrong(source))
    curated, chosen, _ = data.curated_of(source)
    there = {
        "pool": np.arange(len(pool)) if rows is None else rows,
        "curated": np.arange(len(curated)) if chosen is None else chosen,
    }
    for name, least in FEWEST.items():
        if (few := len(there[name])) < least:
            raise DataError(f"the {name} has {few:,} pairs; a forecast needs {least:,} at least")
    order = generator(0, "held out").permutation(there["curated"])
    n_held = min(HELD, max(FEWEST["curated"] // 2, len(order) // 10))
    parts = {
        "pool": (pool, there["pool"], POOL, READING),
        "curated": (curated, order[n_held:], CURATED, READING / 2),
        "held": (curated, order[:n_held], HELD, READING / 4),
    }
    save_text(asked.out / "asked.json", question)  # not before all of it can be answered
    found = {}
    with bars(console) as report:
        for name, (dataset, mine, most, part) in parts.items():
            seconds, rate = 60 * asked.minutes * part, None
            if name == "pool" and rates is not None:
                rate = rates[mine]
            found[name] = take(dataset, mine, folder / name, size, most, seconds, report, rate)
    if source.data.own:
        found["pool"] = replace(found["pool"], no_samples=_left_out(source, workspace))
    for name, each in found.items():
        bad = each.unreadable | each.no_samples
        listed = ", ".join(f"{count:,} {why}" for why, count in bad.items())
        words = f"; could not be used: {listed}" if bad else ""
        console.print(f"{name}: {each.pairs:,} pairs of {each.of:,} copied{words}")
    return {**found, "pool": without_held(found["pool"], found["curated"], found["held"])}


def _left_out(source: Run, workspace: Workspace) -> dict[str, int]:
    """What of the shards looked at is no sample, by reason."""
    found: Counter[str] = Counter()
    for shard in source.data.train:
        try:
            loading = replace(workspace.loading, layout=source.data.layout)
            found.update(read_index(shard, loading).faults)
        except ShardError as reason:
            found[str(reason)] += 1
    return dict(found)


def _benchmarks(
    source: Run, made: dict[str, DecodedDataset], out: Path, workspace: Workspace
) -> str:
    """The embedded data's own, or retrieval over the curated pairs held out."""
    if not source.data.own:
        return str(workspace.data_root(source) / "benchmarks")
    folder = out / "benchmarks" / "wds_heldout"
    if not folder.exists():
        hold_out(made["held"], np.arange(len(made["held"])), folder)
    return str(folder.parent)


def _lengths(races: Races, asked: Asked, end: float) -> Races:
    """With the length of the shorter race: the user's, the one chosen before, or by the time."""
    path, named = asked.out / "lengths.json", asked.overrides.get("optim", {}).get("steps")
    if path.exists() or named:
        with reading(path):
            steps = named or int(parse_json(path.read_bytes()))
    else:
        set_threads(THREADS)
        workers = asked.workers or usable_cores()
        steps = racing.choose_steps(races, end - time.time(), workers)
        save_text(path, json.dumps(steps))
    return replace(races, steps=steps)
