"""`jest bench data`: pairs a second, by decode and workers, against what training asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from own_shards import make_shards

from jestcli.bench import data
from jestcli.bench.data import bench_data, verdict


def test_the_loader_is_measured_against_the_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = make_shards(tmp_path / "pool", 2, 8), tmp_path / "bench" / "data.json"
    result = bench_data(
        (str(shards),), 32, 16, 8, (0, 1), 0.05, super_batch=1000, step_seconds=0.5, out=out
    )
    assert [(r["decode"], r["workers"]) for r in result["rows"]] == [
        ("full", 0),
        ("full", 1),
        ("reduced", 0),
        ("reduced", 1),
    ]
    assert all(r["pairs_per_second"] > 0 for r in result["rows"])
    assert result["demand_pairs_per_second"] == 2000
    assert json.loads(out.read_text()) == result
    assert "| full | 1 |" in out.with_suffix(".md").read_text()
    assert "The loader at 32 px" in capsys.readouterr().out


def test_the_verdict_says_by_how_much() -> None:
    rows = [{"decode": "full", "workers": 2, "pairs_per_second": 50.0}]
    assert "waits 75 % of the time" in verdict({"rows": rows, "demand_pairs_per_second": 200.0})
    assert "keeps up" in verdict({"rows": rows, "demand_pairs_per_second": 20.0})


def test_shards_are_drawn_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SHARDS", 1)
    monkeypatch.setattr(data, "SAMPLES", 2)
    monkeypatch.setattr(data, "SIDE", (64, 48))
    result = bench_data((), 32, 16, 2, (0,), 0.01)
    assert "drawn" in result["shards"] and len(result["rows"]) == 2
