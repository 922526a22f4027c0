"""Every way of computing a step is the plain step."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from narrow import narrow_names
from open_clip.loss import SigLipLoss
from tiny import draw, fake_pool, tiny_model, tiny_run
from torch import Tensor

from jestcli.config import ConfigError, make_run
from jestcli.training import loss as gradients
from jestcli.training.clock import Speed, Stopwatch, peak_flops
from jestcli.training.distributed import SINGLE_PROCESS
from jestcli.training.engine import make_trainee
from jestcli.training.loss import contrastive_loss
from jestcli.training.metrics import evaluation_steps
from jestcli.training.optimiser import make_optimiser
from jestcli.training.step import encode_pairs, select_sub_batch, train_step
from jestcli.utils.progress import duration


def trained(
    loss: str = "sigmoid", name: str | None = None, **engine: Any
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of three Flexi-JEST steps, and the weights and last gradients after them."""
    run = tiny_run(
        "flexi",
        optim={"loss": loss},
        engine={"precision": "float64"} | engine,
        model={"name": name, "patch_sizes": [16, 32] if name == TIMM else [8, 16]},
    )
    with narrow_names():
        learner, model = tiny_model(run, seed=1), tiny_model(run, seed=2).double()
    trainee, losses = make_trainee(learner, run, SINGLE_PROCESS), []
    optimiser = make_optimiser(learner, run.optim)
    for step in range(3):
        drawn = draw([fake_pool()], [16], 0, step)
        choice = select_sub_batch(
            learner, lambda c: encode_pairs(model, c.images, c.tokens, None), drawn, run, step
        )
        losses.append(train_step(trainee, optimiser, drawn, choice.index, run, step))
    slopes = {f"{k}.grad": p.grad for k, p in learner.named_parameters() if p.grad is not None}
    return losses, {**learner.state_dict(), **slopes}


TIMM = "ViT-B-16-SigLIP"
PLAIN = functools.lru_cache(trained)


@pytest.mark.parametrize(
    "loss,name,engine",
    [
        ("sigmoid", None, {"micro_batch": 3}),
        ("softmax", None, {"micro_batch": 1}),
        ("sigmoid", None, {"loss_chunk": 3}),
        ("sigmoid", None, {"activation_checkpointing": True}),
        ("sigmoid", None, {"micro_batch": 5, "loss_chunk": 1, "activation_checkpointing": True}),
        ("sigmoid", None, {"compile": True}),
        ("sigmoid", "ViT-B-32", {"compile": True, "activation_checkpointing": True}),
        ("sigmoid", TIMM, {"compile": True, "micro_batch": 3}),
        ("sigmoid", None, {"scoring_batch": 5}),
    ],
)
def test_the_same_losses_gradients_and_weights(
    loss: str, name: str | None, engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without generating C++, which takes minutes: the graphs are captured all the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    expected, weights = PLAIN(loss, name)
    losses, mine = trained(loss, name, **engine)
    assert losses == pytest.approx(expected, rel=1e-12)
    assert mine.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-9, atol=1e-11)


def test_bfloat16_is_close_and_keeps_wide_weights() -> None:
    expected, _ = PLAIN("sigmoid")
    losses, mine = trained(precision="bfloat16")
    assert losses == pytest.approx(expected, rel=0.02) and losses != expected
    assert {v.dtype for v in mine.values()} == {torch.float32}


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_the_loss_in_chunks_is_open_clips(chunk: int) -> None:
    def leaves() -> list[Tensor]:
        dice = torch.Generator().manual_seed(0)
        rows = [torch.randn(7, 4, generator=dice, dtype=torch.float64) for _ in range(2)]
        numbers = [torch.tensor(x, dtype=torch.float64) for x in (9.0, -8.0)]
        return [x.requires_grad_() for x in (*rows, *numbers)]

    ours, theirs = leaves(), leaves()
    loss, expected = contrastive_loss(*ours, "sigmoid", chunk), SigLipLoss()(*theirs)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_micro_batches_hold_no_more_than_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run("flexi", engine={"micro_batch": 3})
    learner, seen = tiny_model(run), []
    encode = learner.encode_text

    def spy(tokens: Tensor) -> Tensor:
        seen.append((len(tokens), torch.is_grad_enabled()))
        return encode(tokens)

    monkeypatch.setattr(learner, "encode_text", spy)
    batch = gradients.Batch(torch.rand(8, 3, 32, 32), draw([fake_pool()], [8], 0, 0).tokens, 4)
    assert [(len(p.images), p.n_low) for p in batch.parts(3)] == [(3, 3), (3, 1), (2, 0)]
    gradients.backward(learner, batch, run)
    assert seen == [(3, False), (3, False), (2, False), (3, True), (3, True), (2, True)]


def test_chunks_are_for_the_sigmoid_loss() -> None:
    with pytest.raises(ConfigError, match="loss_chunk is for"):
        make_run({"optim": {"loss": "softmax"}, "engine": {"loss_chunk": 4}})


def test_a_part_inside_another_is_taken_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr("time.process_time", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"), {"choose": 2.0})  # a part of older checkpoints
    with watch("score"), watch("select"):
        pass
    assert watch.seconds == {"draw": 0, "score": 7.0, "select": 3.0, "update": 0, "choose": 2.0}
    monkeypatch.undo()
    assert 1e8 < peak_flops(torch.device("cpu")) < 1e13
    assert [duration(x) for x in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]


@pytest.mark.parametrize("evaluation,first", [(0.0, 1.0), (20.0, 1.0), (5.0, 60.0)])
def test_the_time_left_is_right_after_a_minute(evaluation: float, first: float) -> None:
    """Within 30 %, with evaluations that come densely at first and a first step that compiles."""
    run = make_run({"optim": {"steps": 1000, "warmup": 1}})
    now, said, at = [0.0], {}, evaluation_steps(run)
    speed = Speed(Stopwatch(torch.device("cpu")), 0, 1000, 8, 1e9, at, lambda: now[0])
    for step in range(1, 1001):
        now[0] += first if step == 1 else 1.0
        said[now[0]] = speed.left(step)
        if step in at:
            with speed.evaluation():
                now[0] += evaluation
    assert said[first] >= 999 * first, "the first line has a step to go by"
    late = {when: left for when, left in said.items() if 60 + first < when < 0.98 * now[0]}
    assert all(0.7 < left / (now[0] - when) < 1.3 for when, left in late.items())
