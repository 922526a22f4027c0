"""The benchmark runs, writes both files, and finds the picks of the listing."""

import json
import sys
import threading
from pathlib import Path

import pytest

import jestcli.selection
from jestcli.bench.selection import bench_selection
from jestcli.config import ConfigError


def test_bench_writes_what_it_measured(tmp_path):
    result = bench_selection(300, 60, 16, 4, "cpu", tmp_path / "bench.json", True)
    row = result["selection"]
    assert row["overlap_with_listing"] >= 0.995
    assert row["seconds"] > 0 and row["speedup_over_listing"] > 0
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert "B = 300, b = 60" in (tmp_path / "bench.md").read_text()


def test_a_failing_measurement_ends_with_its_error_and_no_waiting_thread():
    """The memory watcher once outlived the error and kept the process from ending."""
    with pytest.raises(ValueError, match="size"):
        bench_selection(batch=8, size=9, dim=4, chunks=2, device="cpu", out=None, listing=False)
    assert all(t.daemon or t is threading.main_thread() for t in threading.enumerate())


def test_against_another_checkout_takes_turns_and_compares_the_picks(tmp_path):
    here = Path(jestcli.selection.__file__).parents[2]
    row = bench_selection(200, 40, 8, 4, "cpu", None, False, here)["selection"]
    assert row["before"]["same_picks"] and row["before"]["cpu_speedup"] > 0
    assert row["rounds"] >= 2
    assert sys.modules["jestcli.selection"] is jestcli.selection, "ours is back"
    with pytest.raises(ConfigError, match="is not a checkout of this project"):
        bench_selection(200, 40, 8, 4, "cpu", None, False, tmp_path)
