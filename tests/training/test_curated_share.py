"""JEST with a fixed share of curated pairs in the batch: chosen and curated, in one loss."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_ranks import finish, start
from tiny import fake_dataset, fake_pool, fake_source, loader, tiny_model, tiny_run, without_seconds
from toy import train as toy_train
from toy import train_run

import jestcli.train as loop
from jestcli.config import Run, make_run
from jestcli.data.loader import SuperBatch, SuperBatchLoader
from jestcli.models.flops import Cost, ForwardFlops, per_iteration, run_cost, step_cost
from jestcli.runs.inputs import drawn_before, splits
from jestcli.runs.workspace import StageError, Workspace, read_done
from jestcli.selection import PairEmbeddings
from jestcli.training.distributed import SINGLE_PROCESS, DistEnv
from jestcli.training.metrics import METRICS
from jestcli.training.signals import Interrupted
from jestcli.training.step import encode_pairs, offered, select_sub_batch


def curated_run(share: float = 0.25, **more: Any) -> Run:
    return tiny_run("jest-curated", source={"curated_share": share}, **more)


def drawing(run: Run, rank: int = 0, world: int = 1) -> SuperBatchLoader:
    parts = [fake_pool(), fake_source(fake_dataset(12, seed=5), np.arange(12), "curated", 2)]
    counts = [run.super_batch_size - run.curated_pairs, run.curated_pairs]
    return loader(parts, counts, run.seed, rank, world, apart=True)


def test_the_super_batch_is_drawn_for_what_the_sampler_chooses() -> None:
    run = curated_run()
    assert (run.curated_pairs, run.super_batch_size) == (2, 2 + 12), "6 / (1 - .5) candidates"
    assert run.candidates_before(3) == 42 and run.scored_before(3) == 36
    assert tiny_run("mixed").curated_pairs == 4 and tiny_run("mixed").scored_before(3) == 0
    rising = curated_run(selection={"filter_ratio": 0.5, "filter_ratio_end": 0.75})
    for step in range(6):
        pool, curated = (drawn_before(rising, split, step) for split in splits(rising))
        assert curated == 2 * step and pool == rising.scored_before(step)
    assert rising.scored_before(4) == 12 + 16 + 20 + 24


def test_only_candidates_of_the_pool_cost_scoring() -> None:
    mine, theirs = ForwardFlops(800, 180, 200), ForwardFlops(700, 170, 300)
    cost = step_cost(curated_run(), mine, theirs)
    assert cost.cached == 3 * 8 * 1000 + 12 * 1000
    assert cost.cached_reuse == cost.cached - 6 * 1000
    assert cost.uncached == cost.cached + 12 * 1000
    whole = run_cost(curated_run(), 10, mine, theirs, 7.0, 50)
    assert whole.charged == 10 * cost.cached + 7 + 50 * 1000, "the pool, once"
    percent = per_iteration(curated_run(), mine, theirs)
    assert percent["cached_text_reuse"] == pytest.approx(100 * (cost.cached - 6 * 200) / 24_000)


def test_curated_pairs_are_in_the_batch_whatever_is_chosen() -> None:
    run = curated_run()
    model, other = tiny_model(run), tiny_model(run, seed=9)
    asked: list[int] = []

    def reference(candidates: SuperBatch) -> PairEmbeddings:
        asked.append(len(candidates))
        assert set(candidates.part) == {0}
        return encode_pairs(other, candidates.images, candidates.tokens, None)

    for step in range(4):
        drawn = drawing(run)(step)
        choice = select_sub_batch(model, reference, drawn, run, step, measure=True)
        assert len(set(choice.index.tolist())) == 8
        assert choice.index[6:].tolist() == [12, 13] and int(choice.index[:6].max()) < 12
        assert drawn.part[choice.index].tolist() == [0] * 6 + [1] * 2
    assert asked == [12] * 4
    plain = tiny_run("jest", optim={"batch_size": 6})
    same = select_sub_batch(
        model, reference, offered(run, drawing(run)(0), SINGLE_PROCESS), plain, 0
    )
    first = select_sub_batch(model, reference, drawing(run)(0), run, 0)
    assert same.index.tolist() == first.index[:6].tolist(), "chosen as if nothing stood beside it"


def test_ranks_hold_as_many_of_each_part() -> None:
    run = curated_run()
    whole = drawing(run)(3)
    halves = [drawing(run, rank, 2)(3) for rank in range(2)]
    assert [half.part.tolist() for half in halves] == [[0] * 6 + [1]] * 2
    for part in (0, 1):
        rows = np.concatenate([half.row[half.part == part] for half in halves])
        assert rows.tolist() == whole.row[whole.part == part].tolist()


def train(run: Run, folder: Path, world: DistEnv, stop: int = 0) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    model, other = tiny_model(run, seed=1), tiny_model(run, seed=99).double()

    def report(done: int, total: int, line: str) -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    toy_train(
        run,
        folder,
        model,
        drawing(run, world.rank, world.size),
        lambda c: encode_pairs(other, c.images, c.tokens, None),
        lambda final: {"toy": {"score": 0.5}} if world.main else {},
        lambda steps: Cost(steps, steps, steps, steps),
        report,
        lambda _: None,
        world,
    )
    return model.state_dict()


RANKS = curated_run(engine={"precision": "float64"}, optim={"steps": 5})
BALANCED = curated_run(
    engine={"precision": "float64", "selection_mode": "balanced"}, selection={"n_chunks": 3}
)


def as_ranks(world: DistEnv, folder: Path) -> None:
    loop.LOG_EVERY = 1
    with contextlib.suppress(Interrupted):
        train(RANKS, folder / "run", world, stop=2)
    weights = train(RANKS, folder / "run", world)
    torch.save(weights, folder / f"weights-{world.rank}")
    train(BALANCED, folder / "balanced", world)


def test_two_ranks_killed_and_resumed_train_what_one_process_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    assert finish(start(2, as_ranks, tmp_path)) == [0, 0]
    alone = train(RANKS, tmp_path / "alone", SINGLE_PROCESS)
    for rank in range(2):
        weights = torch.load(tmp_path / f"weights-{rank}", weights_only=True)
        for key, value in alone.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-11)
    ours, theirs = (
        [
            json.loads(x)["chosen"]
            for x in (tmp_path / name / METRICS).read_text().splitlines()
            if "chosen" in x
        ]
        for name in ("run", "alone")
    )
    assert ours == theirs and [len(each) for each in ours] == [6] * 5, "rows of the pool alone"
    told = (tmp_path / "balanced" / METRICS).read_text().splitlines()
    assert all(len(json.loads(x)["chosen"]) == 6 for x in told if "chosen" in x)


def test_a_whole_run_killed_and_resumed(workspace: Workspace, tmp_path: Path) -> None:
    run = tiny_run("jest-curated", source={"noise_share": 0.5}, optim={"steps": 6})
    folder = train_run(run, workspace, "jest-curated", lambda *_: None)
    done = read_done(folder)
    assert set(done["rows_drawn_from"]) == {"pool", "curated"}
    each = done["flops_per_example"]
    one = each["image_full"] + each["text"]
    assert done["flops"]["cached"] == 6 * (3 * 8 + 12) * one
    assert 0 <= done["noise_trained_on"] <= 1
    assert list((folder / "selected").glob("*.png"))
    again = Workspace(workspace.data, tmp_path / "again")

    def stop(done: int, total: int, line: str) -> None:
        if (done, total) == (4, 6):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train_run(run, again, "jest-curated", stop)
    there = train_run(run, again, "jest-curated", lambda *_: None)
    assert without_seconds(there / METRICS) == without_seconds(folder / METRICS)
    assert (there / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_share_that_does_not_divide_by_the_ranks_is_one_line(workspace: Workspace) -> None:
    run = curated_run(0.4, selection={"filter_ratio": 0.4})
    assert run.curated_pairs == 3 and run.super_batch_size == 3 + 8
    run = make_run(
        run.model_dump() | {"selection": {**run.selection.model_dump(), "filter_ratio": 4 / 9}}
    )
    assert run.super_batch_size == 12
    with pytest.raises(
        StageError, match="the curated share of the batch of 3 does not divide by 2"
    ):
        train_run(run, workspace, "x", lambda *_: None, world=DistEnv(size=2))
