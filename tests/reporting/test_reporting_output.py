import csv
from itertools import pairwise

import pytest
from rich.console import Console
from synthetic_records import HEADER, many, tiny

from jestcli.paper import theme
from jestcli.paper.curves import draw_benchmarks, draw_learnability
from jestcli.paper.figure1 import draw_figure1, make_figure1
from jestcli.paper.finals import draw_finals, make_finals
from jestcli.paper.methods import style
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


def test_figure_is_written_light_and_dark_and_as_vectors(tmp_path, records):
    written = draw_figure1(HEADER, records, tmp_path / "f" / "figure1", panels=("examples",))
    assert [p.name for p in written] == ["figure1.png", "figure1.svg", "figure1-dark.png"]
    assert all(p.stat().st_size > 10_000 for p in written)
    again = draw_figure1(HEADER, records, tmp_path / "g" / "figure1", panels=("examples",))
    assert written[1].read_bytes() == again[1].read_bytes()


def test_lines_levels_and_speed_ups_are_named(records):
    found = words(make_figure1(HEADER, records, theme.LIGHT))
    for start in (
        "JEST 2",
        "Uniform, long 1",
        "my-sampler ",
        "uniform final ",
        "curated best ",
        "reference ",
    ):
        assert any(w.startswith(start) for w in found), start
    assert any(w.startswith("×") for w in found)
    assert any("n = 3 a method" in w and "commit" in w for w in found)


def test_controls_are_marked_where_they_end_and_drawn_as_lines_if_alone(records):
    def curves(some):
        figure = make_figure1(HEADER, some, theme.LIGHT, panels=("examples",))
        assert any(w.startswith("Curated only ") for w in words(figure))
        curated = theme.LIGHT.colour(style("curated").colour)
        lines = figure.axes[0].lines
        return [x for x in lines if x.get_color() == curated and len(x.get_xdata()) > 3]

    assert not curves(records)
    assert curves([r for r in records if r["name"] in ("curated", "reference")])


def test_every_method_has_a_row_with_its_final_and_costs_the_best_at_the_top(tmp_path, records):
    runs = [tiny("uniform-long", s, [0.05, 0.10], [100, 400]) for s in range(3)]
    runs += [tiny("jest", s, [0.05, 0.12], [100, 200]) for s in range(3)]
    runs += [tiny("curated", 0, [0.05, 0.08], [100, 200])]
    axes = make_finals(HEADER, runs, theme.LIGHT).axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["Curated only", "Uniform, long", "JEST"]  # upwards
    cells = [t.get_text() for t in axes.texts][4:]
    assert [cells[0], cells[4]] == ["8.0", "10.0"] and cells[3::4] == ["1", "3", "3"]
    assert cells[5] == "100 %"
    assert all(p.stat().st_size > 5_000 for p in draw_finals(HEADER, records, tmp_path / "finals"))
    make_finals(HEADER, [r for r in runs if r["name"] == "jest"], theme.DARK).canvas.draw()


def test_an_overlay_is_labelled_as_this_machines(tmp_path, records):
    overlay = many(tmp_path, ["jest"], [0], speed=2.0)
    found = words(make_figure1(HEADER, records, theme.DARK, overlay))
    assert any(w.startswith("JEST, here ") for w in found)
    assert any("this machine, seed 0" in w for w in found)
    assert any("This machine: Example Processor" in w for w in found)


@pytest.mark.parametrize("names", [[], ["jest"], ["uniform", "curated"], ["reference"]])
def test_anything_missing_and_one_seed_still_draw(tmp_path, records, names):
    some = [r for r in records if r["name"] in names and r["seed"] == 0]
    make_figure1(HEADER, some, theme.LIGHT).canvas.draw()
    make_figure1(HEADER, [], theme.LIGHT, some)
    report = build(HEADER, some)
    assert "not run" in to_markdown(report)


def test_energy_is_drawn_against_joules_with_its_own_factor():
    runs = [tiny("uniform-long", s, [0.05, 0.08, 0.1], [100, 200, 400]) for s in range(3)]
    runs += [tiny("jest", s, [0.05, 0.1, 0.12], [100, 200, 400]) for s in range(3)]
    for run in runs:
        for point in run["curve"]:
            point["joules"] = point["step"] * (1.0 if run["name"] == "jest" else 3.0)
    figure = make_figure1(HEADER, runs, theme.LIGHT, panels=("joules",))
    found = words(figure) + [axes.get_xlabel() for axes in figure.axes]
    assert not any("never reach it" in word for word in found)
    runs[-1]["curve"][-1]["mean"] = runs[-1]["final"]["mean"] = 0.06
    three = words(make_figure1(HEADER, runs, theme.LIGHT))
    assert "by its mean curve; 1 of 3 seeds never reach it" in three
    assert "joules of the whole machine, evaluations included" in found and "×6.0" in found


def test_other_figures_are_written(tmp_path, records):
    some = [dict(r) for r in records if r["name"] == "jest"]
    for record in some:
        record["benchmarks"] = dict(list(record["benchmarks"].items())[:2])
    for draw in (draw_benchmarks, draw_learnability):
        assert all(p.exists() for p in draw(HEADER, some, tmp_path / draw.__name__))


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
    assert "Curated only, best point" in text
    assert text.index("## Measured here") < text.index("## The paper's own numbers")
    assert "Table 1 [P]" in text
    assert text.count("n = 3 a method") == 4  # each of our tables carries the caption
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
    assert "Speed-up over the long uniform run" in out and "commit 0123456789ab" in out
