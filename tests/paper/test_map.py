"""The map on made-up records: names, savings, the best control, words and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from simulated_studies import record
from synthetic_records import HEADER

from jestcli.paper import confirm, map_figures, map_words
from jestcli.paper import map as maps
from jestcli.paper.saving import MORE, REACHED, Ratio


def run(name: str, seed: int, steps: int, score: float) -> dict[str, Any]:
    made = record(name, seed, steps * 256.0, score)
    about = {"benchmarks": {}, "retrieval_rescaled": False, "training": {}}
    looked = 1280 if "jest" in name or name.startswith("weight") else 256
    sizes = {"steps": steps, "batch_size": 256, "super_batch_size": looked}
    return {**made, **about, **sizes}


def made_up() -> list[dict[str, Any]]:
    """At .8 uniform training reaches JEST's shortest score just at its longest; at 0 in between."""
    found = []
    for seed, shift in ((1, -0.001), (2, 0.0), (3, 0.001)):
        for steps, low, high in ((375, 0.01, 0.04), (750, 0.02, 0.08), (1500, 0.04, 0.16)):
            found += [
                run(f"uniform@0.8@{steps}", seed, steps, low + shift),
                run(f"uniform@0@{steps}", seed, steps, high + shift),
                run(f"curated@{steps}", seed, steps, 0.05 + shift),
            ]
        found += [
            run("jest@0.8@375", seed, 375, 0.04 + shift),
            run("jest@0@375", seed, 375, 0.08 + shift),
            run("jest@0.8@750", seed, 750, 0.20 + shift),
        ]
    return found


def test_savings_are_read_off_the_baseline_of_the_same_pool() -> None:
    records = made_up()
    at_poor = maps.saving(records, "jest", 0.8, 375, "examples")
    at_clean = maps.saving(records, "jest", 0.0, 375, "examples")
    beyond = maps.saving(records, "jest", 0.8, 750, "examples")
    assert at_poor is not None and at_clean is not None and beyond is not None
    assert at_clean.status == REACHED and abs(at_clean.ratio - 2) < 0.05
    assert abs(at_poor.ratio - 4) < 0.1 and at_poor.low < 4
    assert beyond.status == MORE and abs(beyond.ratio - 2) < 1e-6
    assert maps.saving(records, "jest", 0.5, 375, "examples") is None
    assert maps.qualities(records) == [0.0, 0.8]


def test_winners_and_words_hold_the_records_numbers() -> None:
    records = made_up()
    best = maps.winners(records, [375, 750])
    assert best[0.8, 375][0][0] == "curated" and best[0.0, 375][0][0] == "jest"
    assert best[0.8, 750][0][0] == "jest"
    ended = [list(row) for row in map_words.ended_best(records).rows]
    assert ended[0] == ["0 %", "**JEST** 8.0", "–"]
    assert ended[1] == ["80 %", "**curated alone** 5.0; JEST 4.0", "**JEST** 20.0"]
    alone = [r for r in records if r["seed"] == records[0]["seed"]]
    assert map_words.short_answer(alone)[-1] == "¹ One seed."
    assert map_words.ended_best(alone).rows[1][1] == "**curated alone¹** 4.9; JEST 3.9¹"
    assert maps.lengths(records) == [375] and maps.longer(records) == [750]
    uniform, simpler, lead, *_ = said = map_words.short_answer(records)
    assert uniform.startswith("- **Over uniform training,** which needs ×2 [")
    for words in (" to ×4 [", "of 3 cells", "at no cell, excluded in 1; ×10"):
        assert words in uniform
    assert "JEST saves compute at 0 % (96k), 80 % (192k); it costs more in 1 of 3 cells." in simpler
    assert lead.startswith(
        "- With 0 % wrong captions JEST is at 8.0 % (7.9 to 8.1 over 3 seeds) after 96k "
    )
    answer = map_words.answer(records)
    assert answer[: len(said)] == said
    assert answer[len(said) + 1].startswith("- For its score JEST needs, beside uniform")
    short = map_words.sentence(records)
    assert short.startswith("With 80 % wrong captions uniform training needs ×4")
    assert "in 96k examples, 4.0 % (3.9 to 4.1 over 3 seeds); the best simpler recipe, Cur" in short
    assert ". With 0 % wrong captions uniform training needs ×2" in short
    _, rule, *rows = answer[-5:]
    starts = ["| 96k | 0 % | .8", "| 96k | 80 % | .8", "| 192k | 80 % | ."]
    assert [row[:17].strip() for row in rows] == starts
    assert " | ×4 [" in rows[1] and "Curated only" in rows[1] and "| more than ×2 |" in rows[2]
    assert all(row.count("|") == rule.count("|") for row in rows)
    rows = [list(row)[:6] for row in map_words.table(records).rows]
    assert ["JEST", "0.8", "96,000", "480,000", "3", "4.00"] in rows
    assert ["Uniform", "0.8", "96,000", "96,000", "3", "1.00"] in rows


def test_a_lead_is_told_with_what_becomes_of_it() -> None:
    size = 256 / 1000
    records = [
        run(f"{name}@{steps}", seed, steps, score + shift)
        for seed, shift in ((1, -0.001), (2, 0.001))
        for steps in (375, 750)
        for name, score in {
            "jest@0.8": 0.2 if steps == 750 else 0.1,
            "uniform@0.8": 0.01,
            "finetune@0.8": 0.15,
            "curated": 0.05,
            "jest@0.5": 0.1,
            "uniform@0.5": 0.01,
            "finetune@0.5": 0.1,
        }.items()
    ]
    (lead,) = map_words.ahead(records)  # none at 50 %, where fine-tuning is level with it
    assert "wrong captions JEST is at 20.0 % (19.9 to 20.1 over 2 seeds) after 192k exa" in lead
    assert lead.endswith("above 15.0 % (Fine-tuned ref.†), in up to 192k.")
    longer = [*records, *(run("curated@3000", seed, 3000, 0.3) for seed in (1, 2))]
    (lead,) = map_words.ahead(longer)
    assert lead.endswith(f"Curated only gets to 30.0 % after {3000 * size:,.0f}k.")


def test_savings_are_counted_on_their_side_of_one() -> None:
    """JEST reaches at its shortest length what uniform training needs twice that for, and fails at
    its longest; the curated set alone gets there at once, or never, or is too noisy to tell."""

    def counted(curated: float, scatter: float = 0.001) -> list[str]:
        return map_words.overall(
            [
                run(f"{name}@{steps}", seed, steps, score * rise + shift)
                for seed, shift in ((1, -scatter), (2, 0.0), (3, scatter))
                for steps, rise in ((375, 1.0), (750, 2.0), (1500, 4.0))
                for name, score in {
                    **dict.fromkeys(("uniform@0.8", "uniform@0"), 0.02),
                    **dict.fromkeys(("jest@0.8", "jest@0"), 0.04 if steps == 375 else 0.001),
                    "curated": curated,
                }.items()
            ]
        )

    above, below, noisy = counted(0.1), counted(0.005), counted(0.01, 0.02)
    assert "examples: less in 2 of 6 cells, more in 4;" in above[0]
    assert "charged: less in 0 of 6 cells, more in 6;" in above[1]
    assert "charged: less in 2 of 6 cells, more in 4;" in below[1]
    assert "charged: less in 0 of 6 cells, more in 2, undecided in 4;" in noisy[1]
    assert map_words.overall([r for r in made_up() if r["seed"] == 1]) == []


def test_the_other_names_of_the_map_are_told_apart() -> None:
    names = {"relevance-jest@0.1": 0.3, "relevance-uniform@0.1": 0.1, "relevance-jest@1": 0.3}
    names |= {"relevance-uniform@1": 0.25, "weight-weak@0.8@0.25": 0.1}
    records = [run(f"{name}@3000", 1, 3000, score) for name, score in names.items()]
    told = {tuple(row[:2]) for row in map_words.table(records).rows}
    assert ("JEST, relevance 0.1", "0") in told and ("JEST, weak ref., weight 0.25", "0.8") in told
    words = map_words.relevance(records)
    assert "+20.0 points at 0.1 (768k examples, 1 seeds), +5.0 points at 1" in words
    assert map_words.relevance(made_up()) == ""


def test_some_runs_alone_are_drawn_too(tmp_path: Path) -> None:
    """As by `jest run map --runs uniform@0.8@375`."""
    for names in ({"uniform@0.8@375"}, {"curated@375"}, {"jest@0.8@375"}):
        some = [record for record in made_up() if record["name"] in names]
        assert some
        drawn = map_figures.draw_all(HEADER, some, tmp_path)
        assert all(path.exists() for path in drawn)
        assert "For its score JEST needs" not in (tmp_path / "cells.md").read_text()


def test_figures_are_drawn_light_and_dark(tmp_path: Path) -> None:
    drawn = map_figures.draw_all(HEADER, made_up(), tmp_path)
    stems, endings = ("figure1", "conventions", "map"), (".png", ".svg", "-dark.png")
    names = [f"{stem}{ending}" for stem in stems for ending in endings]
    names[3:3] = ["figure1-phone.png", "figure1-phone-dark.png"]  # an svg would be in the report
    assert [path.name for path in drawn] == [*names, "cells.md"], "nothing is known of why"
    assert all(path.stat().st_size > 500 for path in drawn)


@pytest.mark.parametrize("phone", [False, True])
def test_figure_1_names_every_curve_at_its_best_setting_and_what_is_level(phone: bool) -> None:
    """Whatever the lengths: at 24,000 steps the slow rate is the best fine-tuning, of one seed."""
    more = [
        *(run("jest-90@0.8@750", seed, 750, 0.2005) for seed in (1, 2)),
        *(run("independent@0.8@750", seed, 750, 0.1999) for seed in (1, 2)),
        *(run(f"finetune@0.8@{n}", 1, n, 0.1) for n in (375, 24000)),
        run("finetune-slow@0.8@24000", 1, 24000, 0.3),
    ]
    theme = map_figures.look.LIGHT
    figure = map_figures.make_headline([*made_up(), *more], "", theme, phone)
    figure.canvas.draw()
    first, *_, best, curves = figure.axes
    legend = [text.get_text() for text in first.get_legend().get_texts()]
    assert legend == [line.label for line in map_figures.FEW if not line.method], "no weak one ran"
    names = {"uniform", "curated alone", "fine-tune", "JEST"}
    assert {text.get_text() for text in curves.texts} == names
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in curves.lines]
    assert (24000 * 256, 30.0) in ends and (750 * 256, 20.05) in ends
    cells = [text.get_text() for text in best.texts]
    assert cells[-2:] == ["JEST", "indep."] and len(best.patches) == len(cells)
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
    pixels = min(sizes) / 72 / figure.get_size_inches()[0] * 390
    assert not phone or pixels > 10, "on a phone, which shows it 390 pixels wide"


def test_the_withheld_benchmark_is_set_beside_the_eight() -> None:
    records = [{**r, "digest": f"{r['name']} {r['seed']}"} for r in made_up()]
    half = {
        r["digest"]: {"fxemoji": {"score": r["final"]["mean"] / 2, "n": 400, "chance": 0.0025}}
        for r in records
        if "@0.8" in r["name"] or r["name"].startswith("curated")
    }
    page = "\n".join(confirm.said(records, half))
    assert "fxemoji (400 images)" in page and "| JEST | 96k | 3 | 2.00 |" in page
    (short,) = [line for line in page.splitlines() if line.startswith("| JEST, 96k examples")]
    assert short.count("×4 [") == 2 and short.endswith("| yes |"), "halved scores, the same saving"
    other = Ratio(9.0, 8.0, 10.0, REACHED, "uniform@0.8")
    assert not confirm.overlap(other, Ratio(3.0, 2.0, 4.0, REACHED, "uniform@0.8"))


def test_dials_and_thinned_pools_are_drawn(tmp_path: Path) -> None:
    about = {"wrong_sub": [0.4, 0.5], "step": [40, 80]}
    about |= {"learnability_right": [1.0, -1.0], "learnability_wrong": [-4.0, -4.0]}
    names = {"jest@0.8": 0.2, "jest-weak@0.8": 0.1, "weight@0.8@0.5": 0.2, "easy@0.8": 0.2}
    names |= {"weight-weak@0.8@0.5": 0.15, "relevance-jest@0.1": 0.2, "relevance-uniform@0.1": 0.1}
    some = [
        run(f"{name}@750", seed, 750, score) | {"training": about}
        for seed in (1, 2)
        for name, score in names.items()
    ]
    drawn = map_figures.draw_all(HEADER, [*made_up(), *some], tmp_path)
    assert "why.png" in [path.name for path in drawn]
    figure = map_figures.make_why(some, "", map_figures.look.LIGHT)
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    lines = {title: len(axes.lines) for title, axes in zip(titles, figure.axes, strict=True)}
    assert len(lines) == 4 and min(lines.values()) >= 2, lines
    *_, weights, thinned = figure.axes
    assert {line.get_linestyle() for line in thinned.lines} == {"None"}, "two points are no line"
    assert "-" in {line.get_linestyle() for line in weights.lines}, "three are"
    assert len(weights.collections) == 2, "intervals"
