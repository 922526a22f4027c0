"""Train models: train-reference, train, cache-reference."""

from __future__ import annotations

from typing import Annotated

import typer

from jestcli.commands.options import (
    AcceptChanged,
    Cache,
    CacheGB,
    Config,
    DataWorkers,
    Device,
    Init,
    KeepLast,
    MaxFaults,
    Method,
    NoiseShare,
    Profile,
    Reference,
    ReferenceSteps,
    Seed,
    Set,
    Wandb,
)
from jestcli.commands.shared import (
    announce,
    init_settings,
    make_console,
    make_workspace,
    prepare,
    read_asked,
    reference_settings,
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
    seed: Seed = None,
    wandb: Wandb = "off",
    device: Device = "auto",
    keep_last: KeepLast = 1,
    init: Init = None,
    reference_steps: ReferenceSteps = None,
    data_workers: DataWorkers = None,
    max_faults: MaxFaults = 0.05,
    cache: Cache = None,
    cache_gb: CacheGB = 50.0,
    accept_changed_data: AcceptChanged = False,
) -> None:
    """Train the reference model on the small curated set: the one that `jest train` uses with the
    same settings.

    data and model are both models' settings, those under `reference` (--set
    reference.optim.lr=...) the reference's alone; optim, selection, source and engine are the
    learner's.
    """
    from jestcli.config import merge
    from jestcli.paper.experiment import Job, check_reaches_reference, default_reference
    from jestcli.runs.at_once import check_at_once

    check_reaches_reference(set_)
    asked = read_asked(config, set_, seed=seed)
    settings = merge(asked.settings, reference_settings(reference_steps))
    settings = merge(settings, {"reference": init_settings(init)})
    if level is not None:
        settings = merge(settings, {"data": {"level": level}})
    job = Job("reference", asked.seed, default_reference(settings, asked.seed, profile))
    check_at_once(job.run)
    workspace = make_workspace(data_workers, max_faults, cache, cache_gb, accept_changed_data)
    train_jobs([job], wandb, device, keep_last, workspace)


@app.command("train")
def train(
    method: Method = None,
    profile: Profile = "cpu",
    config: Config = None,
    set_: Set = [],  # noqa: B006
    reference: Reference = None,
    reference_steps: ReferenceSteps = None,
    noise_share: NoiseShare = None,
    seed: Seed = None,
    wandb: Wandb = "off",
    device: Device = "auto",
    keep_last: KeepLast = 1,
    init: Init = None,
    data_workers: DataWorkers = None,
    max_faults: MaxFaults = 0.05,
    cache: Cache = None,
    cache_gb: CacheGB = 50.0,
    accept_changed_data: AcceptChanged = False,
) -> None:
    """Train a learner on the pool with a selection strategy (its reference first, if missing).

    On several GPUs or processes: torchrun --nproc-per-node N -m jestcli train ... (docs/cluster.md)
    """
    from jestcli.config import merge
    from jestcli.paper.experiment import Job, default_run
    from jestcli.runs.at_once import check_at_once

    asked = read_asked(config, set_, method, seed)
    settings = with_reference(asked.settings, reference)
    settings = merge(settings, reference_settings(reference_steps))
    if noise_share is not None:
        settings = merge(settings, {"source": {"noise_share": noise_share}})
    run = default_run(asked.method, merge(settings, init_settings(init)), asked.seed, profile)
    check_at_once(run)
    workspace = make_workspace(data_workers, max_faults, cache, cache_gb, accept_changed_data)
    train_jobs([Job(asked.method, asked.seed, run)], wandb, device, keep_last, workspace)


@app.command("cache-reference")
def cache_reference(
    method: Method = None,
    profile: Profile = "cpu",
    config: Config = None,
    set_: Set = [],  # noqa: B006
    reference: Reference = None,
    reference_steps: ReferenceSteps = None,
    seed: Seed = None,
    device: Device = "auto",
    max_faults: MaxFaults = 0.05,
    cache: Cache = None,
    cache_gb: CacheGB = 50.0,
    accept_changed_data: AcceptChanged = False,
) -> None:
    """Embed the pool with the reference once (it is trained first, if missing).

    The embeddings lie beside your shards in jest-reference/, or in the data cache where shards are
    remote; `jest train` with the same settings then reads them and embeds only what is missing.
    """
    from jestcli.config import ConfigError, merge
    from jestcli.paper.experiment import Job, default_run
    from jestcli.runs.at_once import check_at_once

    asked = read_asked(config, set_, seed=seed)
    settings = with_reference(asked.settings, reference)
    settings = merge(settings, reference_settings(reference_steps))
    run = default_run(asked.method, settings, asked.seed, profile)
    check_at_once(run)
    announce(run)
    from jestcli.runs.reference import cache_reference, scores_by_reference
    from jestcli.training.devices import pick_device

    where = pick_device(device)
    if not scores_by_reference(run):
        raise ConfigError(f"--method {asked.method} scores nothing with a reference")
    workspace, console = (
        make_workspace(0, max_faults, cache, cache_gb, accept_changed_data),
        make_console(),
    )
    if run.reference is not None:
        train_jobs(
            [Job("reference", asked.seed, run.reference)], "off", device, workspace=workspace
        )
    prepare(run, None, workspace)
    for line in cache_reference(run, workspace, console, where):
        console.print(line)
