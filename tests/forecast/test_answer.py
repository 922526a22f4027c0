"""What a forecast says of races whose result is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from jestcli.forecast.answer import NO, OPEN, YES, answer, ranking, sentences
from jestcli.forecast.page import draw_map, draw_races, seen_lines
from jestcli.forecast.races import LENGTHS, LONGER, RECIPES, Races, keep_of, ratio_of
from jestcli.forecast.sample import Sample
from jestcli.forecast.seen import Seen
from jestcli.forecast.share import BOUND, ESTIMATE, Interval, Scores, Share
from jestcli.paper import theme as look

COST = {"jest": 8.0, "jest-curated": 7.0}  # of a pair trained on, in forwards; others 3


def record(name: str, seed: int, steps: int, score: float, extra: float = 0.0) -> dict[str, Any]:
    cached = 100 * COST.get(name, 3.0)
    charged = cached + (extra / steps if name not in ("uniform", "curated", "mixed") else 0.0)
    flops = dict.fromkeys(("cached_reuse", "cached", "uncached"), cached) | {"charged": charged}
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "batch_size": 100,
        "super_batch_size": 500,
        "final": {"mean": score},
        "flops_per_iteration": flops,
        "seconds": {"update": 1.0},
        "environment": {"threads": 1},
        "curve": [
            {
                "step": steps,
                "examples": 100 * steps,
                "seconds": 1.0,
                "mean": score,
                "flops": {k: v * steps for k, v in flops.items()},
            }
        ],
    }


def races(
    rates: dict[str, float], noise: float = 0.001, extra: float = 0.0
) -> list[dict[str, Any]]:
    """Each recipe's score grows by .05 a doubling, from its rate at 100 steps; two seeds of the
    shorter race that differ by twice `noise`."""
    found = []
    for name in RECIPES:
        for k in LENGTHS.get(name, (1, LONGER)):
            score = rates.get(name, 0.01) + 0.05 * math.log2(k)
            found.append(record(name, 0, 100 * k, score - noise, extra))
        found.append(record(name, 1, 100, rates.get(name, 0.01) + noise, extra))
    return found


def test_the_winner_its_saving_and_what_it_is_worth() -> None:
    """JEST stands .1 above uniform: two doublings, four times fewer examples at 8/3 of the cost."""
    found = answer(races({"uniform": 0.2, "jest": 0.3, "filtered": 0.21}))
    assert found.now.best == "jest" and found.now.rows[1].name == "filtered"
    assert found.now.examples == 20_000 and found.now.raced and not found.later.raced
    saving = found.saving["jest"]
    assert saving["examples"].ratio == pytest.approx(4, rel=0.1)
    assert saving["cached"].ratio == pytest.approx(4 * 3 / 8, rel=0.1)
    assert saving["examples"].low < 4 < saving["examples"].high
    assert found.selecting == "jest" and found.over_simple is not None


def test_whether_it_pays_is_asked_with_the_reference_charged() -> None:
    rates = {"uniform": 0.25, "easy": 0.3}
    assert answer(races(rates)).pays == YES
    assert answer(races(rates, extra=1e9)).pays == NO
    assert answer(races({"uniform": 0.2, "filtered": 0.2, "easy": 0.2}, noise=0.03)).pays == OPEN


def test_a_lead_within_the_error_is_said() -> None:
    found = answer(races({"jest": 0.3, "easy": 0.299}, noise=0.01))
    assert found.now.level[0] == "easy"
    assert any("within the error" in line for line in sentences(found))


def test_a_longer_run_may_change_the_winner() -> None:
    every = races({"filtered": 0.3, "jest": 0.25})
    for row in every:  # JEST gains twice as fast
        if row["name"] == "jest" and row["steps"] == 200:
            row["final"]["mean"] = 0.345
    found = answer(every)
    assert (found.now.best, found.later.best) == ("filtered", "jest")
    lines = " ".join(sentences(found))
    assert "A longer run would change its mind" in lines and "nothing was raced" in lines


def test_whether_the_reference_was_passed_is_said() -> None:
    """It is the curated set's longest run: two doublings of .05 above its shorter race."""
    passed = " ".join(sentences(answer(races({"jest": 0.3, "curated": 0.2}))))
    assert "has passed its reference (34.9 % against its 29.9 %)" in passed
    behind = " ".join(sentences(answer(races({"jest": 0.2, "curated": 0.2}))))
    assert "has not reached its reference" in behind
    foreign = " ".join(sentences(answer(races({"jest": 0.3}), own=False)))
    assert "its reference" not in foreign.replace("its reference's", "")


def test_the_curated_set_is_compared_at_the_races_length_not_at_its_own() -> None:
    found = answer(races({"uniform": 0.2, "curated": 0.25}))
    assert found.saving["curated"]["examples"].ratio == pytest.approx(2, rel=0.1)


def test_one_seed_gives_no_interval_and_no_verdict() -> None:
    found = answer([r for r in races({"jest": 0.3}) if r["seed"] == 0])
    assert found.pays == OPEN and math.isnan(found.now.rows[0].se)
    assert set(found.now.level) == {r.name for r in found.now.rows[1:]}
    assert "no interval" in " ".join(sentences(found))


def test_every_sentence_is_one_and_no_name_of_the_code_is_in_it() -> None:
    for lines in (sentences(answer(races({"jest": 0.3, "mixed": 0.29}))),):
        assert all(line.endswith(".") and "{" not in line for line in lines)
        assert not any("jest-curated" in line or "nan" in line for line in lines)


def test_between_lengths_a_score_is_read_off_the_curve() -> None:
    found = ranking(races({"jest": 0.3}, noise=0.0), 100 * 100 * math.sqrt(2))
    assert found.rows[0].score == pytest.approx(0.325)


def test_the_filter_keeps_less_of_a_worse_pool() -> None:
    assert [keep_of(x) for x in (0.0, 0.2, 0.5, 0.8, 1.0)] == [0.2, 0.2, 0.12, 0.05, 0.05]
    assert [ratio_of(x) for x in (0.0, 0.5, 0.8, 0.9)] == [0.8, 0.8, 0.9, 0.9]


SHARED: tuple[dict[str, int], ...] = (
    {},
    {"also_curated": 119, "left_out": 12},
    {"also_curated": 119},
)


def test_pairs_that_are_in_both_sets_are_said_in_one_line() -> None:
    sure = Interval(0.1, 0.0, 0.2)
    share, nothing = Share(sure, sure, 0.0, 0.9, sure, 0.9, ESTIMATE, 9, 9), np.zeros((1, 1))
    seen = Seen(share, Scores(nothing, nothing), 0.5, 0.0, 0.0, ())
    pool = Sample(Path("pool"), 488, 500, 900, {})
    said = [seen_lines(seen, {"pool": replace(pool, **shared_pairs)}) for shared_pairs in SHARED]
    assert said[1][:2] == said[0][:2] and len(said[0]) == 3
    end = "of the pool's pairs are curated ones, too;"
    assert said[1][3:] == [f"119 {end} 12 of them, held out, were left out."]
    assert said[2][3:] == [f"119 {end} none had to be left out."]


def test_names_in_the_pictures_do_not_meet_and_at_most_six_lines_have_one() -> None:
    sure = Interval(0.9, 0.8, 1.0)
    share = Share(sure, sure, 0.1, 0.8, sure, 0.9, BOUND, 9, 9)
    both = Races({"optim": {"batch_size": 100}}, 100)
    with look.themed(look.LIGHT):
        raced = draw_races(races({"jest": 0.3}), both, look.LIGHT)
        for figure in (raced, draw_map(share, 61_440, look.LIGHT)):
            figure.draw_without_rendering()
            words = [each for each in figure.axes[0].texts if each.get_text()]
            boxes = [Text.get_window_extent(each) for each in words]
            assert len(boxes) == 6 if figure is raced else len(boxes) > 10
            assert not [a for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
