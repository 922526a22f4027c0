"""Look at a run, or take it along: eval, inspect, config, doctor, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jestcli.commands import options as opt
from jestcli.commands import shared
from jestcli.utils.plain import say

app = typer.Typer()


@app.command("eval")
def evaluate(
    runs: opt.RunWords = None,
    method: opt.Method = None,
    profile: opt.Profile = "cpu",
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006
    seed: opt.Seed = None,
) -> None:
    """Evaluate trained models on all benchmark images: all finished runs, those that are named, or
    the one that `jest train` makes of --config and the like."""
    from jestcli.config import ConfigError
    from jestcli.runs.evaluate import evaluate_folder, list_runs, scores_table
    from jestcli.runs.listing import find
    from jestcli.runs.workspace import StageError, read_run
    from jestcli.training.checkpoint import CheckpointError
    from jestcli.utils.errors import DataError

    workspace, console = shared.make_workspace(), shared.make_console()
    found = [find(word, workspace.runs) for word in runs or ()]
    if own_run := shared.run_of_settings(config, set_, method, profile, workspace, seed):
        found.append(own_run)
    found = found or list_runs(workspace)
    if not found:
        raise StageError(f"no trained model in {workspace.runs}: run `jest train` first")
    skipped = False
    for folder in found:
        try:
            own = read_run(folder)[1].data.own
            console.print(scores_table(*evaluate_folder(folder, workspace), own))
        except (ConfigError, StageError, CheckpointError, DataError) as error:
            if len(found) == 1:
                raise
            shared.say(f"skipped {folder}: {error}")
            skipped = True
    if skipped:
        raise typer.Exit(1)


@app.command("inspect")
def inspect(
    run: opt.RunWord = None,
    method: opt.Method = None,
    profile: opt.Profile = "cpu",
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006
    seed: opt.Seed = None,
    super_batches: Annotated[int, typer.Option(min=1, help="Super-batches to choose from.")] = 8,
    everything: Annotated[
        bool, typer.Option("--all", help="Export scores of the whole pool, not of those drawn.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("inspected"),
    device: opt.Device = "auto",
    data_workers: opt.DataWorkers = None,
    max_faults: opt.MaxFaults = 0.05,
    cache: opt.Cache = None,
    cache_gb: opt.CacheGB = 50.0,
) -> None:
    """What did a run choose? Contact sheets, shares, overlap, diversity, and scores to export.

    scores.csv has the learnability of every pair drawn (--all: of the whole pool), uids.npy the
    chosen ones as a DataComp uid file: what an offline filter needs. The run may be named by the
    settings that `jest train` makes it of, too."""
    from jestcli.paper import inspection
    from jestcli.runs.listing import find
    from jestcli.runs.opened import newest_selecting
    from jestcli.runs.workspace import read_run
    from jestcli.training.devices import pick_device
    from jestcli.utils.progress import bars

    where = pick_device(device)
    workspace = shared.make_workspace(data_workers, max_faults, cache, cache_gb)
    own_run = shared.run_of_settings(config, set_, method, profile, workspace, seed)
    folder = find(run, workspace.runs) if run else own_run or newest_selecting(workspace)
    shared.announce(read_run(folder)[1])
    with bars(shared.make_console()) as show:
        asked = (folder, workspace, out, super_batches, everything, where)
        written = inspection.inspect(*asked, show)
    for path in written:
        say(path)


@app.command("config")
def show_config(
    words: opt.Words = None,
    method: opt.Method = None,
    profile: opt.Profile = "cpu",
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006
    seed: opt.Seed = None,
) -> None:
    """Print the resolved settings of a run as YAML; its output is a valid --config, for another
    method, too: it names its own, and leaves out what that sets.

    What it would run beside this suite – sources that are a shell command (pipe:), samplers that
    are a function of somebody's (module:function) – is named in comments on top."""
    import yaml

    from jestcli.data.sources import runs_beside
    from jestcli.runs.methods import printed

    asked = shared.read_asked(config, [*set_, *(words or ())], method, seed)
    run = asked.run(profile)
    for line in runs_beside(run):
        print(f"# {line}")
    print(yaml.safe_dump(printed(asked.method, run), sort_keys=False), end="")


@app.command("doctor")
def doctor(
    words: opt.Words = None,
    method: opt.Method = None,
    profile: opt.Profile = "cpu",
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006
    wandb: opt.Wandb = "off",
    device: opt.Device = "auto",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Also read again what checksums were taken of: reference embeddings and their "
            "shards, weights and checkpoints.",
        ),
    ] = False,
) -> None:
    """Check machine, versions, folders and data before a long run; 1 if something will break."""
    from jestcli.runs import doctor as stage

    run = shared.read_asked(config, [*set_, *(words or ())], method).run(profile)
    found = stage.examine(run, shared.make_workspace(), device, wandb, verify)
    shared.make_console().print(stage.table(found))
    if any(finding.state == stage.BAD for finding in found):
        raise typer.Exit(1)


@app.command("export")
def export(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help=f"{opt.RUN_NAME.capitalize()}; default: --config's."),
    ] = None,
    method: opt.Method = None,
    profile: opt.Profile = "cpu",
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006
    seed: opt.Seed = None,
    patch: Annotated[
        int | None, typer.Option(help="Patch size in pixels (default: the run's finest).")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="open_clip (config and checkpoint, the default) or hf (local-dir:). The embedded "
            "data's convolutional tower has a form of its own, for PyTorch alone.",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Upload the folder to this model repository ORG/NAME of the hub."),
    ] = None,
) -> None:
    """Write a trained model with a model card, and print the Python that loads it (open_clip, or
    PyTorch alone)."""
    from jestcli.config import ConfigError
    from jestcli.runs.card import push_folder
    from jestcli.runs.export import export as export_run
    from jestcli.runs.listing import find

    workspace = shared.make_workspace()
    folder = find(run, workspace.runs) if run else None
    folder = folder or shared.run_of_settings(config, set_, method, profile, workspace, seed)
    if folder is None:
        raise ConfigError("name a RUN (`jest runs` lists them), or --config")
    if push is not None and out.exists() and any(out.iterdir()):
        raise ConfigError(f"--push uploads all of {out}: name an empty folder with --out")
    say(export_run(folder, out, patch, format_, workspace))
    if push is not None:
        say(push_folder(out, push))
