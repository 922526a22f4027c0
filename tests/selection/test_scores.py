"""Requirement 7: incremental scores against recomputed losses; the helpers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_oracle import (
    logits,
    make_pairs,
    score_matrix,
    sigmoid_batch_loss,
    sigmoid_losses,
    softmax_batch_loss,
)

from jestcli.selection import PairEmbeddings, learnability_of, pairwise_learnability
from jestcli.selection.distributed import SINGLE_PROCESS
from jestcli.selection.scores import GAINS, pair_losses

FAST = settings(max_examples=25, deadline=None, derandomize=True)
BATCH_LOSS = {"sigmoid": sigmoid_batch_loss, "softmax": softmax_batch_loss}


@FAST
@given(
    loss=st.sampled_from(sorted(BATCH_LOSS)),
    count=st.integers(3, 14),
    seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 60.0),
    bias=st.floats(-20.0, 20.0),
    data=st.data(),
)
def test_gain_is_the_change_of_the_batch_loss(loss, count, seed, scale, bias, data):
    pairs = make_pairs(count, 5, seed, scale=scale, bias=bias)
    order = data.draw(st.permutations(range(count)))
    chosen = order[: data.draw(st.integers(1, count - 1))]
    cut = data.draw(st.integers(1, len(chosen)))
    gain = GAINS[loss](pairs, SINGLE_PROCESS)
    for chunk in (chosen[:cut], chosen[cut:]):
        if chunk:
            gain.add(torch.tensor(chunk))
    values = gain.values()
    before = BATCH_LOSS[loss](pairs, chosen)
    for k in order[len(chosen) :]:
        change = BATCH_LOSS[loss](pairs, [*chosen, k]) - before
        assert float(values[k]) == pytest.approx(change, rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("loss", GAINS)
def test_first_scores_are_the_diagonal(loss):
    pairs = make_pairs(10, 5, seed=0, bias=-4.0)
    z = np.diag(logits(pairs))
    expected = np.logaddexp(0, -z) if loss == "sigmoid" else -(z + 4.0)
    assert np.allclose(GAINS[loss](pairs, SINGLE_PROCESS).values().numpy(), expected)


@pytest.mark.parametrize("loss", BATCH_LOSS)
def test_pair_losses_sum_to_the_batch_loss(loss):
    pairs = make_pairs(30, 6, seed=0)
    total = float(pair_losses(pairs, loss).sum())
    assert total == pytest.approx(BATCH_LOSS[loss](pairs, range(30)))


@pytest.mark.parametrize("loss", BATCH_LOSS)
def test_learnability_of_a_sub_batch(loss):
    learner, reference = make_pairs(40, 6, seed=1), make_pairs(40, 9, seed=2, scale=15.0)
    batch = [5, 7, 1, 33, 20]
    losses = [BATCH_LOSS[loss](p, batch) / 5 for p in (learner, reference)]
    index = torch.tensor(batch)
    assert learnability_of(learner, reference, index, loss) == pytest.approx(losses[0] - losses[1])
    easy = learnability_of(None, reference, index, loss, criterion="easy_reference")
    assert easy == pytest.approx(-losses[1])


def test_learnability_of_rejects_wrong_indices():
    pairs = make_pairs(4, 3, seed=0)
    with pytest.raises(ValueError, match="indices must lie"):
        learnability_of(pairs, pairs, torch.tensor([4]))
    with pytest.raises(ValueError, match="indices must be"):
        learnability_of(pairs, pairs, torch.tensor([0.5]))


def test_pairwise_learnability():
    learner, reference = make_pairs(12, 6, seed=1), make_pairs(12, 6, seed=2)
    matrix = pairwise_learnability(learner, reference)
    assert np.allclose(matrix.numpy(), score_matrix(learner, reference, "learnability"))
    hard = pairwise_learnability(learner, None, criterion="hard_learner")
    assert np.allclose(hard.numpy(), sigmoid_losses(learner))
    softmax = pairwise_learnability(learner, reference, "softmax").diagonal().sum()
    every = torch.arange(12)
    assert float(softmax) / 12 == pytest.approx(
        learnability_of(learner, reference, every, "softmax")
    )


def test_pairs_move_with_their_scale_and_bias() -> None:
    """A table on a GPU is scored on the CPU: scale and bias came along as numbers of the GPU."""
    rows, one = torch.eye(4), torch.tensor(1.0)
    moved = PairEmbeddings(rows, rows, one, one).to(torch.device("meta"))
    tensors = [moved.image, moved.text, moved.scale, moved.bias]
    assert all(isinstance(x, torch.Tensor) and x.device.type == "meta" for x in tensors)
    assert PairEmbeddings(rows, rows, 2.0, -1.0).to(torch.device("cpu")).scale == 2.0
