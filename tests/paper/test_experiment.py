"""An experiment expands into runs that share what they can; the plan holds what is missing."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import TINY, tiny_run
from toy import train_run

from jestcli.config import ConfigError
from jestcli.paper import scheduler as reproduce
from jestcli.paper.experiment import (
    Experiment,
    Job,
    jobs,
    list_experiments,
    read_experiment,
)
from jestcli.paper.methods import line_of
from jestcli.paper.scheduler import (
    Stage,
    cost_table,
    overview,
    plan,
    run_stages,
    seconds_per_flop,
)
from jestcli.runs.methods import FOLDER
from jestcli.runs.workspace import StageError, Workspace


def experiment(**changes: Any) -> Experiment:
    settings: dict[str, Any] = {
        "name": "small",
        "title": "t",
        "claim": "c",
        "refuted_if": "r",
        "base": TINY,
        "references": {
            "strong": {"data": {"level": "strong"}, "optim": {"steps": 2}},
            "strong++": {"data": {"level": "strong++"}, "optim": {"steps": 3}},
        },
        "runs": {
            "uniform": {"method": "uniform"},
            "jest": {"method": "jest", "reference": "strong"},
            "flexi": {"method": "flexi", "reference": "strong"},
            "jest++": {"method": "jest", "reference": "strong++"},
            "finetune": {"method": "finetune", "reference": "strong"},
        },
        "seeds": [0, 1],
    }
    return Experiment.model_validate({**settings, **changes})


def test_expansion_names_every_run_and_shares_one_reference_a_seed() -> None:
    found = jobs(experiment(), {})
    names = ["uniform", "reference", "jest", "flexi", "reference++", "jest++", "finetune"]
    assert [(job.name, job.seed) for job in found] == [(n, s) for s in (0, 1) for n in names]
    runs = {(job.name, job.seed): job.run for job in found}
    for seed in (0, 1):
        reference = runs["reference", seed]
        assert reference.seed == seed and reference.source.kind == "curated"
        for name in ("jest", "flexi", "finetune"):
            assert runs[name, seed].reference == reference
        assert runs["jest++", seed].reference == runs["reference++", seed] != reference
        assert runs["uniform", seed].reference is None
    assert runs["reference", 0].digest() != runs["reference", 1].digest()
    assert len({run.digest() for run in runs.values()}) == len(runs)
    assert found[2].label == "jest (seed 0)"


def test_names_and_seeds_narrow_it_down() -> None:
    found = jobs(experiment(), {}, ["flexi"], [5])
    assert [(job.name, job.seed) for job in found] == [("reference", 5), ("flexi", 5)]
    with pytest.raises(ConfigError, match=r"no run 'jset' \(did you mean jest\?\)"):
        jobs(experiment(), {}, ["jset"])
    wrong = experiment(runs={"jest": {"method": "jest", "reference": "storng"}})
    with pytest.raises(ConfigError, match=r"no reference 'storng' \(did you mean strong\?\)"):
        jobs(wrong, {})
    with pytest.raises(ConfigError, match=r"unknown setting optim.stesp"):
        jobs(experiment(runs={"u": {"optim": {"stesp": 1}}}), {})
    with pytest.raises(ConfigError, match=r"needs a reference run"):
        jobs(experiment(runs={"jest": {"method": "jest"}}), {})
    with pytest.raises(ConfigError, match=r"no method '5'"):
        jobs(experiment(runs={"jest": {"method": 5}}), {})


def test_a_reference_can_be_spelt_out_in_a_run() -> None:
    spelt = tiny_run("jest").reference
    assert spelt is not None
    written = {"jest": {"method": "jest", "reference": spelt.model_dump(mode="json")}}
    (job,) = jobs(experiment(runs=written), {}, None, [0])
    assert job.run.reference == spelt


def test_overrides_reach_every_run_but_not_what_makes_a_reference() -> None:
    over = {
        "optim": {"steps": 9},
        "data": {"context_length": 7},
        "evaluation": {"points": 1},
        "selection": {"n_chunks": 2},
    }
    runs = {job.name: job.run for job in jobs(experiment(), over, None, [0])}
    assert all(run.data.context_length == 7 for run in runs.values())
    assert all(run.evaluation.points == 1 for run in runs.values())
    assert runs["jest"].optim.steps == runs["uniform"].optim.steps == 9
    assert runs["reference"].optim.steps == 2 and runs["reference++"].optim.steps == 3
    assert runs["reference++"].data.level == "strong++"
    deeper = {
        job.name: job.run
        for job in jobs(experiment(), {"reference": {"optim": {"lr": 0.5}}}, ["jest"], [0])
    }
    assert deeper["jest"].reference is not None and deeper["jest"].reference.optim.lr == 0.5
    assert deeper["reference"] == deeper["jest"].reference and not deeper["reference"].reference


# --- grids ---------------------------------------------------------------------------------------

GRID = """
title: t
claim: c
claims:
  one: {says: s, refuted_if: r, core: joint@0.9 > joint@0.5; joint@0.9 ~ uniform}
  two: {says: s, refuted_if: q, core: reference ~ headline, against: reference size@100 > headline}
scale: cpu
profile: cpu-ablation
references:
  strong: map:strong
  size: {data: {level: strong++}, vary: {data.curated_size: [100, null]}}
runs:
  uniform: {method: uniform}
  joint: {method: jest, reference: strong, vary: {selection.filter_ratio: [0.5, 0.9],
          optim.steps: [160, 170]}}
  by-size: {method: jest, vary: {reference: [size@100, size@all]}}
  headline: map:jest@0.8@750
seeds: [3]
"""


def grid(tmp_path: Path, change: str = "", to: str = "") -> Experiment:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.replace(change, to) if change else GRID)
    return read_experiment(path)


def test_varied_settings_go_together_and_name_the_run(tmp_path: Path) -> None:
    found = {job.name: job.run for job in jobs(grid(tmp_path), {})}
    assert list(found) == [
        "uniform",
        "reference",
        "joint@0.5",
        "joint@0.9",
        "reference size@100",
        "by-size@100",
        "reference size@all",
        "by-size@all",
        "headline",
    ]
    assert [found[f"joint@{f}"].optim.steps for f in (0.5, 0.9)] == [160, 170]
    assert [found[f"joint@{f}"].selection.filter_ratio for f in (0.5, 0.9)] == [0.5, 0.9]
    assert found["by-size@100"].reference == found["reference size@100"]
    assert found["reference size@all"].data.curated_size is None


def test_the_profile_shortens_runs_and_references_are_the_headlines(tmp_path: Path) -> None:
    found = {job.name: job.run for job in jobs(grid(tmp_path), {})}
    name = "jest@0.8@750"
    headline = jobs(read_experiment(FOLDER / "map.yaml"), {}, [name], [3])
    digests = {job.name: job.run.digest() for job in headline}
    assert found["uniform"].source.noise_share == 0.8 and found["uniform"].optim.steps == 750
    assert found["reference"].digest() == digests["reference"]
    assert found["headline"].digest() == digests[name]


@pytest.mark.parametrize(
    "change,to,message",
    [
        ("[160, 170]", "[160]", "joint.vary: expected lists of one length by setting"),
        ("[160, 170]", "10", "joint.vary: expected lists of one length by setting"),
        ("cpu-ablation", "cpu-ablatoin", "no profile 'cpu-ablatoin' (did you mean cpu-ablation?)"),
        (
            "map:jest@0.8@750",
            "map:jset@0.8@750",
            "no run 'map:jset@0.8@750' (did you mean jest@0.8@750?)",
        ),
        ("map:jest@0.8@750", "mpa:jest@0.8@750", "no experiment 'mpa' (did you mean map?)"),
        ("map:strong", "map:storng", "no reference 'storng' (did you mean strong?)"),
    ],
)
def test_a_wrong_grid_is_one_line(tmp_path: Path, change: str, to: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        jobs(grid(tmp_path, change, to), {})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change,to,message",
    [
        (
            "joint@0.9 > joint@0.5",
            "joint@0.9 > joint@0.6",
            "one.core: no run 'joint@0.6' (did you mean",
        ),
        ("size@100 > h", "size@10 > h", "two.against: no run 'reference size@10' (did you mean r"),
        (
            "joint@0.9 > joint@0.5",
            "joint@0.9 < joint@0.5",
            "one.core: 'joint@0.9 < joint@0.5' is no",
        ),
        (
            "core: joint@0.9",
            "cor: joint@0.9",
            "unknown setting claims.one.cor (did you mean core?)",
        ),
        ("says: s, refuted_if: r,", "refuted_if: r,", "claims.one.says: Field required"),
        (
            "core: joint@0.9",
            "says: 5, core: joint@0.9",
            "claims.one.says: Input should be a valid s",
        ),
        ("joint@0.9 ~ uniform", "a > " * 999, "claims.one.core: String should have at most 2000"),
        (", against: reference size@100 > headline", "", "claims.two: against is missing"),
        ("core: reference ~ headline, ag", "ag", "claims.two: neither core nor region"),
        (
            "refuted_if: q",
            "refuted_if: q, metric: men",
            "claims.two.metric: Input should be 'mean'",
        ),
        (
            "refuted_if: q",
            "refuted_if: q, metric: share",
            "two.metric: 'share' is measured where the",
        ),
        ("refuted_if: q", "refuted_if: q, region: {factor: 3}", "claims.two.region.surface: Field"),
        ("refuted_if: q", "refuted_if: q, region: {factor: .nan}", "claims.two.region.surface: Fi"),
        (
            "refuted_if: q",
            "refuted_if: q, region: {surface: saving of JEST over the best control, factor: 2}",
            "claims.two.region: the figure is of kind curves, not map",
        ),
        (
            "refuted_if: q",
            "refuted_if: q, region: {surface: saving of JEST over the best control, factor: -2}",
            "claims.two.region.factor: Input should be greater than 0",
        ),
        (
            "refuted_if: q",
            "refuted_if: q, region: {surface: saving of JEST over the best control, factor: .inf}",
            "claims.two.region.factor: Input should be less than",
        ),
        (
            "refuted_if: q",
            "refuted_if: q, region: {surface: saving of JEST over the best control, factor: '2'}",
            "claims.two.region.factor: Input should be a valid number",
        ),
        ("  one:", '  "o\\n|":', "claims.o |: String should match pattern"),
        ("  one:", f"  {'o' * 99}:", "String should have at most 80 characters"),
        (
            "claims:",
            "refuted_if: r\nclaims:",
            "refuted_if: follows from that of each of its claims",
        ),
        ("claims:", "claims: []\nmore:", "claims: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_claim_is_one_line_at_reading(
    tmp_path: Path, change: str, to: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(tmp_path, change, to)
    line = str(caught.value)
    assert message in line and "\n" not in line and len(line) < 600


def test_claims_are_no_setting_of_a_run(tmp_path: Path) -> None:
    whole, bare = grid(tmp_path), grid(tmp_path, GRID[GRID.index("claims:") : GRID.index("scale:")])
    assert list(whole.claims) == ["one", "two"] and not bare.claims
    assert (whole.refuted_if, bare.refuted_if) == ("one: r; two: q.", "")
    assert jobs(whole, {}) == jobs(bare, {})
    assert experiment(refuted_if="in words alone").refuted_if == "in words alone"


def test_panels_name_runs_that_exist() -> None:
    for each in list_experiments():
        names = {job.name for job in jobs(each, {}, None, [0])}
        lines = {line_of(name) for name in names}
        for panel in each.figure.panels:
            assert set(panel.lines) <= lines and set(panel.levels) <= names, each.name
        assert each.figure.panels or each.figure.kind != "grid"
    assert [e.name for e in list_experiments()][:2] == ["map", "table1"], "in order of worth"


def test_the_overview_counts_shared_work_once(tmp_path: Path, workspace: Workspace) -> None:
    console = Console(width=200, file=io.StringIO())
    pair = [experiment(name="a"), experiment(name="b")]
    console.print(overview(pair, workspace))
    assert isinstance(console.file, io.StringIO)
    cells = [row for x in console.file.getvalue().splitlines() if "14" in (row := x.split())]
    assert [row[0] for row in cells] == ["a", "b"]
    assert [row[2:5] for row in cells] == [["14", "0", "14"]] * 2, "7 runs and references a seed"
    assert cells[1][5] == "0.0", "all of it is shared with the first"


def test_the_pace_is_measured_on_finished_uniform_runs(tmp_path: Path) -> None:
    workspace = Workspace(None, tmp_path)
    assert seconds_per_flop(workspace) == reproduce.TYPICAL
    folder = tmp_path / "abc"
    folder.mkdir()
    (folder / "done.json").write_text(json.dumps({"flops": {"cached": 4e12}}))
    (folder / "config.json").write_text(json.dumps({"selection": {"sampler": "uniform"}}))
    (folder / "metrics.jsonl").write_text(json.dumps({"seconds": {"update": 8.0}}) + "\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "done.json").write_text("{")
    assert seconds_per_flop(workspace) == 2e-12


# --- the plan ------------------------------------------------------------------------------------


def labels(stages: list[Stage]) -> list[str]:
    return [stage.label for stage in stages]


def test_the_plan_holds_each_shared_stage_once_in_order(workspace: Workspace) -> None:
    names = ["uniform", "jest", "flexi", "finetune"]
    stages = plan(jobs(experiment(), {}, names, [0, 1]), workspace)
    per_seed = ["uniform", "reference", "jest", "flexi", "finetune"]
    assert len(stages) == 2 * len(per_seed) == len({stage.key for stage in stages})
    by_key = {stage.key: stage for stage in stages}
    for stage in stages:
        assert all(need in by_key for need in stage.needs), "waits for nothing that is not there"
        assert all(stages.index(by_key[n]) < stages.index(stage) for n in stage.needs)
        assert stage.work > 0
    for seed in (0, 1):
        wanted = {
            job.name: str(workspace.folder(job.run))
            for job in jobs(experiment(), {}, names, [seed])
        }
        assert by_key[wanted["uniform"]].needs == by_key[wanted["reference"]].needs == []
        for name in ("jest", "flexi", "finetune"):
            assert by_key[wanted[name]].needs == [wanted["reference"]]


def test_nothing_is_planned_for_what_is_done(workspace: Workspace) -> None:
    run = tiny_run("jest")
    job = Job("jest", 0, run)
    assert run.reference is not None
    assert labels(plan([job], workspace)) == ["jest (seed 0): reference", "jest (seed 0)"]
    train_run(run.reference, workspace, "reference", lambda *_: None)
    assert labels(plan([job], workspace)) == ["jest (seed 0)"]
    train_run(run, workspace, "jest", lambda *_: None)
    assert plan([job, job], workspace) == []


def test_the_list_says_what_runs_cost_and_state(workspace: Workspace) -> None:
    work = jobs(experiment(), {}, ["uniform", "jest"], [0])
    workspace.folder(work[0].run).mkdir(parents=True)
    console = Console(width=200, file=io.StringIO())
    console.print(cost_table(work, workspace))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert [job.name for job in work] == ["uniform", "reference", "jest"]
    rows = [line for line in text.splitlines() if "missing" in line or "started" in line]
    assert ["started" in row for row in rows] == [True, False, False]
    assert "100" in rows[0] and "167" in rows[2], "f = .5 without re-use: 1 + 2/3"


def test_a_stage_that_fails_says_why(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path / "abc"), tiny_run(), "jest", 1.0)
    stage.folder.mkdir()
    log = stage.folder / "errors.log"
    log.write_text("")
    assert reproduce._failure(stage, -9) == f"jest failed (exit -9): see {log}"
    log.write_text("Traceback (most recent call last):\n  ...\nValueError: no such thing\n")
    assert reproduce._failure(stage, 1) == f"jest failed: ValueError: no such thing (see {log})"
    assert "the same command goes on from there" in reproduce._failure(stage, 130)


class Worker:
    """A worker's process that ends with this code, or waits to be told to."""

    def __init__(self, code: int | None):
        self.code, self.told = code, False

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.told, self.code = True, 130

    def wait(self) -> None:
        assert self.code is not None


@pytest.mark.parametrize(
    "codes,started,words",
    [
        ({}, "abcdef", ""),
        ({"b": 1}, "abcd", "b failed"),  # without e, which needs b, and f, which needs e
        ({"a": 1, "b": 1, "c": 1}, "abcd", "c failed"),
        ({"a": 130}, "ab", "a was interrupted"),
    ],
)
def test_what_fails_ends_itself_and_what_needs_it(
    workspace: Workspace, codes: dict[str, int], started: str, words: str
) -> None:
    """One wrong run of six hundred must not end the night; a full disk must."""
    keys = {name: f"{workspace.runs}/{name}" for name in "abcdef"}
    needs = {"e": [keys["b"]], "f": [keys["e"]]}
    stages = [Stage(key, tiny_run(), name, 1.0, needs.get(name, [])) for name, key in keys.items()]
    seen: dict[str, Worker] = {}

    def launch(_: str, logs: tuple[Path, Path]) -> Worker:
        name = logs[0].parent.name
        return seen.setdefault(name, Worker(codes.get(name, 0)))

    with pytest.raises(StageError, match=words) if words else nullcontext():
        run_stages(stages, workspace, 2, Console(file=io.StringIO()), "off", launch)
    assert "".join(sorted(seen)) == started
