"""Whether a user's shards are still those that a run was begun on.

A run directory is named by settings, addresses and sizes, so a shard that was cut, swapped for one
of another size, or removed would begin another run in silence, and one changed within its size
would go into the old one. stamps.json in the directory keeps sizes and times to compare.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jestcli.config import Run
from jestcli.data.remote import ShardError
from jestcli.data.sources import all_shards, stamp
from jestcli.runs.workspace import StageError, Workspace, is_done
from jestcli.training.checkpoint import write_json
from jestcli.utils.reading import read_json

logger = logging.getLogger(__name__)
STAMPS = "stamps.json"
Stamps = dict[str, list[int] | None]  # size and time of a local shard; None: remote, or not there


def check_same_data(run: Run, workspace: Workspace) -> None:
    """Write the stamps of a run that begins. Raises StageError, unless the workspace accepts it,
    where the shards of this run, or of an unfinished one with the same settings, have changed. A
    finished run needs them no more: a change is said, and its result stands."""
    if not run.data.own:
        return
    folder, digest = workspace.folder(run), run.digest()
    shards = stamps(run)
    now: dict[str, Any] = {"settings": digest, "shards": shards}
    own = _read(folder / STAMPS)
    if own and is_done(folder):
        if (why := difference(own.get("shards", {}), shards)) is not None:
            logger.warning(
                "%s since %s was trained, whose result stands: delete it to train anew", why, folder
            )
        return
    if not workspace.accept_changed:
        others = [folder] if own else [path.parent for path in workspace.runs.glob(f"*/{STAMPS}")]
        for other in others:
            known = _read(other / STAMPS)
            if known.get("settings") != digest or (other != folder and is_done(other)):
                continue
            why = difference(known.get("shards", {}), shards)
            if why is not None:
                raise StageError(
                    f"{why} since the run {other} began: restore it, delete {other} to begin anew, "
                    "or go on with --accept-changed-data"
                )
    if own != now:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STAMPS, now)


def stamps(run: Run) -> Stamps:
    """Size and time of every shard of the run."""
    return stamps_of(all_shards((*run.data.train, *run.data.curated)))


def stamps_of(shards: Iterable[str]) -> Stamps:
    """Size and time of each of these."""
    return {shard: _stamp(shard) for shard in shards}


def difference(before: Stamps, now: Stamps) -> str | None:
    """What happened to the first shard that is not what it was, in words; None: nothing."""
    for shard, seen in before.items():
        if shard not in now or (seen is not None and now[shard] is None):
            return f"{shard} is gone"
        if seen != now[shard]:
            what = "size" if seen is None or now[shard][:1] != seen[:1] else "time"  # type: ignore[index]
            return f"{shard} has changed (its {what} differs)"
    return next((f"{shard} has come" for shard in now if shard not in before), None)


def _stamp(shard: str) -> list[int] | None:
    with suppress(ShardError):
        return stamp(shard)
    return None


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, ": delete it to go on without comparing") if path.exists() else {}
