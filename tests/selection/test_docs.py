"""The examples of docs/selection.md run as they stand."""

import re
from pathlib import Path

import pytest
import torch
from selection_oracle import make_pairs

from jestcli.selection import select

TEXT = (Path(__file__).parents[2] / "docs" / "selection.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_open_clip_loop():
    pytest.importorskip("open_clip")
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(BLOCKS[0], "docs/selection.md", "exec"), names)
    chosen = names["chosen"]
    assert isinstance(chosen, torch.Tensor) and chosen.unique().numel() == 16


def test_the_own_strategy(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(BLOCKS[1])
    monkeypatch.syspath_prepend(tmp_path)
    pairs = make_pairs(40, 4, seed=0)
    assert len(select(pairs, pairs, size=16, sampler="mine:two_halves")) == 16
