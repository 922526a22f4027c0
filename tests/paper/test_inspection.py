"""What a run chose: replayed from its weights, counted, pictured and exported."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_run
from toy import train_run

from jestcli.data.uids import uid
from jestcli.paper import choices, inspection, theme
from jestcli.runs.inputs import open_inputs, pool_rows
from jestcli.runs.opened import newest_selecting, open_run
from jestcli.runs.workspace import StageError, Workspace


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(data_root, tmp_path_factory.mktemp("inspected-runs"))
    for method in ("jest", "uniform"):
        train_run(tiny_run(method), workspace, method, lambda *_: None)
    return workspace


def test_training_names_the_rows_that_it_chose(finished: Workspace) -> None:
    jest = finished.folder(tiny_run("jest"))
    ((step, rows),) = inspection.chosen_in_training(jest)
    assert step == 1 and len(rows) == len(set(rows.tolist())) == 8
    run = tiny_run("jest")
    first = open_inputs(run, finished, jest).loader(0)
    assert set(rows.tolist()) <= set(first.row.tolist()), "of the first super-batch"
    assert inspection.chosen_in_training(finished.folder(tiny_run())) == []


def test_a_replay_chooses_as_the_run_would(finished: Workspace) -> None:
    opened = open_run(finished.folder(tiny_run("jest")), finished)
    one, two = inspection.replay(opened, 2)
    assert len(one.rows) == 16 and len(set(one.index.tolist())) == 8
    repeated = inspection.replay(opened, 1)[0]
    assert np.array_equal(one.index, repeated.index) and np.array_equal(one.rows, repeated.rows)
    assert not np.array_equal(one.rows, two.rows)
    assert one.score.shape == (16,) and np.isfinite(one.score).all()
    table = inspection.overlaps(opened, [one, two])
    assert all(table[name][name] == 1.0 for name in table), "each strategy agrees with itself"
    assert all(0 <= v <= 1 for row in table.values() for v in row.values())
    rows, every = inspection.score_all(opened)
    expected = pool_rows(opened.run, opened.data)
    assert expected is not None and rows.tolist() == expected.tolist(), "the whole pool, once each"
    again = every[np.searchsorted(rows, one.rows)]
    assert again == pytest.approx(one.score, abs=1e-5), "scored alone or in a batch"


def test_inspecting_writes_sheets_report_figure_and_export(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theme, "DPI", 40)
    monkeypatch.setattr(choices, "LEAST", 2)
    folder = finished.folder(tiny_run("jest"))
    written = inspection.inspect(folder, finished, tmp_path, super_batches=3)
    assert all(p.stat().st_size > 0 for p in written)
    assert {p.name for p in written} >= {
        "README.md",
        "highest.png",
        "lowest.png",
        "chosen.png",
        "rejected.png",
        "choices.svg",
        "scores.csv",
        "uids.npy",
        "facts.json",
    }
    rows = list(csv.DictReader((tmp_path / folder.name / "scores.csv").open()))
    assert sum(int(r["chosen"]) for r in rows) == 3 * 8
    assert sum(int(r["drawn"]) for r in rows) == 3 * 16
    uids = np.load(tmp_path / folder.name / "uids.npy")
    assert uids.dtype == np.dtype("u8,u8") and np.array_equal(uids, np.sort(uids))
    assert len(uids) == sum(int(r["chosen"]) > 0 for r in rows)
    facts = json.loads((tmp_path / folder.name / "facts.json").read_text())
    assert facts["chosen"] == 24 and facts["offered"] == 48
    inspection.inspect(folder, finished, tmp_path, super_batches=1, everything=True)
    assert len(np.load(tmp_path / folder.name / "uids.npy")) == 37, "the best half of 74"
    assert len((tmp_path / folder.name / "scores.csv").read_text().splitlines()) == 75


def test_the_newest_run_that_selects_is_looked_at(finished: Workspace, tmp_path: Path) -> None:
    assert newest_selecting(finished) == finished.folder(tiny_run("jest"))
    with pytest.raises(StageError, match=r"no finished run in .* selects"):
        newest_selecting(Workspace(None, tmp_path))
    with pytest.raises(StageError, match="has no reference"):
        open_run(finished.folder(tiny_run()), finished)


def test_uids_are_the_keys_halves_or_their_hash() -> None:
    assert uid("00000000000000010000000000000002") == (1, 2)
    first, second = uid("mdi:home")
    assert 0 <= first < 2**64 and 0 <= second < 2**64
    assert uid("mdi:home") != uid("mdi:house")
    assert len(np.array([uid("a")], "u8,u8")) == 1


def test_rates_and_diversity_are_what_they_are_called() -> None:
    labels = np.array(["a", "a", "b", "b"]).__getitem__
    found = choices.rates(labels, np.arange(4), np.array([0, 1, 2]))
    assert found == {"a": [2, 2, pytest.approx(4 / 3)], "b": [2, 1, pytest.approx(2 / 3)]}
    assert choices.effective(Counter("aabb")) == pytest.approx(2)
    assert choices.effective(Counter("aaaa")) == pytest.approx(1)
    logged = [(1, np.array([0, 1])), (2, np.array([2, 3]))]
    shares = choices.over_time(labels, logged, spans=2)
    assert shares["step"] == [1, 2] and shares["share"]["a"] == [1.0, 0.0]
    assert choices.over_time(labels, logged, most=2, spans=2) == shares, "one of two is enough"
    assert choices.over_time(labels, logged, most=0)["step"] == [], "none may be read"
