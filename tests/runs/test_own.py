"""A researcher's own shards, from a shell command to a trained model."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import forked
import numpy as np
import pytest
import torch
import yaml
from own_shards import jpeg, make_own, make_shards, sample, write_tar
from safetensors.numpy import load_file
from tiny import TINY, tiny_run, without_seconds
from toy import train_run

import jestcli.train as loop
from jestcli import cli
from jestcli.config import METHODS, Run, make_run, merge
from jestcli.data import loader, shard_dataset
from jestcli.data.images import decode_image, fit
from jestcli.data.shards import decode
from jestcli.data.sources import Loading
from jestcli.evaluation.benchmarks import find_benchmarks
from jestcli.evaluation.evaluate import evaluate
from jestcli.paper import theme
from jestcli.paper.inspection import inspect, replay
from jestcli.runs import trained
from jestcli.runs.evaluate import evaluate_folder
from jestcli.runs.opened import open_run
from jestcli.runs.workspace import StageError, Workspace, read_done
from jestcli.utils.errors import DataError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 48 pairs, a curated set of 16, and a zero-shot and a retrieval benchmark."""
    return make_own(tmp_path_factory.mktemp("own"))


def settings(root: Path, **more: Any) -> dict[str, Any]:
    own = {
        "train": str(root / "pool" / "{00..03}.tar"),
        "curated": str(root / "curated"),
        "window": 2,
    }
    return merge(merge(TINY, {"data": own}), more)


def own_run(root: Path, method: str = "jest", **more: Any) -> Run:
    given = merge(settings(root, **more), METHODS[method])
    if method in ("jest", "flexi"):
        reference = merge(settings(root), merge(METHODS["curated"], {"optim": {"steps": 2}}))
        given["reference"] = reference
    return make_run(given)


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace(None, tmp_path / "runs", Loading(workers=0, cache=tmp_path / "cache"))


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The command in a folder of its own, its workers forked rather than started anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEST_RUNS", str(tmp_path / "runs"))
    return monkeypatch


def quiet(*_: Any) -> None:
    pass


def test_one_command_trains_on_a_folder_of_jpegs(
    shards: Path,
    tmp_path: Path,
    at_home: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From shards to a trained reference, a trained learner and scores."""
    at_home.setenv("COLUMNS", "200")
    reference = merge(METHODS["curated"], {"optim": {"steps": 2}})
    file = merge(TINY, {"reference": merge(settings(shards), reference)})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(file))
    words = [
        "jest",
        "train",
        "--method",
        "jest",
        "--config",
        "tiny.yaml",
        "--data-workers",
        "0",
        "--cache",
        str(tmp_path / "cache"),
    ]
    for pair in (
        f"data.train={shards}/pool/{{00..03}}.tar",
        f"data.curated={shards}/curated",
        f"data.benchmarks={shards}/benchmarks",
        "data.window=2",
    ):
        words += ["--set", pair]
    at_home.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, errors = capsys.readouterr()
    assert (stopped.value.code or 0, errors) == (0, ""), errors
    assert "pool: 48 pairs in 4 shards" in out
    assert "flowers" in out and "pairs_i2t" in out and "own data" in out and "icons" not in out
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2 and all((f / "done.json").exists() for f in folders)
    at_home.setattr(sys, "argv", ["jest", "eval"])
    with pytest.raises(SystemExit):
        cli.main()
    out, _ = capsys.readouterr()
    assert out.count("own data") == 2 and "icons" not in out


def test_a_run_starts_from_a_checkpoint_by_its_content(
    shards: Path,
    tmp_path: Path,
    at_home: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`jest train --init FILE`: its weights, and one run directory wherever the file lies."""
    settled = {"optim": {"lr": 1e-12, "steps": 1, "warmup": 1}, "selection": {"low_res_share": 0.5}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings(shards, **settled)))
    start = trained.new_learner(own_run(shards, "flexi-uniform", seed=7))
    checkpoint = {
        k.replace("visual.visual.", "visual.").removeprefix("clip."): v
        for k, v in start.state_dict().items()
    }
    torch.save({"state_dict": checkpoint}, tmp_path / "start.pt")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "copy.pt").write_bytes((tmp_path / "start.pt").read_bytes())
    folders = []
    for name in ("start.pt", "elsewhere/copy.pt"):
        at_home.setattr(
            sys,
            "argv",
            [
                "jest",
                "train",
                "--method",
                "flexi-uniform",
                "--config",
                "tiny.yaml",
                "--data-workers",
                "0",
                "--cache",
                "cache",
                "--init",
                name,
            ],
        )
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, errors = capsys.readouterr()
        assert (stopped.value.code or 0, errors) == (0, ""), errors
        folders.append(Path(out.rpartition("run directory: ")[2].strip()))
    assert folders[0] == folders[1] and len(list((tmp_path / "runs").iterdir())) == 1
    weights = load_file(folders[0] / "model.safetensors")
    for key, value in start.state_dict().items():
        np.testing.assert_allclose(weights[f"model.{key}"], value, rtol=0, atol=1e-6)
    (tmp_path / "start.pt").write_bytes(b"other")
    given = json.loads((folders[0] / "config.json").read_text())
    given.pop("label")
    assert make_run(given).digest() == make_run({**given, "init": "/moved"}).digest()
    other = make_run({**given, "init": "start.pt", "init_sha256": None})
    assert other.digest() != make_run(given).digest(), "other content, another run"
    with pytest.raises(StageError, match="is not the file this run started from"):
        train_run(make_run({**given, "seed": 1}), Workspace(None, tmp_path / "b"), "x", quiet)


@pytest.mark.parametrize("method", ["jest", "flexi", "mixed"])
def test_methods_train_on_own_shards(method: str, shards: Path, place: Workspace) -> None:
    run = own_run(shards, method)
    folder = train_run(run, place, method, quiet)
    done = read_done(folder)
    assert done["scores"] == {} and done["mean"] is None, "no benchmark, so nothing is claimed"
    drawn = {"pool": 48, "curated": 16} if method == "mixed" else {"pool": 48}
    assert done["rows_drawn_from"] == drawn
    assert evaluate_folder(folder, place) == (method, {})


def test_workers_and_restarts_do_not_change_a_run(shards: Path, tmp_path: Path) -> None:
    """Stopped at a step and gone on with other workers: the same records, the same weights."""
    run = own_run(
        shards, "jest", optim={"steps": 6}, data={"benchmarks": str(shards / "benchmarks")}
    )
    whole, cut = (
        Workspace(None, tmp_path / name, Loading(workers=n, cache=tmp_path / "cache"))
        for name, n in (("whole", 2), ("cut", 0))
    )
    train_run(run, whole, "jest", quiet)
    process = forked.start(_stop_after, run, cut, 3)
    process.join(60)
    assert process.exitcode == 130 and (cut.folder(run) / "checkpoint.safetensors").exists()
    train_run(
        run, Workspace(None, cut.runs, Loading(workers=1, cache=tmp_path / "cache")), "jest", quiet
    )
    a, b = whole.folder(run), cut.folder(run)
    assert without_seconds(a / "metrics.jsonl") == without_seconds(b / "metrics.jsonl")
    ours, theirs = (load_file(f / "model.safetensors") for f in (a, b))
    assert all((ours[k] == theirs[k]).all() for k in ours)
    scores = read_done(a)["scores"]
    assert set(scores) == {"flowers", "pairs_i2t", "pairs_t2i"}
    assert scores["flowers"]["chance"] == pytest.approx(1 / 3) and scores["flowers"]["n"] == 12


def _stop_after(run: Run, place: Workspace, step: int) -> None:
    import signal

    from jestcli.training.signals import Interrupted

    def report(done: int, total: int, line: str) -> None:
        if total == run.optim.steps and done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train_run(run, place, "jest", report)
    except Interrupted:
        os._exit(130)


def test_a_runs_folder_is_named_by_its_shards(
    shards: Path, place: Workspace, tmp_path: Path
) -> None:
    run, other = own_run(shards, "uniform"), own_run(tmp_path, "uniform")
    make_shards(tmp_path / "pool", samples=3)
    make_shards(tmp_path / "curated", 1, 3)
    names = {place.folder(each) for each in (run, other, tiny_run())}
    write_tar(tmp_path / "pool" / "00.tar", sample(5))
    assert len(names | {place.folder(other)}) == 4


def test_a_reference_is_the_same_whatever_the_pool_is(shards: Path) -> None:
    from jestcli.runs.methods import default_reference, default_run

    data = {"train": str(shards / "pool"), "weights": [1], "curated": str(shards / "curated")}
    run = default_run("jest", {"data": data}, 0)
    assert run.reference == default_reference({"data": data}, 0)
    assert run.reference == default_reference({"data": {"curated": data["curated"]}}, 0)


@pytest.mark.parametrize(
    "data,words",
    [
        ({"train": "/nowhere/{0..3}.tar", "curated": "/nowhere/a.tar"}, "shards cannot be read"),
        ({"train": "/nowhere/", "curated": "/nowhere/*.tar"}, "no shard matches"),
    ],
)
def test_missing_data_is_one_line(
    data: dict[str, Any], words: str, tmp_path: Path, place: Workspace
) -> None:
    run = make_run(merge(TINY, {"data": data}))
    with pytest.raises(DataError, match=words) as caught:
        train_run(run, place, "uniform", quiet)
    assert "\n" not in str(caught.value)


def test_the_counts_of_a_run_are_kept(shards: Path, place: Workspace) -> None:
    run = own_run(shards, "uniform")
    folder = train_run(run, place, "uniform", quiet)
    kept = json.loads((folder / "shards.json").read_text())
    assert list(kept) == ["pool"] and set(kept["pool"].values()) == {12}


def test_waiting_for_data_is_recorded(
    shards: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that takes 15 ms a pair: metrics.jsonl and done.json name the bottleneck."""

    def slowly(*given: Any) -> Any:
        time.sleep(0.015)
        return decode(*given)

    monkeypatch.setattr(shard_dataset, "decode", slowly)
    monkeypatch.setattr(loader, "WATCHED", 0)
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    folder = train_run(own_run(shards, "hard-learner"), place, "hard-learner", quiet)
    records = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    speeds = {r["step"]: r["speed"] for r in records if "speed" in r}
    assert speeds[1]["waiting_for_data"] == 0 and speeds[1]["bottleneck"] == ""
    assert speeds[4]["waiting_for_data"] > 0.1
    assert "data are the bottleneck" in speeds[4]["bottleneck"]
    assert 0.05 < read_done(folder)["waiting_for_data_of_last_sitting"] <= 1


def label_train_split(root: Path, folder: Path, numbers: range, classes: int = 3) -> Path:
    """The flowers with a train split of two shards, in `folder`."""
    flowers = folder / "wds_flowers"
    shutil.copytree(root / "benchmarks" / "wds_flowers", flowers)
    half = len(numbers) // 2
    for shard, part in enumerate((numbers[:half], numbers[half:])):
        write_tar(
            flowers / "train" / f"{shard}.tar",
            *[{f"{n}.jpg": jpeg(n), f"{n}.cls": str(n % classes).encode()} for n in part],
        )
    return flowers


def test_own_benchmarks_with_a_train_split_have_a_few_shot_score(
    shards: Path, place: Workspace, tmp_path: Path
) -> None:
    label_train_split(shards, tmp_path, range(100, 130))
    data = {"benchmarks": str(tmp_path), "shots": 4}
    run = own_run(shards, "uniform", data=data)
    scores = read_done(train_run(run, place, "uniform", quiet))["scores"]
    assert set(scores) == {"flowers", "flowers_4shot"}
    assert scores["flowers_4shot"]["n"] == 12
    assert scores["flowers_4shot"]["chance"] == pytest.approx(1 / 3)
    few = find_benchmarks(tmp_path, 32, 4)[1]
    train = few.split("train")
    assert train.labels is not None and torch.bincount(train.labels).tolist() == [4, 4, 4]
    pictures = {
        n: torch.from_numpy(fit(decode_image(jpeg(n)), 32).copy()).permute(2, 0, 1)
        for n in range(100, 130)
    }
    shown = [
        next(n for n, p in pictures.items() if torch.equal(p, image)) for image in train.images
    ]
    assert [n % 3 for n in shown] == train.labels.tolist() and len(set(shown)) == 12
    assert any(n >= 115 for n in shown) and any(n < 115 for n in shown), "from every shard"


def test_a_few_shot_score_is_that_of_what_was_learned(shards: Path, tmp_path: Path) -> None:
    """Test images that the train split shows are told apart perfectly, strange ones are not."""
    flowers = label_train_split(shards, tmp_path, range(12))  # those of the test split
    model = trained.new_learner(own_run(shards, "uniform"))

    class Wide:  # random features of the pixels, enough to tell 12 pictures apart
        scale = model.scale
        training, eval, train = False, lambda _: None, lambda *_: None

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            dice = torch.Generator().manual_seed(0)
            mixed = images.flatten(1) @ torch.randn(3 * 32 * 32, 512, generator=dice)
            return 10 * torch.nn.functional.normalize(mixed, dim=1)

    few = find_benchmarks(tmp_path, 32, 4)[1]
    assert evaluate(cast(Any, Wide()), None, [few])["flowers_4shot"]["score"] == 1.0  # type: ignore[arg-type]
    shutil.rmtree(flowers / "train")
    write_tar(
        flowers / "train" / "0.tar",
        *[{f"{n}.jpg": jpeg(n), f"{n}.cls": str((n + 1) % 3).encode()} for n in range(12)],
    )
    wrong = replace(few, folder=flowers.rename(tmp_path / "moved"))
    assert evaluate(cast(Any, Wide()), None, [wrong])["flowers_4shot"]["score"] == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "break_it,words",
    [
        (
            lambda f: write_tar(f / "train" / "0.tar", {"1.jpg": jpeg(1), "1.cls": b"0"}),
            "no image of class 1",
        ),
        (lambda f: write_tar(f / "train" / "2.tar", {"z.jpg": jpeg(1), "z.cls": b"7"}), "class 7"),
        (
            lambda f: write_tar(f / "train" / "2.tar", {"z.jpg": jpeg(1), "z.cls": b"rose"}),
            "broken class number",
        ),
        (lambda f: (f / "train" / "0.tar").write_bytes(b"x" * 999), "not a tar file"),
        (lambda f: [p.unlink() for p in (f / "train").iterdir()], "holds no shard"),
        (lambda f: shutil.rmtree(f / "train"), "no labelled benchmark"),
    ],
)
def test_a_train_split_without_the_shots_is_one_line(
    break_it: Any, words: str, shards: Path, tmp_path: Path
) -> None:
    flowers = label_train_split(shards, tmp_path, range(100, 106))
    if words == "no image of class 1":
        (flowers / "train" / "1.tar").unlink()
    break_it(flowers)
    with pytest.raises(DataError, match=words) as caught:
        find_benchmarks(tmp_path, 32, 2)[1].split("train")
    assert "\n" not in str(caught.value)


def test_a_class_with_fewer_images_gives_all_it_has(shards: Path, tmp_path: Path) -> None:
    flowers = label_train_split(shards, tmp_path, range(100, 106))
    write_tar(flowers / "train" / "2.tar", {"x.jpg": b"broken", "x.cls": b"0"})
    train = find_benchmarks(tmp_path, 32, 10)[1].split("train")
    assert train.labels is not None and torch.bincount(train.labels).tolist() == [2, 2, 2]


def test_a_run_on_own_shards_is_inspected(
    shards: Path, place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sources read unevenly, a broken image: scores by uid of every pair that can be read."""
    monkeypatch.setattr(theme, "DPI", 40)
    other = make_shards(tmp_path / "other", 1, 11, first=500)
    write_tar(other / "01.tar", sample(600, jpg=b"broken"))
    both = [str(shards / "pool" / "{00..03}.tar"), str(other)]
    run = own_run(shards, data={"train": both, "weights": [1.0, 3.0]})
    loose = replace(place, loading=replace(place.loading, max_faults=0.5))
    folder = train_run(run, loose, "jest", quiet)
    out = tmp_path / "out"
    written = inspect(folder, loose, out, super_batches=3)
    assert all(path.stat().st_size > 0 for path in written)
    facts = json.loads((out / folder.name / "facts.json").read_text())
    assert set(facts["rates"]) == {"source", "words"} and set(facts["rates"]["source"]) == {*both}
    assert facts["rates"]["words"]["4"][0] == 48 == facts["offered"], "four words a caption"
    assert facts["diversity"]["chosen"]["sources"] == 2
    assert set(facts["over_time"]["words"]["share"]) == {"4"}
    inspect(folder, loose, out, super_batches=1, everything=True)
    rows = list(csv.DictReader((out / folder.name / "scores.csv").open()))
    assert {row["key"] for row in rows} == {f"uid-{n}" for n in (*range(48), *range(500, 511))}
    assert {row["source"] for row in rows if row["key"] == "uid-500"} == {str(other / "00.tar")}
    assert sum(int(row["chosen"]) for row in rows) == 30, "half of 59"
    scores = {row["key"]: float(row["learnability"]) for row in rows}
    opened = open_run(folder, loose)
    again = {
        key: float(score)
        for one in replay(opened, 1)
        for key, score in zip(opened.pairs.keys_of(one.rows), one.score, strict=True)
    }
    assert again == pytest.approx({key: scores[key] for key in again}, rel=1e-3)
    assert not (folder / "faults.jsonl").exists() or "600" in (folder / "faults.jsonl").read_text()


def test_remote_captions_are_not_fetched_to_look_at_a_whole_training(
    shards: Path, place: Workspace
) -> None:
    pool = str(shards / "pool" / "{00..03}.tar")
    for entry, most in ((pool, 2_000), (f"pipe:cat {pool}", 0)):
        run = own_run(shards, data={"train": entry})
        assert open_run(train_run(run, place, "x", quiet), place).pairs.most_captions == most
