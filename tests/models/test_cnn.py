"""The convolutional tower: its batch norm against torch's, over ranks and image sides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jestcli.config import ConfigError, Run, make_run
from jestcli.models.cnn import BagOfTokens, BatchNorm, _halved
from jestcli.models.flexi import Resolution
from jestcli.runs.trained import new_learner

SMALL = {
    "data": {"vocab_size": 600, "context_length": 8},
    "model": {"tower": "cnn", "channels": [4, 8], "embed_dim": 8, "text_width": 8},
}


def cnn_run(**changes: object) -> Run:
    return make_run({**SMALL, **changes})


def test_batch_norm_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5, (6,)), nn.BatchNorm2d(5)
    for _ in range(3):
        x = torch.randn(4, 5, 6, 6) * 3 + 1
        assert torch.equal(ours(x, 6), theirs(x))
    assert torch.equal(ours.get_buffer("var_6"), theirs.running_var)
    ours.eval(), theirs.eval()
    assert torch.equal(ours(x, 6), theirs(x))


def test_sides_keep_their_own_statistics_and_unknown_ones_are_refused() -> None:
    model = new_learner(cnn_run(selection={"low_res_share": 0.5}))
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    before = {k: v.clone() for k, v in model.state_dict().items() if "mean_" in k}
    model.train().encode_image(images, model.low)
    after = model.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(v, after[k])}
    assert moved == {k for k in before if k.endswith("mean_16")}
    with pytest.raises(ValueError, match="statistics for 32 and 16 px, not 8 px"):
        model.set_low(Resolution(4, 8))


def test_scoring_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = new_learner(cnn_run()).eval()
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    assert torch.allclose(model.encode_image(images)[:2], model.encode_image(images[:2]), atol=1e-6)


@pytest.mark.parametrize("side", [(8, 8), (6, 10), (7, 7)])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_pooling_without_gradient_is_torchs(
    side: tuple[int, int], order: torch.memory_format
) -> None:
    x = torch.randn(3, 5, *side).contiguous(memory_format=order)
    x[0, 0, 0, 0] = torch.nan
    with torch.no_grad():
        torch.testing.assert_close(_halved(x), F.max_pool2d(x, 2), rtol=0, atol=0, equal_nan=True)
    assert _halved(x.requires_grad_()).requires_grad


def test_padding_does_not_count_in_a_bag_of_tokens() -> None:
    torch.manual_seed(0)
    bag = BagOfTokens(20, 8, 4)
    short, long = torch.tensor([[3, 7, 0, 0]]), torch.tensor([[3, 7, 0, 0, 0, 0]])
    assert torch.allclose(bag(short), bag(long))
    mean = bag.embedding.weight[[3, 7]].mean(0, keepdim=True)
    assert torch.allclose(bag(short), bag.projection(F.layer_norm(mean, (8,))), atol=1e-6)


@pytest.mark.parametrize(("length", "width"), [(1, 64), (5, 128), (16, 256), (17, 64), (16, 24)])
def test_scoring_reads_the_bag_that_training_does_to_the_last_bit(length: int, width: int) -> None:
    torch.manual_seed(0)
    bag, tokens = BagOfTokens(50, width, 8), torch.randint(0, 50, (40, length))
    tokens[0] = 0  # an empty caption
    with torch.no_grad():
        scored = bag(tokens)
    assert torch.equal(scored, bag(tokens))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": {"micro_batch": 2}}, "micro_batch is not for model.tower=cnn"),
        ({"engine": {"shard": "fsdp"}}, "fsdp is not for model.tower=cnn"),
        ({"model": {"tower": "cnn", "name": "ViT-B-32"}}, "exclude each other"),
        ({"model": {"tower": "cnn", "channels": [4] * 7}}, "too often"),
        ({"selection": {"low_res_scoring": True}}, "needs a low_res_share"),
    ],
)
def test_what_batch_statistics_rule_out_is_refused_in_one_line(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        cnn_run(**changes)
    assert "\n" not in str(caught.value)
