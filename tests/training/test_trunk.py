"""Several lengths from one trunk: whatever a run branches from, it is the run trained alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_loop import metrics, same_weights, tiny_train
from test_ranks import finish, start
from test_ranks import train as rank_train
from tiny import tiny_run, without_seconds

import jestcli.train as loop
from jestcli.config import ConfigError, Run
from jestcli.training.checkpoint import read
from jestcli.training.metrics import METRICS
from jestcli.training.optimiser import learning_rate
from jestcli.training.signals import Interrupted
from jestcli.training.trunk import path_of, shared_steps, steps_there


def wsd(steps: int, method: str = "jest", **more: Any) -> Run:
    optim = {"schedule": "wsd", "decay": 0.25, "steps": steps, "warmup": 3}
    return tiny_run(method, **{"optim": optim, "evaluation": {"points": 1}, **more})


def test_the_rate_before_the_decay_does_not_depend_on_the_length() -> None:
    short, long = wsd(40).optim, wsd(80).optim
    assert (short.trunk_steps, long.trunk_steps) == (30, 60)
    rates = [[learning_rate(step, optim) for step in range(optim.steps)] for optim in (short, long)]
    assert rates[0][:31] == rates[1][:31]
    assert rates[0][:4] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    assert rates[1][3:61] == [1e-3] * 58
    for each, optim in zip(rates, (short, long), strict=True):
        decay = each[optim.trunk_steps :]
        assert decay == sorted(decay, reverse=True) and decay[-1] > 0
        # 1 - sqrt: a quarter of the way down, half is gone
        quarter = optim.trunk_steps + (optim.steps - optim.trunk_steps) / 4
        if quarter.is_integer():
            assert each[int(quarter)] == pytest.approx(0.5e-3)
    assert learning_rate(80, long) == 0


def test_a_cosine_shares_nothing() -> None:
    assert tiny_run().optim.trunk_steps == 0 == shared_steps(tiny_run())
    assert shared_steps(wsd(40)) == 30
    assert shared_steps(wsd(40, evaluation={"points": 5})) == 1, "the first evaluation is at step 2"


@pytest.mark.parametrize(
    "change,words",
    [
        (
            {"optim": {"schedule": "wsd", "steps": 10, "warmup": 9}},
            "optim: a warm-up of 9 steps does "
            "not end before the decay, which starts after step 8 of 10",
        ),
        ({"optim": {"decay": 0.5}}, "optim: decay needs schedule=wsd"),
        ({"optim": {"schedule": "wsd", "decay": 1.0}}, "optim.decay: Input should be less than 1"),
        (
            {"optim": {"schedule": "wsd", "steps": 50}, "selection": {"filter_ratio_end": 0.9}},
            "optim.schedule=wsd and selection.filter_ratio_end exclude each other",
        ),
    ],
)
def test_what_cannot_be_is_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny_run("jest", **change)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["uniform", "jest", "flexi"])
def test_killed_resumed_and_branched_is_the_run_trained_alone(method: str, tmp_path: Path) -> None:
    long, trunk = wsd(48, method), tmp_path / "trunk"
    alone, told = tiny_train(long, tmp_path / "alone")
    shorter = {
        steps: tiny_train(wsd(steps, method), tmp_path / f"{steps}-alone")[0] for steps in (16, 28)
    }
    first: list[int] = []

    def stop_at(steps: int) -> Any:
        def report(done: int, total: int, line: str) -> None:
            first.append(done)
            if done == steps:
                os.kill(os.getpid(), signal.SIGTERM)

        return report

    for steps, stop, begins in ((16, 12, 1), (28, 21, 13), (48, 40, 22)):
        run, folder = wsd(steps, method), tmp_path / str(steps)
        first.clear()
        with pytest.raises(Interrupted):  # in the decay, or just where it starts
            tiny_train(run, folder, stop_at(stop), trunk=trunk)
        assert first[0] == begins, "what is shared is not trained again"
        again, _ = tiny_train(run, folder, trunk=trunk)
        assert same_weights(again, {**shorter, 48: alone}[steps])
        single = tmp_path / ("alone" if steps == 48 else f"{steps}-alone")
        assert without_seconds(folder / METRICS) == without_seconds(single / METRICS)
    assert steps_there(trunk, 99) == [36, 21, 12] and steps_there(trunk, 20) == [12]
    fresh, records = tiny_train(long, tmp_path / "fresh", trunk=trunk)
    assert same_weights(fresh, alone) and len(records) == len(told), "tracked from the start"
    assert metrics(tmp_path / "fresh") == json.loads(json.dumps(records))
    assert metrics(tmp_path / "fresh")[-1]["seconds"]["update"] > 0
    spent = [r["seconds"]["update"] for r in metrics(tmp_path / "fresh")]
    assert spent == sorted(spent), "the clocks go on from the trunk's"


def test_a_run_with_evaluations_leaves_a_trunk_without_them(tmp_path: Path) -> None:
    trunk, seen = tmp_path / "trunk", wsd(20, evaluation={"points": 4})
    tiny_train(seen, tmp_path / "seen", trunk=trunk)
    assert any("scores" in r for r in metrics(tmp_path / "seen")[:-1])
    branch, _ = tiny_train(wsd(40), tmp_path / "branch", trunk=trunk)
    alone, _ = tiny_train(wsd(40), tmp_path / "alone")
    assert same_weights(branch, alone)
    assert without_seconds(tmp_path / "branch" / METRICS) == without_seconds(
        tmp_path / "alone" / METRICS
    )
    first: list[int] = []
    tiny_train(
        wsd(40, evaluation={"points": 4}),
        tmp_path / "curve",
        lambda done, *_: first.append(done),
        trunk=trunk,
    )
    assert first[0] == 1, "its evaluations lie within the trunk: it trains that itself"


def test_a_damaged_trunk_is_passed_over_and_replaced(tmp_path: Path) -> None:
    trunk = tmp_path / "trunk"
    for steps in (16, 28):
        tiny_train(wsd(steps), tmp_path / str(steps), trunk=trunk)
    path_of(trunk, 21).write_bytes(b"half a file")
    first: list[int] = []
    branch, _ = tiny_train(
        wsd(48), tmp_path / "48", lambda done, *_: first.append(done), trunk=trunk
    )
    assert first[0] == 13
    assert same_weights(branch, tiny_train(wsd(48), tmp_path / "alone")[0])
    whole = path_of(trunk, 12).stat().st_mtime_ns
    tiny_train(wsd(28), tmp_path / "again", trunk=trunk)
    assert read(path_of(trunk, 21))[1]["step"] == 21
    assert path_of(trunk, 12).stat().st_mtime_ns == whole, "a good one is left as it is"
    assert {p.suffix for p in trunk.iterdir()} == {".safetensors"}


def branch_on_ranks(world: Any, folder: Path) -> None:
    rank_train(wsd(8), folder / "8", world, trunk=folder / "trunk")
    found = rank_train(wsd(16), folder / "16", world, trunk=folder / "trunk")
    assert len(found["chosen"]) == 10, "six steps came from the trunk"
    again = rank_train(wsd(16), folder / "alone", world)
    for key in (k for k in again if k.startswith("weight.")):
        assert again[key].equal(found[key]), key


def test_ranks_branch_together_and_from_their_own_kind_alone(tmp_path: Path) -> None:
    assert finish(start(2, branch_on_ranks, tmp_path)) == [0, 0]
    assert read(path_of(tmp_path / "trunk", 6))[1]["ranks"] == 2
    first: list[int] = []
    tiny_train(
        wsd(16), tmp_path / "one", lambda done, *_: first.append(done), trunk=tmp_path / "trunk"
    )
    assert first[0] == 1, "one process rounds in another way than two ranks"
    assert loop.LOG_EVERY == 20
