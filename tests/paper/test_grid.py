"""The ablations' figure and table: a line a method, a point a setting, "not run" where missing."""

import pytest
from synthetic_records import HEADER, tiny

from jestcli.paper import theme
from jestcli.paper.contrasts import difference
from jestcli.paper.effects import fit
from jestcli.paper.experiment import Panel
from jestcli.paper.grid import make_grid, places
from jestcli.paper.table import build, to_markdown

NAMES = ["uniform", "joint@0.5", "joint@0.9", "alone@0.5", "alone@0.9"]
PANELS = (
    Panel(
        title="Learnability",
        x="filter ratio",
        lines={"joint": "joint", "alone": "alone"},
        levels={"uniform": "uniform"},
    ),
)


def record(name, seed, score, nats=None):
    made = tiny(name, seed, [0.01, score])
    made["final"]["nats"] = nats
    return made


@pytest.fixture
def records():
    found = [record("uniform", s, 0.02 + 0.001 * s, 0.2) for s in range(3)]
    found += [record("joint@0.5", s, 0.04 + 0.001 * s, 0.4) for s in range(3)]
    return found + [record("joint@0.9", s, 0.06 + 0.001 * s, 0.6) for s in range(3)]


def words(figure):
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def test_a_line_ends_with_its_value_and_missing_cells_say_so(records):
    figure = make_grid("t", PANELS, HEADER, records, NAMES, theme.LIGHT)
    found = words(figure)
    assert "joint 6.1" in found and "joint 0.60" in found, "score in % and nats"
    assert "uniform 2.1" in found and "alone: not run" in found
    assert found.count("alone: not run") == 2, "once a panel, where its line would end"
    some = [*records, record("alone@0.9", 0, 0.05, 0.5)]
    found = words(make_grid("t", PANELS, HEADER, some, NAMES, theme.LIGHT))
    assert found.count("alone: not run") == 2 and "alone 5.0" in found, "one setting, two panels"
    (line,) = [x for x in figure.axes[0].lines if len(x.get_xdata()) == 2 and x.get_marker() == "o"]
    assert list(line.get_xdata()) == [0.5, 0.9] and line.get_ydata() == pytest.approx([4.1, 6.1])


def test_a_line_runs_from_the_smallest_value_whatever_was_named_first(records):
    figure = make_grid("t", PANELS, HEADER, records, NAMES[::-1], theme.LIGHT)
    (line,) = [x for x in figure.axes[0].lines if len(x.get_xdata()) == 2 and x.get_marker() == "o"]
    assert list(line.get_xdata()) == [0.5, 0.9] and "joint 6.1" in words(figure)


def test_values_that_are_no_numbers_stand_side_by_side(records):
    named = [
        dict(r, name=r["name"].replace("@0.5", "@weak").replace("@0.9", "@strong")) for r in records
    ]
    names = ["uniform", "joint@weak", "joint@strong"]
    figure = make_grid("t", PANELS, HEADER, named, names, theme.DARK)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["weak", "strong"]


def test_settings_without_an_order_are_not_joined(records):
    (panel,) = PANELS
    loose = (panel.model_copy(update={"ordered": False}),)
    names = ["uniform", *(f"{line}@{x}" for line in ("joint", "alone") for x in ("0.5", "0.9"))]
    twice = [*records, *(dict(r, name=r["name"].replace("joint", "alone")) for r in records)]
    axes = make_grid("t", loose, HEADER, twice, names, theme.LIGHT).axes[0]
    lines = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    assert [line.get_linewidth() for line in lines] == [0, 0]
    one, other = (list(line.get_xdata()) for line in lines)
    assert all(a < b for a, b in zip(one, other, strict=True)), "side by side"
    assert {"joint", "alone"} <= {t.get_text() for t in axes.texts}, "no value is the line's end"


def test_numbers_in_each_others_way_stand_evenly():
    (panel,) = PANELS
    near, far = (["joint@0.9", "joint@0.99", "joint@0.999"], ["joint@0.5", "joint@0.9"])
    assert places(panel, near) == ({"0.9": 0.0, "0.99": 1.0, "0.999": 2.0}, False)
    assert places(panel, far) == ({"0.5": 0.5, "0.9": 0.9}, True)


def test_nothing_run_still_draws():
    figure = make_grid("t", PANELS, HEADER, [], NAMES, theme.LIGHT)
    figure.canvas.draw()
    assert "not run" in words(figure)


def test_a_run_without_the_metric_is_not_called_missing(records):
    """Such as the share of curated pairs, where the pool has none."""
    for r in records:
        r["final"]["curated"] = 0.1 if r["name"] == "joint@0.9" else None
    panel = Panel(title="t", x="x", lines={"joint": "joint"}, metrics=("curated",))
    found = words(make_grid("t", (panel,), HEADER, records, NAMES, theme.LIGHT))
    assert found == ["joint 10.0"]


def varied(records):
    """Not every method's seeds in the same order."""
    records[1]["final"]["mean"] += 0.002
    return records


def test_bars_are_the_reports_intervals_and_one_seed_has_none(records):
    some = varied(records)[:-2]
    axes = make_grid("t", PANELS, HEADER, some, NAMES, theme.LIGHT).axes[0]
    (bar,) = (c for c in axes.containers)
    low, high = bar.lines[2][0].get_segments()[0][:, 1]
    effect = fit(some).effect(difference("joint@0.5", "uniform"))
    assert (high - low) / 2 == pytest.approx(100 * (effect.high - effect.estimate) / 2**0.5)
    alone = [x for x in axes.lines if list(x.get_xdata()) == [0.9]]
    assert [x.get_markerfacecolor() for x in alone] == [theme.LIGHT.background]


def test_a_table_says_of_a_pair_what_the_report_says(records):
    text = to_markdown(build(HEADER, varied(records), tuple(NAMES), with_paper=False))
    effect = fit(records).effect(difference("joint@0.9", "uniform"))
    ends = f"[{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
    assert f"| joint@0.9 | {100 * effect.estimate:+.1f} {ends} |" in text
    assert "| joint@0.9 | +0.400 [+0.400, +0.400] |" in text, "nats"
    assert "| alone@0.9 | not run | not run |" in text
    assert "The paper's own numbers" not in text


def test_where_there_is_one_seed_a_table_says_so(records):
    few = [r for r in records if r["seed"] == 0]
    text = to_markdown(build(HEADER, few, tuple(NAMES), with_paper=False))
    assert "| joint@0.9 | +4.0 (one seed) |" in text and "±:" in text and " ± " not in text
    level = [*records, *(dict(r, name="alone@0.5", digest=f"x{r['seed']}") for r in records[:3])]
    text = to_markdown(build(HEADER, level, tuple(NAMES), with_paper=False))
    assert text.count("not distinguishable |") == 2, "in points and in nats"


def test_a_table_gives_nats_kinds_and_pairs_looked_at_and_the_caption_the_references_strength():
    record_of = tiny("jest", 0, [0.1, 0.2], [10, 100])
    record_of["curve"][-1]["seen"] = 500
    reference = tiny("reference weak", 0, [0.1, 0.3], [10, 100])
    reference["final"]["auc"] = 0.85
    icons = ("objects", "objects_filled", "objects_fewshot", "tagged_i2t", "tagged_t2i")
    for i, name in enumerate(icons):
        row = {"score": i / 10, "chance": 0.01, "n": 1000, "stderr": 0.01}
        record_of["final"]["scores"][name] = row
    report = build(HEADER, [record_of, reference], ("jest",), with_paper=False)
    scores, costs, *_ = report.ours
    assert list(scores.columns) == ["Method", "Seeds", "Mean %", "Icons %", "Chance-corrected %"]
    assert list(scores.rows[0]) == ["JEST", "1", "20.0", "20.0", "19.2"]
    assert list(costs.rows[0][:4]) == ["JEST", "100", "100", "500"]
    assert report.raw[0]["looked_at"] == 500 and report.raw[0]["icons"] == pytest.approx(0.2)
    assert report.caption.endswith("pool pairs, by reference: weak 0.850.")
    assert "answers in all" in report.caption


def test_a_run_stands_against_the_uniform_one_of_its_own_setting(records):
    named = [dict(r, name=r["name"].replace("uniform", "uniform@0.9")) for r in records]
    names = ("uniform@0.9", "joint@0.5", "joint@0.9")
    table = to_markdown(build(HEADER, named, names, with_paper=False))
    assert "| joint@0.9 | +0.400 [" in table and "| joint@0.5 | – |" in table
    assert "| Method | Uniform |" in table and "Curated only" not in table
