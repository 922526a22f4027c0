"""Diversity of choices and accuracy by how often a class is named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_run
from toy import train_run

from jestcli.config import Part
from jestcli.evaluation.benchmarks import Split
from jestcli.evaluation.parts import in_development
from jestcli.paper import diversity, theme
from jestcli.paper.experiment import Job
from jestcli.runs.workspace import Workspace


def test_phrases_are_counted_once_a_caption() -> None:
    counts = diversity.phrases(["red fox fox", "Red apple"])
    assert counts["red"] == 2 and counts["fox"] == 1 and counts["red fox"] == 1
    assert counts["fox apple"] == 0


@pytest.mark.parametrize("part", ["all", "test"])
def test_accuracy_is_split_by_how_often_the_pool_names_a_class(part: Part) -> None:
    classes = ["star", "red fox", "axolotl", "house"]
    assert in_development(classes).tolist() == [False, False, False, True]
    labels = torch.tensor([0, 3, 0, 1, 1, 2, 2])
    right = np.array([1, 1, 1, 1, 0, 0, 0], bool)
    if part == "test":  # the house was not scored
        right = np.delete(right, 1)
    benchmark: Any = SimpleNamespace(
        name="b", classes=classes, split=lambda: Split(torch.zeros(7, 1), labels, None)
    )
    counts = diversity.phrases(["star"] * 5 + ["a red fox"] * 2 + ["house"])
    hits = {"hits": np.packbits(right).tobytes().hex(), "n": len(right)}
    found = diversity.by_frequency({"b": hits}, [benchmark], counts, part)
    rare = 1 / 3 if part == "all" else 0.0
    assert found == {"rare": pytest.approx(rare), "middle": 0.5, "frequent": 1.0}
    assert diversity.by_frequency({"b": {"n": 6}}, [benchmark], counts, part) == {}


def test_it_measures_finished_runs_once_and_draws(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theme, "DPI", 40)
    monkeypatch.setattr(diversity, "SUPER_BATCHES", 2)
    jobs = [Job(name, 0, tiny_run(name)) for name in ("uniform", "jest")]
    jobs.append(Job("jest", 1, tiny_run("jest", seed=1)))  # not run
    for job in jobs[:2]:
        train_run(job.run, workspace, job.name, lambda *_: None)
    found = diversity.measure_all(jobs, workspace, tmp_path)
    assert [(m["name"], m["seed"]) for m in found] == [("jest", 0), ("uniform", 0)]
    assert found[1]["chosen"] is None and found[0]["chosen"]["pairs"] == 16
    assert found[0]["random"]["effective_sources"] >= 1
    assert all(set(m["accuracy"]) == {"rare", "middle", "frequent"} for m in found)
    before = (tmp_path / "diversity.json").stat().st_mtime_ns
    assert diversity.measure_all(jobs, workspace, tmp_path) == found
    assert (tmp_path / "diversity.json").stat().st_mtime_ns == before, "not measured again"
    assert json.loads((tmp_path / "diversity.json").read_text())["jest 0"] == found[0]
    names = ["uniform", "jest", "filtered"]
    text = diversity.to_markdown(found, names, "note")
    assert "| Filtered, best 5 % | not run |" in text and "| JEST | 1 |" in text
    diversity.make_diversity("t", found, names, "note", theme.LIGHT).canvas.draw()
