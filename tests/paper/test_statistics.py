import math

import pytest
from scipy import stats
from synthetic_records import tiny

from jestcli.paper.statistics import (
    find_target,
    paired_difference,
    speed_up,
    t_interval,
    verdict,
)

LONG = [0.1, 0.2, 0.3, 0.4]  # at 10, 100, 1,000 and 10,000 examples


def test_t_interval_is_scipys():
    values = [0.21, 0.24, 0.19, 0.23]
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=0.2175, scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((0.2175, low, high))
    assert found.half == pytest.approx(high - 0.2175)
    assert math.isnan(t_interval([0.2]).low)


def test_speed_up_in_every_currency_by_hand():
    records = [tiny("uniform-long", s, LONG) for s in (0, 1)]
    records += [tiny("jest", s, [0.1, 0.3, 0.5]) for s in (0, 1)]
    found = speed_up(records, "jest")
    assert found.status == "reached" and found.per_seed == [10, 10]
    assert found.factor["examples"] == found.factor["seconds"] == pytest.approx(10)
    assert found.factor["charged"] == pytest.approx((40_000 + 100) / (4_000 + 100))


def test_the_mean_over_seeds_decides_and_below_the_target_is_censored():
    records = [tiny("uniform-long", 0, LONG)]
    records += [tiny("jest", 0, [0.1, 0.3, 0.45]), tiny("jest", 1, [0.1, 0.3, 0.36])]
    found = speed_up(records, "jest")  # the mean ends at 0.405
    assert found.factor and found.per_seed == [10, None]
    records[1] = tiny("jest", 0, [0.1, 0.41, 0.43])
    assert speed_up(records, "jest") == ("censored", {}, [10, None])
    assert speed_up(records, "flexi").status == "not run"
    assert speed_up(records[1:], "jest").status == "not run"


def test_a_target_near_chance_is_refused():
    weak = [tiny("uniform-long", 0, [0.01, 0.02]), tiny("jest", 0, [0.01, 0.5])]
    target = find_target(weak)
    error = math.sqrt(0.02 * 0.98 / 1000)
    assert target is not None and not target.valid
    assert target.standard_errors == pytest.approx((0.02 - 0.01) / error)
    assert speed_up(weak, "jest").status == "invalid target"
    strong = find_target([tiny("uniform-long", 0, LONG)])
    assert strong is not None and strong.valid


def test_seeds_that_disagree_count_in_the_targets_error():
    target = find_target([tiny("uniform-long", s, [0.1, x]) for s, x in enumerate((0.1, 0.3))])
    assert target is not None
    assert target.error_seeds == pytest.approx(0.1)
    assert not target.valid


def test_differences_are_paired_over_shared_seeds():
    records = [tiny("jest", s, [0.1, x]) for s, x in enumerate((0.30, 0.40, 0.50))]
    records += [tiny("uniform", s, [0.1, x]) for s, x in enumerate((0.20, 0.29, 0.41))]
    found = paired_difference(records, "jest", "uniform")
    assert found.mean == pytest.approx(0.1) and verdict(found) == "higher"
    records += [tiny("flexi", s, [0.1, x]) for s, x in enumerate((0.25, 0.45, 0.48))]
    assert verdict(paired_difference(records, "jest", "flexi")) == "not distinguishable"
    assert verdict(paired_difference(records, "uniform", "jest")) == "lower"
    assert paired_difference(records, "jest", "nothing").n == 0
    assert paired_difference(records[:4], "jest", "uniform").n == 1


def test_energy_is_an_axis_only_where_every_seed_counted_it() -> None:
    from jestcli.paper.statistics import JOULES, has_joules

    long = [tiny("uniform-long", s, [0.05, 0.08, 0.1], [100, 200, 400]) for s in range(2)]
    fast = [tiny("jest", s, [0.05, 0.1, 0.12], [100, 200, 400]) for s in range(2)]
    assert JOULES not in speed_up(long + fast, "jest").factor and not has_joules(fast)
    for run in long + fast:
        for point in run["curve"]:
            point["joules"] = 7.0 * point["step"]
    assert speed_up(long + fast, "jest").factor[JOULES] == pytest.approx(1.0)
    del fast[0]["curve"][0]["joules"]
    assert JOULES not in speed_up(long + fast, "jest").factor
