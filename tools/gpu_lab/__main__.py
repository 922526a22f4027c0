"""`python -m tools.gpu_lab pack | run | collect`, from the top of a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jestcli.commands.options import Device, Runs, Seeds, Workers
from jestcli.commands.shared import make_console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure and run experiments on one GPU, lent for minutes and without a network.",
)


@app.command("pack")
def pack_data(
    out: Annotated[Path, typer.Option(help="The files' names, without -0.tar.")] = Path("data"),
    megabytes: Annotated[float, typer.Option(help="Of one file, at most (of 10^6 bytes).")] = 50.0,
    workers: Workers = None,
) -> None:
    """Put the built embedded data (some 100 MB) into files, for a machine without a network."""
    from jestcli.icons.build import default_root
    from jestcli.utils.progress import bars
    from tools.gpu_lab.pack import pack

    console = make_console()
    with bars(console) as report:
        written = pack(default_root(), out, megabytes, workers, report)
    for path in written:
        console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


@app.command("run")
def run_parts(
    words: Annotated[
        list[str],
        typer.Argument(help="selection, train, and experiments: names or YAML files."),
    ],
    pack: Annotated[
        list[Path] | None,
        typer.Option(help="Experiments' data, all files of `pack` (default: as `jest` does)."),
    ] = None,
    given: Annotated[
        Path | None, typer.Option(help="results.tar.gz of the call before, on a fresh machine.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where results.tar.gz, summary.md and experiments' figures go.")
    ] = Path("gpu-results"),
    work: Annotated[
        Path, typer.Option(help="Data and run directories, kept for the next call.")
    ] = Path(".data/gpu"),
    minutes: Annotated[float, typer.Option(help="Stop, with all saved, before these end.")] = 9.0,
    workers: Workers = None,
    runs: Runs = None,
    seeds: Seeds = None,
    device: Device = "cuda",
    megabytes: Annotated[
        float, typer.Option(help="Of weights in the archive, unfinished runs' first.")
    ] = 15.0,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="selection and train at a size for a CPU; no results.")
    ] = False,
) -> None:
    """Measure, and run experiments: --workers runs side by side on the card.

    Ends with code 75 when the minutes were too few: call it again. A failed measurement is recorded
    and the rest goes on. What is finished is in the archive however the call ends.
    """
    from jestcli.training.devices import pick_device
    from tools.gpu_lab.run import Task, parse, run

    if minutes <= 0:
        raise typer.BadParameter("--minutes must be more than 0")
    task = Task(
        *parse(words),
        out=out,
        work=work,
        minutes=minutes,
        pack=tuple(pack or ()),
        given=given,
        workers=workers,
        runs=runs,
        seeds=seeds,
        device=pick_device(device).type,
        tiny=tiny,
        megabytes=megabytes,
    )
    raise typer.Exit(run(task))


@app.command("collect")
def collect_archives(
    archives: Annotated[list[Path], typer.Argument(help="results.tar.gz of the calls.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures, records.")] = Path(
        "results/gpu"
    ),
) -> None:
    """Draw figures and write tables from what the calls left."""
    from tools.gpu_lab.collect import collect
    from tools.gpu_lab.run import known_experiments

    for path in collect(archives, out, make_console(), known_experiments()):
        print(path)


if __name__ == "__main__":
    from jestcli.cli import main

    main(app)
