"""Ranks that stream a user's own shards train what one process trains on them."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from own_shards import make_shards, sample, write_tar
from rich.console import Console
from safetensors.torch import load_file
from test_ranks import finish, start
from tiny import TINY
from toy import train_run

import jestcli.train as loop
from jestcli.config import METHODS, Run, make_run, merge
from jestcli.data.sources import Loading
from jestcli.runs.reference import cache_reference
from jestcli.runs.workspace import Workspace


def own_run(root: Path, method: str, **more: Any) -> Run:
    own = {
        "data": {"train": str(root / "pool"), "curated": str(root / "curated"), "window": 2},
        "engine": {"precision": "float64"},
    }
    reference = merge(merge(TINY, own), merge(METHODS["curated"], {"optim": {"steps": 2}}))
    given = merge(merge(merge(TINY, own), METHODS[method]), more)
    return make_run(given | {"reference": reference})


def place(folder: Path) -> Workspace:
    return Workspace(None, folder / "runs", Loading(workers=0, cache=folder / "cache"))


def as_ranks(world: Any, folder: Path, run: Run, stop: int) -> None:
    """Train; rank 0 is asked to stop after so many steps (0: never)."""
    loop.LOG_EVERY = 1

    def report(done: int, total: int, line: str) -> None:
        if done == stop and total == run.optim.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train_run(run, place(folder), "own", report, "off", world)
    except loop.Interrupted:
        assert stop


def records(folder: Path) -> tuple[list[float], list[list[int]]]:
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [x for x in lines if "loss" in x]
    return [x["loss"] for x in logged], [x["chosen"] for x in logged]


def faults(folder: Path) -> list[tuple[int, str]]:
    """Position and key of everything that could not be read, on any rank."""
    texts = [path.read_text() for path in folder.glob("faults*.jsonl")]
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    return sorted((fault["position"], fault["key"]) for fault in found)


@pytest.mark.parametrize(
    "method,more,cached,stop",
    [
        ("jest", {}, False, 2),
        # Scored on small images from cached references; the chosen pairs are decoded again, at full
        # size, by the rank that drew them, before they move.
        ("flexi", {"selection": {"approximation": "resolution"}}, True, 0),
    ],
)
def test_ranks_read_their_slices_of_own_shards(
    method: str,
    more: dict[str, Any],
    cached: bool,
    stop: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Losses, choices, weights and faults; stopped with two ranks and ended with one, too."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    make_shards(tmp_path / "pool")
    broken = [sample(n, **({"jpg": b"no JPEG"} if n % 3 else {})) for n in range(12)]
    write_tar(tmp_path / "pool" / "01.tar", *broken)
    make_shards(tmp_path / "curated", 1, 16, first=1000)
    run = own_run(tmp_path, method, **more)
    assert run.reference is not None
    alone, ranks = place(tmp_path / "alone"), place(tmp_path / "ranks")
    train_run(run.reference, alone, "reference", lambda *_: None)
    if cached:
        alone.folder(run).mkdir()  # as the command does
        cache_reference(run, alone, Console(file=io.StringIO()))
    shutil.copytree(alone.runs, ranks.runs)  # one reference, to the last bit
    assert finish(start(2, as_ranks, tmp_path / "ranks", run, stop)) == [0, 0]
    train_run(run, alone, "own", lambda *_: None)
    train_run(run, ranks, "own", lambda *_: None)  # goes on where the ranks were stopped
    a, b = alone.folder(run), ranks.folder(run)
    (ours, mine), (theirs, other) = records(a), records(b)
    assert mine == other and len(mine) == 4, "the same pairs of the pool, in the same order"
    assert theirs == pytest.approx(ours, rel=1e-9)
    weights, expected = (load_file(f / "model.safetensors") for f in (b, a))
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-5, atol=1e-7)
    assert faults(a) and faults(a) == faults(b)
    assert (b / "faults-rank1.jsonl").exists()
