"""The README's numbers are the records'."""

from __future__ import annotations

import shutil
from pathlib import Path

from jestcli.paper.experiment import list_experiments
from jestcli.paper.report import report

ROOT = Path(__file__).parents[1]


def test_the_readme_shows_both_commands_and_its_pictures_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make reproduce" in text and "make test" in text
    for word in text.replace("(", '"').replace(")", '"').split('"'):
        if word.startswith(("results/", "docs/", "experiments/", "jestcli/", "examples/")):
            assert (ROOT / word.partition("#")[0]).exists(), word


def test_the_verdicts_recompute_from_the_records(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "results/report.md").unlink()
    _, page = report(list_experiments(), tmp_path / "results", tmp_path / "results")
    assert page.read_text() == (ROOT / "results/report.md").read_text(), "run `jest report`"
