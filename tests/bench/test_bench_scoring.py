"""Cheaper scoring is measured against full resolution, on a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import draw, fake_pool, tiny_model, tiny_run

from jestcli.bench import save, scoring
from jestcli.bench.scoring import bench_scoring
from jestcli.runs.workspace import StageError, Workspace
from jestcli.training.step import encode_pairs


def test_every_way_is_compared_with_full_resolution(tmp_path: Path) -> None:
    run = tiny_run("jest", optim={"batch_size": 16})
    learner, reference = tiny_model(run, (8,)), tiny_model(run, (8,), seed=1)
    drawn = [draw([fake_pool(64)], [32], 0, step) for step in range(2)]
    batches = [(d, encode_pairs(reference, d.images, d.tokens, None)) for d in drawn]
    result = scoring.measure(run, learner, batches)
    full, *cheaper = result["rows"]
    assert full["spearman"] == pytest.approx(1) and full["overlap"] == 1
    assert full["percent_flops"] == 100 and 0.3 < result["noise_overlap"] < 1
    assert len(cheaper) == 4 and all(row["percent_flops"] < 100 for row in cheaper)
    assert all(-1 <= row["spearman"] < 0.9999 and 0.2 < row["overlap"] <= 1 for row in cheaper)
    result = {"about": "made up", **result}
    made = save(result, scoring.as_markdown(result), tmp_path / "scoring")
    assert json.loads(made[0].read_text())["rows"] == result["rows"]
    assert all(row["name"] in made[1].read_text() for row in result["rows"])


def test_the_diagonal_is_the_loss_of_each_pair_alone() -> None:
    run = tiny_run()
    pool = draw([fake_pool(8)], [8], 0, 0)
    a, b = (
        encode_pairs(tiny_model(run, (8,), seed=s), pool.images, pool.tokens, None) for s in (0, 1)
    )
    z = [10 * (p.image[3] @ p.text[3]) - 10 for p in (a, b)]
    expected = torch.log1p(torch.exp(-z[0])) - torch.log1p(torch.exp(-z[1]))
    assert float(scoring.own_learnability(a, b)[3]) == pytest.approx(float(expected), abs=1e-4)


def test_without_a_run_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="jest train --method jest"):
        bench_scoring(Workspace(tmp_path, tmp_path), None, 1)
