"""The prose of results/map is true of its records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jestcli.paper.records import load_records
from tools import map_page

FOLDER = Path(__file__).parents[1] / "results/map"
TEXT = (FOLDER / "README.md").read_text()
RECORDS = load_records(FOLDER / "records.json")[1]


def number(words: str) -> float:
    found = re.search(words, " ".join(TEXT.split()))
    assert found, words
    return float(found[1])


def test_the_runs_of_two_machines_are_the_records_and_differ_as_said() -> None:
    rows = re.findall(r"^\| (\S.*?) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE)
    scores = {(r["name"], r["seed"]): r["final"]["mean"] for r in RECORDS}
    apart = []
    for name, seed, cpu, gpu in rows:
        assert f"{100 * scores[name, int(seed)]:.2f}" == cpu, name
        apart.append(float(gpu) - float(cpu))
    assert len(rows) == 7 and "Seven\nruns were made on both kinds" in TEXT
    assert number(r"GPU's are ([\d.]+) points lower") == round(-sum(apart) / len(apart), 1)
    assert number(r"average \((-[\d.]+) to") == round(min(apart), 1)
    assert number(r"to \+([\d.]+)\)\. Over") == round(max(apart), 1)


@pytest.mark.parametrize(("page", "name"), map_page.BLOCKS)
def test_what_is_said_is_that_of_the_records(page: Path, name: str) -> None:
    start, end = map_page.marks(name)
    written = page.read_text().partition(start)[2].partition(end)[0].strip()
    said = map_page.BLOCKS[page, name](map_page.records_of(page))
    assert written == said, "run `python -m tools.map_page`"


def test_a_dials_trials_stand_by_its_value_and_by_pool() -> None:
    scores = {
        "jest@0@0.004": 0.15,
        "jest@0.8@0.004": 0.09,
        "jest@0.8@0.008": 0.5,  # another rate
        "jest-ratio@0.8@0.95": 0.2,
        "jest-ratio@0@0.95": 0.1,
        "reference@750@0.004": 0.07,
        "reference@3000@0.004": 0.21,
    }
    rows = map_page.dials([{"name": k, "final": {"mean": v}} for k, v in scores.items()])
    assert "| JEST, filter ratio | **0.8: 15.0 / 9.0**; 0.95: 10.0 / 20.0 |" in rows
    assert "| the reference, steps | 750: 7.0; **3000: 21.0** |" in rows
