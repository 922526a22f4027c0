"""Train models: train-reference, train, cache-reference."""

from __future__ import annotations

from typing import Annotated

import typer

from jestcli.commands.options import (
    Cache,
    CacheGB,
    Config,
    DataWorkers,
    Device,
    Init,
    KeepLast,
    MaxFaults,
    NoiseShare,
    Profile,
    Reference,
    Seed,
    Set,
    Wandb,
)
from jestcli.commands.shared import (
    init_settings,
    make_console,
    make_workspace,
    prepare,
    read_settings,
    train_jobs,
    with_reference,
)

app = typer.Typer()


@app.command("train-reference")
def train_reference(
    level: Annotated[str | None, typer.Option(help="Curation level (see `jest data list`)")] = None,
    profile: Profile = "cpu",
    config: Config = None,
    set_: Set = [],  # noqa: B006 (typer reads the default once)
    seed: Seed = 0,
    wandb: Wandb = "off",
    device: Device = "auto",
    keep_last: KeepLast = 1,
    init: Init = None,
    data_workers: DataWorkers = None,
    max_faults: MaxFaults = 0.05,
    cache: Cache = None,
    cache_gb: CacheGB = 50.0,
) -> None:
    """Train the reference model on the small curated set, and embed the pool with it."""
    from jestcli.config import merge
    from jestcli.paper.experiment import Job, default_reference

    workspace = make_workspace(data_workers, max_faults, cache, cache_gb)
    settings = merge(read_settings(config, set_), init_settings(init))
    if level is not None:
        settings = merge(settings, {"data": {"level": level}})
    job = Job("reference", seed, default_reference(settings, seed, profile))
    train_jobs([job], wandb, device, keep_last, workspace)


@app.command("train")
def train(
    method: Annotated[
        str,
        typer.Option(
            help="uniform, jest, flexi, independent, topk, easy-reference, hard-learner, "
            "flexi-uniform; cabs (most even cover of the captions' words; no model scores); "
            "jest-curated (a quarter of the batch curated); the controls curated, mixed, filtered, "
            "finetune; or module:function."
        ),
    ] = "jest",
    profile: Profile = "cpu",
    config: Config = None,
    set_: Set = [],  # noqa: B006
    reference: Reference = None,
    noise_share: NoiseShare = None,
    seed: Seed = 0,
    wandb: Wandb = "off",
    device: Device = "auto",
    keep_last: KeepLast = 1,
    init: Init = None,
    data_workers: DataWorkers = None,
    max_faults: MaxFaults = 0.05,
    cache: Cache = None,
    cache_gb: CacheGB = 50.0,
) -> None:
    """Train a learner on the pool with a selection strategy (its reference first, if missing).

    On several GPUs or processes: torchrun --nproc-per-node N -m jestcli train ... (docs/cluster.md)
    """
    from jestcli.config import merge
    from jestcli.paper.experiment import Job, default_run

    settings = with_reference(read_settings(config, set_), reference)
    if noise_share is not None:
        settings = merge(settings, {"source": {"noise_share": noise_share}})
    run = default_run(method, merge(settings, init_settings(init)), seed, profile)
    workspace = make_workspace(data_workers, max_faults, cache, cache_gb)
    train_jobs([Job(method, seed, run)], wandb, device, keep_last, workspace)


@app.command("cache-reference")
def cache_reference(
    config: Config = None,
    set_: Set = [],  # noqa: B006
    reference: Reference = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_faults: MaxFaults = 0.05,
    cache: Cache = None,
    cache_gb: CacheGB = 50.0,
) -> None:
    """Embed the pool with the reference once (it is trained first, if missing).

    The embeddings lie beside your shards in jest-reference/, or in the data cache where shards are
    remote; `jest train` with the same settings then reads them and embeds only what is missing.
    """
    from jestcli.paper.experiment import Job, default_run
    from jestcli.runs.reference import cache_reference
    from jestcli.training.devices import pick_device

    where = pick_device(device)
    settings = with_reference(read_settings(config, set_), reference)
    run = default_run("jest", settings, seed)
    workspace, console = make_workspace(0, max_faults, cache, cache_gb), make_console()
    if run.reference is not None:
        train_jobs([Job("reference", seed, run.reference)], "off", device, workspace=workspace)
    prepare(run, None, workspace)
    for line in cache_reference(run, workspace, console, where):
        console.print(line)
