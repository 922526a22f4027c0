"""What a run lacks, as far as that is known without reading data: said before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

from jestcli.config import ConfigError, Run
from jestcli.data.remote import is_remote
from jestcli.data.sources import list_shards
from jestcli.evaluation.folders import check_all
from jestcli.models.words import check_word
from jestcli.utils.errors import DataError


def check_at_once(run: Run) -> None:
    """Whether files and folders that `run` and its reference name are there.

    Imports neither torch nor open_clip (but for a reference's tag). Raises ConfigError, DataError.
    """
    check_weights(run)
    for each in (run, run.reference):
        if each is not None and each.data.own:
            _check_shards(each)
            _check_benchmarks(each)
    if run.reference_model is not None:
        check_word(run.reference_model)


def check_weights(run: Run) -> None:
    """Whether weights to start from are there, and whole by their header. Raises ConfigError."""
    for name, path in (("init", run.init), ("model.pretrained", run.model.pretrained)):
        if path is None or not (os.sep in path or name == "init"):
            continue
        if not Path(path).is_file():
            raise ConfigError(f"{name}: no file {path}")
        if path.endswith(".safetensors"):
            _check_header(name, path)
    if run.data.uids is not None and not Path(run.data.uids).is_file():
        raise ConfigError(f"data.uids: no file {run.data.uids}")


def _check_header(name: str, path: str) -> None:
    """Opening one compares what its header lists with the file's size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{name}: {path} is damaged ({error})") from None


def _check_shards(run: Run) -> None:
    """At least one of every source's; how many may be missing is known when all are counted."""
    kind = run.source.kind
    read = [("data.train", run.data.train)] if kind != "curated" else []
    read += [("data.curated", run.data.curated)] if kind in ("curated", "mixed") else []
    for name, entries in read:
        for entry in entries:
            shards = list_shards(entry)
            if not any(is_remote(shard) or Path(shard).is_file() for shard in shards):
                raise DataError(f"{name}: no such file: {shards[0]}")


def _check_benchmarks(run: Run) -> None:
    if run.data.benchmarks is not None:
        check_all(Path(run.data.benchmarks), run.data.shots)
