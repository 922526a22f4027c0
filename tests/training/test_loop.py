"""The loop: what it writes, when it evaluates, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import draw, fake_pool, tiny_model, tiny_run, without_seconds
from toy import train

import jestcli.train as loop
from jestcli.config import Run
from jestcli.data.loader import SuperBatch
from jestcli.models.flops import Cost
from jestcli.models.towers import Clip
from jestcli.runs.workspace import StageError
from jestcli.training import loss as gradients
from jestcli.training import step as step_module
from jestcli.training.checkpoint import BEST, CHECKPOINT, CheckpointError, read
from jestcli.training.metrics import METRICS, evaluation_steps
from jestcli.training.signals import Interrupted, TrainingError
from jestcli.training.step import encode_pairs

# Losses of the run below, one a step. A change here means that every run computes something else:
# if that is meant, raise NUMERICS in jestcli/config.py (old results then count as missing) and put
# the new numbers here. If it is not meant, the change has a bug.
GOLDEN = [9.160657, 6.852927, 5.37619, 4.995868, 3.554326, 4.093791, 3.485157, 3.154832]


def tiny_train(
    run: Run,
    folder: Path,
    report: Callable[[int, int, str], None] | None = None,
    **more: Any,
) -> tuple[Clip, list[dict[str, Any]]]:
    """Train on random pixels with a random reference; the model and the tracked records."""
    folder.mkdir(exist_ok=True)
    learner, model = tiny_model(run, seed=run.seed), tiny_model(run, (8,), seed=99)
    pool, records = fake_pool(), []

    def reference(candidates: SuperBatch) -> Any:
        return encode_pairs(model, candidates.images, candidates.tokens, None)

    train(
        run,
        folder,
        learner,
        lambda step: draw([pool], [run.super_batch_size], run.seed, step),
        reference if run.reference else None,
        lambda final: {"toy": {"score": float(learner.scale) / 100, "final": final}},
        lambda steps: Cost(steps, steps, steps, steps),
        report or (lambda *_: None),
        records.append,
        **more,
    )
    return learner, records


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def same_weights(a: Clip, b: Clip) -> bool:
    return all(torch.equal(a.state_dict()[k], v) for k, v in b.state_dict().items())


@pytest.mark.parametrize("steps,points", [(1, 1), (1, 10), (7, 1), (7, 3), (900, 10), (2400, 10)])
def test_evaluation_steps_are_spread_and_include_the_end(steps: int, points: int) -> None:
    run = tiny_run(optim={"steps": steps, "warmup": 1}, evaluation={"points": points})
    found = sorted(evaluation_steps(run))
    assert found[-1] == steps and found[0] >= 1 and len(found) <= points
    if steps > 100:
        assert found[0] == round(0.05 * steps) and len(found) == points
        ratios = [b / a for a, b in itertools.pairwise(found)]
        assert max(ratios) < 1.05 * min(ratios), "evenly spaced in the logarithm"


def test_metrics_hold_the_whole_run(tmp_path: Path) -> None:
    run = tiny_run("jest", optim={"steps": 41}, evaluation={"points": 3})
    learner, records = tiny_train(run, tmp_path)
    assert metrics(tmp_path) == json.loads(json.dumps(records))
    losses = [r for r in records if "loss" in r]
    scores = [r for r in records if "scores" in r]
    assert [r["step"] for r in losses] == [1, 20, 40]
    assert {r["step"] for r in scores} == evaluation_steps(run)
    assert [r["scores"]["toy"]["final"] for r in scores] == [False] * (len(scores) - 1) + [True]
    assert all(r["flops"]["cached"] == r["step"] for r in records)
    for record in losses:
        whole, chosen = record["learnability"]
        assert whole != chosen
        assert set(record["seconds"]) == {"draw", "score", "select", "update"}
        shares = record["speed"]["shares"]
        assert sum(shares.values()) == pytest.approx(1) and shares["select"] > 0
        assert 0 < record["speed"]["mfu"] < 1.5 and record["speed"]["seconds_left"] >= 0
    about = read(tmp_path / CHECKPOINT)[1]
    assert about["step"] == 41
    assert about["metrics_bytes"] == (tmp_path / METRICS).stat().st_size
    assert records[-1]["scores"]["toy"]["score"] == float(learner.scale) / 100


def test_learning_shows_in_the_loss(tmp_path: Path) -> None:
    run = tiny_run("jest", optim={"steps": 60, "lr": 1e-2, "augment": False})
    _, records = tiny_train(run, tmp_path)
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("method", ["uniform", "jest", "flexi", "cabs"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(method: str, tmp_path: Path) -> None:
    run = tiny_run(method, optim={"steps": 30}, evaluation={"points": 4})
    whole, _ = tiny_train(run, tmp_path / "whole")
    stops = iter([3, 11, 29])

    def interrupt(done: int, total: int, line: str) -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGTERM if stop == 3 else signal.SIGINT)

    for stop in stops:
        with pytest.raises(Interrupted, match=f"stopped at step {stop} of 30; all is saved"):
            tiny_train(run, tmp_path / "stopped", interrupt)
    stop = -1
    resumed, _ = tiny_train(run, tmp_path / "stopped", interrupt)
    assert without_seconds(tmp_path / "whole" / METRICS) == without_seconds(
        tmp_path / "stopped" / METRICS
    )
    assert same_weights(whole, resumed)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "handlers are put back"


def test_metrics_shorter_than_their_checkpoint_stop_the_run(tmp_path: Path) -> None:
    """They were padded with NUL bytes."""
    run = tiny_run("uniform", optim={"steps": 3}, evaluation={"points": 1})
    tiny_train(run, tmp_path)
    content = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(content[:-5])
    with pytest.raises(StageError, match="is shorter than its checkpoint says: restore it"):
        tiny_train(run, tmp_path)
    assert (tmp_path / METRICS).read_bytes() == content[:-5]


def test_what_was_logged_after_the_checkpoint_is_cut(tmp_path: Path) -> None:
    """A run that died between two checkpoints wrote lines that it will write again."""
    run = tiny_run("jest", optim={"steps": 45}, evaluation={"points": 2})

    def die(done: int, total: int, line: str) -> None:
        if done == 43:
            raise KeyError("died")

    tiny_train(run, tmp_path / "whole")
    with pytest.raises(KeyError):
        tiny_train(run, tmp_path / "died", die)
    assert read(tmp_path / "died" / CHECKPOINT)[1]["step"] == 2
    assert metrics(tmp_path / "died")[-1]["step"] == 40
    with (tmp_path / "died" / METRICS).open("a") as file:
        file.write('{"step": 41, "lo')  # a line cut by the death of the process
    first: list[int] = []
    tiny_train(run, tmp_path / "died", lambda done, *_: first.append(done))
    assert first[0] == 3
    assert without_seconds(tmp_path / "whole" / METRICS) == without_seconds(
        tmp_path / "died" / METRICS
    )


def test_seconds_go_on_adding_up(tmp_path: Path) -> None:
    run = tiny_run("jest", optim={"steps": 40}, evaluation={"points": 3})

    def stop(done: int, total: int, line: str) -> None:
        if done == 25:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        tiny_train(run, tmp_path, stop)
    before = read(tmp_path / CHECKPOINT)[1]["seconds"]
    tiny_train(run, tmp_path)
    after = metrics(tmp_path)[-1]["seconds"]
    assert all(after[part] > before[part] > 0 for part in before)


def spoil(monkeypatch: pytest.MonkeyPatch, where: str, bad: set[int]) -> None:
    """Make something of these steps a NaN or an infinity, from within, as overflow would."""
    real = {
        "choose": step_module.select_sub_batch,
        "embed": step_module.encode_pairs,
        "contrastive_loss": gradients.contrastive_loss,
    }
    at = [0]

    def choose(*args: Any, **more: Any) -> Any:
        at[0] = args[4] + 1
        return real["choose"](*args, **more)

    def embed_(*args: Any) -> Any:
        pairs = real["embed"](*args)
        if where == "embedding" and at[0] in bad and pairs.image.shape[0] == 16:
            pairs.image[3, 0] = torch.nan
        return pairs

    def loss(*args: Any) -> Any:
        value = real["contrastive_loss"](*args)
        if at[0] in bad and where == "loss":
            return value * torch.nan
        if at[0] in bad and where == "gradient":
            args[0].register_hook(lambda gradient: gradient * torch.inf)
        return value

    monkeypatch.setattr(loop, "select_sub_batch", choose)
    monkeypatch.setattr(step_module, "encode_pairs", embed_)
    monkeypatch.setattr(gradients, "contrastive_loss", loss)


@pytest.mark.parametrize(
    "where,words,keys",
    [
        ("embedding", "the learner's embeddings are not finite", 1),
        ("loss", "the loss is nan, the gradient's norm nan: not finite", 8),
        ("gradient", "the gradient's norm nan: not finite", 8),
    ],
)
def test_a_step_that_is_not_finite_is_reported_and_skipped(
    where: str, words: str, keys: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("jest", optim={"steps": 14}, evaluation={"points": 2})
    spoil(monkeypatch, where, {5, 9})
    learner, records = tiny_train(run, tmp_path / "bad")
    skipped = [r for r in records if "skipped" in r]
    assert [(r["step"], r["bad_steps"]) for r in skipped] == [(5, 1), (9, 2)]
    for record in skipped:
        assert words in record["skipped"] and len(record["keys"]) == keys
        assert ("the loss is nan" in record["skipped"]) == (where == "loss")
    assert all(bool(v.isfinite().all()) for v in learner.state_dict().values())
    about = read(tmp_path / "bad" / CHECKPOINT)[1]
    assert about["step"] == 14 and about["bad_steps"] == 2
    monkeypatch.undo()
    whole, _ = tiny_train(run, tmp_path / "whole")
    assert not same_weights(learner, whole)


def test_too_many_bad_steps_end_the_run_and_keep_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("jest", optim={"steps": 30}, engine={"max_bad_steps": 2})
    spoil(monkeypatch, "loss", {5, 9, 12, 13})
    with pytest.raises(TrainingError, match="not finite at step 12, after 2 skipped steps"):
        tiny_train(run, tmp_path)
    tensors, about = read(tmp_path / CHECKPOINT)
    assert about["step"] == 2 and all(bool(t.isfinite().all()) for t in tensors.values())
    monkeypatch.undo()
    learner, _ = tiny_train(run, tmp_path)
    whole, _ = tiny_train(run, tmp_path / "whole")
    assert same_weights(learner, whole), "the kept state is that of the run"


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(optim={"steps": 12}, evaluation={"points": 3})
    whole, _ = tiny_train(run, tmp_path / "whole")
    calls = itertools.count(1)

    def full(descriptor: int) -> None:
        if next(calls) == 4:  # metrics and checkpoint are synced at each save: in the second one
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"cannot write .*: No space left .* is intact"):
        tiny_train(run, tmp_path / "full")
    assert read(tmp_path / "full" / CHECKPOINT)[1]["step"] == min(evaluation_steps(run))
    monkeypatch.undo()
    resumed, _ = tiny_train(run, tmp_path / "full")
    assert same_weights(whole, resumed)


def test_the_last_checkpoints_and_the_best_are_kept_and_a_corrupt_one_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The temperature is the toy's score; it rises, so the best must be another than the last.
    monkeypatch.setattr(loop, "mean_score", lambda scores: -scores["toy"]["score"])
    run = tiny_run("jest", optim={"steps": 12}, evaluation={"points": 5})
    whole, _ = tiny_train(run, tmp_path / "whole", keep_last=2)
    kept = [read(p)[1]["step"] for p in sorted((tmp_path / "whole" / "checkpoints").iterdir())]
    assert kept == sorted(evaluation_steps(run))[-2:]
    scores = {
        r["step"]: r["scores"]["toy"]["score"] for r in metrics(tmp_path / "whole") if "scores" in r
    }
    best = read(tmp_path / "whole" / BEST)[1]
    assert scores[best["step"]] == min(scores.values()) == -best["best"]["mean"]
    assert best["step"] < 12, "else this shows nothing"
    assert Run.model_validate(best["run"]) == run

    def die(done: int, total: int, line: str) -> None:
        if done == 11:
            raise KeyError("died")

    with pytest.raises(KeyError):
        tiny_train(run, tmp_path / "died", die, keep_last=2)
    newest = tmp_path / "died" / CHECKPOINT
    newest.unlink()  # another name of it is among the kept ones
    newest.write_bytes(b"half a checkpoint")
    resumed, _ = tiny_train(run, tmp_path / "died", keep_last=2)
    assert same_weights(whole, resumed)
    assert without_seconds(tmp_path / "whole" / METRICS) == without_seconds(
        tmp_path / "died" / METRICS
    )
    newest.write_bytes(b"")
    for path in (tmp_path / "died" / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot use checkpoint .*; delete .*died to start"):
        tiny_train(run, tmp_path / "died")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run = tiny_run()
    first, _ = tiny_train(run, tmp_path)
    before = (tmp_path / METRICS).read_bytes(), (tmp_path / CHECKPOINT).read_bytes()
    again, records = tiny_train(run, tmp_path)
    assert records == [] and same_weights(first, again)
    assert before == ((tmp_path / METRICS).read_bytes(), (tmp_path / CHECKPOINT).read_bytes())


def golden_losses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    run = tiny_run("flexi", seed=7, optim={"steps": 8})
    _, records = tiny_train(run, folder)
    return [r["loss"] for r in records if "loss" in r]


def test_a_fixed_run_gives_the_committed_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert golden_losses(tmp_path, monkeypatch) == pytest.approx(GOLDEN, rel=1e-4)
