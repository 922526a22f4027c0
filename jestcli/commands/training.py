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
    LockImage,
    MaxFaults,
    Method,
    NoiseShare,
    Profile,
    Reference,
    ReferenceSteps,
    Seed,
    Set,
    Wandb,
    Words,
)
from jestcli.commands.shared import (
    announce,
    make_console,
    make_workspace,
    prepare,
    read_asked,
    reference_settings,
    train_jobs,
    with_models,
)

app = typer.Typer()


@app.command("train-reference")
def train_reference(
    words: Words = None,
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
    from jestcli.paper.experiment import Job
    from jestcli.runs.at_once import check_at_once
    from jestcli.runs.methods import check_reaches_reference, default_reference

    pairs = [*set_, *(words or ())]
    check_reaches_reference(pairs)
    asked = read_asked(config, pairs, seed=seed)
    settings = with_models(merge(asked.settings, reference_settings(reference_steps)), None, init)
    of_file = {key: settings.pop(key) for key in ("init", "init_sha256") if key in settings}
    settings = merge(settings, {"reference": of_file})
    if level is not None:
        settings = merge(settings, {"data": {"level": level}})
    job = Job("reference", asked.seed, default_reference(settings, asked.seed, profile))
    check_at_once(job.run)
    workspace = make_workspace(data_workers, max_faults, cache, cache_gb, accept_changed_data)
    train_jobs([job], wandb, device, keep_last, workspace)


@app.command("train")
def train(
    words: Words = None,
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
    lock_image: LockImage = False,
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
    from jestcli.paper.experiment import Job
    from jestcli.runs.at_once import check_at_once
    from jestcli.runs.methods import default_run

    asked = read_asked(config, [*set_, *(words or ())], method, seed)
    settings = with_models(asked.settings, reference, init)
    settings = merge(settings, reference_settings(reference_steps))
    if lock_image:
        settings = merge(settings, {"model": {"lock_image": True}})
    if noise_share is not None:
        settings = merge(settings, {"source": {"noise_share": noise_share}})
    run = default_run(asked.method, settings, asked.seed, profile)
    check_at_once(run)
    workspace = make_workspace(data_workers, max_faults, cache, cache_gb, accept_changed_data)
    train_jobs([Job(asked.method, asked.seed, run)], wandb, device, keep_last, workspace)


@app.command("cache-reference")
def cache_reference(
    words: Words = None,
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
    from jestcli.paper.experiment import Job
    from jestcli.runs.at_once import check_at_once
    from jestcli.runs.methods import default_run

    asked = read_asked(config, [*set_, *(words or ())], method, seed)
    settings = with_models(asked.settings, reference, None)
    settings = merge(settings, reference_settings(reference_steps))
    run = default_run(asked.method, settings, asked.seed, profile)
    check_at_once(run)
    announce(run)
    from jestcli.runs.reference import cache_reference, scores_by_reference
    from jestcli.training.devices import pick_device

    where = pick_device(device)
    if not scores_by_reference(run):
        raise ConfigError(f"--method {asked.method} scores nothing with a reference")
    workspace = make_workspace(0, max_faults, cache, cache_gb, accept_changed_data)
    if run.reference is not None:
        train_jobs(
            [Job("reference", asked.seed, run.reference)], "off", device, workspace=workspace
        )
    prepare(run, None, workspace)
    console = make_console()
    for line in cache_reference(run, workspace, console, where):
        console.print(line)
