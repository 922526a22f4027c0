"""Would JEST pay on these data? jest forecast."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from jestcli.commands import options as opt
from jestcli.commands import shared
from jestcli.utils.extras import need
from jestcli.utils.plain import say

app = typer.Typer()


@app.command("forecast")
def forecast(
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SHARDS]...",
            help="What the shell made of unquoted patterns: each goes to the set in whose folder "
            "it lies.",
        ),
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            help="The pool: a folder, or a quoted pattern such as '/data/pool/*.tar'. "
            "Without: the embedded data."
        ),
    ] = None,
    curated: Annotated[
        list[str] | None, typer.Option(help="Pairs that you know to be good, in the same layout.")
    ] = None,
    config: opt.Config = None,
    set_: opt.Set = [],  # noqa: B006
    noise_share: opt.NoiseShare = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="For all of it; five will do on a GPU.")
    ] = 25.0,
    reference: Annotated[
        str | None,
        typer.Option(
            help="In place of a small one trained here: an open_clip MODEL:TAG or MODEL:FILE, "
            "local-dir:DIR, hf-hub:ORG/NAME, an exported folder or a finished run."
        ),
    ] = None,
    benchmarks: Annotated[
        Path | None, typer.Option(help="Score the races on these (clip-benchmark's wds layout).")
    ] = None,
    tower: Annotated[
        str | None,
        typer.Option(
            help="The open_clip model that you mean to train (default: --config's, or ViT-B-16)."
        ),
    ] = None,
    examples: Annotated[
        float | None,
        typer.Option(
            min=1, help="For how many examples uniformly (default: --config's, or 100 million)."
        ),
    ] = None,
    tflops: Annotated[
        float, typer.Option(min=0.001, help="What your GPU sustains, for GPU-hours.")
    ] = 100.0,
    out: Annotated[Path, typer.Option(help="Folder for all of it.")] = Path("forecast"),
    workers: opt.Workers = None,
    cache: opt.Cache = None,
) -> None:
    """Would JEST pay on these data, and which recipe? Measured in minutes, before any training.

    Copies a sample of the pool, trains a small reference on a part of the curated pairs, says how
    much of the pool it cannot tell from wrong captions, runs short annealed races of eight recipes,
    and writes OUT/forecast.html, forecast.json and recipe.yaml, a --config for the one that won.
    Stopped, the same command goes on (docs/forecast.md). A --config may be your own run's: of an
    open_clip model it names what to forecast for, and its steps are never the races'.

    jest forecast --pool '/data/pool/*.tar' --curated '/data/good/*.tar'"""
    need("matplotlib")  # said before the races, not after them
    from jestcli.config import ConfigError, merge, parse_overrides, read_yaml
    from jestcli.forecast.run import Asked, of_a_run, source_run
    from jestcli.forecast.run import forecast as run_forecast
    from jestcli.runs.listing import at

    settings, planned, aside = of_a_run(read_yaml(config) if config else {})
    if aside:
        shared.say(f"the races set their own {', '.join(aside)}, not those of {config}")
    settings = merge(settings, parse_overrides(set_))
    sets = {"train": list(pool or ()), "curated": list(curated or ())}
    for shard in more or ():
        folder = Path(shard).parent
        beside = [each for each in sets.values() if folder in [Path(x).parent for x in each]]
        if len(beside) != 1:
            raise ConfigError(f"{shard}: of the pool or of the curated set? Quote the patterns")
        beside[0].append(shard)
    settings = merge(settings, {"data": {k: v for k, v in sets.items() if v}})
    settings = shared.with_options(settings, {"source.noise_share": noise_share})
    reference = reference or settings.pop("reference_model", None)
    scored_on = str(benchmarks) if benchmarks else at(settings, "data.benchmarks")
    tower = tower or planned.get("tower") or "ViT-B-16"
    examples = examples or planned.get("examples") or 1e8
    for option, number in (("--minutes", minutes), ("--examples", examples)):
        if not math.isfinite(number):
            raise ConfigError(f"{option} {number}: nothing can be planned for that")
    asked = Asked(settings, out, minutes, reference, scored_on, tower, examples, tflops, workers)
    shared.announce(source_run(settings))
    for path in run_forecast(asked, shared.make_workspace(cache=cache), shared.make_console()):
        say(path)
