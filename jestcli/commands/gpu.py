"""Measure on one GPU: jest gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jestcli.commands.options import Device, Workers
from jestcli.commands.shared import make_console

app = typer.Typer(
    no_args_is_help=True,
    help="Measure on one GPU, in parts of a few minutes: speed, and the speed-up curve at 64 px.",
)


@app.command("pack")
def gpu_pack(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("sources.tar"),
    megabytes: Annotated[float, typer.Option(help="At most so many (of 10^6 bytes).")] = 48.0,
    workers: Workers = None,
) -> None:
    """Put a selection of the icon sources into one file, for a machine without a network.

    Collections are whole; those of benchmarks and curated sets are always in. The packages are
    fetched if they are not there.
    """
    from jestcli.gpu.pack import pack
    from jestcli.icons.build import default_root
    from jestcli.icons.fetch import fetch
    from jestcli.icons.spec import WORLD
    from jestcli.runs.data import bars

    folder, console = default_root() / ".cache" / "packages", make_console()
    with bars(console) as report:
        tarballs = {name: fetch(package, folder) for name, package in WORLD.packages.items()}
        found = pack(tarballs, out, megabytes, workers=workers, progress=report)
    console.print(
        f"{out}: {found.bytes / 1e6:.1f} MB, {sum(found.icons.values()):,} icons of "
        f"{len(found.icons)} collections"
    )
    if found.left_out:
        missing = ", ".join(f"{prefix} {n:,}" for prefix, n in found.left_out.items())
        console.print(f"left out, {sum(found.left_out.values()):,} icons: {missing}")


@app.command("run")
def gpu_run(
    parts: Annotated[
        str,
        typer.Argument(help="selection, train, data, figure1, figure3; several with commas; all."),
    ] = "all",
    sources: Annotated[
        Path | None, typer.Option(help="From `jest gpu pack` (data, figure1, figure3).")
    ] = None,
    given: Annotated[
        Path | None, typer.Option(help="results.tar.gz of the call before, on a fresh machine.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results.tar.gz and summary.txt go.")] = Path(
        "gpu-results"
    ),
    work: Annotated[
        Path, typer.Option(help="Decoded data and run directories, kept for the next call.")
    ] = Path(".data/gpu"),
    minutes: Annotated[float, typer.Option(help="Stop, with all saved, before these end.")] = 9.0,
    seed_minutes: Annotated[
        float | None,
        typer.Option(help="What one seed of an experiment may take (default: minutes - 2)."),
    ] = None,
    device: Device = "cuda",
    workers: Workers = None,
    megabytes: Annotated[
        float, typer.Option(help="Of weights in the archive, for unfinished runs.")
    ] = 15.0,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The same in seconds on a CPU, to try it; no results.")
    ] = False,
) -> None:
    """Measure, part by part. Ends with code 75 when the minutes were too few: call it again.

    Every measurement stands alone: a failure is recorded and the rest goes on. What is finished is
    in the archive at any moment.
    """
    from jestcli.stages import gpu
    from jestcli.training.devices import pick_device

    if minutes <= 0:
        raise typer.BadParameter("--minutes must be more than 0")
    where = pick_device(device)
    task = gpu.Task(
        gpu.parts_of(parts), sources, given, out, work, minutes, seed_minutes, tiny, where.type,
        workers, megabytes,
    )  # fmt: skip
    raise typer.Exit(gpu.run(task))


@app.command("collect")
def gpu_collect(
    archives: Annotated[list[Path], typer.Argument(help="results.tar.gz of the parts.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures, records.")] = Path(
        "results/gpu"
    ),
) -> None:
    """Draw figures and write tables from what the parts left."""
    from jestcli.stages import gpu

    for path in gpu.collect(archives, out, make_console()):
        print(path)
