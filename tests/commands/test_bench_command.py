"""`jest bench` as a user types it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from own_shards import make_own

Command = Callable[..., tuple[int, str, str]]
SMALL = """
data: {image_size: 16, vocab_size: 514, context_length: 8}
model: {channels: [8, 8, 16], text_width: 16, embed_dim: 16}
optim: {batch_size: 4, warmup: 1}
"""


@pytest.mark.parametrize("words", [("selection",), ("train",), ("data",), ("scoring",)])
def test_no_record_is_written_on_a_busy_machine(
    words: tuple[str, ...], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    code, _, errors = command("bench", *words, "--out", str(tmp_path / "record"))
    assert code == 2 and "the machine is busy (load 99.0 on" in errors and "--busy" in errors
    assert not list(tmp_path.iterdir())


def test_scoring_is_measured_for_settings_on_own_shards(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_own(tmp_path)
    Path("mine.yaml").write_text(SMALL)
    words = ("bench", "scoring", "--config", "mine.yaml", "--batches", "1")
    own = ("--set", "data.train=pool", "--set", "data.curated=curated")
    flexi = ("--method", "flexi", "--untrained", "--busy", "--out", "record")
    code, _, errors = command(*words, *own, *flexi)
    assert code == 0, errors
    result = json.loads(Path("record.json").read_text())
    # A tower with batch statistics is scored at what it was trained at.
    assert [row["name"] for row in result["rows"]] == ["full", "image 8 px"]
    assert "pairs from own shards" in result["about"]
    code, _, errors = command(*words, *own)
    assert code == 1 and "jest train --method jest" in errors, "nothing is trained yet"
    code, _, errors = command(*words, "--untrained", "--method", "uniform", *own)
    assert code == 2 and "scores nothing with a reference" in errors
    code, _, errors = command("bench", "scoring", "jest-12", "--untrained")
    assert code == 2 and "not both" in errors
