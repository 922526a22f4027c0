"""Figure 2's measurements on a trained miniature, and the curves drawn from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_run
from toy import train_run

from jestcli.paper import figure2, theme
from jestcli.paper.figure2 import chunk_curves, ratio_curve
from jestcli.runs.workspace import Workspace


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure2, "DRAWS", 2)
    monkeypatch.setattr(figure2, "GIBBS", (0, 20, 60))
    monkeypatch.setattr(figure2, "PICTURE", 16)
    monkeypatch.setattr(theme, "DPI", 40)


def test_it_measures_each_finished_seed_once_and_draws(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = tiny_run("jest"), tmp_path / "figure2"
    train_run(run, workspace, "jest", lambda *_: None)
    (one,) = figure2.measure_all({0: run}, workspace, folder)
    assert one["b"] == 8 and one["run"] == workspace.folder(run).name
    assert {k: len(v) for k, v in one["chunks"].items()} == dict.fromkeys(
        ("1", "2", "4", "8", "16", "32"), 2
    )
    assert set(one["gibbs"]) == {"0", "20", "60"} and set(one["ratios"]) == {
        "0.0",
        "0.5",
        "0.8",
        "0.9",
    }
    matrix = np.load(folder / figure2.MATRIX)
    assert matrix.shape == (16, 16) and np.isfinite(matrix).all()
    # Brute force from a uniform start gains, and a larger super-batch does not lose.
    assert np.mean(one["gibbs"]["60"]) > np.mean(one["gibbs"]["0"])
    assert np.mean(one["ratios"]["0.9"]) > np.mean(one["ratios"]["0.0"])
    again = {"measure": lambda *_: pytest.fail("measured again")}
    monkeypatch.setattr(figure2, "measure", again["measure"])
    assert figure2.measure_all({0: run}, workspace, folder) == [one]
    for measured, picture in (([one], matrix), ([], None)):
        figure2.make_figure2("t", measured, picture, "note", theme.LIGHT).canvas.draw()


def test_curves_are_put_between_independent_and_the_best() -> None:
    one = {
        "b": 4,
        "uniform": [-1.0, -1.0],
        "chunks": {"1": [1.0, 1.0], "16": [2.0, 4.0]},
        "gibbs": {"0": [-1.0, -1.0], "2000": [5.0, 5.0]},
        "ratios": {"0.0": [0.0], "0.5": [2.0], "0.9": [3.0]},
    }
    chunks, gibbs, uniform = chunk_curves([one, one])
    assert chunks == {1.0: 0.0, 16.0: 0.5} and gibbs == {0.0: -0.5, 2000.0: 1.0}
    assert uniform == -0.5
    assert ratio_curve([one]) == {0.0: 0.0, 0.5: 1.0, 0.9: 1.5}
