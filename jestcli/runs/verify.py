"""Read everything again that a checksum was taken of: `jest doctor --verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from jestcli.config import Run
from jestcli.data.embeddings import FOLDER, verify_table
from jestcli.data.remote import is_remote
from jestcli.data.sources import all_shards
from jestcli.runs.workspace import Workspace
from jestcli.training.checkpoint import CheckpointError, read
from jestcli.utils.errors import DataError


def tables(run: Run, workspace: Workspace) -> Iterator[Path]:
    """The descriptions of all reference embeddings of the data that `run` reads."""
    if not run.data.own:
        yield from workspace.data_root(run).glob("reference-embeddings/*/cache.json")
        return
    shards = all_shards((*run.data.train, *run.data.curated))
    folders = {Path(shard).parent for shard in shards if not is_remote(shard)}
    for folder in [*sorted(folders), workspace.loading.cache]:
        yield from sorted(folder.glob(f"{FOLDER}/*/*.json"))


def verify(run: Run, workspace: Workspace) -> tuple[int, list[str]]:
    """How many files were read, and what is wrong with some: reference embeddings, the shards that
    they are of, and every run's weights and checkpoints."""
    check_table = partial(verify_table, loading=workspace.loading)
    checks: list[tuple[Callable[[Path], object], Path]] = [
        *((check_table, path) for path in tables(run, workspace)),
        *((read, path) for path in sorted(workspace.runs.rglob("*.safetensors"))),
    ]
    wrong = []
    for check, path in checks:
        try:
            check(path)
        except (DataError, CheckpointError, OSError) as error:
            wrong.append(str(error))
    return len(checks), wrong
