"""The `jest` command: arguments in, one stage each. Nothing heavy is imported before it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from jestcli.config import Run
    from jestcli.stages.experiment import Job
    from jestcli.stages.workspace import Workspace

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Reproduce JEST (joint example selection, arXiv 2406.17711), and use it on your own data.

    jest reproduce            the headline figure on the embedded data, start to end
    jest train --method jest  one model; its data and reference are made if they are missing

Without other settings everything runs on the embedded data: icons and emoji from registry
packages, not photographs. Run directories lie in ./runs (or $JEST_RUNS), data in ./.data (or
$JEST_DATA). A finished stage is not run again and an interrupted one goes on where it stopped.
""",
)
data_app = typer.Typer(no_args_is_help=True, help="Build, list and look at the embedded data.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure the hot paths on this machine.")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
gpu_app = typer.Typer(
    no_args_is_help=True,
    help="Measure on one GPU, in parts of a few minutes: speed, and the speed-up curve at 64 px.",
)
app.add_typer(gpu_app, name="gpu")

Seed = Annotated[int, typer.Option(help="Seed of weights, order and every draw.")]
Set = Annotated[
    list[str],
    typer.Option("--set", help="Change a setting, such as --set selection.filter_ratio=0.9."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="YAML with settings of a run (see `jest config`)."),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="Settings of a scale: smoke, cpu (the default), gpu, datacomp-small, "
        "datacomp-medium, paper-b16 or paper-l16 (experiments/profiles, docs/scales.md); "
        "--config and --set go on top.",
    ),
]


def _wandb_mode(mode: str) -> str:
    from jestcli.config import ConfigError, did_you_mean
    from jestcli.training.tracking import MODES

    if mode not in MODES:
        raise ConfigError(f"--wandb {mode}{did_you_mean(mode, list(MODES))}")
    return mode


Wandb = Annotated[
    str,
    typer.Option(callback=_wandb_mode, help="Weights & Biases: off, offline or online."),
]
Device = Annotated[
    str, typer.Option(help="Where to compute: auto (a GPU if there is one), cpu or cuda.")
]
KeepLast = Annotated[int, typer.Option(min=1, help="Training checkpoints to keep (and the best).")]
Init = Annotated[
    Path | None,
    typer.Option(
        "--init",
        help="Start from these weights: an open_clip checkpoint (.pt, .bin, .safetensors) of the "
        "same towers, at any patch size, or a run's model.safetensors. The run is named by the "
        "file's content, not its place.",
    ),
]
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
        help="An open_clip model as the reference: MODEL:TAG or MODEL:FILE, such as "
        "ViT-B-16:laion2b_s34b_b88k. Without: one trained on data.curated.",
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
Workers = Annotated[int | None, typer.Option(help="Processes side by side (default: all cores).")]


def main() -> None:
    """Entry point: errors become one line; 2 for a wrong argument, 1 for what failed."""
    command = typer.main.get_command(app)
    try:
        code = command.main(standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from there", 130)
    except Exception as error:
        _fail(*_explain(error))
    if code == 130:  # how typer passes Ctrl-C on
        _fail("interrupted; the same command goes on from there", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code; an error that nobody foresaw keeps its traceback."""
    name = type(error).__name__
    if hasattr(error, "format_message"):  # typer's own: unknown option, missing value, …
        return _with_near_word(error), getattr(error, "exit_code", 2)
    if name in ("Exit", "Abort"):
        return "", getattr(error, "exit_code", 1)
    if name == "ConfigError":
        return str(error), 2
    if name in ("DataError", "StageError", "CheckpointError", "TrainingError", "RanksError"):
        return str(error), 1
    if name == "Interrupted":
        return str(error), 130
    raise error


def _with_near_word(error: Any) -> str:
    """Typer's message in one line; an unknown command gets the nearest one."""
    import difflib

    message = " ".join(error.format_message().split())
    group, word = getattr(error, "ctx", None), message.partition("No such command '")[2]
    if word and group and "Did you mean" not in message:
        known = list(getattr(group.command, "commands", {}))
        close = difflib.get_close_matches(word.partition("'")[0], known, 1, 0.4)
        message += f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(known)}."
    return message


def _fail(message: str, code: int) -> None:
    if message:
        print(f"jest: {message}", file=sys.stderr)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a rank: the others may never answer a farewell
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# --- data -----------------------------------------------------------------------------------------


@data_app.command("build")
def data_build(
    size: Annotated[int, typer.Option(help="Image side in pixels, a multiple of 16.")] = 32,
    workers: Workers = None,
) -> None:
    """Fetch the packages, draw the images, write shards and benchmarks, check for leakage."""
    _prepare(_defaults(size), workers)


@data_app.command("list")
def data_list() -> None:
    """Print what there is: pool, curated levels, the eight benchmarks and their chance levels."""
    from jestcli.data.build import default_root
    from jestcli.stages.data import list_sources

    list_sources(default_root())


@data_app.command("show")
def data_show(
    what: Annotated[
        str, typer.Argument(help="pool, curated, a level, a benchmark, or all.")
    ] = "all",
    n: Annotated[int, typer.Option(help="Images on a sheet.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("contact_sheets"),
) -> None:
    """Draw contact sheets with captions."""
    from jestcli.data.build import default_root
    from jestcli.stages.data import show

    for path in show(default_root(), what, n, out):
        print(path)


# --- training -------------------------------------------------------------------------------------


@app.command("train-reference")
def train_reference(
    level: Annotated[str | None, typer.Option(help="Curation level (see `jest data list`)")] = None,
    profile: Profile = None,
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
    from jestcli.stages.experiment import Job, default_reference, profile_reference

    workspace = _workspace(data_workers, max_faults, cache, cache_gb)
    base = profile_reference(profile) if profile else {}
    settings = merge(merge(base, _settings(config, set_)), _init(init))
    if level is not None:
        settings = merge(settings, {"data": {"level": level}})
    job = Job("reference", seed, default_reference(settings, seed))
    _train([job], wandb, device, keep_last, workspace)


@app.command("train")
def train(
    method: Annotated[
        str,
        typer.Option(
            help="uniform, jest, flexi, independent, topk, easy-reference, hard-learner, "
            "flexi-uniform; the controls curated, mixed, filtered, finetune; or module:function."
        ),
    ] = "jest",
    profile: Profile = None,
    config: Config = None,
    set_: Set = [],  # noqa: B006
    reference: Reference = None,
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
    from jestcli.stages.experiment import Job, default_run

    base = _settings(config, set_, profile, method)
    settings = merge(_with_reference(base, reference), _init(init))
    run = default_run(method, settings, seed)
    workspace = _workspace(data_workers, max_faults, cache, cache_gb)
    _train([Job(method, seed, run)], wandb, device, keep_last, workspace)


@app.command("cache-reference")
def cache_reference(
    config: Config = None,
    set_: Set = [],  # noqa: B006
    reference: Reference = None,
    seed: Seed = 0,
    max_faults: MaxFaults = 0.05,
    cache: Cache = None,
    cache_gb: CacheGB = 50.0,
) -> None:
    """Embed the pool with the reference once (it is trained first, if missing).

    The embeddings lie beside your shards in jest-reference/, or in the data cache where shards are
    remote; `jest train` with the same settings then reads them and embeds only what is missing.
    """
    from jestcli.stages.experiment import Job, default_run
    from jestcli.stages.own import cache_reference

    settings = _with_reference(_settings(config, set_), reference)
    run = default_run("jest", settings, seed)
    workspace, console = _workspace(0, max_faults, cache, cache_gb), _console()
    if run.reference is not None:
        _train([Job("reference", seed, run.reference)], "off", workspace=workspace)
    _prepare(run, None, workspace)
    for line in cache_reference(run, workspace, console):
        console.print(line)


@app.command("run")
def run_experiment(
    experiment: Annotated[str, typer.Argument(help="A YAML file, or a name in experiments/.")],
    runs: Runs = None,
    seeds: Seeds = None,
    set_: Set = [],  # noqa: B006
    workers: Workers = None,
    wandb: Wandb = "off",
    slurm: Slurm = None,
) -> None:
    """Run an experiment (every run and seed, or those named), then draw it."""
    work = _jobs(experiment, set_, runs, seeds)
    _reproduce(experiment, work, workers, wandb, Path("results"), slurm)


@app.command("reproduce")
def reproduce(
    experiment: Annotated[
        str | None, typer.Argument(help="A YAML file, a name (default: figure1), or all.")
    ] = None,
    headline: Annotated[
        bool, typer.Option("--headline", help="Every run and seed, not one seed of the main ones.")
    ] = False,
    list_: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Only print what runs, its cost and what is done; without EXPERIMENT: of all.",
        ),
    ] = False,
    set_: Set = [],  # noqa: B006
    workers: Workers = None,
    slurm: Slurm = None,
) -> None:
    """From nothing to the paper's figure and table on the embedded data."""
    from jestcli.stages.experiment import find_experiment, list_experiments, read_experiment

    if list_ and experiment is None:
        from jestcli.stages.reproduce import overview

        _console().print(overview(list_experiments(), _workspace()))
        return
    if experiment == "all":
        for one in list_experiments():
            reproduce(one.name, headline, list_, set_, workers, slurm)
        return
    experiment = experiment or "figure1"
    quick = None if headline else read_experiment(find_experiment(experiment)).quick
    names = ",".join(quick.runs) if quick else None
    seeds = ",".join(map(str, quick.seeds)) if quick else None
    work = _jobs(experiment, set_, names, seeds)
    if list_:
        from jestcli.stages.reproduce import cost_table

        _console().print(cost_table(work, _workspace()))
        return
    out = Path("results") / ("local" if quick else "")
    _reproduce(experiment, work, workers, "off", out, slurm)


@app.command("plan")
def plan_costs(
    what: Annotated[
        str, typer.Argument(help="A scale profile (see --profile), an experiment or a YAML file.")
    ] = "figure1",
    set_: Set = [],  # noqa: B006
    pool: Annotated[
        int | None, typer.Option(help="Pairs in the pool (default: none is seen twice).")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Data-parallel devices.")] = 1,
    timed: Annotated[
        bool, typer.Option("--time/--no-time", help="Time a calibration step on this machine.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Write OUT.md and OUT.json.")] = None,
) -> None:
    """Print what runs would cost before anything runs: FLOPs by convention, memory, time."""
    from rich.table import Table

    from jestcli.stages import plan
    from jestcli.stages.experiment import planned_jobs

    jobs = planned_jobs(what, _settings(None, set_))
    plans, console = plan.make_plans(jobs, pool, devices, timed), _console()
    lines = plan.notes(jobs[-1].run, devices, timed)
    for title, (head, rows) in (
        ("An iteration", plan.iteration_rows(plans)), ("The whole run", plan.total_rows(plans)),
    ):  # fmt: skip
        table = Table(title=f"{what}: {title.lower()}", title_justify="left")
        for i, heading in enumerate(head):
            table.add_column(heading, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in lines:
        console.print(line)
    for path in plan.write(out, f"`jest plan {what}`", plans, lines) if out else []:
        console.print(f"wrote {path}")


@app.command("eval")
def evaluate(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run directories (default: all finished ones).")
    ] = None,
) -> None:
    """Evaluate trained models on all images of the eight benchmarks."""
    from jestcli.stages.evaluate import evaluate_folder, list_runs, scores_table
    from jestcli.stages.workspace import StageError

    workspace, console = _workspace(), _console()
    found = runs or list_runs(workspace)
    if not found:
        raise StageError(f"no trained model in {workspace.runs}: run `jest train` first")
    for folder in found:
        console.print(scores_table(*evaluate_folder(folder, workspace)))


@app.command("inspect")
def inspect(
    run: Annotated[
        str | None,
        typer.Argument(help="A run directory, or the start of its name (default: the newest)."),
    ] = None,
    super_batches: Annotated[int, typer.Option(min=1, help="Super-batches to choose from.")] = 8,
    everything: Annotated[
        bool, typer.Option("--all", help="Export scores of the whole pool, not of those drawn.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path("inspected"),
) -> None:
    """What did a run choose? Contact sheets, shares, overlap, diversity, and scores to export."""
    from jestcli.stages import inspection

    workspace = _workspace()
    folder = inspection.find_run(run, workspace)
    for path in inspection.inspect(folder, workspace, out, super_batches, everything):
        print(path)


@app.command("plot")
def plot(
    experiment: Annotated[str, typer.Argument(help="A YAML file, or a name.")] = "figure1",
    out: Annotated[Path, typer.Option(help="Folder for figures and tables.")] = Path("results"),
    set_: Set = [],  # noqa: B006
    collect: Annotated[
        bool,
        typer.Option(
            "--collect", help="Take every finished run into OUT's records first (the headline's)."
        ),
    ] = False,
) -> None:
    """Draw an experiment's figure and table from recorded runs."""
    from jestcli.stages import plot as plots
    from jestcli.stages.experiment import find_experiment, jobs, read_experiment

    chosen = read_experiment(find_experiment(experiment))
    work = jobs(chosen, _settings(None, set_))
    for path in plots.plot(chosen, work, _workspace(), out, _console(), collect=collect):
        print(path)


@app.command("report")
def report(
    results: Annotated[Path, typer.Option(help="Where the experiments' records lie.")] = Path(
        "results"
    ),
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and report.md (default: RESULTS).")
    ] = None,
) -> None:
    """Every claim of the paper beside what was measured: one HTML page, and Markdown."""
    from jestcli.stages.experiment import list_experiments
    from jestcli.stages.report import report as write_report

    for path in write_report(list_experiments(), results, out or results):
        print(path)


@app.command("config")
def show_config(
    method: Annotated[str, typer.Option(help="As in `jest train`.")] = "jest",
    profile: Profile = None,
    config: Config = None,
    set_: Set = [],  # noqa: B006
    seed: Seed = 0,
) -> None:
    """Print the resolved settings of a run as YAML; its output is a valid --config."""
    import yaml

    from jestcli.stages.experiment import default_run

    run = default_run(method, _settings(config, set_, profile, method), seed)
    print(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False), end="")


@bench_app.command("selection")
def bench_selection(
    batch: Annotated[int, typer.Option(help="B: candidates.")] = 12_288,
    size: Annotated[int, typer.Option(help="b: pairs to choose.")] = 2_458,
    dim: Annotated[int, typer.Option(help="d: embedding width.")] = 512,
    chunks: Annotated[int, typer.Option(help="N: chunks.")] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write JSON here.")] = None,
    listing: Annotated[bool, typer.Option(help="Time the paper's matrix listing too.")] = True,
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
    selection.run(batch, size, dim, chunks, device, out, listing)


@bench_app.command("train")
def bench_train(
    config: Config = None,
    set_: Set = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Measured steps of each.")] = 15,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Write JSON (and a table) here.")] = None,
) -> None:
    """Step times of uniform, JEST and Flexi-JEST against their FLOPs, and open_clip's own loop."""
    from jestcli.bench import training
    from jestcli.config import ConfigError
    from jestcli.training.devices import pick_device
    from jestcli.training.loop import set_threads

    if rounds < 1:
        raise ConfigError("--rounds must be at least 1")
    chosen = pick_device(device)
    if chosen.type == "cpu":
        set_threads(1)  # as in training
    training.run(_settings(config, set_), rounds, chosen, out, _console())


@app.command("doctor")
def doctor(
    method: Annotated[str, typer.Option(help="As in `jest train`.")] = "jest",
    config: Config = None,
    set_: Set = [],  # noqa: B006
    wandb: Wandb = "off",
    device: Device = "auto",
) -> None:
    """Check machine, versions, folders and data before a long run; 1 if something will break."""
    from jestcli.stages import doctor as stage
    from jestcli.stages.experiment import default_run

    run = default_run(method, _settings(config, set_), 0)
    found = stage.examine(run, _workspace(), device, wandb)
    _console().print(stage.table(found))
    if any(finding.state == stage.BAD for finding in found):
        raise typer.Exit(1)


@app.command("export")
def export(
    run: Annotated[Path, typer.Argument(help="Run directory of a trained model.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    patch: Annotated[
        int | None, typer.Option(help="Patch size in pixels (default: the run's finest).")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="open_clip (config and checkpoint) or hf (local-dir:).")
    ] = "open_clip",
) -> None:
    """Write a trained model for open_clip, and print the Python that loads it."""
    from jestcli.stages.export import export as export_run

    print("import open_clip\n" + export_run(run, out, patch, format_, _workspace()))


@bench_app.command("data")
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
) -> None:
    """Pairs per second of the loader, in full and reduced, against what training asks for."""
    from jestcli.config import ConfigError

    try:
        counts = tuple(int(count) for count in workers.split(","))
    except ValueError:
        raise ConfigError(f"--workers {workers}: expected numbers, such as 0,1,2") from None
    if scoring_size > size or min(counts) < 0:
        raise ConfigError("--scoring-size must not be above --size, --workers not below 0")
    from jestcli.bench import data

    data.bench_data(
        tuple(shards or ()), size, scoring_size, batch, counts, seconds,
        super_batch, step_seconds, out,
    )  # fmt: skip


@bench_app.command("scoring")
def bench_scoring(
    run: Annotated[
        Path | None, typer.Argument(help="Run directory (default: the newest that selects).")
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Super-batches to score.")] = 4,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Fresh models: costs alone, agreement is void.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write OUT.md and OUT.json.")] = None,
) -> None:
    """Cost of cheaper scoring, and how far it agrees with full resolution.

    Larger patches (the paper), smaller images and dropped cells, side by side: FLOPs and CPU
    time a pair, rank correlation of the scores, and the overlap of what is chosen.
    """
    from rich.markdown import Markdown

    from jestcli.bench import scoring
    from jestcli.stages.scoring import bench_scoring as measure

    result, console = measure(_workspace(), run, batches, untrained), _console()
    console.print(Markdown(scoring.as_markdown(result)))
    for path in scoring.write(out, result) if out else []:
        console.print(f"wrote {path}")


# --- one GPU --------------------------------------------------------------------------------------


@gpu_app.command("pack")
def gpu_pack(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("sources.tar"),
    megabytes: Annotated[float, typer.Option(help="At most so many (of 10^6 bytes).")] = 48.0,
    workers: Workers = None,
) -> None:
    """Put a selection of the icon sources into one file, for a machine without a network.

    Collections are whole; those of benchmarks and curated sets are always in. The packages are
    fetched if they are not there.
    """
    from jestcli.data.build import default_root
    from jestcli.data.fetch import fetch
    from jestcli.data.world import WORLD
    from jestcli.gpu.pack import pack
    from jestcli.stages.data import bars

    folder, console = default_root() / ".cache" / "packages", _console()
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


@gpu_app.command("run")
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


@gpu_app.command("collect")
def gpu_collect(
    archives: Annotated[list[Path], typer.Argument(help="results.tar.gz of the parts.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures, records.")] = Path(
        "results/gpu"
    ),
) -> None:
    """Draw figures and write tables from what the parts left."""
    from jestcli.stages import gpu

    for path in gpu.collect(archives, out, _console()):
        print(path)


# --- shared ---------------------------------------------------------------------------------------


def _settings(
    config: Path | None, pairs: list[str], profile: str | None = None, method: str = "jest"
) -> dict[str, Any]:
    """A profile's settings for `method`, a file's on top and the command line's last."""
    from jestcli.config import merge, parse_overrides, read_yaml
    from jestcli.stages.experiment import read_profile

    base = read_profile(profile, method) if profile else {}
    return merge(merge(base, read_yaml(config) if config else {}), parse_overrides(pairs))


def _init(path: Path | None) -> dict[str, Any]:
    """The settings of a run that starts from this checkpoint."""
    if path is None:
        return {}
    from jestcli.config import ConfigError

    if not path.is_file():
        raise ConfigError(f"--init {path}: no such file")
    return {"init": str(path.resolve()), "init_sha256": None}  # the file's hash is filled in


def _with_reference(settings: dict[str, Any], word: str | None) -> dict[str, Any]:
    """Settings with an open_clip model as the reference, checked before anything else runs."""
    if word is None:
        return settings
    from jestcli.stages.references import check_word

    check_word(word)
    return {**settings, "reference_model": word}


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True)


def _workspace(
    workers: int | None = None,
    max_faults: float = 0.05,
    cache: Path | None = None,
    gigabytes: float = 50.0,
) -> Workspace:
    from jestcli.data.sources import Loading, default_cache
    from jestcli.stages.workspace import Workspace

    folder = cache or default_cache()
    return Workspace(loading=Loading(workers, max_faults, folder.absolute(), gigabytes))


def _defaults(size: int) -> Run:
    from jestcli.config import ConfigError, Run

    if size <= 0 or size % 16:
        raise ConfigError(f"--size {size}: must be a multiple of 16")
    return Run.model_validate({"data": {"image_size": size}})


def _prepare(run: Run, workers: int | None, workspace: Workspace | None = None) -> None:
    """Build the data of `run` and decode it (or count its own shards), unless that is done."""
    from jestcli.stages import data
    from jestcli.stages.own import OwnInputs

    workspace, console = workspace or _workspace(), _console()
    size = run.data.image_size
    inputs = workspace.inputs(run)
    if isinstance(inputs, OwnInputs):
        inputs.folder.mkdir(parents=True, exist_ok=True)
        data.index(run, inputs, console)
        return
    data.build(workspace.data_root(run), size=size, workers=workers, console=console)
    data.decode(workspace.embedded(run), workers, console)


def _train(
    jobs: list[Job],
    wandb: str,
    device: str = "auto",
    keep_last: int = 1,
    workspace: Workspace | None = None,
) -> None:
    """Train jobs one after another in worker processes, and print their scores.

    Under torchrun this process is a rank, which trains itself.
    """
    from jestcli.stages.evaluate import scores_table
    from jestcli.stages.reproduce import plan, run_stages
    from jestcli.stages.workspace import read_done

    if device != "auto":
        from jestcli.training.devices import pick_device

        pick_device(device)  # before anything is built
    workspace, console = workspace or _workspace(), _console()
    for job in jobs:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            from jestcli.stages.ranks import train_as_rank

            def prepare(run: Run, workers: int | None) -> None:
                _prepare(run, workers, workspace)

            main = train_as_rank(job, workspace, console, wandb, device, keep_last, prepare)
            if not main:
                continue
        else:
            _prepare(job.run, None, workspace)
            stages = plan([job], workspace)
            run_stages(stages, workspace, None, console, wandb, device=device, keep_last=keep_last)
        folder = workspace.folder(job.run)
        console.print(scores_table(job.label, read_done(folder)["scores"], job.run.data.own))
        console.print(f"run directory: {folder}")


def _jobs(word: str, pairs: list[str], names: str | None, seeds: str | None) -> list[Job]:
    """The jobs of an experiment, or those of the named runs and seeds (comma-separated)."""
    from jestcli.config import ConfigError
    from jestcli.stages.experiment import find_experiment, jobs, read_experiment

    experiment = read_experiment(find_experiment(word))
    try:
        numbers = [int(seed) for seed in seeds.split(",")] if seeds else None
    except ValueError:
        raise ConfigError(f"--seeds {seeds}: expected numbers, such as 0,1") from None
    return jobs(experiment, _settings(None, pairs), names.split(",") if names else None, numbers)


def _reproduce(
    word: str, work: list[Job], workers: int | None, wandb: str, out: Path, slurm: str | None
) -> None:
    from jestcli.stages import plot as plots
    from jestcli.stages.experiment import find_experiment, read_experiment
    from jestcli.stages.reproduce import plan, run_stages
    from jestcli.stages.slurm import launcher, parse_options

    workspace, console = _workspace(), _console()
    launch = launcher(parse_options(slurm), workspace.runs / "slurm") if slurm else None
    _prepare(work[0].run, None if slurm else workers)
    run_stages(plan(work, workspace), workspace, workers, console, wandb, launch)
    experiment = read_experiment(find_experiment(word))
    for path in plots.plot(experiment, work, workspace, out, console, collect=True):
        console.print(f"wrote {path}")
