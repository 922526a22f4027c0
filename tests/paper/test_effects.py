"""Contrasts against what scipy and statsmodels say where they can say it."""

import math

import numpy as np
import pytest
from scipy import stats
from simulated_studies import record

from jestcli.paper.contrasts import difference, interaction
from jestcli.paper.effects import benjamini_hochberg, fit, holm

A, B = [0.31, 0.42, 0.35, 0.40], [0.28, 0.37, 0.33, 0.36]


def runs(name, scores, first=0):
    return [record(name, first + s, 100, x) for s, x in enumerate(scores)]


def test_two_conditions_that_share_seeds_are_the_paired_t_test():
    effect = fit(runs("a", A) + runs("b", B)).effect(difference("a", "b"))
    expected = stats.ttest_rel(A, B)
    low, high = expected.confidence_interval()
    assert (effect.n, effect.df) == (4, 3)
    assert (effect.estimate, effect.p) == pytest.approx((np.mean(A) - np.mean(B), expected.pvalue))
    assert (effect.low, effect.high) == pytest.approx((low, high))


def test_without_shared_seeds_they_are_the_unpaired_one_and_its_tost():
    from statsmodels.stats.weightstats import ttost_ind

    effect = fit(runs("a", A) + runs("b", B, first=10)).effect(difference("a", "b"))
    assert effect.df == 6 and effect.p == pytest.approx(stats.ttest_ind(A, B).pvalue)
    both = ttost_ind(np.array(A), np.array(B), -0.2, 0.2)[0]
    assert effect.p_within(0.2) == pytest.approx(2 * both)
    assert effect.p_outside(0.2) == 1.0 and effect.p_within(0.001) == 1.0


def test_variance_is_pooled_over_all_conditions():
    rng = np.random.default_rng(0)
    made = [r for name in "abcd" for r in runs(name, rng.normal(0.3, 0.01, 3))]
    effect = fit(made).effect(difference("a", "b"))
    assert effect.df == 12 - 4 - 2
    y = np.array([r["final"]["mean"] for r in made]).reshape(4, 3)
    left = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    assert effect.se == pytest.approx(math.sqrt((left**2).sum() / 6 * 2 / 3))
    crossed = fit(made).effect(interaction("a", "b", "c", "d"))
    m = y.mean(1)
    assert crossed.estimate == pytest.approx(m[0] - m[1] - m[2] + m[3])
    assert crossed.se == pytest.approx(effect.se * math.sqrt(2))


def test_quantities_that_are_no_scores_are_compared_by_their_own_scatter():
    wild = {"a": A, "fixed": [0.3] * 4, "wild": [1.0, -9.0, 4.0, 20.0]}
    made = [r for name, scores in wild.items() for r in runs(name, scores)]
    for one in made:
        one["final"]["share"] = one["final"]["mean"]
    expected = stats.ttest_1samp(A, 0.3)
    effect = fit(made, "share").effect(difference("a", "fixed"))
    assert (effect.df, effect.p) == (3, pytest.approx(expected.pvalue))
    assert fit(made).effect(difference("a", "fixed")).p > 0.9


def test_a_detectable_difference_is_found_four_times_in_five():
    effect = fit(runs("a", A) + runs("b", B, first=10)).effect(difference("a", "b"))
    shift, beyond = effect.detectable / effect.se, stats.t.ppf(0.975, effect.df)
    assert stats.nct.sf(beyond, effect.df, shift) == pytest.approx(0.8, abs=0.02)


def test_the_same_run_counts_once():
    shared = runs("jest", A)
    again = [{**r, "name": "joint@0.8"} for r in shared]
    more = [{**record("joint@0.8", 4, 100, 0.41)}]
    found = fit(shared + again + more + runs("uniform", B))
    assert found.effect(difference("jest", "joint@0.8")) is None
    one, two = (found.effect(difference(n, "uniform")) for n in ("jest", "joint@0.8"))
    assert one.estimate == two.estimate and one.df == 9 - 2 - 4
    assert sum(found.seeds.values()) == 9


def test_too_little_to_say_is_said():
    found = fit(runs("a", A[:1]) + runs("b", B))
    alone = found.effect(difference("a", "b"))
    assert alone.n == 1 and math.isnan(alone.p) and math.isnan(alone.low)
    assert found.effect(difference("a", "c")) is None
    assert fit([]).effect(difference("a", "b")) is None
    same = fit(runs("a", [0.5] * 3) + runs("b", [0.25] * 3)).effect(difference("a", "b"))
    assert same.p == pytest.approx(0, abs=1e-9) and same.low == pytest.approx(0.25)


def test_adjusted_p_values_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).uniform(0, 0.2, 12).tolist()
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    found = holm([0.02, math.nan])
    assert found[0] == 0.02 and math.isnan(found[1]) and holm([]) == []
