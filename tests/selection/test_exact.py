"""Requirement 1 and 2: the streaming engine picks what the matrix listing picks."""

import numpy as np
import pytest
import torch
from selection_oracle import (
    gumbel_top,
    listing,
    make_pairs,
    score_matrix,
    softmax_batch_loss,
)
from torch.utils._python_dispatch import TorchDispatchMode

from jestcli.selection import PairEmbeddings, blocks, distributed, select
from jestcli.selection.noise import gumbel, zero
from jestcli.selection.scores import CRITERIA


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("size,n_chunks", [(64, 1), (64, 16), (67, 4), (30, 30), (300, 7), (5, 16)])
def test_same_picks_as_the_listing_in_float64(criterion, size, n_chunks):
    learner = make_pairs(300, 24, seed=1)
    reference = make_pairs(300, 16, seed=2, scale=14.0, bias=-9.0, match=0.7)
    got = select(
        learner, reference, size=size, n_chunks=n_chunks, criterion=criterion, seed=3, step=4
    )
    scores = score_matrix(learner, reference, criterion)
    assert got.dtype == torch.int64
    assert got.tolist() == listing(scores, gumbel(3, 4), size, n_chunks).tolist()


@pytest.mark.parametrize("loss", ["sigmoid", "softmax", "softmax_negatives"])
@pytest.mark.parametrize("sampler", ["joint", "rho", "activeclip"])
def test_the_ends_of_the_learners_weight(sampler, loss):
    learner = make_pairs(300, 24, seed=1, dtype=torch.float32)
    reference = make_pairs(300, 16, seed=2, scale=14.0, bias=-9.0, dtype=torch.float32)
    arguments = dict(size=120, sampler=sampler, loss=loss, seed=3)
    whole = select(learner, reference, learner_weight=1.0, **arguments)
    assert torch.equal(whole, select(learner, reference, **arguments))
    none = select(learner, reference, learner_weight=0.0, **arguments)
    assert torch.equal(none, select(None, reference, criterion="easy_reference", **arguments))
    assert torch.equal(none, select(None, reference, learner_weight=0, **arguments))
    assert not torch.equal(whole, none)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_overlap_in_lower_precision(dtype, monkeypatch):
    """Against the listing on the same rounded embeddings; several tiles in both directions."""
    monkeypatch.setattr(blocks, "ROWS", 32)
    monkeypatch.setattr(blocks, "COLUMNS", 300)
    monkeypatch.setattr(blocks, "TILE", 1)  # one slab of COLUMNS at a time
    learner = make_pairs(900, 64, seed=1, dtype=dtype)
    reference = make_pairs(900, 64, seed=2, dtype=dtype)
    got = select(learner, reference, size=450, seed=5)
    expected = listing(score_matrix(learner, reference, "learnability"), gumbel(5, 0), 450, 16)
    assert len(set(got.tolist()) & set(expected.tolist())) >= 448


@pytest.mark.parametrize("match", [0.0, 0.6])
@pytest.mark.parametrize("scale,bias", [(1e-3, 0.0), (300.0, -200.0), (1e9, 5e8), (1e12, -3.0)])
def test_scores_of_any_sign_and_size(scale, bias, match):
    """Scores far beyond 1e8, where a finite mask would draw the chosen again."""
    learner = make_pairs(200, 8, seed=1, scale=scale, bias=bias, match=match)
    reference = make_pairs(200, 8, seed=2, scale=scale, bias=bias, match=match)
    for criterion in CRITERIA:
        got = select(learner, reference, size=100, n_chunks=5, criterion=criterion).tolist()
        scores = score_matrix(learner, reference, criterion)
        assert got == listing(scores, gumbel(0, 0), 100, 5).tolist()
        single = [
            PairEmbeddings(p.image.float(), p.text.float(), p.scale, p.bias)
            for p in (learner, reference)
        ]
        assert len(set(select(*single, size=100, criterion=criterion).tolist())) == 100


def test_one_candidate():
    pairs = make_pairs(1, 4, seed=0)
    for sampler in ("joint", "independent", "topk", "gibbs", "rho", "activeclip", "uniform"):
        for loss in ("sigmoid", "softmax", "softmax_negatives"):
            assert select(
                pairs, pairs, size=1, sampler=sampler, loss=loss, iterations=3
            ).tolist() == [0]


def test_ties_go_to_the_lower_index():
    pairs = make_pairs(1, 4, seed=0).rows(torch.zeros(9, dtype=torch.int64))
    assert select(pairs, pairs, size=6, n_chunks=2, noise=zero).tolist() == list(range(6))


def test_only_the_needed_model():
    learner, reference = make_pairs(50, 8, seed=1), make_pairs(50, 8, seed=2)
    for criterion, pair in (
        ("hard_learner", (learner, None)),
        ("easy_reference", (None, reference)),
    ):
        assert torch.equal(
            select(*pair, size=20, criterion=criterion),
            select(learner, reference, size=20, criterion=criterion),
        )


def test_tensor_scale_autograd_and_autocast_change_nothing():
    learner, reference = (make_pairs(200, 8, seed=s, dtype=torch.float32) for s in (1, 2))
    expected = select(learner, reference, size=100)
    scale = torch.nn.Parameter(torch.tensor(10.0))
    live = PairEmbeddings(learner.image.requires_grad_(), learner.text, scale, torch.tensor(-10.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = select(live, reference, size=100)
    assert torch.equal(got, expected)
    assert not got.requires_grad


def test_under_inference_mode():
    learner, reference = (make_pairs(200, 8, seed=s, dtype=torch.float32) for s in (1, 2))
    expected = select(learner, reference, size=100)
    with torch.inference_mode():
        assert torch.equal(select(learner, reference, size=100), expected)
        every = torch.arange(200)
        assert torch.equal(select(learner.rows(every), reference, size=100), expected)


def greedy_softmax(learner, reference, noise, size, n_chunks, negatives_only):
    """Chunked selection where every gain is a difference of whole batch losses."""
    from selection_oracle import logits

    count = len(learner)
    z = [logits(learner), logits(reference)]
    diagonal = np.diag(z[1]) - np.diag(z[0])
    chosen: list[int] = []
    for n in range(n_chunks):
        scores = diagonal.copy()
        if chosen:
            for k in range(count):
                if negatives_only:
                    parts = [
                        (np.logaddexp.reduce(x[k, chosen]) + np.logaddexp.reduce(x[chosen, k])) / 2
                        for x in z
                    ]
                    scores[k] += parts[0] - parts[1]
                elif k not in chosen:
                    scores[k] = sum(
                        sign * (softmax_batch_loss(p, [*chosen, k]) - softmax_batch_loss(p, chosen))
                        for sign, p in ((1, learner), (-1, reference))
                    )
        scores[chosen] = -np.inf
        m = size // n_chunks if n < n_chunks - 1 else size - len(chosen)
        chosen += gumbel_top(scores, noise, n, m).tolist()
    return chosen


@pytest.mark.parametrize("loss", ["softmax", "softmax_negatives"])
def test_softmax_against_recomputed_losses(loss):
    learner = make_pairs(40, 8, seed=1, bias=0.0)
    reference = make_pairs(40, 6, seed=2, scale=20.0, bias=-3.0)
    got = select(learner, reference, size=21, n_chunks=5, loss=loss, seed=9)
    expected = greedy_softmax(learner, reference, gumbel(9, 0), 21, 5, loss != "softmax")
    assert got.tolist() == expected


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("loss", ["sigmoid", "softmax", "softmax_negatives"])
@pytest.mark.parametrize("sampler", ["joint", "rho"])
def test_no_tensor_of_pairs_by_pairs(loss, sampler, monkeypatch):
    monkeypatch.setattr(blocks, "ROWS", 32)
    monkeypatch.setattr(blocks, "COLUMNS", 256)
    monkeypatch.setattr(blocks, "TILE", 1)  # one slab of COLUMNS at a time
    pairs = make_pairs(700, 16, seed=0, dtype=torch.float32)
    with LargestTensor() as seen:
        select(pairs, pairs, size=300, n_chunks=4, loss=loss, sampler=sampler)
    assert seen.largest <= 700 * 16  # the embeddings themselves


def test_the_largest_are_those_of_a_stable_sort():
    """Where a partial sort would keep any of equal values, and where a NaN is among them."""
    for seed in range(50):
        dice = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 9, (200,), generator=dice).double()
        x[torch.rand(200, generator=dice) < 0.3] = -torch.inf
        for count in (1, 7, 24, 25, 190):
            best, order = x.sort(descending=True, stable=True)
            got = distributed.largest(x, count)
            assert torch.equal(got[0], best[:count]) and torch.equal(got[1], order[:count])
        x[3] = torch.nan
        values, _ = distributed.largest(x, 7)
        assert len(values) == 7 and bool(values.isnan().any())
