"""Build, list and look at the embedded data: jest data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jestcli.commands.options import Workers
from jestcli.commands.shared import prepare
from jestcli.utils.plain import say

app = typer.Typer(no_args_is_help=True, help="Build, list and look at the embedded data.")


@app.command("build")
def data_build(
    size: Annotated[int, typer.Option(help="Image side in pixels, a multiple of 16.")] = 32,
    workers: Workers = None,
) -> None:
    """Fetch the packages, draw the images, write shards and benchmarks, check for leakage."""
    from jestcli.config import ConfigError, Run

    if size <= 0 or size % 16:
        raise ConfigError(f"--size {size}: must be a multiple of 16")
    prepare(Run.model_validate({"data": {"image_size": size}}), workers)


@app.command("list")
def data_list() -> None:
    """Print what there is: pool, curated levels, the eight benchmarks and their chance levels."""
    from jestcli.icons.build import default_root
    from jestcli.runs.data import list_sources

    list_sources(default_root())


@app.command("show")
def data_show(
    what: Annotated[
        str, typer.Argument(help="pool, curated, a level, a benchmark, or all.")
    ] = "all",
    n: Annotated[int, typer.Option(min=1, help="Images on a sheet.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("contact_sheets"),
) -> None:
    """Draw contact sheets with captions."""
    from jestcli.icons.build import default_root
    from jestcli.runs.data import show

    for path in show(default_root(), what, n, out):
        say(path)
