"""Draw an experiment from recorded runs: figures, tables and the records themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jestcli.reporting.curves import draw_benchmarks, draw_learnability
from jestcli.reporting.figure1 import draw_figure1
from jestcli.reporting.records import Header, Record, collect, load_records, save_records
from jestcli.reporting.table import build, render, write
from jestcli.stages.experiment import Experiment, Job
from jestcli.stages.workspace import StageError, Workspace, is_done

COMMITTED = Path(__file__).parents[2] / "results"
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
        _collect(folder / RECORDS, jobs, workspace)
    header, here = _load(folder / RECORDS)
    committed_folder = COMMITTED / experiment.name
    committed: list[Record] = []
    if folder.resolve() != committed_folder.resolve():
        _, committed = _load(committed_folder / RECORDS)
    if not here and not committed:
        raise StageError(f"no finished run of {experiment.name}: run `jest run {experiment.name}`")
    below, overlay = (committed, here) if committed else (here, None)
    report = build(header, here or committed)
    render(console, report)
    return [
        *draw_figure1(header, below, folder / "figure1", overlay),
        *draw_benchmarks(header, here or committed, folder / "benchmarks"),
        *draw_learnability(header, here or committed, folder / "learnability"),
        *write(report, folder / "table"),
    ]


def _collect(path: Path, jobs: list[Job], workspace: Workspace) -> None:
    _, older = _load(path)
    newer = [
        collect(workspace.folder(job.run), job.name, job.seed)
        for job in jobs
        if is_done(workspace.folder(job.run))
    ]
    taken = {(r["name"], r["seed"]) for r in newer}
    kept = [r for r in older if (r["name"], r["seed"]) not in taken]
    if newer:
        save_records(path, kept + newer, DATA, PROFILE)


def _load(path: Path) -> tuple[Header, list[Record]]:
    return load_records(path) if path.exists() else (Header(DATA, PROFILE), [])
