"""Where things are: the data root and the run directories."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jestcli.config import Evaluation, Run
from jestcli.data.decode import fingerprint
from jestcli.data.images import DECODER
from jestcli.data.sources import Loading, all_shards, identity
from jestcli.icons.build import build_key, default_root
from jestcli.icons.spec import WORLD
from jestcli.models.words import weights_file
from jestcli.runs.environment import environment
from jestcli.runs.listing import default_runs
from jestcli.training.checkpoint import write_json
from jestcli.utils.errors import DataError
from jestcli.utils.io import sweep
from jestcli.utils.lock import Held, hold
from jestcli.utils.reading import read_json, reading


class StageError(Exception):
    """A stage that cannot run; the message is one line for the user."""


@dataclass(frozen=True)
class Workspace:
    """The folders a command works in."""

    data: Path | None = None
    runs: Path = field(default_factory=default_runs)
    loading: Loading = field(default_factory=Loading)
    accept_changed: bool = False  # go on where own shards changed (runs/same_data.py)

    def data_root(self, run: Run) -> Path:
        return self.data or default_root(run.data.image_size)

    def folder(self, run: Run) -> Path:
        """The run directory: named by what determines the run, its data included."""
        return self.runs / self._name(run)

    def trunk(self, run: Run) -> Path | None:
        """The folder that `run` shares with those that differ in length (or in when they are
        evaluated) alone: training/trunk.py. None unless its schedule has a part they share.

        Shards of one's own that were written anew begin another trunk, whatever their size: no
        length may go on from what other pairs have trained."""
        if run.optim.trunk_steps == 0:
            return None
        same = run.optim.model_copy(update={"steps": 1, "decay": 0.5})
        name = self._name(run.model_copy(update={"optim": same, "evaluation": Evaluation()}))
        if run.data.own:
            name += f"-{identity(all_shards((*run.data.train, *run.data.curated)), times=True)}"
        return self.runs / "trunks" / name

    def _name(self, run: Run) -> str:
        text = f"{run.digest()} {data_key(run)}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def data_key(run: Run) -> str:
    """Names the data and the weights that a run reads: part of its directory's name."""
    if not run.data.own:
        return build_key(WORLD, run.data.image_size)
    data, weights = run.data, weights_file(run.reference_model or "")
    shards = all_shards((*data.train, *data.curated))
    return f"{identity(shards)} {DECODER}{fingerprint(weights) if weights else ''}"


@contextmanager
def only_writer(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a run directory, or a table's. If another process does: wait, or raise StageError."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder, wait))
        except Held:
            raise StageError(f"another process is writing {folder}") from None
        sweep(folder)
        yield


def start_folder(folder: Path, run: Run, label: str) -> None:
    """Write the resolved config and the environment of a run, once."""
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", {"label": label, **run.model_dump(mode="json")})
    write_json(folder / "environment.json", environment())


def is_done(folder: Path) -> bool:
    """Whether the run is finished. Raises DataError where done.json cannot be read."""
    path = folder / "done.json"
    if not path.exists():
        return False
    read_json(path, ": delete it, and the run is finished again")
    return True


def read_run(folder: Path) -> tuple[str, Run]:
    """Label and config of a run directory. Raises StageError."""
    try:
        settings = read_json(folder / "config.json")
        label = settings.pop("label")
        return label, Run.model_validate(settings)
    except (OSError, DataError, KeyError, ValidationError):
        raise StageError(f"{folder} is not a run directory of this version") from None


def read_done(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself. Raises DataError where that is damaged."""
    path = folder / "done.json"
    done = read_json(path)
    with reading(path):
        for score in done["scores"].values():
            [float(score[key]) for key in ("score", "stderr", "chance", "n")]
        float(done["flops"]["charged"])
    return done
