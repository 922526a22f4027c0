import csv
from itertools import pairwise

import pytest
from rich.console import Console
from synthetic_records import HEADER, many, tiny

from jestcli.paper import curves, theme
from jestcli.paper.table import build, render, to_csv, to_markdown, write


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    names = ["uniform-long", "uniform", "jest", "curated", "reference", "my-sampler"]
    return many(tmp_path_factory.mktemp("runs"), names, [0, 1, 2])


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(theme, "DPI", 60)


def words(figure):
    found = [t.get_text() for t in figure.texts]
    return found + [t.get_text() for axes in figure.axes for t in axes.texts]


def test_figures_are_written_light_and_dark_and_as_vectors(tmp_path, records):
    some = [dict(r) for r in records if r["name"] in ("jest", "uniform-long")]
    for record in some:
        record["benchmarks"] = dict(list(record["benchmarks"].items())[:2])
    written = curves.draw_all(HEADER, some, tmp_path / "f")
    stems = ("figure1", "benchmarks", "learnability")
    endings = (".png", ".svg", "-dark.png")
    assert [p.name for p in written] == [f"{s}{e}" for s in stems for e in endings]
    assert all(p.stat().st_size > 5_000 for p in written)
    again = curves.draw_all(HEADER, some, tmp_path / "g")
    assert written[1].read_bytes() == again[1].read_bytes()


def make(records, *axes):
    return curves.make_curves("t", HEADER, records, [(axis, None) for axis in axes], theme.LIGHT)


def test_lines_and_levels_are_named_with_their_ends(records):
    found = words(make(records, "examples", "cached", "seconds"))
    for start in ("JEST 2", "Uniform, long 1", "my-sampler ", "Curated only ", "Reference 1"):
        assert sum(w.startswith(start) for w in found) == 3, start
    assert any("n = 3 a method" in w and "commit" in w for w in found)


@pytest.mark.parametrize("names", [[], ["jest"], ["uniform", "curated"], ["reference"]])
def test_anything_missing_and_one_seed_still_draw(records, names):
    some = [r for r in records if r["name"] in names and r["seed"] == 0]
    make(some, "examples", "cached").canvas.draw()
    curves.make_learnability(HEADER, some, theme.DARK).canvas.draw()
    assert "not run" in to_markdown(build(HEADER, some))


def test_energy_is_drawn_where_it_was_counted():
    runs = [tiny("uniform-long", s, [0.05, 0.08, 0.1], [100, 200, 400]) for s in range(3)]
    for point in (point for run in runs for point in run["curve"]):
        point["joules"] = 3.0 * point["step"]
    (axes,) = make([*runs, tiny("jest", 0, [0.05, 0.1], [100, 200])], "joules").axes
    assert axes.get_xlabel() == "joules of the whole machine, evaluations included"
    assert list(axes.lines[0].get_xdata()) == [300, 600, 1200]
    assert not any(text.get_text().startswith("JEST") for text in axes.texts)


def test_labels_are_spread_without_losing_order():
    placed = theme.spread([0.5, 0.5, 0.52, 0.9, 1.4], 0.1, 0, 1)
    assert placed == sorted(placed)
    gaps = [b - a for a, b in pairwise(placed)]
    assert min(gaps) >= 0.1 - 1e-9
    assert placed[0] >= 0 and placed[-1] <= 1


def test_table_says_what_was_run_and_what_not(tmp_path, records):
    report = build(HEADER, records)
    text = to_markdown(report)
    assert "| Flexi-JEST | not run |" in text
    assert "233 / 267 / " in text
    assert "my-sampler" in text
    assert text.index("## Measured here") < text.index("## The paper's own numbers")
    assert "Table 1 [P]" in text
    assert text.count("n = 3 a method") == 1, "the caption stands once, above our tables"
    md, comma = write(report, tmp_path / "table")
    assert md.read_text() == text
    lines = comma.read_text().splitlines()
    assert lines[0].startswith("# Data: icons and emoji") and "seeds 0, 1, 2" in lines[0]
    rows = {r["method"]: r for r in csv.DictReader(lines[1:])}
    assert rows["flexi"]["status"] == "not run"
    assert float(rows["jest"]["per_iteration_cached"]) == pytest.approx(8 / 3, rel=1e-3)
    assert to_csv(report).count("\n") == len(lines)


def test_table_prints_to_a_terminal(records):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render(console, build(HEADER, records))
    out = console.export_text()
    assert "What they cost" in out and "commit 0123456789ab" in out
