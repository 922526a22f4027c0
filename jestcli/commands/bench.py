"""Measure the hot paths: jest bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jestcli.commands.options import (
    RUN_NAME,
    Cache,
    CacheGB,
    Config,
    DataWorkers,
    Device,
    MaxFaults,
    Method,
    Profile,
    Set,
)
from jestcli.commands.shared import (
    announce,
    make_console,
    make_workspace,
    prepare,
    read_asked,
    read_settings,
    run_of_settings,
)

app = typer.Typer(no_args_is_help=True, help="Measure the hot paths on this machine.")
Busy = Annotated[
    bool, typer.Option("--busy", help="Write a record though the machine does other work.")
]


def _refuse_busy(out: Path | None, busy: bool) -> None:
    """Raise ConfigError where a record is asked of a machine that does other work, unless told."""
    from jestcli.bench import other_work
    from jestcli.config import ConfigError

    if out is not None and not busy and (why := other_work()):
        raise ConfigError(why)


@app.command("selection")
def bench_selection(
    batch: Annotated[int, typer.Option(help="B: candidates.")] = 12_288,
    size: Annotated[int, typer.Option(help="b: pairs to choose.")] = 2_458,
    dim: Annotated[int, typer.Option(help="d: embedding width.")] = 512,
    chunks: Annotated[int, typer.Option(help="N: chunks.")] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write JSON here.")] = None,
    listing: Annotated[bool, typer.Option(help="Time the paper's matrix listing too.")] = True,
    against: Annotated[
        Path | None,
        typer.Option(help="Another checkout of this project; its select takes turns with this."),
    ] = None,
    busy: Busy = False,
) -> None:
    """Time and memory of joint selection against the paper's listing and the GEMM bound."""
    import torch

    from jestcli.bench import selection
    from jestcli.config import ConfigError

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: there are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU on this machine")
    if not 1 <= size <= batch or dim < 1 or chunks < 1:
        raise ConfigError("--size must be 1 to --batch; --dim and --chunks at least 1")
    _refuse_busy(out, busy)
    selection.bench_selection(batch, size, dim, chunks, device, out, listing, against)


@app.command("train")
def bench_train(
    profile: Profile = "cpu",
    config: Config = None,
    set_: Set = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Measured steps of each.")] = 15,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Write JSON (and a table) here.")] = None,
    busy: Busy = False,
) -> None:
    """Step times of uniform, JEST and Flexi-JEST against their FLOPs, and open_clip's own loop."""
    from jestcli.bench import training
    from jestcli.config import ConfigError
    from jestcli.training.devices import pick_device, set_threads

    if rounds < 1:
        raise ConfigError("--rounds must be at least 1")
    _refuse_busy(out, busy)
    chosen = pick_device(device)
    if chosen.type == "cpu":
        set_threads(1)  # as in training
    settings = read_settings(config, set_)
    training.bench_training(settings, rounds, chosen, out, make_console(), profile)


@app.command("data")
def bench_data(
    shards: Annotated[
        list[str] | None, typer.Argument(help="Sources as in data.train (default: drawn JPEGs).")
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Pixels that are trained on.")] = 224,
    scoring_size: Annotated[int, typer.Option(min=8, help="Pixels of reduced scoring.")] = 112,
    batch: Annotated[int, typer.Option(min=1, help="Pairs drawn at a time.")] = 64,
    workers: Annotated[str, typer.Option(help="Worker counts, such as 0,1,2.")] = "0,1,2",
    seconds: Annotated[float, typer.Option(min=0, help="For each measurement.")] = 3.0,
    super_batch: Annotated[int | None, typer.Option(help="B: pairs a step asks for.")] = None,
    step_seconds: Annotated[float | None, typer.Option(help="Seconds of a training step.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write JSON here, and .md beside it.")] = None,
    busy: Busy = False,
) -> None:
    """Pairs per second of the loader, in full and reduced, against what training asks for."""
    from jestcli.config import ConfigError

    try:
        counts = tuple(int(count) for count in workers.split(","))
    except ValueError:
        raise ConfigError(f"--workers {workers}: expected numbers, such as 0,1,2") from None
    if scoring_size > size or min(counts) < 0:
        raise ConfigError("--scoring-size must not be above --size, --workers not below 0")
    _refuse_busy(out, busy)
    from jestcli.bench import data

    sources, demand = tuple(shards or ()), (super_batch, step_seconds)
    data.bench_data(sources, size, scoring_size, batch, counts, seconds, *demand, out)


@app.command("scoring")
def bench_scoring(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help=f"{RUN_NAME.capitalize()}; default: the newest."),
    ] = None,
    method: Method = None,
    profile: Profile = "cpu",
    config: Config = None,
    set_: Set = [],  # noqa: B006
    batches: Annotated[int, typer.Option(min=1, help="Super-batches to score.")] = 4,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Fresh models: costs alone, agreement is void.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write OUT.md and OUT.json.")] = None,
    busy: Busy = False,
    data_workers: DataWorkers = None,
    max_faults: MaxFaults = 0.05,
    cache: Cache = None,
    cache_gb: CacheGB = 50.0,
) -> None:
    """Cost of cheaper scoring, and how far it agrees with full resolution.

    Larger patches (the paper), smaller images and dropped cells, side by side: FLOPs and CPU
    time a pair, rank correlation of the scores, and the overlap of what is chosen."""
    from rich.markdown import Markdown

    from jestcli.bench import save, scoring
    from jestcli.config import ConfigError
    from jestcli.runs.listing import find
    from jestcli.runs.workspace import read_run

    if run and (untrained or config or set_ or method):
        raise ConfigError("name a finished RUN, or the settings of one (and --untrained): not both")
    _refuse_busy(out, busy)
    console, workspace = make_console(), make_workspace(data_workers, max_faults, cache, cache_gb)
    folder = fresh = None
    if untrained:
        asked = read_asked(config, set_, method)
        fresh = asked.run(profile)
        if not fresh.selection.scores or not (fresh.reference or fresh.reference_model):
            raise ConfigError(f"--method {asked.method} scores nothing with a reference")
        announce(fresh)
        prepare(fresh, None, workspace)
    else:
        own_run = run_of_settings(config, set_, method, profile, workspace)
        folder = find(run, workspace.runs) if run else own_run
        if folder is not None:
            announce(read_run(folder)[1])
    result = scoring.bench_scoring(workspace, folder, batches, fresh)
    page = scoring.as_markdown(result)
    console.print(Markdown(page))
    for path in save(result, page, out):
        console.print(f"wrote {path}")
