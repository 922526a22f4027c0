"""The share of a pool that a reference cannot tell from wrong captions, its truth known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jestcli.forecast.page import share_sentence
from jestcli.forecast.share import (
    BOUND,
    ESTIMATE,
    SHIFTS,
    UNCLEAR,
    Scores,
    estimate,
    looks_wrong,
    score,
)


def made(n: int, wrong: float, gap: float, seed: int, easy: float = 1.0) -> Scores:
    """Normal scores: right captions `gap` above wrong ones; of a pool in which a share is wrong and
    of the right pairs only the share `easy` is told at all."""
    dice = np.random.default_rng(seed)
    told = dice.random(n) < (1 - wrong) * easy
    return Scores(dice.normal(gap * told, 1.0), dice.normal(0.0, 1.0, (n, SHIFTS)))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 0.95), st.floats(2.5, 6), st.integers(0, 10_000))
def test_it_is_the_share_of_wrong_captions(wrong: float, gap: float, seed: int) -> None:
    """Within five standard errors (of ten thousand seeds some are beyond three) of so many pairs
    that they are fewer points than three of 20,000, and what right pairs of that gap add."""
    n = 60_000
    found = looks_wrong(made(n, wrong, gap, seed))
    added = (1 - wrong) * looks_wrong(made(200_000, 0.0, gap, 1))
    assert abs(found - wrong - added) < 5 * np.sqrt((wrong + added + 0.01) / 0.05 / n * 1.3)


def test_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(40):
        pool, curated = made(3_000, 0.5, 4.0, seed), made(500, 0.0, 4.0, 1000 + seed)
        share = estimate(pool, curated, seed).looks_wrong
        assert share.low <= share.value <= share.high
        held += share.low <= 0.5 <= share.high
    assert 32 <= held <= 40


def test_a_pool_of_another_kind_gives_an_upper_bound_and_says_so() -> None:
    curated = made(2_000, 0.0, 3.5, 1)
    strange = estimate(made(20_000, 0.2, 3.5, 2, easy=0.6), curated)
    # What is not told looks exactly like wrong captions: no number can take them apart.
    assert strange.looks_wrong.value == pytest.approx(0.2 + 0.8 * 0.4, abs=0.05)
    assert strange.kind == ESTIMATE  # nothing but their number says that they are not wrong
    weaker = estimate(made(20_000, 0.2, 1.0, 2), curated)
    assert weaker.kind == BOUND and weaker.looks_wrong.value > 0.2
    assert estimate(made(20_000, 0.2, 3.5, 2), curated).kind == ESTIMATE


def test_a_reference_that_tells_nothing_gives_no_estimate() -> None:
    blind = estimate(made(5_000, 0.2, 0.0, 1), made(500, 0.0, 0.0, 2))
    assert blind.kind == BOUND and blind.looks_wrong.high == 1 and blind.curated > 0.7


@pytest.mark.parametrize("n", [40, 2_000])
@pytest.mark.parametrize("wrong", [0.5, 0.7])
def test_curated_pairs_that_are_wrong_themselves_are_not_called_right(n: int, wrong: float) -> None:
    """Taken from a half-wrong pool, they would make it an estimate of what nobody knows."""
    found = estimate(made(4_000, 0.5, 5.0, 1), made(n, wrong, 5.0, 2))
    assert found.kind == UNCLEAR and found.doubtful
    said = share_sentence(found)
    assert "Curated pairs look wrong, too" in said and f"{found.auc_curated:.2f} against" in said
    assert "which are right" not in said and "estimate" not in said


@pytest.mark.parametrize("gap", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.5, 0.8])
def test_right_curated_pairs_are_not_doubted(gap: float, wrong: float) -> None:
    """By a weak reference neither, nor where most of the pool is wrong."""
    doubted = [
        estimate(made(4_000, wrong, gap, seed), made(500, 0.0, gap, 100 + seed)).doubtful
        for seed in range(10)
    ]
    assert sum(doubted) <= 1


def test_too_few_right_pairs_are_said_to_be_too_few() -> None:
    assert estimate(made(2_000, 0.97, 3.5, 1), made(2_000, 0.0, 3.5, 2)).kind == UNCLEAR


def test_beyond_leaves_out_what_right_pairs_show_too() -> None:
    pool, curated = made(40_000, 0.4, 1.0, 1), made(40_000, 0.0, 1.0, 2)
    found = estimate(pool, curated)
    assert found.curated > 0.05 and found.looks_wrong.value > 0.42
    assert found.beyond.low < 0.4 < found.beyond.high


def test_wrong_captions_are_others_and_right_ones_stay_in_place() -> None:
    """Of orthogonal pairs the right score is 1, and no wrong one is."""
    pairs = np.eye(12, dtype=np.float32)
    found = score(pairs * np.arange(1, 13, dtype=np.float32)[:, None], pairs)
    assert found.right.tolist() == list(range(1, 13))
    assert found.wrong.shape == (12, SHIFTS) and not found.wrong.any()
