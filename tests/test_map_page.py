"""The prose of results/map is true of its records."""

from __future__ import annotations

import re
from pathlib import Path

from jestcli.paper.records import load_records
from jestcli.paper.saving import core_hours
from tools import map_page

FOLDER = Path(__file__).parents[1] / "results/map"
TEXT = (FOLDER / "README.md").read_text()
RECORDS = load_records(FOLDER / "records.json")[1]


def number(words: str) -> float:
    found = re.search(words, " ".join(TEXT.split()))
    assert found, words
    return float(found[1])


def test_runs_and_hours_are_counted_from_the_records() -> None:
    cpu = [record for record in RECORDS if not record["environment"].get("gpu")]
    assert number(r"(\d+) runs were made on one NVIDIA H100") == len(RECORDS) - len(cpu)
    assert number(r"The other (\d+) are of CPUs") == len(cpu)
    assert number(r"CPUs, ([\d.]+) core-hours") == round(sum(map(core_hours, cpu)), 1)


def test_the_runs_of_two_machines_are_the_records_and_differ_as_said() -> None:
    rows = re.findall(r"^\| (\S.*?) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE)
    scores = {(r["name"], r["seed"]): r["final"]["mean"] for r in RECORDS}
    apart = []
    for name, seed, cpu, gpu in rows:
        assert f"{100 * scores[name, int(seed)]:.2f}" == cpu, name
        apart.append(float(gpu) - float(cpu))
    assert len(rows) == 7 and "Seven runs were made on both" in TEXT
    assert number(r"GPU's are ([\d.]+) points lower") == round(-sum(apart) / len(apart), 1)
    assert number(r"average \((-[\d.]+) to") == round(min(apart), 1)
    assert number(r"to \+([\d.]+)\), about") == round(max(apart), 1)


def test_the_list_of_what_was_not_run_is_that_of_the_records() -> None:
    block = TEXT.partition(map_page.START)[2].partition(map_page.END)[0]
    assert block.strip() == map_page.not_run()
