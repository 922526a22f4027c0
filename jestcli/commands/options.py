"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _wandb_mode(given: str) -> str:
    """The mode; project, entity, group and tags go where wandb, here and in workers, finds them."""
    import os

    from jestcli.config import ConfigError, did_you_mean
    from jestcli.training.tracking import MODES, SETTINGS
    from jestcli.utils.extras import need

    mode, *rest = given.split(",")
    if mode not in MODES:
        raise ConfigError(f"--wandb {mode}{did_you_mean(mode, list(MODES))}")
    for pair in rest:
        key, equals, value = pair.partition("=")
        if key not in SETTINGS or not equals:
            raise ConfigError(f"--wandb {pair}{did_you_mean(key, list(SETTINGS))}")
        os.environ[SETTINGS[key]] = value.replace("+", ",")
    if mode != "off":
        need(MODES[mode])
    return mode


Seed = Annotated[
    int | None,
    typer.Option(help="Seed of weights, order and every draw (default: the file's, or 0)."),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="uniform, jest, flexi, independent, topk, easy-reference, hard-learner, "
        "flexi-uniform; cabs (most even cover of the captions' words; no model scores); "
        "jest-curated (a quarter of the batch curated); the controls curated, mixed, filtered, "
        "finetune; or module:function. Default: `method:` of --config, or jest. Settings that "
        "contradict it are refused."
    ),
]
ReferenceSteps = Annotated[
    int | None,
    typer.Option(
        "--reference-steps",
        help="Steps of the reference's training (reference.optim.steps), the same for `jest train` "
        "and `jest train-reference`.",
    ),
]
Set = Annotated[
    list[str],
    typer.Option("--set", help="Change a setting, such as --set selection.filter_ratio=0.9."),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings, as after --set. Shards may come one by one: an unquoted {000..099} is "
        "the shell's and arrives so.",
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", help="YAML with settings of a run (see `jest config`).")
]
Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        help="Settings of a scale: smoke, cpu, gpu, datacomp-small, "
        "datacomp-medium, paper-b16 or paper-l16 (experiments/profiles, docs/scales.md); "
        "--config and --set go on top.",
    ),
]
Wandb = Annotated[
    str,
    typer.Option(
        callback=_wandb_mode,
        help="Weights & Biases (off, offline or online, such as online,project=P,entity=E,group=G,"
        "tags=A+B) or tensorboard, in the run's directory. metrics.jsonl is always written.",
    ),
]
Device = Annotated[
    str, typer.Option(help="Where to compute: auto (a GPU if there is one), cpu or cuda.")
]
KeepLast = Annotated[int, typer.Option(min=1, help="Training checkpoints to keep (and the best).")]
Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        help="Start from these weights. A checkpoint (.pt, .bin, .safetensors), an exported folder "
        "or a run: weights for the same towers, at any patch size. An open_clip MODEL:TAG, "
        "local-dir:DIR or hf-hub:ORG/NAME: towers and tokenizer, too. Files count by their "
        "content, not their place.",
    ),
]
LockImage = Annotated[
    bool,
    typer.Option("--lock-image", help="Train the text tower alone, from --init's image tower."),
]
NoiseShare = Annotated[
    float | None,
    typer.Option(
        "--noise-share",
        help="Share of the pool's pairs that show another's caption, such as .8: a poor pool "
        "(source.noise_share).",
    ),
]
RUN_NAME = "a run directory, or the beginning of a run's name (`jest runs`)"
RunWord = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help=f"{RUN_NAME.capitalize()}; default: the newest."),
]
RunWords = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help=f"Each {RUN_NAME}.")]
Runs = Annotated[str | None, typer.Option("--runs", help="Only these runs, such as jest,flexi.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Only these seeds, such as 0,1.")]
Slurm = Annotated[
    str | None,
    typer.Option(help="Run stages as Slurm jobs: options such as partition=cpu,timeout_min=60."),
]
OWN = "Your own shards"
Reference = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=OWN,
        help="The reference: a finished run, or (on your own shards) an open_clip MODEL:TAG or "
        "MODEL:FILE such as ViT-B-16:laion2b_s34b_b88k, local-dir:DIR, hf-hub:ORG/NAME, or an "
        "exported folder. Without: one trained on the curated set.",
    ),
]
DataWorkers = Annotated[
    int | None,
    typer.Option(
        min=0, rich_help_panel=OWN, help="Processes that decode, a rank (default: cores - 1)."
    ),
]
MaxFaults = Annotated[
    float,
    typer.Option(
        min=0, max=1, rich_help_panel=OWN, help="Share of unreadable samples that stops a run."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=OWN,
        help="Folder for fetched shards and indexes ($JEST_CACHE, ~/.cache/jest).",
    ),
]
CacheGB = Annotated[
    float, typer.Option(min=0, rich_help_panel=OWN, help="GB of fetched shards to keep at most.")
]
AcceptChanged = Annotated[
    bool,
    typer.Option(
        "--accept-changed-data",
        rich_help_panel=OWN,
        help="Go on where own shards have changed since the run began.",
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes side by side (default: one a core).")
]
