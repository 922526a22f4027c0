"""What works on the embedded data works on a user's shards: the paper's comparisons, end to end."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_shards import jpeg, make_shards, write_tar
from rich.console import Console
from tiny import TINY
from toy import train_run

from jestcli.bench.scoring import bench_scoring
from jestcli.config import METHODS, Run, make_run, merge
from jestcli.data.dataset import Samples
from jestcli.data.sources import Loading
from jestcli.paper import diversity, figure2, plot
from jestcli.paper.experiment import Job, find_experiment, read_experiment
from jestcli.runs.inputs import open_inputs
from jestcli.runs.reference import embed_all, open_reference
from jestcli.runs.run_data import data_of
from jestcli.runs.workspace import Workspace, read_done
from jestcli.selection import PairEmbeddings
from jestcli.training.reference import RunReference


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("both")
    make_shards(root / "pool", 4, 16)
    make_shards(root / "curated", 1, 16, first=1000)
    flowers = root / "benchmarks" / "wds_flowers"
    write_tar(
        flowers / "test" / "0.tar",
        *[{f"{n}.jpg": jpeg(n), f"{n}.cls": str(n % 3).encode()} for n in range(12)],
    )
    (flowers / "classnames.txt").write_text("cat\ndog\naster\n")
    (flowers / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    return root


@pytest.fixture(scope="module")
def place(shards: Path) -> Workspace:
    """Runs are shared: what one test trains is there for the next."""
    return Workspace(None, shards / "runs", Loading(workers=0, cache=shards / "cache"))


def own_run(root: Path, method: str = "jest", **more: Any) -> Run:
    data = {"train": str(root / "pool"), "curated": str(root / "curated"), "window": 2}
    base = merge(merge(TINY, {"data": data}), METHODS[method])
    own = {"optim": {"steps": 2}, "data": {"curated": data["curated"]}}
    curated = merge(METHODS["curated"], own)
    if method != "mixed":
        base["reference"] = merge(TINY, curated)
    return make_run(merge(base, more))


def quiet(*_: Any) -> None:
    pass


def test_noise_and_a_smaller_pool_on_shards(shards: Path, place: Workspace) -> None:
    source = {"noise_share": 0.5, "pool_size": 40}
    run = own_run(shards, source=source)
    folder = train_run(run, place, "noisy", quiet)
    done = read_done(folder)
    assert done["rows_drawn_from"] == {"pool": 40}
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert len(record["wrong"]) == 2 and 0.2 < record["wrong"][0] < 0.8
    assert 0 < done["noise_trained_on"] < 1
    inputs = open_inputs(run, place, folder)
    live = [inputs.reference.call(inputs.loader(step)) for step in range(2)]  # type: ignore[misc]
    data = data_of(run, place)
    reference = open_reference(run, place, data)
    assert reference.live is not None
    assert embed_all(reference.live, data.pool_of(run), data, quiet) == 4
    again = open_inputs(run, place, folder)
    drawn = again.loader(0)
    assert drawn.wrong is not None and drawn.wrong.any()
    for step, want in enumerate(live):  # a caption's embedding is found where its own pair lies
        found = again.reference.call(again.loader(step))  # type: ignore[misc]
        np.testing.assert_allclose(found.text.numpy(), want.text.numpy(), atol=1e-6)
        np.testing.assert_allclose(found.image.numpy(), want.image.numpy(), atol=1e-6)
    filtered = own_run(shards, "filtered", source=source | {"keep": 0.5})
    rows = read_done(train_run(filtered, place, "filtered", quiet))["rows_drawn_from"]
    assert rows == {"pool": 20}, "half of the smaller pool, scored under the captions it shows"


def test_learners_side_by_side_wait_for_the_one_that_embeds(
    shards: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small pool is embedded when a run finds that it is not; the next then reads the table."""
    run = own_run(shards, data={"decoded": True})
    assert run.reference is not None
    train_run(run.reference, place, "reference", quiet)
    embed, embedding, go = RunReference.embed, threading.Event(), threading.Event()
    seen: list[int] = []

    def slowly(self: RunReference, samples: Samples) -> PairEmbeddings:
        seen.append(len(samples.row))
        embedding.set()
        assert go.wait(60)
        return embed(self, samples)

    def complete() -> bool:
        table = open_reference(run, place, data_of(run, place)).table
        return table is not None and table.complete

    monkeypatch.setattr(RunReference, "embed", slowly)
    with ThreadPoolExecutor(2) as learners:
        first = learners.submit(complete)
        assert embedding.wait(60)
        second = learners.submit(complete)
        wait([second], 0.5)
        go.set()
        assert first.result(60) and second.result(60)
    assert seen == [64], "each pair once"


def test_curated_pairs_beside_chosen_ones_on_shards(shards: Path, place: Workspace) -> None:
    done = read_done(train_run(own_run(shards, "jest-curated"), place, "both", quiet))
    assert done["rows_drawn_from"] == {"pool": 64, "curated": 16}


def test_figure_2_diversity_and_scoring_are_measured_on_shards(
    shards: Path, place: Workspace, tmp_path: Path
) -> None:
    run = own_run(shards, data={"benchmarks": str(shards / "benchmarks")})
    folder = train_run(run, place, "jest", quiet)
    (found,) = figure2.measure_all({0: run}, place, tmp_path / "figure2")
    assert all(np.isfinite(found["chunks"]["4"])) and (tmp_path / "figure2" / "matrix.npy").exists()
    (measured,) = diversity.measure_all([Job("jest", 0, run)], place, tmp_path / "diversity")
    assert 0 < measured["chosen"]["distinct_captions"] <= 1 and measured["accuracy"]
    result = bench_scoring(place, folder, 1)
    assert "pairs from own shards" in result["about"] and len(result["rows"]) == 5


def test_an_experiment_on_shards_says_that_the_data_are_own(
    shards: Path, place: Workspace, tmp_path: Path
) -> None:
    plain, scored = (
        own_run(shards),
        own_run(shards, data={"benchmarks": str(shards / "benchmarks")}),
    )
    console, picture = Console(file=io.StringIO()), tmp_path / "so-far.png"
    for run in (plain, scored):
        jobs = [Job("joint@0.8", 0, run)]
        follow = plot.follower("t", jobs, place, picture, console)
        follow(train_run(run, place, "joint", quiet))
        assert picture.exists() == (run is scored), "without benchmarks there is nothing to show"
        experiment = read_experiment(find_experiment("batch-size"))
        plot.plot(experiment, jobs, place, tmp_path, console, collect=True)
        page = (tmp_path / "batch-size" / "table.md").read_text()
        assert "own data" in page and "icons" not in page
    assert "1 of 1 runs so far" in console.file.getvalue()  # type: ignore[attr-defined]
