"""Savings and their intervals, by hand where a hand can."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from simulated_studies import record

from jestcli.paper.saving import LESS, MORE, REACHED, over_best, savings

START = 1000
GRID = math.log(8) / 1000  # of the grid on which ratios are tested


def runs(name, means, wobble=0.01, seeds=3, start=START, **more):
    """Lengths twice the last; the seeds of a cell lie `wobble` apart."""
    return [
        record(name, s, start * 2**i, m + wobble * (s - (seeds - 1) / 2)) | more
        for i, m in enumerate(means)
        for s in range(seeds)
    ]


UNIFORM = runs("uniform", [0.1, 0.2, 0.3, 0.4])  # a straight line in log examples


def test_the_saving_is_where_the_baselines_curve_has_the_methods_score():
    (found,) = savings([*UNIFORM, *runs("jest", [0.25])], "jest")
    got = found.ratio()
    assert got.status == REACHED and got.over == "uniform"
    assert math.log(got.ratio) == pytest.approx(1.5 * math.log(2), abs=GRID)
    assert found.sd == pytest.approx(0.01) and found.df == 10  # five cells of three seeds


def test_the_ends_are_what_a_pooled_t_test_just_does_not_reject():
    (found,) = savings([*UNIFORM, *runs("jest", [0.25], wobble=0.03)], "jest")
    s = math.sqrt((8 * 0.01**2 + 2 * 0.03**2) / 10)
    got = found.ratio()
    for end in (got.low, got.high):
        at = math.log2(end)  # lengths after the first
        se = s * math.sqrt(1 / 3 + sum(w * w for w in spline_weights(at)) / 3)
        g = 0.1 + 0.1 * at  # through points of a straight line the spline is the line
        bend = 0.1 * 0.1 * 4 * (at % 1) * (1 - at % 1) / 4  # a tenth of the rise, half the distance
        assert (abs(0.25 - g) - bend) / se == pytest.approx(stats.t.ppf(0.975, 10), rel=0.02)


def spline_weights(at):
    """How much each mean counts at `at`: natural splines through 1 at one of the nodes 0 to 3 and
    0 at the others; their second derivatives d solve 4 d1 + d2 = r1, d1 + 4 d2 = r2."""
    out = []
    for y in np.eye(4):
        d1, d2 = 6 * (y[0] - 2 * y[1] + y[2]), 6 * (y[1] - 2 * y[2] + y[3])
        second = [0, (4 * d1 - d2) / 15, (4 * d2 - d1) / 15, 0]
        i = min(int(at), 2)
        b = at - i
        a = 1 - b
        out.append(
            a * y[i] + b * y[i + 1] + ((a**3 - a) * second[i] + (b**3 - b) * second[i + 1]) / 6
        )
    return out


def test_a_wider_scatter_or_level_makes_a_wider_interval():
    def width(wobble, level=0.95):
        (found,) = savings([*UNIFORM, *runs("jest", [0.25], wobble)], "jest")
        got = found.ratio(level=level)
        return math.log(got.high / got.low)

    assert width(0.001) < width(0.02) < width(0.05)
    assert width(0.02) < width(0.02, 0.99)


def test_where_the_baseline_never_gets_there_it_is_more_than_and_the_lower_end_is_finite():
    (found,) = savings([*UNIFORM, *runs("jest", [0.6])], "jest")
    got = found.ratio()
    assert (got.status, got.ratio, got.high) == (MORE, pytest.approx(8), math.inf)
    assert got.low == pytest.approx(8), "far above: the whole of the baseline is excluded"
    (found,) = savings([*UNIFORM, *runs("jest", [0.405])], "jest")
    got = found.ratio()
    assert got.status == MORE and 4 < got.low < 8 < got.high == math.inf
    assert str(got) == f"more than ×8 [{got.low:.3g}, ∞]"
    assert found.p_above(9) == 1.0, "nobody has looked there"


def test_a_method_below_the_baselines_shortest_run_is_less_than():
    (found,) = savings([*UNIFORM, *runs("jest", [0.05])], "jest")
    got = found.ratio()
    assert (got.status, got.low) == (LESS, 0.0) and got.ratio == got.high == pytest.approx(1)
    assert str(got) == "less than ×1 [0, 1]"
    assert found.p_above(0.5) > 0.99 and found.p_below(2) < 1e-6


def test_p_values_and_intervals_are_one_test():
    (found,) = savings([*UNIFORM, *runs("jest", [0.25], 0.03)], "jest")
    got = found.ratio()
    assert found.p_above(got.low * 0.98) < 0.025 < found.p_above(got.low * 1.02)
    assert found.p_below(got.high * 1.02) < 0.025 < found.p_below(got.high * 0.98)
    assert found.p_above(8) == pytest.approx(1.0, abs=1e-3)


def test_the_interpolations_own_error_counts_where_the_seeds_agree():
    def ends(baseline, score):
        got = savings([*baseline, *runs("jest", [score], 1e-6)], "jest")[0].ratio()
        return math.log2(got.low), math.log2(got.high)

    two = [r for r in runs("uniform", [0.1, 0.2, 0.3], 1e-6) if r["steps"] != 2 * START]
    for end in ends(two, 0.2):  # four times apart: a tenth of the rise, half-way
        assert abs(0.1 * end - 0.1) == pytest.approx(0.1 * 0.2 * end * (2 - end), rel=0.03)
    low, high = ends(runs("uniform", [0.1, 0.2, 0.3, 0.4], 1e-6), 0.25)
    bent_low, bent_high = ends(runs("uniform", [0.0, 0.2, 0.3, 0.31], 1e-6), 0.25)
    assert 0 < high - low < 0.06, "half the distance, a quarter of the bend"
    assert bent_high - bent_low > 2 * (high - low), "the same rise, but its neighbours bend"


def test_costs_are_other_axes_of_the_same_crossing():
    flops = {"cached_reuse": 2.0, "cached": 3.0, "uncached": 4.0, "charged": 5.0}
    jest = runs("jest", [0.3], flops_per_iteration=flops, super_batch_size=5)
    (found,) = savings([*UNIFORM, *jest], "jest")
    ratio = {axis: found.ratio(axis).ratio for axis in found.cell.cost if axis != "core_hours"}
    expected = {"examples": 4, "seen": 4 / 5, "seconds": 4, "cached_reuse": 2, "cached": 4 / 3}
    expected |= {"uncached": 1, "charged": 4 / 5}
    expected |= {"cached_reuse+reference": 4 / 4, "uncached+reference": 4 / 6}
    assert ratio == pytest.approx(expected, rel=0.01)
    examples, charged = found.ratio(), found.ratio("charged")
    assert charged.low / charged.high == pytest.approx(examples.low / examples.high)
    assert found.p_above(0.5, "charged") == pytest.approx(found.p_above(2.5, "examples"), rel=0.05)


def test_a_saving_of_seconds_is_not_known_where_a_run_was_not_timed():
    (found,) = savings([*UNIFORM, *runs("jest", [0.3])], "jest")
    assert found.knows("seconds")
    (found,) = savings([*UNIFORM, *runs("jest", [0.3], seconds={})], "jest")
    assert not found.knows("seconds") and found.knows("charged")
    assert 0 < found.hours(20) < math.inf, "its price is then by FLOPs"


def test_each_length_has_its_saving_and_too_few_runs_have_none():
    both = savings([*UNIFORM, *runs("jest", [0.2, 0.3])], "jest")
    assert [round(s.ratio().ratio, 1) for s in both] == [2.0, 2.0]
    assert savings(runs("uniform", [0.1]) + runs("jest", [0.2]), "jest") == []
    assert savings(UNIFORM, "jest") == []
    one = [r for r in [*UNIFORM, *runs("jest", [0.25])] if r["seed"] == 0]
    got = savings(one, "jest")[0].ratio()
    assert math.isnan(got.low) and str(got).endswith("(one seed: no interval)")
    assert math.isnan(savings(one, "jest")[0].p_above(2))


def test_a_seed_that_was_run_twice_counts_once():
    jest = runs("jest", [0.25])
    again = {**jest[0], "digest": "another"}
    assert savings([*UNIFORM, *jest, again], "jest")[0].df == 10


def test_the_best_control_is_the_cheapest_at_equal_charged_cost():
    dear = {"cached_reuse": 1.0, "cached": 1.0, "uncached": 1.0, "charged": 3.0}
    filtered = runs("filtered", [0.2, 0.3, 0.4], flops_per_iteration=dear)
    curated = runs("curated", [0.15, 0.25, 0.35])
    everything = [*UNIFORM, *filtered, *curated, *runs("jest", [0.25])]
    controls = ("filtered", "curated", "not run")
    (found,) = over_best(everything, "jest", controls)
    got = found.ratio()
    assert got.over == "curated" and got.ratio == pytest.approx(2, rel=0.01)
    assert found.ratio("examples").over == "filtered"
    alone = savings(everything, "jest", "curated")[0]
    assert got.low == pytest.approx(alone.ratio("charged").low)
    assert got.high > alone.ratio("charged").high, "the choice of the best is paid for"
    assert found.p_above(1.9) == pytest.approx(alone.p_above(1.9, "charged"))
    assert found.p_below(4) == pytest.approx(2 * alone.p_below(4, "charged"))


def test_a_control_that_was_not_run_far_enough_lowers_the_lower_end():
    short = runs("filtered", [0.05, 0.1], start=START / 4)
    everything = [*UNIFORM, *short, *runs("jest", [0.25])]
    (found,) = over_best(everything, "jest", ("uniform", "filtered"))
    got = found.ratio("examples")
    assert got.over == "uniform" and got.low == pytest.approx(0.5, rel=0.01)


def test_a_control_that_passes_its_best_reaches_a_score_where_it_first_does():
    peak = runs("curated", [0.1, 0.3, 0.2], 0.001)
    (found,) = savings([*peak, *runs("jest", [0.25], 0.001)], "jest", "curated")
    got = found.ratio()
    assert got.status == REACHED and 1 < got.ratio < 2 and got.high == math.inf


def test_what_deciding_would_cost():
    (found,) = savings([*UNIFORM, *runs("jest", [0.6])], "jest")
    hour = START * 1e-6 / 3600
    assert found.hours(80) == pytest.approx(3 * 80 * hour)
    (near,) = savings([*UNIFORM, *runs("jest", [0.25], 0.05)], "jest")
    far = near.ratio().ratio * 3
    assert near.hours(near.ratio().ratio * 1.1) > near.hours(near.ratio().ratio * 1.3) > 0
    assert near.hours(far) in (0.0, pytest.approx(3 * far * hour))
    assert near.hours(near.ratio().ratio) == math.inf
    assert math.isinf(replace(near, df=0).hours(2))
