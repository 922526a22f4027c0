"""Shards that change between stop and resume, and damaged records of a run, are said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_run

from jestcli.config import Run
from jestcli.data.sources import Loading
from jestcli.runs.same_data import STAMPS, check_same_data
from jestcli.runs.workspace import StageError, Workspace, is_done, read_done
from jestcli.utils.errors import DataError


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Workspace, Run, Path]:
    """A run on three shards that has begun, and their folder."""
    shards = tmp_path / "pool"
    shards.mkdir()
    for number in range(3):
        (shards / f"{number}.tar").write_bytes(b"0" * 100)
    place = Workspace(None, tmp_path / "runs", Loading(cache=tmp_path / "cache"))
    run = tiny_run("uniform", data={"train": [str(shards)]})
    check_same_data(run, place)
    return place, run, shards


def swapped(path: Path) -> None:
    path.write_bytes(b"1" * 100)
    os.utime(path, (1, 1))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "swapped": (swapped, "1.tar has changed (its time differs)"),
    "cut": (lambda path: path.write_bytes(b"0" * 50), "1.tar has changed (its size differs)"),
    "removed": (Path.unlink, "1.tar is gone"),
    "joined": (lambda path: path.with_name("9.tar").write_bytes(b"9"), "9.tar has come"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_shard_stops_a_run_that_has_begun(
    kind: str, begun: tuple[Workspace, Run, Path]
) -> None:
    place, run, shards = begun
    check_same_data(run, place)
    folder, (change, words) = place.folder(run), CHANGES[kind]
    change(shards / "1.tar")
    with pytest.raises(StageError) as caught:
        check_same_data(run, place)
    assert words in str(caught.value) and str(folder) in str(caught.value)
    check_same_data(run, replace(place, accept_changed=True))
    if kind != "swapped":  # a run of its own, and the old one is still unfinished
        assert place.folder(run) != folder
    check_same_data(tiny_run("uniform", data={"train": [str(shards)]}, seed=1), place)
    (place.folder(run) / STAMPS).write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        check_same_data(run, place)


def test_a_finished_run_of_other_shards_is_no_obstacle(
    begun: tuple[Workspace, Run, Path],
) -> None:
    place, run, shards = begun
    (place.folder(run) / "done.json").write_text(json.dumps({"scores": {}}))
    (shards / "1.tar").write_bytes(b"0" * 50)
    check_same_data(run, place)


def test_a_finished_run_whose_shards_were_touched_stands_and_says_so(
    begun: tuple[Workspace, Run, Path], caplog: pytest.LogCaptureFixture
) -> None:
    place, run, shards = begun
    (place.folder(run) / "done.json").write_text(json.dumps({"scores": {}}))
    check_same_data(run, place)
    assert not caplog.messages
    os.utime(shards / "1.tar", (1, 1))
    for _ in range(2):  # it is no less so the second time
        check_same_data(run, place)
    assert len(caplog.messages) == 2 and "its time differs" in caplog.messages[1]


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 20_000, "\0"])
def test_an_unreadable_done_is_one_line(content: str, tmp_path: Path) -> None:
    assert not is_done(tmp_path)
    (tmp_path / "done.json").write_text(content)
    for ask in (is_done, read_done):
        with pytest.raises(DataError, match=r"done\.json is damaged") as caught:
            ask(tmp_path)
        assert "\n" not in str(caught.value)
