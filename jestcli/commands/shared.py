"""What several commands do: read settings, prepare data, train jobs."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jestcli.utils.plain import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from jestcli.config import Run
    from jestcli.paper.experiment import Job
    from jestcli.runs.workspace import Workspace


def read_settings(config: Path | None, pairs: list[str]) -> dict[str, Any]:
    """A file's settings and the command line's on top."""
    from jestcli.config import merge, parse_overrides, read_yaml

    return merge(read_yaml(config) if config else {}, parse_overrides(pairs))


def say(line: str) -> None:
    """One line for the user beside a command's output, once where there are ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"jest: {one_line(line)}", file=sys.stderr)


@dataclass(frozen=True)
class Asked:
    """What `jest train` and its like are asked for: a method, a seed, and settings on top."""

    method: str
    seed: int
    settings: dict[str, Any]

    def run(self, profile: str) -> Run:
        """The run that these mean on a scale profile. Raises ConfigError."""
        from jestcli.runs.methods import default_run

        return default_run(self.method, self.settings, self.seed, profile)


def read_asked(
    config: Path | None, pairs: list[str], method: str | None = None, seed: int | None = None
) -> Asked:
    """A file's settings, the command line's on top, and what method and seed they mean.

    An option wins over the file's `method:` and `seed:`, which is said. Raises ConfigError where
    settings contradict the method."""
    from jestcli.config import ConfigError, merge, parse_overrides, read_yaml
    from jestcli.runs.methods import check_method, method_of

    places = {str(config): read_yaml(config) if config else {}, "--set": parse_overrides(pairs)}
    settings = merge(*places.values())
    named: dict[str, Any] = {}
    for key, option in (("method", method), ("seed", seed)):
        there = settings.pop(key, None)
        if None not in (option, there) and option != there:
            say(f"--{key} {option} wins over `{key}: {there}`")
        named[key] = there if option is None else option
    if named["method"] is None:
        named["method"] = method_of(settings)
        if config and named["method"] != "jest":
            say(f"these settings mean --method {named['method']}")
    seed = 0 if named["seed"] is None else named["seed"]
    if not isinstance(named["method"], str) or not isinstance(seed, int):
        raise ConfigError(f"{config}: method must be a name and seed a number")
    check_method(named["method"], places)
    return Asked(named["method"], seed, settings)


def with_options(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """`settings` with these on top, by their dotted names; None is an option that was not given."""
    from jestcli.config import merge, nested

    for key, value in options.items():
        settings = settings if value is None else merge(settings, nested(key, value))
    return settings


def with_models(
    settings: dict[str, Any], reference: str | None, init: str | None
) -> dict[str, Any]:
    """Settings with what --reference and --init name, checked before anything else runs."""
    if reference is None and init is None:
        return settings
    from jestcli.runs import given
    from jestcli.runs.listing import default_runs

    if init is not None:
        settings = given.start_settings(init, settings, default_runs())
    if reference is not None:
        settings = settings | given.reference_settings(reference, default_runs())
    return settings


def announce(*runs: Run) -> None:
    """Say what these configurations run beside this suite: they may be a stranger's. Raises
    ConfigError for a sampler of somebody's own that cannot be imported."""
    from jestcli.config import ConfigError
    from jestcli.data.sources import runs_beside

    for line in dict.fromkeys(line for run in runs for line in runs_beside(run)):
        say(f"the configuration {line}")
    for name in {run.selection.sampler: None for run in runs if ":" in run.selection.sampler}:
        from jestcli.selection.registry import find  # imports torch

        try:
            find(name)
        except ValueError as problem:
            raise ConfigError(f"selection.{problem}") from None


def run_of_settings(
    config: Path | None,
    pairs: list[str],
    method: str | None,
    profile: str,
    workspace: Workspace,
    seed: int | None = None,
) -> Path | None:
    """The directory of the run that `jest train` makes of these; None where none is given. Raises
    StageError where it is not there."""
    from jestcli.runs.workspace import StageError

    if (config, method, seed) == (None, None, None) and not pairs:
        return None
    asked = read_asked(config, pairs, method, seed)
    folder = workspace.folder(asked.run(profile))
    if not folder.exists():
        raise StageError(
            f"no run of these settings in {workspace.runs}: `jest train --method {asked.method}` "
            "with the same ones makes it"
        )
    return folder


def make_console() -> Console:
    from jestcli.utils.console import Terminal

    return Terminal()


def make_workspace(
    workers: int | None = None,
    max_faults: float = 0.05,
    cache: Path | None = None,
    gigabytes: float = 50.0,
    accept_changed: bool = False,
) -> Workspace:
    from jestcli.data.sources import Loading, default_cache
    from jestcli.runs.workspace import Workspace

    folder = cache or default_cache()
    loading = Loading(workers, max_faults, folder.absolute(), gigabytes)
    return Workspace(loading=loading, accept_changed=accept_changed)


def prepare(run: Run, workers: int | None, workspace: Workspace | None = None) -> None:
    """Build the data of `run` and decode it (or count its own shards), unless that is done."""
    from jestcli.runs import data

    data.prepare(run, workers, workspace or make_workspace(), make_console())


def train_jobs(
    jobs: list[Job],
    wandb: str,
    device: str = "auto",
    keep_last: int = 1,
    workspace: Workspace | None = None,
) -> None:
    """Train jobs one after another in this process, and print their scores.

    Under torchrun it is one of the ranks that train together."""
    from jestcli.runs.evaluate import scores_table
    from jestcli.runs.listing import read
    from jestcli.runs.workspace import read_done
    from jestcli.train import train
    from jestcli.training.devices import pick_device
    from jestcli.training.distributed import DistEnv, join
    from jestcli.utils.parallel import usable_cores
    from jestcli.utils.progress import Bar, Lines

    where = pick_device(device)  # a wrong word is said before anything is built
    workspace, console = workspace or make_workspace(), make_console()
    announce(*(job.run for job in jobs))
    ranks, training = "TORCHELASTIC_RUN_ID" in os.environ, workspace
    if ranks and workspace.loading.workers is None:  # the machine's cores, shared by its ranks
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        loading = replace(workspace.loading, workers=max(1, usable_cores() // here - 1))
        training = replace(workspace, loading=loading)
    for job in jobs:
        with join(where) if ranks else nullcontext(DistEnv(device=where)) as world:
            if world.main:
                prepare(job.run, None, workspace)
            world.wait()
            label = job.name if ranks else job.label
            with nullcontext(Lines(console)) if ranks else Bar(console) as shown:
                train(job.run, training, label, shown.show, wandb, world, keep_last)
        if not world.main:
            continue
        folder = workspace.folder(job.run)
        console.print(scores_table(job.label, read_done(folder)["scores"], job.run.data.own))
        console.print(f"called {read(folder).name} by `jest runs`, `jest export` and the like")
        console.print(f"run directory: {folder}")
