"""Intervals and verdicts keep what they promise, in simulated studies."""

import json
from pathlib import Path

import numpy as np
import pytest
from simulated_studies import ALIKE, JUST, SCATTERS, TRUTHS, page, simulate

from jestcli.paper.verdicts import WORDS

COMMITTED = Path(__file__).parents[2] / "results" / "statistics"


def check(found, covers, false):
    savings = found["savings"]
    assert np.mean([row["within"] for row in savings.values()]) >= covers
    assert np.mean([row["covered"] for row in savings.values()]) >= covers
    assert savings[ALIKE]["width"] <= 1.5
    wrong = [row["false"] for kinds in found["verdicts"].values() for row in kinds.values()]
    assert np.mean(wrong) <= false


def test_a_few_studies_keep_them_on_the_whole():
    found = simulate(30)
    check(found, covers=0.93, false=0.05)
    for kinds in found["verdicts"].values():
        for row in kinds.values():
            assert sum(share for word, share in row.items() if word != "false") == pytest.approx(1)


def test_the_committed_studies_keep_them_one_by_one():
    found = json.loads((COMMITTED / "simulation.json").read_text())
    assert found["studies"] == 2000 and set(found["savings"]) == set(SCATTERS)
    for row in found["savings"].values():
        check(found | {"savings": {ALIKE: found["savings"][ALIKE] | row}}, covers=0.93, false=0.05)
    assert set(found["verdicts"]) == {*TRUTHS, JUST}
    for kinds in found["verdicts"].values():
        assert all(row["false"] < 0.05 for row in kinds.values())
        assert {word for row in kinds.values() for word in row} <= {"false", *WORDS}, "stale"
    assert (COMMITTED / "README.md").read_text() == page(found)
