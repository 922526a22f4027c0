"""Batch norm: training moves its statistics, nothing else does, and they survive all restarts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import metrics, same_weights, tiny_train
from tiny import draw, fake_pool, tiny_model, tiny_run, without_seconds
from torch import Tensor, nn

from jestcli.config import Run
from jestcli.evaluation.evaluate import evaluate
from jestcli.models.flops import forward_flops
from jestcli.models.towers import Clip
from jestcli.training.engine import FromCpu, running_statistics
from jestcli.training.metrics import METRICS
from jestcli.training.optimiser import make_optimiser
from jestcli.training.signals import Interrupted
from jestcli.training.step import encode_pairs, select_sub_batch, train_step


def cnn_run(method: str = "jest", **more: Any) -> Run:
    return tiny_run(method, model={"tower": "cnn", "channels": [4, 8]}, **more)


def statistics(model: Clip) -> list[Tensor]:
    return [each.clone() for each in running_statistics(model)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) > 0 and all(map(torch.equal, one, other))


def test_choosing_and_embedding_leave_statistics_and_mode_alone() -> None:
    run = cnn_run()
    model, reference = tiny_model(run), tiny_model(run, seed=9)
    drawn = draw([fake_pool()], [16], 0, 0)
    before = statistics(model)
    select_sub_batch(
        model,
        lambda c: encode_pairs(reference, c.images, c.tokens, None),
        drawn,
        run,
        0,
        measure=True,
    )
    assert same(before, statistics(model)) and model.training
    assert all(module.training for module in model.modules())
    train_step(model, make_optimiser(model, run.optim), drawn, torch.arange(8), run, 0)
    assert not same(before, statistics(model))
    few = encode_pairs(model, drawn.images[:4], drawn.tokens[:4], None)
    many = encode_pairs(model, drawn.images, drawn.tokens, None)
    torch.testing.assert_close(few.image, many.image[:4], rtol=1e-5, atol=1e-6)
    model.eval()
    encode_pairs(model, drawn.images, drawn.tokens, None)
    assert not model.training, "a model in evaluation mode stays there"


def test_counting_and_evaluating_leave_statistics_and_mode_alone() -> None:
    model = tiny_model(cnn_run())
    before = statistics(model)
    forward_flops(model, 32, 8)
    evaluate(model, lambda texts: torch.zeros(len(texts), 8).long(), [])
    evaluate(FromCpu(model), lambda texts: torch.zeros(len(texts), 8).long(), [])  # type: ignore[arg-type]
    assert same(before, statistics(model)) and model.training
    evaluate(model.eval(), lambda texts: torch.zeros(len(texts), 8).long(), [])
    assert not model.training


@pytest.mark.parametrize(
    "module,matters",
    [
        (nn.Dropout(0.0), False),
        (nn.Dropout(0.1), True),
        (nn.BatchNorm1d(2), True),
        (nn.LayerNorm(2), False),
        (nn.MultiheadAttention(2, 1, dropout=0.5), True),
    ],
)
def test_only_a_model_that_cares_is_switched(module: nn.Module, matters: bool) -> None:
    model = tiny_model(tiny_run())
    assert not model.mode_matters, "the ViT does not"
    model.clip.visual, model.clip.extra = model.clip.visual.visual, module
    other = Clip(model.clip, model.full)
    assert other.mode_matters is matters
    with other.scoring():
        assert other.training is module.training is not matters
    assert other.training and module.training


WSD = {"optim": {"schedule": "wsd", "decay": 0.5, "steps": 24}, "evaluation": {"points": 1}}


@pytest.mark.parametrize(
    ("method", "more"), [("uniform", {}), ("jest", {}), ("flexi", {}), ("jest", WSD)]
)
def test_a_stopped_or_branched_run_with_batch_norm_is_the_run_alone(
    method: str, more: dict[str, Any], tmp_path: Path
) -> None:
    run = cnn_run(method, **({"optim": {"steps": 24}} | more))
    trunk = tmp_path / "trunk" if more else None
    whole, _ = tiny_train(run, tmp_path / "whole")
    if more:
        shorter = more["optim"] | {"steps": 14}
        tiny_train(cnn_run(method, **more | {"optim": shorter}), tmp_path / "short", trunk=trunk)

    def interrupt(done: int, total: int, line: str) -> None:
        if done == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        tiny_train(run, tmp_path / "stopped", interrupt, trunk=trunk)
    resumed, _ = tiny_train(run, tmp_path / "stopped", trunk=trunk)
    assert same_weights(whole, resumed) and same(statistics(whole), statistics(resumed))
    assert without_seconds(tmp_path / "whole" / METRICS) == without_seconds(
        tmp_path / "stopped" / METRICS
    )


def test_a_step_that_is_not_finite_leaves_the_statistics_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cnn_run(optim={"steps": 6})
    real = Clip.forward

    def overflow(self: Clip, images: Tensor, *more: Any) -> Any:
        calls[0] += 1
        return real(self, images * torch.inf if calls[0] == 3 else images, *more)

    calls = [0]
    monkeypatch.setattr(Clip, "forward", overflow)
    learner, _ = tiny_train(run, tmp_path)
    assert [r["step"] for r in metrics(tmp_path) if "skipped" in r] == [3]
    assert all(bool(each.isfinite().all()) for each in learner.state_dict().values())
