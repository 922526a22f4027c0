"""Damaged files and a machine that refuses: one line each, from commands and from workers."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import jestcli
from jestcli import cli
from jestcli.config import ConfigError, make_run, parse_overrides, read_yaml
from jestcli.data.bad_samples import BadSampleLog
from jestcli.data.decoded import open_decoded
from jestcli.data.shard_dataset import _recorded_counts
from jestcli.data.sources import Loading
from jestcli.icons.build import is_built, read_manifest
from jestcli.paper import worker
from jestcli.paper.records import load_records
from jestcli.paper.scheduler import TYPICAL, seconds_per_flop
from jestcli.runs.data import read_benchmarks
from jestcli.runs.workspace import StageError, Workspace, read_done, read_run
from jestcli.training.checkpoint import CheckpointError, read, step_of
from jestcli.training.metrics import chosen_in_training, last_scores
from jestcli.training.reference import open_clip_reference
from jestcli.utils.errors import DataError, explain

ROOT = Path(jestcli.__file__).parent
DEEP = "[" * 20_000
DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    '"x"',
    "{}",
    DEEP,
    '{"scores": ' * 20_000,
    "9" * 5_000,
    "\x00",
    '{"scores": []}',
    '{"counts": 3, "files": null}',
    "\ud800",
]
READERS: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "config.json": (read_run, StageError),
    "done.json": (read_done, DataError),
    "metrics.jsonl": (last_scores, DataError),
    "manifest.json": (read_manifest, DataError),
    "benchmarks/benchmarks.json": (read_benchmarks, DataError),
    "records.json": (lambda at: load_records(at / "records.json"), DataError),
    "store.json": (open_decoded, DataError),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_one_line(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, errors="surrogatepass")
    reader, error = READERS[name]
    if name.startswith("benchmarks") and content in ("[]", "{}"):
        assert not reader(tmp_path)
        return
    with pytest.raises(error) as caught:
        reader(tmp_path)
    assert explain(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_note_is_one_line_or_made_anew(content: str, tmp_path: Path) -> None:
    for name in ("shards.json", "faults.jsonl", "metrics.jsonl", "manifest.json", "done.json"):
        text = content + "\n" * name.endswith("l")
        (tmp_path / name).write_text(text, errors="surrogatepass")
    for read_one in (
        lambda: BadSampleLog(tmp_path),
        lambda: chosen_in_training(tmp_path),
        lambda: _recorded_counts("pool", [], Loading(), tmp_path / "shards.json", lambda *_: None),
    ):
        try:
            read_one()
        except DataError as error:
            assert "is damaged" in str(error) and "\n" not in str(error)
    assert not is_built(tmp_path)
    runs = tmp_path / "runs" / "a"
    runs.mkdir(parents=True)
    for name in ("done.json", "config.json", "metrics.jsonl"):
        (runs / name).write_text(content, errors="surrogatepass")
    assert seconds_per_flop(Workspace(None, runs.parent)) == TYPICAL


def test_json_is_read_in_one_place() -> None:
    """Where 20,000 brackets are no traceback. The others read the suite's own."""
    own = {
        "utils/reading.py",
        "utils/catalogue.py",
        "models/standalone.py",
        "paper/worker.py",
        "paper/scheduler.py",
        "training/trunk.py",
        "forecast/page.py",
        "train.py",
    }
    found = {
        p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py") if "json.load" in p.read_text()
    }
    assert found == own


YAMLS = [
    DEEP,
    "a: " + DEEP,
    "{" * 20_000,
    "- " * 20_000,
    "seed: " + "9" * 1_000_000,
    "\x00",
    "!!timestamp x",
    "!!bool x",
    "!!int ''",
    "!!float x",
    "a: 2001-99-99",
    "? [1]\n: 2",
    "!!python/object/apply:os.system [touch ran]",
    "&a [*a]",
    "a: &a {b: *a}",
    "\ud800",
]


@pytest.mark.parametrize("text", YAMLS, ids=range(len(YAMLS)))
def test_yaml_that_cannot_be_read_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, errors="surrogatepass")
    with pytest.raises(ConfigError) as caught:
        make_run(read_yaml(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises(ConfigError) as caught:
        make_run(parse_overrides([f"a={text}", f"a={text}"]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_nested_metadata_of_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    for about in (DEEP, "9" * 5_000, "[]", "x"):
        save_file({"a": torch.zeros(2)}, path, {"about": about})
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert "\n" not in str(caught.value) and step_of(path) == 0
    header = b'{"__metadata__": ' + b'{"a":' * 20_000
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError):
        read(path)


def test_another_models_weights_are_named(tmp_path: Path) -> None:
    save_file(
        {"logit_scale": torch.zeros(()), "visual.x": torch.zeros(2)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(ConfigError) as caught:
        open_clip_reference(f"ViT-S-32-alt:{tmp_path}/a.safetensors")
    assert "these weights are not ViT-S-32-alt's: the first key that differs is " in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_a_worker_says_what_the_machine_refuses_in_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As a disk that is full while pictures of the choice are drawn."""

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), f"{tmp_path}/selected/step-00000005.png")

    monkeypatch.setattr("jestcli.train.train", refused)
    task = {"run": {}, "data": None, "runs": str(tmp_path), "label": "a"}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(task)))
    assert worker.main() == 1
    said = f"{os.strerror(number)}: {tmp_path}/selected/step-00000005.png\n"
    assert capsys.readouterr().err == said
    monkeypatch.setattr("jestcli.train.train", lambda *_: {}["key"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(task)))
    assert worker.main() == 1
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback") and errors.endswith("KeyError: 'key'\n")


def test_a_runs_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from own_shards import make_shards

    make_shards(tmp_path / "pool", 1, 4)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JEST_RUNS", f"{tmp_path}/file/runs")
    words = ["train", "--method", "uniform", "--set", f"data.train={tmp_path}/pool"]
    monkeypatch.setattr(sys, "argv", ["jest", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    errors = capsys.readouterr().err
    assert stopped.value.code == 1 and errors.count("\n") == 1
    assert errors.startswith(f"jest: Not a directory: {tmp_path}/file/runs")
