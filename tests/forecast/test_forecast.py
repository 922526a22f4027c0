"""`jest forecast`, from a shell command to its page, in small."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from own_shards import make_shards, sample, write_tar
from PIL import Image
from rich.console import Console
from tiny import TINY, tiny_run

from jestcli import cli
from jestcli.config import ConfigError, merge
from jestcli.data.decoded import build_decoded
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.data.tokens import small_tokenizer
from jestcli.forecast import races as racing
from jestcli.forecast import run as forecast_run
from jestcli.forecast.races import RECIPES, Races
from jestcli.forecast.sample import Sample, take, without_held
from jestcli.forecast.seen import look, opened
from jestcli.runs.methods import default_run, printed
from jestcli.runs.reference import open_reference
from jestcli.runs.run_data import data_of
from jestcli.runs.workspace import Workspace
from jestcli.train import train
from jestcli.training.reference import open_clip_reference
from jestcli.utils.errors import DataError

SETTINGS = {
    "data": {"vocab_size": 600, "context_length": 8},
    "model": {"tower": "cnn", "channels": [4, 8], "embed_dim": 8, "text_width": 8},
    "optim": {"steps": 4, "batch_size": 8, "warmup": 2},
    "selection": {"filter_ratio": 0.5, "n_chunks": 2},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pool of 120 pairs, of which two are broken, and 48 curated ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEST_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("JEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    make_shards(tmp_path / "pool", 2, 59)
    bad = [sample(900, jpg=b"no picture"), sample(901, txt=None, json=None)]
    write_tar(tmp_path / "pool" / "02.tar", *bad, *map(sample, (902, 902)))
    make_shards(tmp_path / "good", 1, 48, first=1000)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    return tmp_path


SMALL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 24, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def jest(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jest", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_from_shards_to_an_answer_and_on_where_it_was_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "forecast",
        "--pool",
        str(place / "pool" / "*.tar"),
        "--curated",
        str(place / "good"),
        "--config",
        "tiny.yaml",
        "--set",
        "optim.steps=4",
        "--workers",
        "2",
        *("--set", "data.caption_lines=true"),
        *("--tower", f"local-dir:{place}", "--examples", "10"),
    )
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL}))
    for name in (
        "mixed",
        "easy",
        "jest-curated",
        "finetune",
    ):  # a run of each takes as long as this test
        monkeypatch.delitem(RECIPES, name)
    train_them = racing.train_all
    with monkeypatch.context() as patch:

        def stopped(jobs: list, *more: object) -> None:
            if len(jobs) > 8:
                raise KeyboardInterrupt
            train_them(jobs, *more)

        patch.setattr(racing, "train_all", stopped)
        assert jest(monkeypatch, *words) == 130
    out, errors = capsys.readouterr()
    assert "goes on from there" in errors and "ends by about" in out
    before = {path: path.stat().st_mtime_ns for path in place.glob("forecast/**/done.json")}
    assert len(before) == 8  # the curated set's and uniform training's

    assert jest(monkeypatch, *words) == 0
    out, errors = capsys.readouterr()
    assert errors == "jest: the races set their own optim.steps, not those of tiny.yaml\n"
    assert "pool: 119 pairs of 120 copied; could not be used: 1 broken image" in out
    assert "1 no caption" in out
    assert "from wrong captions" in out and "Best at the longer race" in out
    assert "GPU-hours" in out and "jest train --config forecast/recipe.yaml" in out
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())

    folder = place / "forecast"
    found = json.loads((folder / "forecast.json").read_text())
    assert {r["name"] for r in found["records"]} == set(RECIPES)
    assert found["races"]["steps"] == [4, 8] and found["seen"]["share"]["n"] == 119
    assert found["samples"]["pool"]["unreadable"]
    names = [row["name"] for row in found["answer"]["now"]["rows"]]
    assert sorted(names) == sorted(RECIPES)
    page = (folder / "forecast.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 6 and "data:image/png" in page
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page
    assert "favours training on the curated set" in page.replace("\n", " ")
    config = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert config["data"]["train"] == [str(place / "pool" / "*.tar")]
    assert config["data"]["caption_lines"] is True, "the samples are read as they were here"
    assert config["selection"] == {"filter_ratio": 0.5}
    assert config["method"] == RECIPES[names[0]]["method"]

    # What it says trains the recipe, whose model open_clip then loads.
    told = re.search(r"Train it: (.+)", out)
    assert told is not None
    short = ("optim.steps=2", "optim.warmup=1")
    short += tuple(f"reference.{x}" for x in short if config["method"] in ("jest", "filtered"))
    for command in told[1].split(" && "):
        given = [word for pair in short for word in ("--set", pair)]
        assert jest(monkeypatch, *shlex.split(command)[1:], *given) == 0, capsys.readouterr().err
    assert jest(monkeypatch, "export", config["method"], "--out", "model", "--format", "hf") == 0
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{place / 'model'}")
    image = transform(Image.new("RGB", (80, 64))).unsqueeze(0)
    assert model.encode_image(image).shape == (1, SMALL["embed_dim"])


@pytest.mark.parametrize(
    "words, said",
    [
        (("--pool", "POOL"), "give --curated, too"),
        (("--curated", "GOOD"), "give --pool, too"),
        (("--pool", "nowhere/*.tar", "--curated", "GOOD"), "no shard matches nowhere/*.tar"),
        (("--pool", "nowhere", "--curated", "GOOD"), "no such file: nowhere"),
        (("--pool", ".", "--curated", "GOOD"), "no .tar shard in the folder ."),
        (("--pool", "POOL", "--curated", "GOOD", "--benchmarks", "no"), "no benchmark in no"),
        (("--pool", "POOL", "--curated", "GOOD", "--tower", "ViT-B-61"), "did you mean ViT-B-16"),
        (("--pool", "POOL", "--curated", "GOOD", "--reference", "ViT-B-61:x"), "no model"),
        (("--pool", "GOOD", "--curated", "GOOD"), "the pool has 48 pairs"),
        (("--pool", "POOL", "--curated", "GOOD", "--minutes", "0.1"), "too little time"),
        (("--pool", "p/a.tar", "--curated", "c/a.tar", "x/b.tar"), "Quote the patterns"),
        (("--pool", "POOL", "--curated", "GOOD", "--set", "optim.lr=fast"), "optim.lr"),
    ],
)
def test_what_cannot_be_is_one_line(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    (place / "tiny.yaml").write_text(
        yaml.safe_dump({k: v for k, v in SETTINGS.items() if k != "optim"})
    )
    places = {"POOL": str(place / "pool"), "GOOD": str(place / "good")}
    given = [places.get(word, word) for word in words]
    few = said.startswith("the pool has")  # known when they are counted: a fault of the data
    assert jest(monkeypatch, "forecast", "--config", "tiny.yaml", *given) == 2 - few
    *skipped, error = capsys.readouterr().err.splitlines()
    assert said in error and all(line.startswith("skipped ") for line in skipped)
    # A corrected command is no other question.
    assert (place / "forecast" / "asked.json").exists() == (said == "too little time")


@pytest.mark.parametrize("method", ["jest", "jest-curated", "filtered", "finetune"])
def test_a_file_of_jest_config_races_what_its_settings_alone_do(place: Path, method: str) -> None:
    """Its method, reference, source and steps are one run's: every race has its own."""
    data = {"train": [str(place / "pool")], "curated": [str(place / "good")], "image_size": 32}
    settings = merge(SETTINGS, {"data": data, "optim": {"steps": 9_999}})
    run = default_run(method, settings | {"reference": {"optim": {"steps": 777}}}, 3)
    kept, planned, aside = forecast_run.of_a_run(printed(method, run))
    assert planned == {} and {"method", "seed", "optim.steps"} <= set(aside)
    assert forecast_run.source_run(kept) == forecast_run.source_run({"data": settings["data"]})
    plain, here = {**SETTINGS, "optim": {**SETTINGS["optim"]}}, {**data, "decoded": True}
    del plain["optim"]["steps"]
    by_file, by_hand = (Races(racing.base_settings(here, x), 40) for x in (kept, plain))
    assert by_file.jobs(RECIPES) == by_hand.jobs(RECIPES)


def test_a_file_of_an_open_clip_run_says_what_to_forecast_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[forecast_run.Asked] = []
    monkeypatch.setattr(forecast_run, "forecast", lambda what, *_: asked.append(what) or [])
    data = {"train": [str(place / "pool")], "curated": [str(place / "good")], "keys": "first"}
    settings = {
        "data": {**data, "image_size": 224, "context_length": 77, "benchmarks": "bench"},
        "model": {"name": "ViT-B-32", "patch_sizes": [32]},
        "optim": {"steps": 1_000, "batch_size": 4_096},
        "selection": {"sampler": "joint", "filter_ratio": 0.9, "n_chunks": 8},
        "reference_model": "ViT-B-32:openai",
    }
    (place / "mine.yaml").write_text(yaml.safe_dump(settings))
    assert jest(monkeypatch, "forecast", "--config", "mine.yaml") == 0
    (found,) = asked
    kept = {"data": {**data, "benchmarks": "bench"}, "selection": {"filter_ratio": 0.9}}
    assert (found.overrides, found.tower, found.examples) == (kept, "ViT-B-32", 4_096_000)
    assert (found.reference, found.benchmarks) == ("ViT-B-32:openai", "bench")
    words = ("--tower", "ViT-B-16", "--examples", "1e6", "--reference", "x", "--benchmarks", "b")
    assert jest(monkeypatch, "forecast", "--config", "mine.yaml", *words) == 0
    assert (asked[1].tower, asked[1].examples, asked[1].reference) == ("ViT-B-16", 1e6, "x")


def test_a_folder_of_another_forecast_is_left_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "forecast").mkdir()
    (place / "forecast" / "asked.json").write_text('{"asked": []}')
    words = ("--pool", str(place / "pool"), "--curated", str(place / "good"))
    assert jest(monkeypatch, "forecast", *words) == 2
    assert "holds another forecast" in capsys.readouterr().err


@pytest.mark.parametrize("old", [False, True])
def test_races_of_another_length_go_on_with_the_same_sample(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], old: bool
) -> None:
    """What it advises where there is too little time is no other question, nor was it one to a
    folder whose file still names a length."""
    words = ("forecast", "--pool", str(place / "pool"), "--curated", str(place / "good"))
    words += ("--config", "tiny.yaml", "--minutes", "0.1")
    assert jest(monkeypatch, *words) == 2
    assert "name the shorter race's length (--set optim.steps=100)" in capsys.readouterr().err
    sampled, path = place / "forecast" / "sample" / "pool" / "sample.json", "forecast/asked.json"
    before = sampled.stat().st_mtime_ns
    if old:
        content = json.loads((place / path).read_text())
        content["asked"][0].setdefault("optim", {})["steps"] = 77
        (place / path).write_text(json.dumps(content))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(racing, "train_all", stopped)
    assert jest(monkeypatch, *words, "--set", "optim.steps=100") == 130
    assert sampled.stat().st_mtime_ns == before
    assert jest(monkeypatch, *words, "--set", "optim.lr=0.1") == 2
    assert "holds another forecast" in capsys.readouterr().err


@pytest.mark.parametrize("change, said", [("new", "03.tar has come"), ("cut", "its size differs")])
def test_a_pool_that_has_changed_is_another_question(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    said: str,
) -> None:
    """An old sample would answer for shards that are not there any more."""
    words = ("--pool", str(place / "pool"), "--curated", str(place / "good"))
    words += ("--config", "tiny.yaml", "--minutes", "0.1")
    for _ in range(2):  # too little time for its races, but enough for the sample
        assert jest(monkeypatch, "forecast", *words) == 2
        assert "too little time" in capsys.readouterr().err
    if change == "new":
        make_shards(place / "more", 1, 20, first=2000)
        (place / "more" / "00.tar").rename(place / "pool" / "03.tar")
    else:
        make_shards(place / "pool", 1, 40)
    assert jest(monkeypatch, "forecast", *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error and "name another folder with --out" in error


def test_a_sample_follows_the_weights_of_its_sources(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As training does: nine of ten pairs from the smaller folder, whatever the sizes."""
    make_shards(place / "small", 2, 100, first=3000)
    make_shards(place / "large", 3, 200, first=5000)
    sources = [str(place / "large"), str(place / "small")]
    data = {"train": sources, "curated": [str(place / "good")]}
    monkeypatch.setattr(forecast_run, "POOL", 100)
    shares = {}
    for name, weights in (("weighted", [1, 9]), ("plain", [])):
        data["weights"] = weights
        asked = forecast_run.Asked(
            {"data": data}, place / name, 25, None, None, "ViT-B-16", 1, 1, 1
        )
        source = forecast_run.source_run(asked.overrides)
        workspace = Workspace(None, place / "runs", Loading(workers=0, cache=place / "cache"))
        console = Console(quiet=True)
        found = forecast_run._sample(asked, source, workspace, False, "{}", console)
        tars = [str(path) for path in sorted(found["pool"].folder.glob("*.tar"))]
        copied = build_decoded(tars, place / "d", 32, small_tokenizer(600, 8))
        shares[name] = np.mean([str(place / "small") in key for key in copied.keys])
    assert shares["weighted"] == pytest.approx(0.9, abs=0.08)
    assert shares["plain"] == pytest.approx(0.25, abs=0.12)


def test_a_sample_is_copied_part_by_part_and_goes_on(place: Path) -> None:
    """The same pairs under the same names, wherever the first attempt ended."""
    loading = Loading(workers=0, cache=place / "cache")
    pool = open_shards("pool", (str(place / "pool"),), loading)
    whole = take(pool, np.arange(len(pool)), place / "whole", 16, 100, 60.0, lambda *_: None)
    assert (whole.asked, whole.of) == (100, 120) and whole.pairs == 100 - sum(
        whole.unreadable.values()
    )
    tokenizer = small_tokenizer(600, 8)
    decoded = build_decoded(str(place / "whole" / "00000.tar"), place / "d", 16, tokenizer)
    at = decoded.keys.index(f"{place / 'pool' / '00.tar'}:000000007")
    assert decoded.captions[at] == pool.captions_of(np.array([7]))[0]
    (place / "whole" / "sample.json").unlink()
    content = (place / "whole" / "00000.tar").stat().st_mtime_ns
    again = take(pool, np.arange(len(pool)), place / "whole", 16, 100, 60.0, lambda *_: None)
    assert again == whole and (place / "whole" / "00000.tar").stat().st_mtime_ns == content


def test_no_race_trains_on_what_scores_it(place: Path) -> None:
    """The usual curated set is a part of the pool: its pairs held out are left out of the pool's
    sample, by their pictures, whatever they are called there; a sample that has none is kept."""
    names = [*range(1000, 1040), *range(2000, 2080)]
    shared = [sample(n, txt=b"other words", json=None) for n in names[:20]]
    write_tar(place / "both" / "a.tar", *shared, *map(sample, names[20:]))
    data = {"train": [str(place / "both")], "curated": [str(place / "good")]}
    loading = Loading(workers=0, cache=place / "cache")
    workspace, console = Workspace(None, place / "runs", loading), Console(quiet=True)

    def sampled(name: str, pool: str) -> dict[str, Sample]:
        data["train"] = [str(place / pool)]
        asked = forecast_run.Asked({"data": data}, place / name)
        source = forecast_run.source_run(asked.overrides)
        return forecast_run._sample(asked, source, workspace, False, "{}", console)

    def keys(one: Sample) -> list[str]:
        tars = [str(path) for path in sorted(one.folder.glob("*.tar"))]
        found = build_decoded(tars, place / "d", 32, small_tokenizer(600, 8)).keys
        return sorted(key.rpartition(":")[2] for key in found)

    found = sampled("mixed", "both")
    pool, held = found["pool"], [key for key in keys(found["held"]) if int(key) < 1040]
    assert pool.also_curated == 40 and pool.left_out == len(held) > 5
    assert keys(pool) == sorted({f"{n:09d}" for n in names} - set(held))
    assert pool.pairs == 120 - len(held) and pool.bad_share == 0
    before = {path: path.stat().st_mtime_ns for path in place.glob("mixed/sample/**/*")}
    assert sampled("mixed", "both") == found
    assert {path: path.stat().st_mtime_ns for path in place.glob("mixed/sample/**/*")} == before
    for path in place.glob("mixed/sample/**/shared.json"):  # killed before it was whole
        path.unlink()
    (pool.folder / "00007.tar").touch()
    assert sampled("mixed", "both") == found and not (pool.folder / "00007.tar").exists()

    plain = sampled("plain", "pool")["pool"]
    assert plain.folder == place / "plain" / "sample" / "pool"
    assert (plain.also_curated, plain.left_out, plain.pairs) == (0, 0, 119)
    with pytest.raises(DataError, match="every pair of the pool's sample shows a picture held out"):
        without_held(found["held"], found["curated"], found["held"])


def test_races_are_the_suites_own_runs_and_share_their_trunks() -> None:
    data = {"train": ["pool.tar"], "curated": ["good.tar"], "decoded": True, "image_size": 32}
    races = Races(racing.base_settings(data, SETTINGS), 40)
    jobs = races.jobs(RECIPES)
    assert {job.name for job in jobs} == set(RECIPES)
    assert races.names == tuple(RECIPES)
    foreign = Races({**races.settings, "reference_model": "ViT-B-32:openai"}, 40)
    assert set(RECIPES) - set(foreign.names) == {"finetune"}, "a model of another tower"
    by_name = {(job.name, job.seed, job.run.optim.steps): job.run for job in jobs}
    assert by_name["finetune", 0, 80].init_from_reference
    assert races.reference == by_name["curated", 0, 160]
    assert by_name["jest", 0, 80].reference == races.reference
    assert ("uniform", 0, 320) in by_name and ("jest", 1, 80) not in by_name
    longer, shorter = by_name["jest", 0, 80], by_name["jest", 0, 40]
    same = shorter.optim.model_copy(update={"steps": 80})
    assert longer == shorter.model_copy(update={"optim": same})


def test_lengths_follow_from_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"train": ["pool.tar"], "curated": ["good.tar"], "decoded": True, "image_size": 32}
    races = Races(racing.base_settings(data, merge(TINY, SETTINGS)), 50)
    monkeypatch.setattr(racing, "calibrate", lambda run, flops: (2e7, 2e7))
    one = racing.choose_steps(races, 3_000, 2)
    # The chains of one recipe bound what more processes can do.
    assert racing.choose_steps(races, 6_000, 2) == pytest.approx(2 * one, rel=0.15)
    assert one < racing.choose_steps(races, 3_000, 4) <= racing.choose_steps(races, 3_000, 400)
    with pytest.raises(ConfigError, match="too little time"):
        racing.choose_steps(races, 1, 2)


def test_an_open_clip_model_may_be_the_reference(place: Path) -> None:
    """It reads larger pictures than the races do, and its table is the one that they read."""
    (place / "jest-forecast-small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(place)
    model = open_clip.create_model("jest-forecast-small")
    torch.save(model.state_dict(), place / "small.pt")
    word = f"jest-forecast-small:{place / 'small.pt'}"
    space = Workspace(None, place / "runs", Loading(workers=0, cache=place / "cache"))
    folders = {}
    for name in ("pool", "good"):
        shards = open_shards(name, (str(place / name),), space.loading)
        rows, folder = np.arange(len(shards)), place / "sample" / name
        take(shards, rows, folder, 48, 100, 60.0, lambda *_: None)
        folders[name] = str(folder)
    data = {
        "train": [folders["pool"]],
        "curated": [folders["good"]],
        "decoded": True,
        "image_size": 32,
        **SETTINGS["data"],
    }
    settings = racing.base_settings(data, SETTINGS) | {"reference_model": word}
    run = Races(settings, 4).run("jest", 4)
    held = data_of(run, space).curated
    seen = look(run, held, folders["good"], space)
    live = open_clip_reference(word)
    rows = np.arange(5)
    read = open_shards("pool", run.data.train, space.loading).read(rows, live.transform)
    again = live.embed(read)
    assert seen.scores.right[:5] == pytest.approx(
        (again.image * again.text).sum(1).numpy(), abs=1e-5
    )
    reference = open_reference(run, space, data_of(run, space))
    assert reference.table is not None and reference.table.complete
    pairs = reference.table.pairs(rows)
    assert torch.allclose(pairs.image, again.image, atol=1e-5)


def test_a_finished_run_may_be_the_reference(place: Path) -> None:
    """Its model is copied beside the races, which then read it and train none."""
    space = Workspace(None, place / "runs", Loading(workers=0, cache=place / "cache"))
    data = {
        "train": [str(place / "pool")],
        "curated": [str(place / "good")],
        "decoded": True,
        "image_size": 32,
        **SETTINGS["data"],
    }
    races = Races(racing.base_settings(data, SETTINGS), 4)
    trained = races.run("curated", 4, seed=3)
    folder = train(trained, space)
    out = replace(space, runs=place / "out" / "runs")
    word, given = forecast_run._reference(
        forecast_run.Asked({}, place / "out", reference=str(folder)), space, out
    )
    assert word is None and given is not None
    run = replace(races, given=given).run("jest", 4)
    assert run.reference == trained and (out.folder(trained) / "done.json").exists()
    live = opened(run, out)
    assert live.key == opened(run, space).key
    embedded = tiny_run().model_dump(mode="json")
    (place / "embedded").mkdir()
    (place / "embedded" / "config.json").write_text(json.dumps({"label": "x", **embedded}))
    (place / "embedded" / "done.json").write_text(json.dumps({"steps": 1}))
    with pytest.raises(ConfigError, match="it knows the embedded data"):
        asked = forecast_run.Asked({}, place / "out", reference=str(place / "embedded"))
        forecast_run._reference(asked, space, out)
