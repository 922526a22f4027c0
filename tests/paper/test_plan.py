"""`jest plan` counts; the paper's own configuration comes out at the paper's own percentages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from rich.text import Text
from tiny import TINY, tiny_model, tiny_run

from jestcli.config import ConfigError, Model, merge
from jestcli.models.flops import forward_flops, training_memory
from jestcli.paper import experiment, plan
from jestcli.paper.experiment import (
    Job,
    find_experiment,
    planned_jobs,
    profile_jobs,
    read_experiment,
)
from jestcli.runs import methods
from jestcli.runs.methods import PROFILES, default_reference, default_run, read_profile


def test_the_papers_configuration_costs_what_the_paper_prints() -> None:
    """Table 1: JEST 233 %, Flexi-JEST 110 % of an iteration. Nothing here is written down."""
    jobs = [job for job in profile_jobs("paper-b16", {}) if job.name in ("jest", "flexi")]
    assert jobs[0].run.super_batch_size == 163_840 and jobs[0].run.data.context_length == 16
    jest, flexi = plan.make_plans(jobs, timed=False)
    assert jest.percent["cached_reuse"] == pytest.approx(233, abs=2)
    assert jest.percent["uncached_reuse"] == pytest.approx(400, abs=0.1)
    assert flexi.percent["cached_text_reuse"] == pytest.approx(110, abs=2)
    assert flexi.percent["cached"] == pytest.approx(112.2, abs=0.1), "paper.md, by count: 1.12"
    assert jest.examples_trained == pytest.approx(4e9, rel=1e-4)
    assert jest.flops["charged"] - jest.flops["cached"] == pytest.approx(
        3 * 3e9 * jest.per_example.full + 20e9 * jest.per_example.full, rel=1e-4
    )
    assert jest.parameters == pytest.approx(203e6, rel=0.01)


def test_every_column_is_there_in_both_forms(tmp_path: Path) -> None:
    run = tiny_run("flexi")
    plans = plan.make_plans([Job("flexi", 0, run)], pool_size=7)
    (only,) = plans
    assert only.examples_seen == 64 and only.seconds is not None and 0 < only.seconds < 600
    reference = forward_flops(tiny_model(tiny_run(), (8,)), 32, 8).full
    spent = 3 * 2 * 8 * reference
    assert only.flops["charged"] - only.flops["cached"] == spent + 7 * reference
    markdown, data = plan.write(tmp_path / "p", "title", plans, plan.notes(run, 1, True))
    text = markdown.read_text()
    assert all(text.count(f"| {name.replace('_', ' ')} |") == 2 for name in plan.CONVENTIONS)
    assert json.loads(data.read_text())["plans"][0]["percent"] == only.percent


def test_low_resolution_of_the_reference_makes_its_scoring_cheaper() -> None:
    full, low = (
        plan.make_plans(
            [Job("x", 0, tiny_run("flexi", selection={"reference_resolution": r}))], timed=False
        )[0]
        for r in ("full", "low")
    )
    assert (
        low.flops["uncached"] < full.flops["uncached"]
        and low.flops["charged"] < full.flops["charged"]
    )
    assert low.flops["cached"] == full.flops["cached"]


def test_memory_is_near_what_the_cpu_keeps() -> None:
    run = tiny_run("flexi")
    real, meta = tiny_model(run), plan.on_meta(run)
    there, here = (training_memory(m, 32, 8) for m in (meta, real))
    weights = sum(p.numel() for p in real.parameters())
    assert there.state == here.state == 16 * weights
    assert here.full <= there.full <= 1.5 * here.full and there.low < there.full
    assert there.training(8, 0.25) == there.state + 2 * there.low + 6 * there.full
    assert all(p.device.type == "meta" for p in meta.parameters())


@pytest.mark.parametrize(
    "seconds,words",
    [
        (None, "–"),
        (0.5, "0.5 s"),
        (90, "1.5 min"),
        (7200, "2 h"),
        (1e9, "31.7 years"),
    ],
)
def test_durations_are_readable(seconds: float | None, words: str) -> None:
    assert plan.duration(seconds) == words


# --- scale profiles -------------------------------------------------------------------------------

NAMES = ("smoke", "cpu", "gpu", "datacomp-small", "datacomp-medium", "paper-b16", "paper-l16")


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_resolves_builds_and_steps_with_a_tiny_stand_in(name: str) -> None:
    assert {p.stem for p in PROFILES.glob("*.yaml")} == {*NAMES, "cpu-ablation"}
    jobs = {job.name: job.run for job in profile_jobs(name, {})}
    assert jobs["flexi"].reference == jobs["jest"].reference == jobs["reference"]
    assert default_reference({}, 0, name) == jobs["reference"]
    assert jobs["uniform"].reference is None and jobs["flexi"].model == jobs["reference"].model
    assert next(plan.on_meta(jobs["flexi"]).parameters()).device.type == "meta"
    stand_in = {key: TINY[key] for key in ("data", "model", "evaluation")}
    stand_in["model"] = {**stand_in["model"], "name": None}
    small = default_run("flexi", stand_in, 0, name)
    model = tiny_model(small)
    image, text, *_ = model(torch.zeros(4, 3, 32, 32), torch.ones(4, 8, dtype=torch.long), 2)
    (image @ text.T).sum().backward()
    assert small.optim == jobs["flexi"].optim, "its own batch and schedule"


def test_cpu_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [job.run.digest() for job in profile_jobs("cpu", {})][1:] == [
        default_run(method, {}, 0).digest() for method in ("uniform", "jest", "flexi")
    ]
    changed = merge(
        read_profile("cpu"),
        {
            "data": {"level": "changed"},
            "optim": {"steps": 701},
            "reference": {"optim": {"lr": 0.5}},
        },
    )
    (tmp_path / "cpu.yaml").write_text(yaml.safe_dump({"about": "another regime", **changed}))
    for module in (experiment, methods):
        monkeypatch.setattr(module, "PROFILES", tmp_path)
    run, reference = default_run("jest", {}, 0), default_reference({}, 0)
    assert run.data.level == "changed" and run.optim.steps == 701
    assert reference == run.reference and reference.optim.lr == 0.5
    assert reference.data.level == "changed", "the reference reads the profile's data"
    assert reference.optim.steps == changed["reference"]["optim"]["steps"] != 701
    assert default_run("uniform", {}, 0).reference is None


@pytest.mark.parametrize("model", [{"name": "ViT-B-16"}, {"tower": "vit"}, {"tower": "cnn"}])
def test_a_tower_of_ones_own_takes_nothing_of_the_profiles(model: dict[str, Any]) -> None:
    data = {"image_size": 224, "context_length": 77, "vocab_size": 49408}
    run = default_run("uniform", {"model": model, "data": data}, 0)
    assert run.model == Model.model_validate(model) != default_run("uniform", {}, 0).model
    jest = default_run("jest", {"model": model, "data": data}, 0)
    assert jest.reference is not None and jest.reference.model == jest.model == run.model
    assert default_reference({"model": model, "data": data}, 0) == jest.reference


def test_an_experiments_profile_reaches_its_runs_not_its_references() -> None:
    ablation = read_experiment(find_experiment("batch-size"))
    assert ablation.profile == "cpu-ablation" and read_profile("cpu-ablation")["source"]
    jest = next(job.run for job in experiment.jobs(ablation, {}) if job.name == "joint@0.8")
    assert jest.source.noise_share == 0.8 and jest.optim.steps == 750
    assert jest.reference is not None and jest.reference.optim.steps == 3000
    assert jest.reference.source.noise_share == 0
    named = [run.get("reference") for run in ablation.runs.values() if isinstance(run, dict)]
    assert set(named) == {None, "strong"}


def test_wrong_words_name_the_nearest() -> None:
    for call, words in (
        (lambda: read_profile("paper-b61"), "no profile 'paper-b61' (did you mean paper-b16?)"),
        (lambda: planned_jobs("figur3", {}), "experiment 'figur3' (did you mean figure3?)"),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert words in str(caught.value)


def test_a_configuration_is_planned_as_it_would_be_trained(tmp_path: Path) -> None:
    over = {"data": {"train": ["/pool"], "curated": ["/good"]}, "optim": {"steps": 500}}
    reference, run = experiment.asked_jobs("jest", over, 3, "cpu")
    assert run.run == methods.default_run("jest", over, 3) and run.run.optim.steps == 500
    assert reference.run == run.run.reference
    assert [each.name for each in experiment.asked_jobs("uniform", over, 0, "cpu")] == ["uniform"]


def test_tables_are_plain_lines_in_a_pipe_and_fit_a_terminal() -> None:
    plans = plan.make_plans([Job("a-run-with-a-name", 0, tiny_run("flexi"))], timed=False)
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=80, no_color=True)
        for table in plan.tables(plans):
            console.print(table)
        lines = Text.from_ansi(out.getvalue()).plain.splitlines()
        assert terminal == any("─" in line for line in lines)
        assert not terminal or max(map(len, lines)) <= 80
        assert terminal or any(line.startswith("a-run-with-a-name ") for line in lines)
