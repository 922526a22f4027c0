"""A filter ratio that changes along the run: through B alone, at the cost of its mean."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from own_shards import make_shards
from tiny import fake_pool, loader, tiny_run, without_seconds
from toy import train_run

from jestcli.config import ConfigError, Run, make_run, merge
from jestcli.data.dataset import Transform
from jestcli.data.loader import Source, SuperBatchLoader
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.data.tokens import small_tokenizer
from jestcli.models.flops import ForwardFlops, run_cost, step_cost
from jestcli.paper.experiment import Job, jobs, read_experiment
from jestcli.paper.plan import make_plans
from jestcli.paper.records import collect
from jestcli.runs.inputs import drawn_before, splits
from jestcli.runs.methods import FOLDER
from jestcli.runs.workspace import Workspace, read_done
from jestcli.training.metrics import METRICS
from jestcli.training.signals import Interrupted
from jestcli.utils.randomness import shuffled

SHIPPED = {
    job.name: job.run for job in jobs(read_experiment(FOLDER / "schedule.yaml"), {}, seeds=[0])
}


def rising(**changes: object) -> Run:
    """B of 16, 24, 24, 32, 32, 40: a tiny batch of 8 allows multiples of 8."""
    selection = {"filter_ratio": 0.5, "filter_ratio_end": 0.8}
    return tiny_run("jest", selection=selection, optim={"steps": 6}, **changes)


def sizes(run: Run) -> list[int]:
    return [run.super_batch_at(step) for step in range(run.optim.steps)]


def test_the_super_batch_goes_from_one_end_to_the_other() -> None:
    assert sizes(rising()) == [16, 24, 24, 32, 32, 40]
    assert rising().super_batch_size == 40, "the largest"
    assert rising().super_batch_at(99) == 40, "past the end it stays"
    up, down = SHIPPED["jest@rising"], SHIPPED["jest@falling"]
    curved, flat = SHIPPED["jest@cosine"], SHIPPED["jest@constant"]
    assert sizes(up)[0] == 512 and sizes(up)[-1] == 2048 and sizes(up) == sorted(sizes(up))
    assert sizes(up) == sizes(down)[::-1]
    middle = len(sizes(up)) // 4
    assert sizes(curved)[middle] < sizes(up)[middle], "a cosine starts slowly"
    assert {B % 16 for run in (up, down, curved) for B in sizes(run)} == {0}
    assert {run.optim.batch_size for name, run in SHIPPED.items() if name != "reference"} == {256}
    assert set(sizes(flat)) == {1280} and flat.super_batch_at(7) == flat.super_batch_size


def test_the_shipped_schedules_cost_what_the_constant_ratio_costs() -> None:
    forward = ForwardFlops(800, 180, 200)
    steps = SHIPPED["jest@constant"].optim.steps
    flat = run_cost(SHIPPED["jest@constant"], steps, forward, forward, 1e6, 10**9)
    for name in ("jest@rising", "jest@falling", "jest@cosine"):
        cost = run_cost(SHIPPED[name], steps, forward, forward, 1e6, 10**9)
        for convention, value in cost.as_dict().items():
            assert value == pytest.approx(flat.as_dict()[convention], rel=1e-3)
    up, down = SHIPPED["jest@rising"], SHIPPED["jest@falling"]
    half = [run_cost(run, steps // 2, forward, None, 0, 0) for run in (up, down)]
    assert half[0].cached < 0.7 * half[1].cached, "but at another time"


def test_the_cost_is_the_sum_over_the_steps() -> None:
    learner_flops, reference = ForwardFlops(800, 180, 200), ForwardFlops(700, 170, 300)
    run = rising()
    for steps in (1, 2, 5, 6):
        seen = sum(sizes(run)[:steps])
        cost = run_cost(run, steps, learner_flops, reference, 5.0, 10**9)
        assert cost.cached == pytest.approx(steps * 3 * 8 * 1000 + seen * 1000)
        assert cost.cached_reuse == pytest.approx(cost.cached - steps * 8 * 1000)
        assert cost.uncached == pytest.approx(cost.cached + seen * 1000)
        assert cost.charged == pytest.approx(cost.cached + 5.0 + seen * 1000)
    assert run_cost(run, 6, learner_flops, reference, 5.0, 50).charged == pytest.approx(
        run_cost(run, 6, learner_flops, reference, 5.0, 50).cached + 5.0 + 50 * 1000
    ), "a cache scores each pair of the pool once"
    mean = step_cost(run, learner_flops, reference)
    assert 6 * mean.cached == pytest.approx(run_cost(run, 6, learner_flops, None, 0, 0).cached)
    (plan,) = make_plans([Job("rising", 0, run)], timed=False)
    assert plan.examples_seen == sum(sizes(run)) and plan.super_batch_size == 40
    ratio = plan.percent["cached"] / 100
    assert ratio == pytest.approx(1 + sum(sizes(run)) / 6 / 8 / 3)


def drawing(run: Run, rank: int = 0, world: int = 1) -> SuperBatchLoader:
    before = [partial(drawn_before, run, "pool")]
    return loader([fake_pool()], [run.super_batch_size], run.seed, rank, world, before)


def test_every_step_goes_on_where_the_one_before_stopped_reading() -> None:
    run = rising()
    drawn = [drawing(run)(step).row for step in range(6)]
    assert [len(rows) for rows in drawn] == sizes(run)
    read = np.concatenate(drawn)
    assert np.array_equal(read, shuffled(run.seed, "pool", 40, 0, len(read)))
    assert np.array_equal(drawing(run)(3).row, drawn[3]), "any step by itself: nothing to resume"
    ranks = [drawing(run, rank, 4)(3).row for rank in range(4)]
    assert [len(rows) for rows in ranks] == [8] * 4
    assert np.array_equal(np.concatenate(ranks), drawn[3])


def test_shards_are_read_on_in_the_same_way(tmp_path: Path) -> None:
    loading = Loading(workers=0, cache=tmp_path / "cache")
    shards = open_shards("pool", (str(make_shards(tmp_path / "own")),), loading, window=2)
    run, transform = rising(), Transform(32, small_tokenizer(600, 8))

    def drawn(source: Source, steps: list[int], **more: int) -> list[np.ndarray]:
        read = SuperBatchLoader([source], transform, loading, **more)
        try:
            return [read(step).row for step in steps]
        finally:
            read.close()

    order = shards.order(3, "pool")
    plain = np.concatenate(drawn(Source(shards, order, 8), list(range(21))))
    scheduled = Source(shards, order, 40, before=partial(drawn_before, run, "pool"))
    rows = drawn(scheduled, list(range(6)))
    assert [len(each) for each in rows] == sizes(run)
    assert np.array_equal(np.concatenate(rows), plain[: sum(sizes(run))])
    assert np.array_equal(drawn(scheduled, [4])[0], rows[4])
    halves = [drawn(scheduled, [4], rank=rank, world=2)[0] for rank in range(2)]
    assert np.array_equal(np.concatenate(halves), rows[4])


def test_mixed_sources_add_up() -> None:
    selection = {"criterion": "hard_learner", "sampler": "joint", "filter_ratio_end": 0.8}
    run = tiny_run("mixed", selection=selection, source={"curated_share": 0.3})
    for step in range(5):
        before = [drawn_before(run, split, step) for split in splits(run)]
        assert sum(before) == run.candidates_before(step) and (step or before == [0, 0])


def test_a_scheduled_run_is_trained_recorded_and_resumed(workspace: Workspace) -> None:
    run, other = rising(), Workspace(workspace.data, workspace.runs / "other")
    folder = train_run(run, workspace, "rising", lambda *_: None)
    record = collect(folder, "rising", 0)
    assert [p["seen"] for p in record["curve"]] == [
        run.candidates_before(p["step"]) for p in record["curve"]
    ]
    assert record["curve"][-1]["seen"] == sum(sizes(run))
    assert record["curve"][-1]["examples"] == 6 * 8, "the learner's batch stays"
    flops = read_done(folder)["flops_per_example"]
    one = flops["image_full"] + flops["text"]
    assert read_done(folder)["flops"]["cached"] == 6 * 8 * 3 * one + sum(sizes(run)) * one

    def interrupt(done: int, total: int, line: str) -> None:
        if done == 3 and total == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_run(run, other, "rising", interrupt)
    again = train_run(run, other, "rising", lambda *_: None)
    assert again != folder
    assert without_seconds(again / METRICS) == without_seconds(folder / METRICS)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    lines = [json.loads(x) for x in (folder / METRICS).read_text().splitlines()]
    assert len(next(x["chosen"] for x in lines if x.get("chosen"))) == 8


@pytest.mark.parametrize(
    "change,message",
    [
        ({"selection": {"schedule": "cosine"}}, "schedule needs selection.filter_ratio_end"),
        (
            {"selection": {"filter_ratio_end": 1.0}},
            "filter_ratio_end: Input should be less than or equal to 0.999",
        ),
        ({"selection": {"filter_ratio_end": 0.9, "schedule": "linaer"}}, "'linear' or 'cosine'"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_run(merge(tiny_run("jest").model_dump(), change))


def test_without_an_end_the_run_is_the_one_it_was() -> None:
    plain = tiny_run("jest")
    assert not plain.scheduled and plain.candidates_before(5) == 5 * plain.super_batch_size
    assert not tiny_run(selection={"filter_ratio_end": 0.9}).scheduled, "uniform draws b"
    spelt = tiny_run("jest", selection={"filter_ratio_end": None, "schedule": "linear"})
    assert spelt.digest() == plain.digest() != rising().digest()
