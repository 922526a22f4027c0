"""Run and show experiments: run, reproduce, plan, plot, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jestcli.commands import options as opt
from jestcli.commands import shared
from jestcli.utils.extras import need
from jestcli.utils.plain import say

if TYPE_CHECKING:
    from jestcli.paper.experiment import Job

app = typer.Typer()


@app.command("run")
def run_experiment(
    experiment: Annotated[str, typer.Argument(help="A YAML file, or a name in experiments/.")],
    runs: opt.Runs = None,
    seeds: opt.Seeds = None,
    set_: opt.Set = [],  # noqa: B006
    workers: opt.Workers = None,
    wandb: opt.Wandb = "off",
    slurm: opt.Slurm = None,
) -> None:
    """Run an experiment (every run and seed, or those named), then draw it.

    Where there is a GPU every run computes on it, its data in the card's memory where they fit, and
    --workers may be more than the cores: small runs share a card (docs/gpu.md)."""
    work = read_jobs(experiment, set_, runs, seeds)
    run_and_draw(experiment, work, workers, wandb, Path("results"), slurm)


@app.command("reproduce")
def reproduce(
    experiment: Annotated[
        str | None, typer.Argument(help="A YAML file, a name (default: map), or all.")
    ] = None,
    headline: Annotated[
        bool, typer.Option("--headline", help="Every run and seed, not one seed of the main ones.")
    ] = False,
    list_: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Only print what runs, its cost and what is done; without EXPERIMENT: of all.",
        ),
    ] = False,
    set_: opt.Set = [],  # noqa: B006
    workers: opt.Workers = None,
    slurm: opt.Slurm = None,
) -> None:
    """From nothing to the paper's figure and table on the embedded data."""
    from jestcli.paper.experiment import find_experiment, list_experiments, read_experiment

    if list_ and experiment is None:
        from jestcli.paper.scheduler import overview

        shared.make_console().print(overview(list_experiments(), shared.make_workspace()))
        return
    if experiment == "all":
        for one in list_experiments():
            reproduce(one.name, headline, list_, set_, workers, slurm)
        return
    experiment = experiment or "map"
    quick = None if headline else read_experiment(find_experiment(experiment)).quick
    names = ",".join(quick.runs) if quick else None
    seeds = ",".join(map(str, quick.seeds or [])) if quick else None
    work = read_jobs(experiment, set_, names, seeds)
    if list_:
        from jestcli.paper.scheduler import cost_table

        shared.make_console().print(cost_table(work, shared.make_workspace()))
        return
    out = Path("results") / ("local" if quick else "")
    run_and_draw(experiment, work, workers, "off", out, slurm)


@app.command("plan")
def plan_costs(
    what: Annotated[
        str | None,
        typer.Argument(help="A scale profile, an experiment or its YAML file (default: map)."),
    ] = None,
    method: opt.Method = None,
    profile: opt.Profile = "cpu",
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006
    pool: Annotated[
        int | None, typer.Option(help="Pairs in the pool (default: none is seen twice).")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Data-parallel devices.")] = 1,
    timed: Annotated[
        bool, typer.Option("--time/--no-time", help="Time a calibration step on this machine.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Write OUT.md and OUT.json.")] = None,
) -> None:
    """Print what runs would cost before anything runs: FLOPs by convention, memory, time.

    With --config or --method it is the run that `jest train` makes of them, and its reference."""
    from jestcli.config import ConfigError
    from jestcli.paper import plan
    from jestcli.paper.experiment import asked_jobs, planned_jobs

    if config is None and method is None:
        what = what or "map"
        jobs = planned_jobs(what, shared.read_settings(None, set_))
    elif what is not None:
        raise ConfigError(f"{what} has its own runs: leave --config and --method out")
    else:
        asked = shared.read_asked(config, set_, method)
        jobs = asked_jobs(asked.method, asked.settings, asked.seed, profile)
        what = f"--method {asked.method}" + (f" --config {config}" if config else "")
    plans, console = plan.make_plans(jobs, pool, devices, timed), shared.make_console()
    lines = plan.notes(jobs[-1].run, devices, timed)
    for each in (*plan.tables(plans), *lines):
        console.print(each)
    for path in plan.write(out, f"`jest plan {what}`", plans, lines) if out else []:
        console.print(f"wrote {path}")


@app.command("plot")
def plot(
    experiment: Annotated[str, typer.Argument(help="A YAML file, or a name.")] = "map",
    out: Annotated[Path, typer.Option(help="Folder for figures and tables.")] = Path("results"),
    set_: opt.Set = [],  # noqa: B006
    collect: Annotated[
        bool,
        typer.Option(
            "--collect", help="Take every finished run into OUT's records first (the headline's)."
        ),
    ] = False,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm", help="The map's headline on the withheld benchmark, once, at the end."
        ),
    ] = False,
) -> None:
    """Draw an experiment's figure and table from recorded runs."""
    from jestcli.paper import plot as plots
    from jestcli.paper.experiment import find_experiment, jobs, read_experiment

    chosen = read_experiment(find_experiment(experiment))
    work = jobs(chosen, shared.read_settings(None, set_))
    workspace = shared.make_workspace()
    for path in plots.plot(chosen, work, workspace, out, shared.make_console(), collect=collect):
        say(path)
    if confirm:
        from jestcli.paper.confirm import confirm as score_withheld
        from jestcli.paper.records import load_records

        folder = out / chosen.name
        _, records = load_records(folder / plots.RECORDS)
        for path in score_withheld(records, workspace, folder):
            say(path)


@app.command("report")
def report(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXPERIMENT",
            help="Names, or YAML files of your own (default: all in experiments/).",
        ),
    ] = None,
    results: Annotated[Path, typer.Option(help="Where the experiments' records lie.")] = Path(
        "results"
    ),
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html and report.md (default: RESULTS; of one experiment "
            "RESULTS/EXPERIMENT)."
        ),
    ] = None,
) -> None:
    """Every claim of the paper, or of experiments of your own, beside what was measured: one HTML
    page, and Markdown."""
    from jestcli.config import ConfigError
    from jestcli.paper.experiment import find_experiment, list_experiments, read_experiment
    from jestcli.paper.report import report as write_report

    named = [read_experiment(find_experiment(word)) for word in dict.fromkeys(words or [])]
    for silent in (e.name for e in named if not e.claims):
        raise ConfigError(f"{silent} states no claims (docs/experiments.md says how)")
    if len(named) > 1 and out is None:
        raise ConfigError("--out FOLDER is needed for a report of several experiments")
    out = out or (results / named[0].name if named else results)
    for path in write_report(named or list_experiments(), results, out, whole=not named):
        say(path)


def read_jobs(word: str, pairs: list[str], names: str | None, seeds: str | None) -> list[Job]:
    """The jobs of an experiment, or those of the named runs and seeds (comma-separated)."""
    from jestcli.config import ConfigError
    from jestcli.paper.experiment import find_experiment, jobs, read_experiment

    experiment = read_experiment(find_experiment(word))
    try:
        numbers = [int(seed) for seed in seeds.split(",")] if seeds else None
    except ValueError:
        raise ConfigError(f"--seeds {seeds}: expected numbers, such as 0,1") from None
    return jobs(
        experiment, shared.read_settings(None, pairs), names.split(",") if names else None, numbers
    )


def run_and_draw(
    word: str, work: list[Job], workers: int | None, wandb: str, out: Path, slurm: str | None
) -> None:
    from jestcli.runs.at_once import check_at_once

    need("matplotlib")  # said before the training, not after it
    for run in {job.run.digest(): job.run for job in work}.values():
        check_at_once(run)
    shared.announce(*(job.run for job in work))
    from jestcli.paper import plot as plots
    from jestcli.paper.experiment import find_experiment, read_experiment
    from jestcli.paper.scheduler import plan, run_stages
    from jestcli.paper.slurm import launcher, parse_options
    from jestcli.runs.data import check_sizes

    workspace, console = shared.make_workspace(), shared.make_console()
    launch = launcher(parse_options(slurm), workspace.runs / "slurm") if slurm else None
    shared.prepare(work[0].run, None if slurm else workers)
    for run in {job.run.digest(): job.run for job in work if not job.run.data.own}.values():
        check_sizes(run, workspace.data_root(run))
    experiment = read_experiment(find_experiment(word))
    picture = out / experiment.name / "so-far.png"
    ended = plots.follower(experiment.title, work, workspace, picture, console)
    run_stages(plan(work, workspace), workspace, workers, console, wandb, launch, ended)
    for path in plots.plot(experiment, work, workspace, out, console, collect=True):
        console.print(f"wrote {path}")
    picture.unlink(missing_ok=True)
