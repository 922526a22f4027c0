"""Requirement 7: what holds for every input, and the samplers' distributions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_oracle import listing, make_pairs, score_matrix

from jestcli.selection import names, select
from jestcli.selection.noise import gumbel

FAST = settings(max_examples=30, deadline=None, derandomize=True)
NAMES = st.sampled_from(names())
LOSSES = st.sampled_from(["sigmoid", "softmax", "softmax_negatives"])


@FAST
@given(name=NAMES, loss=LOSSES, count=st.integers(1, 20), data=st.data())
def test_distinct_and_in_range(name, loss, count, data):
    size = data.draw(st.integers(1, count))
    n_chunks = data.draw(st.integers(1, 24))
    learner, reference = make_pairs(count, 4, seed=count), make_pairs(count, 3, seed=size)
    labels = torch.arange(2 * count).reshape(count, 2) % 7
    got = select(
        learner,
        reference,
        size=size,
        sampler=name,
        loss=loss,
        n_chunks=n_chunks,
        iterations=5,
        labels=labels,
    ).tolist()
    assert len(got) == len(set(got)) == size
    assert set(got) <= set(range(count))


@FAST
@given(name=NAMES.filter(lambda n: "gibbs" not in n), loss=LOSSES, seed=st.integers(0, 999))
def test_permuting_the_candidates_permutes_the_picks(name, loss, seed):
    """Candidate and noise move together. (Gibbs starts from positions of the batch: left out.)"""
    learner, reference = make_pairs(24, 6, seed=1), make_pairs(24, 5, seed=2)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(24))
    labels = torch.from_numpy(np.random.default_rng(seed + 1).integers(-1, 9, (24, 3)))
    base = gumbel(seed, 0)
    arguments = dict(size=11, n_chunks=3, sampler=name, loss=loss)
    expected = select(learner, reference, noise=base, labels=labels, **arguments)
    got = select(
        learner.rows(order),
        reference.rows(order),
        noise=lambda draw, index: base(draw, order[index]),
        labels=labels[order],
        **arguments,
    )
    assert torch.equal(order[got], expected)


@FAST
@given(weight=st.floats(0, 1), count=st.integers(2, 60), data=st.data())
def test_any_learner_weight_picks_as_the_listing(weight, count, data):
    """w * L(learner) - L(reference), from the dense matrix of the paper's listing."""
    size, n_chunks = data.draw(st.integers(1, count)), data.draw(st.integers(1, 8))
    learner, reference = make_pairs(count, 6, seed=count), make_pairs(count, 5, seed=size, scale=14)
    got = select(learner, reference, size=size, n_chunks=n_chunks, learner_weight=weight)
    scores = score_matrix(learner, reference, "learnability", weight)
    assert got.tolist() == listing(scores, gumbel(0, 0), size, n_chunks).tolist()


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("sampler", ["joint", "independent", "uniform"])
def test_distribution_of_ordered_draws(sampler):
    """Every ordered pair out of four against its probability, drawn 1,000 times."""
    learner = make_pairs(4, 3, seed=5, scale=4.0, bias=-1.0)
    reference = make_pairs(4, 3, seed=6, scale=4.0, bias=-1.0)
    scores = score_matrix(learner, reference, "learnability")
    probability = {}
    for i, k in itertools.permutations(range(4), 2):
        first = np.zeros(4) if sampler == "uniform" else np.diag(scores)
        second = first + (scores[i] + scores[:, i] if sampler == "joint" else 0)
        rest = [j for j in range(4) if j != i]
        probability[i, k] = (
            np.exp(first[i]) / np.exp(first).sum() * np.exp(second[k]) / np.exp(second[rest]).sum()
        )
    count = dict.fromkeys(probability, 0)
    for step in range(1000):
        picks = select(learner, reference, size=2, n_chunks=2, sampler=sampler, step=step)
        count[tuple(picks.tolist())] += 1
    statistic = chi_square(np.array(list(count.values())), np.array(list(probability.values())))
    assert statistic < 31.3  # the 99.9 % quantile for 11 degrees of freedom


def test_distribution_of_gibbs():
    """Every pair out of four against p(C) proportional to exp(score(C)), by separate runs."""
    learner = make_pairs(4, 3, seed=5, scale=4.0, bias=-1.0)
    reference = make_pairs(4, 3, seed=6, scale=4.0, bias=-1.0)
    scores = score_matrix(learner, reference, "learnability")
    sets = list(itertools.combinations(range(4), 2))
    weight = np.array([np.exp(scores[np.ix_(c, c)].sum()) for c in sets])
    count = dict.fromkeys(sets, 0)
    for step in range(300):
        picks = select(learner, reference, size=2, sampler="gibbs", iterations=6, step=step)
        count[tuple(sorted(picks.tolist()))] += 1
    assert chi_square(np.array(list(count.values())), weight / weight.sum()) < 20.5  # 5 degrees


def test_joint_beats_independent_and_gibbs_approaches_joint():
    """The order of Figure 2 (middle) on one super-batch, without noise."""
    from jestcli.selection import learnability_of
    from jestcli.selection.noise import zero

    learner, reference = make_pairs(64, 8, seed=1, match=0.2), make_pairs(64, 8, seed=2)

    def reached(**arguments):
        picks = select(learner, reference, size=32, noise=zero, **arguments)
        return learnability_of(learner, reference, picks)

    uniform, independent = reached(sampler="uniform"), reached(n_chunks=1)
    assert uniform < independent < reached(n_chunks=32)
    gibbs = reached(sampler="gibbs", iterations=200)
    assert gibbs > reached(sampler="gibbs", iterations=5)
    assert gibbs == pytest.approx(reached(n_chunks=32), rel=0.05)
