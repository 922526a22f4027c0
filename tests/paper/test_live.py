"""What is shown of an experiment while it runs."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from jestcli.paper.plot import ROWS, draw, listed
from jestcli.paper.records import load_records

_, RECORDS = load_records(Path(__file__).parents[2] / "results" / "map" / "records.json")
SOME = [r for r in RECORDS if r["name"] in ("jest@0.8@375", "jest@0.8@1500", "uniform@0.8@375")]


def test_bars_are_as_long_as_scores_and_lengths_of_a_method_stand_together() -> None:
    lines = listed([r for r in SOME if r["seed"] == 10])
    assert [line.split()[0] for line in lines] == [
        "jest@0.8@375",
        "jest@0.8@1500",
        "uniform@0.8@375",
    ]
    short, long, little = (line.count("▆") for line in lines)
    assert long == 28 > short > little
    assert len(listed(RECORDS)) == ROWS
    assert max(map(len, lines)) <= 80


def test_the_picture_is_drawn_of_one_run_as_of_many(tmp_path: Path) -> None:
    for many in (SOME[:1], SOME):
        draw("so far", "icons", many, tmp_path / "so-far.png")
        with Image.open(tmp_path / "so-far.png") as image:
            assert len(image.convert("L").getcolors(256) or []) > 20
