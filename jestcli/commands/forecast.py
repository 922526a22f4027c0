"""Would JEST pay on these data? jest forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jestcli.commands.options import Cache, Config, NoiseShare, Set, Workers
from jestcli.commands.shared import announce, make_console, make_workspace, read_settings
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
    config: Config = None,
    set_: Set = [],  # noqa: B006
    noise_share: NoiseShare = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="For all of it; five will do on a GPU.")
    ] = 25.0,
    reference: Annotated[
        str | None,
        typer.Option(
            help="In place of a small one trained here: MODEL:TAG or MODEL:FILE of open_clip, "
            "or a finished run's directory."
        ),
    ] = None,
    benchmarks: Annotated[
        Path | None, typer.Option(help="Score the races on these (clip-benchmark's wds layout).")
    ] = None,
    tower: Annotated[
        str, typer.Option(help="The open_clip model that you mean to train.")
    ] = "ViT-B-16",
    examples: Annotated[float, typer.Option(min=1, help="For how many examples uniformly.")] = 1e8,
    tflops: Annotated[
        float, typer.Option(min=0.001, help="What your GPU sustains, for GPU-hours.")
    ] = 100.0,
    out: Annotated[Path, typer.Option(help="Folder for all of it.")] = Path("forecast"),
    workers: Workers = None,
    cache: Cache = None,
) -> None:
    """Would JEST pay on these data, and which recipe? Measured in minutes, before any training.

    Copies a sample of the pool, trains a small reference on a part of the curated pairs, says how
    much of the pool it cannot tell from wrong captions, runs short annealed races of seven recipes,
    and writes OUT/forecast.html, forecast.json and recipe.yaml, a --config for the one that won.
    Stopped, the same command goes on (docs/forecast.md).

    jest forecast --pool '/data/pool/*.tar' --curated '/data/good/*.tar'
    """
    need("matplotlib")  # said before the races, not after them
    from jestcli.commands.shared import quiet_libraries
    from jestcli.config import ConfigError, merge
    from jestcli.forecast.run import Asked, source_run
    from jestcli.forecast.run import forecast as run_forecast

    quiet_libraries()
    settings = read_settings(config, set_)
    sets = {"train": list(pool or ()), "curated": list(curated or ())}
    for shard in more or ():
        beside = [each for each in sets.values() if _beside(shard, each)]
        if len(beside) != 1:
            raise ConfigError(f"{shard}: of the pool or of the curated set? Quote the patterns")
        beside[0].append(shard)
    settings = merge(settings, {"data": {k: v for k, v in sets.items() if v}})
    if noise_share is not None:
        settings = merge(settings, {"source": {"noise_share": noise_share}})
    asked = Asked(
        settings,
        out,
        minutes,
        reference,
        str(benchmarks) if benchmarks else None,
        tower,
        examples,
        tflops,
        workers,
    )
    announce(source_run(settings))
    for path in run_forecast(asked, make_workspace(cache=cache), make_console()):
        say(path)


def _beside(shard: str, others: list[str]) -> bool:
    """Whether a file lies in the folder of one of these."""
    return any(Path(other).parent == Path(shard).parent for other in others)
