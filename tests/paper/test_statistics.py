import math

import pytest
from scipy import stats
from synthetic_records import tiny

from jestcli.paper.contrasts import difference
from jestcli.paper.effects import fit
from jestcli.paper.statistics import finals, has_joules, pooled_interval, t_interval, totals


def test_t_interval_is_scipys():
    values = [0.21, 0.24, 0.19, 0.23]
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=0.2175, scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((0.2175, low, high))
    assert found.half == pytest.approx(high - 0.2175)
    assert math.isnan(t_interval([0.2]).low)


def test_pooled_intervals_have_the_standard_error_of_the_reports_contrasts():
    scores = {"jest": (0.30, 0.40, 0.50), "uniform": (0.20, 0.29, 0.41), "flexi": (0.1, 0.3, 0.3)}
    records = [tiny(n, s, [0.1, x]) for n, each in scores.items() for s, x in enumerate(each)]
    model = fit(records)
    found, effect = (
        pooled_interval(model, scores["jest"]),
        model.effect(difference("jest", "flexi")),
    )
    assert found.mean == pytest.approx(0.4) and found.n == 3 and effect is not None
    assert found.half * math.sqrt(2) == pytest.approx(effect.high - effect.estimate)
    assert found.half < t_interval(scores["jest"]).half, "what seeds have in common is taken away"
    assert math.isnan(pooled_interval(model, [0.3]).half), "one seed"
    assert math.isnan(pooled_interval(fit(records[:1]), [0.3, 0.4]).half), "no degrees of freedom"
    assert math.isnan(pooled_interval(fit([]), []).mean)


def test_finals_of_a_group_and_none_where_one_seed_lacks_it():
    runs = [tiny("jest", s, [0.1, 0.2]) for s in range(2)]
    assert finals(runs) == [0.2, 0.2] and finals(runs, "icons") == []
    runs[0]["final"]["nats"] = 0.3
    assert finals(runs, "nats") == [] and finals(runs[:1], "nats") == [0.3]


def test_energy_is_a_cost_only_where_every_evaluation_of_every_seed_counted_it() -> None:
    runs = [tiny("jest", s, [0.05, 0.1, 0.12], [100, 200, 400]) for s in range(2)]
    assert "joules" not in totals(runs) and not has_joules(runs)
    for point in (point for run in runs for point in run["curve"]):
        point["joules"] = 7.0 * point["step"]
    assert totals(runs)["joules"] == pytest.approx(2800.0)
    del runs[0]["curve"][0]["joules"]
    assert "joules" not in totals(runs)
