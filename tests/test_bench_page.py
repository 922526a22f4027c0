"""The page of speeds says what its records say."""

from __future__ import annotations

from tools.bench_page import FOLDER, page


def test_the_page_recomputes_from_its_records() -> None:
    assert (FOLDER / "README.md").read_text() == page(FOLDER), "run `python -m tools.bench_page`"
