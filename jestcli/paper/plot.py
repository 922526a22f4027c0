"""Draw an experiment from recorded runs: figures, tables and the records themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jestcli.paper.caption import caption
from jestcli.paper.curves import draw_benchmarks, draw_learnability
from jestcli.paper.experiment import FOLDER, Experiment, Job
from jestcli.paper.figure1 import draw_figure1
from jestcli.paper.finals import draw_finals
from jestcli.paper.grid import draw_grid
from jestcli.paper.map import draw_all
from jestcli.paper.records import Header, Record, collect, load_records, save_records
from jestcli.paper.statistics import by_name, has_joules
from jestcli.paper.table import HEADLINE, build, render, write
from jestcli.runs.workspace import StageError, Workspace, is_done

COMMITTED = FOLDER.parent / "results"  # of a checkout; a wheel holds none
RECORDS = "records.json"
DATA = "icons and emoji from registry packages (not ImageNet or COCO)"
PROFILE = "cpu: 32 px, 2 cores"


def plot(
    experiment: Experiment,
    jobs: list[Job],
    workspace: Workspace,
    out: Path,
    console: Any,
    collect: bool = False,
) -> list[Path]:
    """Write figures and tables under `out / experiment.name`; returns the paths.

    collect: first take the finished ones of `jobs` into the folder's records, replacing older ones
        of the same name and seed. Where `out` is not the project's results, the committed records
        are drawn under this machine's.
    Raises StageError when there is nothing to draw.
    """
    folder = out / experiment.name
    if collect:
        profile = experiment.profile or "cpu"
        _collect(folder / RECORDS, jobs, workspace, profile, experiment.compact)
    header, here = _load(folder / RECORDS)
    committed_folder = COMMITTED / experiment.name
    committed: list[Record] = []
    if folder.resolve() != committed_folder.resolve():
        _, committed = _load(committed_folder / RECORDS)
    if not here and not committed:
        raise StageError(f"no finished run of {experiment.name}: run `jest run {experiment.name}`")
    below, overlay = (committed, here) if committed else (here, None)
    records = here or committed
    headline = experiment.figure.kind == "curves"
    names = HEADLINE if headline else tuple(dict.fromkeys(job.name for job in jobs))
    report = build(header, records, names, with_paper=headline)
    render(console, report)
    if words := outdated(records, jobs, workspace):
        console.print(words)
    figures: list[Path] = []
    if headline:
        figures += draw_figure1(header, below, folder / "figure1", overlay)
        counted = [runs for runs in by_name(records).values() if has_joules(runs)]
        if counted:
            counted_records = [record for runs in counted for record in runs]
            figures += draw_figure1(header, counted_records, folder / "energy", panels=["joules"])
        figures += draw_finals(header, records, folder / "finals")
        figures += draw_benchmarks(header, records, folder / "benchmarks")
        figures += draw_learnability(header, records, folder / "learnability")
    elif experiment.figure.kind == "map":
        figures += draw_all(header, records, folder)
    elif experiment.figure.kind == "matrix":
        figures += _figure2(experiment, jobs, workspace, folder, header, records)
    elif experiment.figure.kind == "choices":
        figures += _diversity(experiment, jobs, workspace, folder, header, records)
    elif experiment.figure.panels:
        panels, path = experiment.figure.panels, folder / experiment.name
        figures += draw_grid(experiment.title, panels, header, records, path, list(names))
    return [*figures, *write(report, folder / "table")]


def _figure2(
    experiment: Experiment,
    jobs: list[Job],
    workspace: Workspace,
    folder: Path,
    header: Header,
    records: list[Record],
) -> list[Path]:
    """Measure the experiment's first run, every finished seed of it, and draw that."""
    import numpy as np

    from jestcli.paper.chunks import measure_all
    from jestcli.paper.figure2 import MATRIX, draw_figure2

    name = next(iter(experiment.runs))
    done = {j.seed: j.run for j in jobs if j.name == name and is_done(workspace.folder(j.run))}
    measured = measure_all(done, workspace, folder)
    matrix = np.load(folder / MATRIX) if (folder / MATRIX).exists() else None
    note = caption(header, [r for r in records if r["name"] == name])
    return draw_figure2(experiment.title, measured, matrix, note, folder / experiment.name)


def _diversity(
    experiment: Experiment,
    jobs: list[Job],
    workspace: Workspace,
    folder: Path,
    header: Header,
    records: list[Record],
) -> list[Path]:
    """Measure what every finished learner chooses, and draw that."""
    from jestcli.paper.diversity import draw_diversity, to_markdown
    from jestcli.paper.diversity_of import measure_all

    names = list(experiment.runs)
    measured = measure_all([j for j in jobs if j.name in names], workspace, folder)
    note, path = caption(header, records), folder / "diversity.md"
    path.write_text(to_markdown(measured, names, note))
    title, stem = experiment.title, folder / experiment.name
    return [*draw_diversity(title, measured, names, note, stem), path]


def outdated(records: list[Record], jobs: list[Job], workspace: Workspace) -> str:
    """Which records are of other settings, data or numerics than this version's runs of that name
    and seed, in one sentence; "" where none is."""
    now = {(job.name, job.seed): workspace.folder(job.run).name for job in jobs}
    old = [r for r in records if now.get((r["name"], r["seed"]), r["digest"]) != r["digest"]]
    if not old:
        return ""
    names = ", ".join(sorted({r["name"] for r in old}))
    return (
        f"{len(old)} of {len(records)} records are of other settings, data or numerics than this "
        f"version's runs of that name ({names}): run the experiment again."
    )


def _collect(
    path: Path, jobs: list[Job], workspace: Workspace, profile: str, small: bool = False
) -> None:
    _, older = _load(path)
    newer = [
        collect(workspace.folder(job.run), job.name, job.seed)
        for job in jobs
        if is_done(workspace.folder(job.run))
    ]
    taken = {(r["name"], r["seed"]) for r in newer}
    kept = [r for r in older if (r["name"], r["seed"]) not in taken]
    if newer:
        run, records = jobs[0].run, kept + newer
        data = f"{DATA}, a selection" if workspace.is_selection(run) else DATA
        on = " and ".join(sorted({_machine(r["environment"]) for r in records}))
        save_records(path, records, data, f"{profile}: {run.data.image_size} px, {on}", small)


def _machine(environment: dict[str, Any]) -> str:
    return str(environment.get("gpu") or f"{environment.get('cores')} cores")


def _load(path: Path) -> tuple[Header, list[Record]]:
    return load_records(path) if path.exists() else (Header(DATA, PROFILE), [])
