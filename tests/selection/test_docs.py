"""The examples of docs/selection.md and CONTRIBUTING.md run as they stand."""

import re
import sys
from pathlib import Path

import pytest
import torch
from selection_oracle import make_pairs

from jestcli.runs.methods import build_run
from jestcli.selection import SAMPLERS, Task, names, noise, registry, select
from jestcli.selection.scores import CRITERIA

ROOT = Path(__file__).parents[2]


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


BLOCKS = blocks(ROOT / "docs" / "selection.md")


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
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    learner, reference = make_pairs(40, 4, seed=0), make_pairs(40, 4, seed=1)
    own = select(learner, reference, size=16, sampler="mine:two_halves")
    assert torch.equal(own, select(learner, reference, size=16, n_chunks=2))


def test_a_new_sampler_takes_one_function_and_one_line(monkeypatch):
    function, line = blocks(ROOT / "CONTRIBUTING.md")
    known = {"Task": Task, "Tensor": torch.Tensor}
    exec(compile(function, "CONTRIBUTING.md", "exec"), known)
    for name, sampler in eval(f"{{{line}}}", known).items():
        monkeypatch.setitem(SAMPLERS, name, sampler)
    pairs, reference = make_pairs(40, 4, seed=0), make_pairs(40, 4, seed=1)
    chosen = select(pairs, reference, size=16, sampler="flat")
    assert chosen.unique().numel() == 16 and "flat/easy_reference" in names()
    greedy = select(pairs, reference, size=16, sampler="flat", noise=noise.zero)
    best = select(pairs, reference, size=16, sampler="topk")
    assert torch.equal(greedy, best), "without noise the temperature changes nothing"


def test_the_line_of_a_new_strategy_makes_it_known_everywhere(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(BLOCKS[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(registry, "SAMPLERS", dict(SAMPLERS))
    monkeypatch.setattr("jestcli.selection.SAMPLERS", registry.SAMPLERS)
    assert [line for line in BLOCKS[2].splitlines() if "=" in line.partition("#")[0]] == [
        BLOCKS[2].splitlines()[-1]
    ], "one line"
    exec(compile(BLOCKS[2], "docs/selection.md", "exec"), {})
    assert {"two_halves", "two_halves/easy_reference"} <= set(names())
    learner, reference = make_pairs(40, 4, seed=0), make_pairs(40, 4, seed=1)
    for criterion in CRITERIA:
        got = select(learner, reference, size=16, sampler=f"two_halves/{criterion}")
        expected = select(learner, reference, size=16, n_chunks=2, criterion=criterion)
        assert torch.equal(got, expected)
    with pytest.raises(ValueError, match="did you mean 'two_halves'"):
        select(learner, reference, size=16, sampler="two_halfs")
    settings = {"selection": {"sampler": "two_halves"}, "reference": {"seed": 1}}
    assert build_run(settings, {}, {}).selection.sampler == "two_halves"
