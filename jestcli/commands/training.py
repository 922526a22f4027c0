"""Train models: train-reference, train, cache-reference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jestcli.commands import options as opt
from jestcli.commands import shared

if TYPE_CHECKING:
    from jestcli.config import Run

app = typer.Typer()
REFERENCE_STEPS = "reference.optim.steps"


@app.command("train-reference")
def train_reference(
    words: opt.Words = None,
    level: Annotated[str | None, typer.Option(help="Curation level (see `jest data list`)")] = None,
    profile: opt.Profile = "cpu",
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006 (typer reads the default once)
    seed: opt.Seed = None,
    wandb: opt.Wandb = "off",
    device: opt.Device = "auto",
    keep_last: opt.KeepLast = 1,
    init: opt.Init = None,
    reference_steps: opt.ReferenceSteps = None,
    data_workers: opt.DataWorkers = None,
    max_faults: opt.MaxFaults = 0.05,
    cache: opt.Cache = None,
    cache_gb: opt.CacheGB = 50.0,
    accept_changed_data: opt.AcceptChanged = False,
) -> None:
    """Train the reference model on the small curated set: the one that `jest train` uses with the
    same settings.

    data and model are both models' settings, those under `reference` (--set
    reference.optim.lr=...) the reference's alone; optim, selection, source and engine are the
    learner's."""
    from jestcli.config import merge
    from jestcli.paper.experiment import Job
    from jestcli.runs.at_once import check_at_once
    from jestcli.runs.methods import check_reaches_reference, default_reference

    pairs = [*set_, *(words or ())]
    check_reaches_reference(pairs)
    asked = shared.read_asked(config, pairs, seed=seed)
    more = {REFERENCE_STEPS: reference_steps}
    settings = shared.with_models(shared.with_options(asked.settings, more), None, init)
    of_file = {key: settings.pop(key) for key in ("init", "init_sha256") if key in settings}
    settings = shared.with_options(merge(settings, {"reference": of_file}), {"data.level": level})
    job = Job("reference", asked.seed, default_reference(settings, asked.seed, profile))
    check_at_once(job.run)
    workspace = shared.make_workspace(
        data_workers, max_faults, cache, cache_gb, accept_changed_data
    )
    shared.train_jobs([job], wandb, device, keep_last, workspace)


@app.command("train")
def train(
    words: opt.Words = None,
    method: opt.Method = None,
    profile: opt.Profile = "cpu",
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006
    reference: opt.Reference = None,
    reference_steps: opt.ReferenceSteps = None,
    noise_share: opt.NoiseShare = None,
    seed: opt.Seed = None,
    wandb: opt.Wandb = "off",
    device: opt.Device = "auto",
    keep_last: opt.KeepLast = 1,
    init: opt.Init = None,
    lock_image: opt.LockImage = False,
    data_workers: opt.DataWorkers = None,
    max_faults: opt.MaxFaults = 0.05,
    cache: opt.Cache = None,
    cache_gb: opt.CacheGB = 50.0,
    accept_changed_data: opt.AcceptChanged = False,
) -> None:
    """Train a learner on the pool with a selection strategy (its reference first, if missing).

    On several GPUs or processes: torchrun --nproc-per-node N -m jestcli train ... (docs/cluster.md)
    """
    from jestcli.paper.experiment import Job

    asked = shared.read_asked(config, [*set_, *(words or ())], method, seed)
    more = {
        REFERENCE_STEPS: reference_steps,
        "model.lock_image": lock_image or None,
        "source.noise_share": noise_share,
    }
    run = learner_run(asked, reference, init, more, profile)
    workspace = shared.make_workspace(
        data_workers, max_faults, cache, cache_gb, accept_changed_data
    )
    shared.train_jobs([Job(asked.method, asked.seed, run)], wandb, device, keep_last, workspace)


@app.command("cache-reference")
def cache_reference(
    words: opt.Words = None,
    method: opt.Method = None,
    profile: opt.Profile = "cpu",
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006
    reference: opt.Reference = None,
    reference_steps: opt.ReferenceSteps = None,
    seed: opt.Seed = None,
    device: opt.Device = "auto",
    max_faults: opt.MaxFaults = 0.05,
    cache: opt.Cache = None,
    cache_gb: opt.CacheGB = 50.0,
    accept_changed_data: opt.AcceptChanged = False,
) -> None:
    """Embed the pool with the reference once (it is trained first, if missing).

    The embeddings lie beside your shards in jest-reference/, or in the data cache where shards are
    remote; `jest train` with the same settings then reads them and embeds only what is missing."""
    from jestcli.config import ConfigError
    from jestcli.paper.experiment import Job

    asked = shared.read_asked(config, [*set_, *(words or ())], method, seed)
    run = learner_run(asked, reference, None, {REFERENCE_STEPS: reference_steps}, profile)
    shared.announce(run)
    from jestcli.runs.reference import cache_reference, scores_by_reference
    from jestcli.training.devices import pick_device

    where = pick_device(device)
    if not scores_by_reference(run):
        raise ConfigError(f"--method {asked.method} scores nothing with a reference")
    workspace = shared.make_workspace(0, max_faults, cache, cache_gb, accept_changed_data)
    if run.reference is not None:
        job = Job("reference", asked.seed, run.reference)
        shared.train_jobs([job], "off", device, workspace=workspace)
    shared.prepare(run, None, workspace)
    console = shared.make_console()
    for line in cache_reference(run, workspace, console, where):
        console.print(line)


def learner_run(
    asked: shared.Asked, reference: str | None, init: str | None, more: dict[str, Any], profile: str
) -> Run:
    """The run that these options mean, checked as far as it can be before anything is loaded."""
    from jestcli.config import ConfigError
    from jestcli.runs.at_once import check_at_once

    settings = shared.with_models(asked.settings, reference, init)
    word, steps = reference or settings.get("reference_model"), more.get(REFERENCE_STEPS)
    if word and steps is not None:
        raise ConfigError(f"--reference-steps {steps}: the reference {word} is trained already")
    run = replace(asked, settings=shared.with_options(settings, more)).run(profile)
    check_at_once(run)
    return run
