"""Requirement 4: gloo ranks as separate processes (the checks are in distributed_worker.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def start(world, scenario, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{HERE}"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    return [
        subprocess.Popen(
            [
                sys.executable,
                HERE / "distributed_worker.py",
                str(rank),
                str(world),
                folder / "store",
                scenario,
            ],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize("world", [2, 4])
def test_the_same_for_any_number_of_ranks(world, tmp_path):
    ranks = start(world, "equality", tmp_path)
    try:
        for rank in ranks:
            out, err = rank.communicate(timeout=100)
            assert rank.returncode == 0 and "ok" in out, err[-2000:]
    finally:
        for rank in ranks:
            rank.kill()


def test_a_rank_that_stops_does_not_hang_the_other(tmp_path):
    ranks = start(2, "stalled", tmp_path)
    try:
        out, err = ranks[0].communicate(timeout=60)  # rank 1 is still there, and silent
        assert ranks[1].poll() is None
        assert ranks[0].returncode == 0 and "ok" in out, err[-2000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
