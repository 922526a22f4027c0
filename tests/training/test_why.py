"""What the log says of why selection works: wrong captions, learnability by kind, its sign."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import metrics, tiny_train
from tiny import draw, fake_pool, tiny_model, tiny_run, without_seconds

import jestcli.train as loop
from jestcli.data.loader import SuperBatch
from jestcli.paper.records import _training
from jestcli.selection import learnability_of
from jestcli.selection.scores import learnability_by_pair
from jestcli.training.clock import PASSED
from jestcli.training.metrics import METRICS, passed_reference
from jestcli.training.signals import Interrupted
from jestcli.training.step import SubBatch, encode_pairs, select_sub_batch
from jestcli.training.tracking import _flat

RUN = tiny_run("jest")


def drawn() -> SuperBatch:
    found = draw([fake_pool()], [16], 0, 0)
    return replace(found, wrong=found.row % 3 == 0)


def test_wrong_captions_are_counted_and_weighed() -> None:
    model, other, candidates = tiny_model(RUN), tiny_model(RUN, seed=9), drawn()
    learner, reference = (
        encode_pairs(m, candidates.images, candidates.tokens, None) for m in (model, other)
    )
    choice = select_sub_batch(model, lambda _: reference, candidates, RUN, 0, measure=True)
    wrong = candidates.wrong
    assert wrong is not None and 0 < wrong.sum() < 16
    assert choice.wrong == (wrong.mean(), wrong[choice.index].mean())
    every = learnability_by_pair(learner, reference, torch.arange(16)).numpy()
    assert choice.learnability_right == pytest.approx(every[~wrong].mean())
    assert choice.learnability_wrong == pytest.approx(every[wrong].mean())
    assert choice.super_batch_learnability == pytest.approx(every.mean())
    assert learnability_of(learner, reference, choice.index) == choice.sub_batch_learnability
    unknown = select_sub_batch(
        model, lambda _: reference, replace(candidates, wrong=None), RUN, 0, True
    )
    assert unknown.wrong is None and unknown.learnability_right is None
    seldom = select_sub_batch(model, lambda _: reference, candidates, RUN, 0)
    assert seldom.wrong is None, "at logging steps only"
    none = replace(candidates, wrong=wrong & False)
    right = select_sub_batch(model, lambda _: reference, none, RUN, 0, True)
    assert right.wrong == (0, 0) and right.learnability_wrong is None


def test_a_sampler_without_a_reference_counts_them_too() -> None:
    run = tiny_run("cabs")
    choice = select_sub_batch(tiny_model(run), None, drawn(), run, 0, measure=True)
    assert choice.wrong is not None and choice.learnability_right is None


def test_they_are_logged_tracked_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)

    def known(*args: Any, **more: Any) -> SuperBatch:
        found = draw(*args, **more)
        return replace(found, wrong=found.row % 3 == 0)

    monkeypatch.setattr("test_loop.draw", known)
    lines: list[str] = []
    _, records = tiny_train(
        tiny_run("jest", optim={"steps": 60}),
        tmp_path,
        lambda done, total, line: lines.append(line),
    )
    logged = [r for r in records if "loss" in r]
    assert "wrong captions" in lines[0]
    for record in logged:
        assert len(record["wrong"]) == 2
        right, wrong = record["learnability_right"], record["learnability_wrong"]
        assert min(right, wrong) <= record["learnability"][0] <= max(right, wrong)
    flat = _flat(logged[0])
    assert flat["wrong/candidates"] == logged[0]["wrong"][0]
    assert flat["learnability/chosen"] == logged[0]["learnability"][1]
    assert not any(key.startswith("chosen") for key in flat)
    kept = _training(logged)
    assert len(kept["step"]) == 20 == len(kept["wrong_sub"]), "of three steps each: at most 25"
    assert kept["wrong_super"][0] == pytest.approx(
        sum(r["wrong"][0] for r in logged[:3]) / 3, rel=1e-4
    )
    plain = [{k: v for k, v in r.items() if "wrong" not in k} for r in logged]
    assert set(_training(plain)) == {"step", "loss", "super", "sub"}


def falling(
    monkeypatch: pytest.MonkeyPatch, values: dict[int, float], right: float | None = None
) -> None:
    """Let the chosen's mean learnability be this at these steps (0-based), else 1; all others' far
    below zero, as in a poor pool, and that of the right ones, where they are known, `right`."""
    real = loop.select_sub_batch

    def choose_(*args: Any) -> SubBatch:
        choice: SubBatch = real(*args)
        chosen = values.get(args[4], 1.0)
        means = {"sub_batch_learnability": chosen, "super_batch_learnability": -9.0}
        known = None if right is None else (0.5, 0.5)
        return replace(choice, **means, wrong=known, learnability_right=right)

    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    monkeypatch.setattr(loop, "select_sub_batch", choose_)


def test_a_learner_that_passes_its_reference_is_said_once_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = {2: -1.0, 3: -1.0, 5: -1.0, 6: -0.1, 7: -2.0, 8: -1.0, 12: -1.0, 13: -1.0, 14: -1.0}
    falling(monkeypatch, below)
    run, lines = tiny_run("jest", optim={"steps": 16}), []
    tiny_train(run, tmp_path / "whole", lambda done, total, line: lines.append(line))
    assert [n + 1 for n, line in enumerate(lines) if PASSED in line] == [8], "two in a row are not"
    assert [r["step"] for r in metrics(tmp_path / "whole") if r.get("passed_reference")] == [8]

    def stop(done: int, total: int, line: str) -> None:
        if done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        tiny_train(run, tmp_path / "stopped", stop)
    tiny_train(run, tmp_path / "stopped")
    assert without_seconds(tmp_path / "whole" / METRICS) == without_seconds(
        tmp_path / "stopped" / METRICS
    ), "the count goes on after a restart"


def test_where_right_pairs_are_known_it_is_they_that_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling(monkeypatch, {n: -1.0 for n in range(8)}, right=0.5)
    tiny_train(tiny_run("jest", optim={"steps": 8}), tmp_path)
    logged = metrics(tmp_path)
    assert not any(r.get("passed_reference") for r in logged)
    assert passed_reference(r for r in logged if "loss" in r) is None


def test_the_step_is_found_again_in_a_log() -> None:
    leads = [1.0, -1.0, None, -1.0, -1.0, -1.0, -1.0]
    log = [{"step": 40 * n, "learnability": [-9.0, lead]} for n, lead in enumerate(leads)]
    assert passed_reference(log) == 200
    assert passed_reference(log[:5]) is None
    assert passed_reference(r | {"learnability_right": 1.0} for r in log) is None
