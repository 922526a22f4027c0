"""Requirement 6: every wrong input is named."""

from dataclasses import replace

import pytest
import torch
from selection_oracle import make_pairs

from jestcli.selection import PairEmbeddings, names, select
from jestcli.selection.registry import SAMPLERS, find

GOOD = make_pairs(6, 4, seed=0, dtype=torch.float32)


def broken(**fields):
    return replace(GOOD, **fields)


def with_value(value):
    image = GOOD.image.clone()
    image[3, 1] = value
    return broken(image=image)


@pytest.mark.parametrize(
    "learner,message",
    [
        (GOOD.image, "learner must be PairEmbeddings, got Tensor"),
        (broken(image=GOOD.image * 2), "learner.image must be L2-normalised: row 0 has norm 2"),
        (broken(text=GOOD.text.half() * 1.1, image=GOOD.image.half()), "learner.text must be L2"),
        (with_value(float("nan")), "learner.image must be finite: row 3"),
        (with_value(float("inf")), "learner.image must be finite: row 3"),
        (broken(text=GOOD.text[:5]), r"learner.text has shape \[5, 4\], learner.image \[6, 4\]"),
        (broken(text=GOOD.text.double()), "learner.text has dtype torch.float64"),
        (broken(image=GOOD.image[0]), r"learner.image must have shape \[B, d\]"),
        (broken(image=GOOD.image.long()), "learner.image must be float16"),
        (broken(image=GOOD.image.tolist()), "learner.image must be a tensor, got list"),
        (broken(text=GOOD.text.to("meta")), "learner.text has device meta, learner.image cpu"),
        (broken(scale=-1.0), "learner.scale must be positive"),
        (broken(scale=float("inf")), "learner.scale must be finite"),
        (broken(bias=torch.zeros(2)), "learner.bias must be one number"),
        (broken(bias=None), "learner.bias must be one number"),
        (GOOD.rows(torch.arange(5)), "reference has 6 pairs, learner 5"),
        (None, "learner is None, but criterion 'learnability' needs it"),
    ],
)
def test_wrong_embeddings(learner, message):
    with pytest.raises(ValueError, match=message):
        select(learner, GOOD, size=2)


@pytest.mark.parametrize("width", [2, 16, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embeddings_of_mixed_precision_are_taken_as_normalised(width, dtype):
    x = torch.nn.functional.normalize(torch.randn(500, width, generator=torch.manual_seed(0)))
    widened = x.bfloat16().to(dtype)
    pairs = PairEmbeddings(widened, widened, 10.0)
    assert len(select(pairs, None, size=2, criterion="hard_learner")) == 2


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"size": 7}, "size must be at most the 6 candidates, got 7"),
        ({"size": 0}, "size must be an int of at least 1"),
        ({"size": 2.0}, "size must be an int"),
        ({"n_chunks": 0}, "n_chunks must be"),
        ({"iterations": -1}, "iterations must be"),
        ({"seed": "a"}, "seed must be an int"),
        ({"sampler": "jiont"}, "sampler 'jiont' is not known; did you mean 'joint'"),
        ({"sampler": "zzz"}, "choose from joint, independent"),
        ({"sampler": "joint/easy"}, "did you mean 'joint/easy_reference'"),
        ({"sampler": "nowhere.at:all"}, "sampler 'nowhere.at:all' cannot be imported"),
        ({"sampler": "math:pi"}, "sampler 'math:pi' must be a function"),
        ({"sampler": "topk/hard_learner", "criterion": "easy_reference"}, "contradicts"),
        ({"criterion": "learnabilty"}, "criterion 'learnabilty' .* did you mean 'learnability'"),
        ({"learner_weight": 1.5}, "learner_weight must be a number from 0 to 1, got 1.5"),
        ({"learner_weight": float("nan")}, "learner_weight must be a number"),
        ({"learner_weight": "1"}, "learner_weight must be a number"),
        ({"learner_weight": 0.5, "criterion": "hard_learner"}, "learner_weight is for criterion"),
        ({"learner_weight": 0.5, "sampler": "topk/easy_reference"}, "learner_weight is for crit"),
        ({"loss": "sigmiod"}, "did you mean 'sigmoid'"),
        ({"mode": "local"}, "mode 'local'"),
        ({"noise": 3}, "noise must be a function"),
        ({"noise": lambda draw, index: torch.zeros(2)}, "noise must return shape"),
        ({"noise": lambda draw, index: index * float("nan")}, "not finite"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        select(GOOD, GOOD, **{"size": 2, **arguments})


def test_both_models_missing():
    with pytest.raises(ValueError, match="both None"):
        select(None, None, size=1, sampler="uniform")


def lowest(task):
    return task.index[: task.size]


def repeated(task):
    return task.index[:1].repeat(task.size)


def test_a_function_of_the_user():
    assert select(GOOD, None, size=3, sampler="uniform").shape == (3,)
    assert select(GOOD, GOOD, size=3, sampler=f"{__name__}:lowest").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="must return 2 distinct indices"):
        select(GOOD, GOOD, size=2, sampler=f"{__name__}:repeated")


def test_every_registered_name_works():
    known = {"uniform", "joint", "independent", "topk", "gibbs", "rho", "activeclip", "cabs"}
    assert known == set(SAMPLERS)
    labels = torch.arange(6)[:, None]
    for name in names():
        find(name)
        assert len(select(GOOD, GOOD, size=3, sampler=name, iterations=3, labels=labels)) == 3
    joint = select(GOOD, GOOD, size=3, criterion="easy_reference", seed=1)
    assert torch.equal(joint, select(GOOD, GOOD, size=3, sampler="joint/easy_reference", seed=1))
