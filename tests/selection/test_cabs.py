"""CABS-DM against a plain greedy loop over the whole count matrix, and what it must hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_oracle import make_pairs

from jestcli.selection import select
from jestcli.selection.noise import gumbel, zero


def make_labels(count, width, concepts, seed):
    """Concepts with Zipf's frequencies; some rows repeat one, some have none."""
    dice = np.random.default_rng(seed)
    labels = np.minimum(dice.zipf(1.4, (count, width)), concepts) * 7
    labels[dice.random((count, width)) < 0.3] = -1
    return torch.from_numpy(labels.astype(np.int64))


def dense_greedy(labels, size, noise, cap):
    """Every gain anew for every pick: arXiv 2511.20643, with the released code's -1/2 and cap."""
    concepts = np.array(sorted(set(labels[labels >= 0].tolist())), int)
    holds = (labels.numpy()[:, :, None] == concepts).any(1)
    frequency, width = holds.sum(0), holds.sum(1)
    each, rest = divmod(size, max(1, len(concepts)))
    target = np.clip(each + (np.arange(len(concepts)) < rest), 1, cap)
    assert target.sum() <= max(size, len(concepts))
    perturbed = noise(0, torch.arange(len(labels))).numpy()
    order, chosen = np.argsort(-perturbed, kind="stable"), []
    for _ in range(size):
        n = holds[chosen].sum(0)
        value = np.where(n < target, (target - n) / target + 1 / np.maximum(frequency, 1), -0.5)
        with np.errstate(invalid="ignore"):
            gain = (holds * value).sum(1) / width
        gain[(width == 0) | (holds & (n >= cap)).any(1)] = -np.inf
        gain = gain[order]
        gain[np.isin(order, chosen)] = np.nan
        best = np.flatnonzero(np.isclose(gain, np.nanmax(gain), rtol=1e-12, atol=1e-12))
        chosen.append(int(order[best[0]]))
    return chosen


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 60),
    width=st.integers(1, 6),
    concepts=st.integers(1, 40),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_picks_as_the_dense_greedy(count, width, concepts, seed, data):
    size = data.draw(st.integers(1, count))
    labels = make_labels(count, width, concepts, seed)
    got = select(None, None, labels=labels, size=size, sampler="cabs", seed=seed, step=3)
    assert got.tolist() == dense_greedy(labels, size, gumbel(seed, 3), cap=10)


def test_no_more_than_the_cap_while_others_are_left():
    labels = torch.tensor([[1]] * 30 + [[2]] * 30 + [[3]] * 12)
    got = select(None, None, labels=labels, size=36, sampler="cabs")
    assert torch.bincount(labels[got[:30], 0], minlength=4).tolist() == [0, 10, 10, 10]
    assert len(got.unique()) == 36, "filled with what is over the cap, never short"


def test_a_rare_concept_comes_before_a_common_one_and_repeats_count_once():
    labels = torch.tensor([[5, 5, 5], [5, -1, -1], [5, -1, -1], [8, -1, -1], [-1, -1, -1]])
    got = select(None, None, labels=labels, size=4, sampler="cabs", noise=zero)
    assert got.tolist() == [3, 0, 1, 2]


def test_covers_more_than_a_random_batch():
    labels = make_labels(1280, 8, 2000, seed=1)

    def covered(sampler, step):
        picks = select(None, None, labels=labels, size=256, sampler=sampler, step=step)
        return len(labels[picks].unique())

    assert min(covered("cabs", s) for s in (0, 1)) > 1.1 * max(
        covered("uniform", s) for s in (0, 1)
    )


def test_is_a_function_of_seed_and_step():
    labels = make_labels(200, 3, 20, seed=1)
    arguments = dict(labels=labels, size=50, sampler="cabs")
    first = select(None, None, seed=4, step=2, **arguments)
    assert torch.equal(first, select(None, None, seed=4, step=2, **arguments))
    assert not torch.equal(first, select(None, None, seed=4, step=3, **arguments))


PAIRS = make_pairs(6, 4, seed=0, dtype=torch.float32)


@pytest.mark.parametrize(
    "labels,message",
    [
        (None, "labels is None, but sampler 'cabs' needs"),
        (torch.zeros(6, dtype=torch.int64), r"int64 tensor of shape \[B, K\]"),
        (torch.zeros(6, 2), r"int64 tensor of shape \[B, K\]"),
        ([[1]] * 6, r"int64 tensor of shape \[B, K\]"),
        (torch.zeros(6, 0, dtype=torch.int64), "labels must not be empty"),
        (torch.zeros(5, 2, dtype=torch.int64), "labels has 5 rows, but there are 6 pairs"),
    ],
)
def test_wrong_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        select(PAIRS, PAIRS, size=2, sampler="cabs", labels=labels)


def parity(task):
    """Even labels first."""
    return task.labels[:, 0].remainder(2).argsort(stable=True)[: task.size]


def test_a_function_of_the_user_reads_labels():
    labels = torch.tensor([[1], [2], [3], [4], [5], [6]])
    got = select(PAIRS, PAIRS, size=4, sampler=f"{__name__}:parity", labels=labels)
    assert got.tolist() == [1, 3, 5, 0]
