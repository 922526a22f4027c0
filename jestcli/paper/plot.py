"""Draw an experiment from recorded runs: figures, tables and the records themselves; and, while
some still train, a list and a picture of what the finished ones say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jestcli.paper import curves, grid, map_figures, map_words, theme
from jestcli.paper.experiment import Experiment, Job
from jestcli.paper.methods import style
from jestcli.paper.records import Header, Record, collect, load_records, save_records
from jestcli.paper.saving import cells
from jestcli.paper.table import HEADLINE, build, caption, render, strength, write
from jestcli.runs.methods import FOLDER
from jestcli.runs.workspace import StageError, Workspace, is_done

COMMITTED = FOLDER.parent / "results"  # of a checkout; a wheel holds none
RECORDS = "records.json"
ROWS, BAR = 12, 28  # lines of a list; characters of its longest bar
DATA = "icons and emoji from registry packages (not ImageNet or COCO)"
UNKNOWN = Header(DATA, "cpu: 32 px, 2 cores")


def plot(
    experiment: Experiment,
    jobs: list[Job],
    workspace: Workspace,
    out: Path,
    console: Any,
    collect: bool = False,
) -> list[Path]:
    """Write figures and tables under `out / experiment.name`; returns the paths. collect: first
    take the finished ones of `jobs` into the folder's records, replacing older ones of the same
    name and seed. Where `out` has none, the committed records are drawn. Raises StageError when
    there is nothing to draw."""
    folder = out / experiment.name
    if collect:
        _collect(folder / RECORDS, jobs, workspace, experiment)
    header, records = _load(folder / RECORDS)
    if not records:
        header, records = _load(COMMITTED / experiment.name / RECORDS)
    if not records:
        raise StageError(f"no finished run of {experiment.name}: run `jest run {experiment.name}`")
    kind, title, stem = experiment.figure.kind, experiment.title, folder / experiment.name
    headline = kind == "curves"
    names = HEADLINE if headline else tuple(dict.fromkeys(job.name for job in jobs))
    report = build(header, records, names, with_paper=headline)
    render(console, report)
    if words := outdated(records, jobs, workspace):
        console.print(words)
    figures: list[Path] = []
    if headline:
        figures = curves.draw_all(header, records, folder)
    elif kind == "map":
        figures = map_figures.draw_all(header, records, folder)
        if said := map_words.sentence(records):
            console.print(said, markup=False)
    elif kind == "matrix":
        first = [r for r in records if r["name"] == next(iter(experiment.runs))]
        note = caption(header, first) + strength(records)
        figures = _figure2(experiment, jobs, workspace, folder, note)
    elif kind == "choices":
        figures = _diversity(experiment, jobs, workspace, folder, caption(header, records))
    elif panels := experiment.figure.panels:
        what = title, panels, header, records, list(names)
        figures = theme.both(lambda look: grid.make_grid(*what, look), stem)
    return [*figures, *write(report, folder / "table")]


def _figure2(
    experiment: Experiment, jobs: list[Job], workspace: Workspace, folder: Path, note: str
) -> list[Path]:
    """Measure the experiment's first run, every finished seed of it, and draw that."""
    import numpy as np

    from jestcli.paper.figure2 import MATRIX, make_figure2, measure_all

    name = next(iter(experiment.runs))
    done = {j.seed: j.run for j in jobs if j.name == name and is_done(workspace.folder(j.run))}
    measured = measure_all(done, workspace, folder)
    matrix = np.load(folder / MATRIX) if (folder / MATRIX).exists() else None
    title, path = experiment.title, folder / experiment.name
    return theme.both(lambda look: make_figure2(title, measured, matrix, note, look), path)


def _diversity(
    experiment: Experiment, jobs: list[Job], workspace: Workspace, folder: Path, note: str
) -> list[Path]:
    """Measure what every finished learner chooses, and draw that."""
    from jestcli.paper.diversity import make_diversity, measure_all, to_markdown

    names, title = list(experiment.runs), experiment.title
    measured = measure_all([j for j in jobs if j.name in names], workspace, folder)
    page, path = folder / "diversity.md", folder / experiment.name
    page.write_text(to_markdown(measured, names, note))
    drawn = theme.both(lambda look: make_diversity(title, measured, names, note, look), path)
    return [*drawn, page]


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


def _collect(path: Path, jobs: list[Job], workspace: Workspace, experiment: Experiment) -> None:
    folders = [(job, workspace.folder(job.run)) for job in jobs]
    newer = [collect(f, job.name, job.seed) for job, f in folders if is_done(f)]
    if not newer:
        return
    taken = {(r["name"], r["seed"]) for r in newer}
    kept = [r for r in _load(path)[1] if (r["name"], r["seed"]) not in taken]
    run, records = jobs[0].run, kept + newer
    machines = [r["environment"] for r in records]
    on = sorted({str(e.get("gpu") or f"{e.get('cores')} cores") for e in machines})
    profile = f"{experiment.profile or 'cpu'}: {run.data.image_size} px, {' and '.join(on)}"
    save_records(path, records, _data(jobs), profile, experiment.compact)


def _data(jobs: list[Job]) -> str:
    """On what these are run, in words."""
    return "own data" if any(job.run.data.own for job in jobs) else DATA


def _load(path: Path) -> tuple[Header, list[Record]]:
    return load_records(path) if path.exists() else (UNKNOWN, [])


# --- while an experiment runs ---------------------------------------------------------------------


def follower(
    title: str, jobs: list[Job], workspace: Workspace, picture: Path, console: Any
) -> Callable[[Path], None]:
    """What to call with the folder of each run that has ended: if it is one of `jobs` and was
    scored, the list goes to the console, and `picture` is drawn again."""
    waiting = {workspace.folder(job.run): job for job in jobs}
    total, known = len(waiting), list[Record]()
    what = _data(jobs)

    def follow(ended: Path) -> None:
        last = waiting.get(ended)
        for folder in [folder for folder in waiting if is_done(folder)]:
            job = waiting.pop(folder)
            known.append(collect(folder, job.name, job.seed))
        scored = [record for record in known if record["final"]["mean"] is not None]
        if last is None or not scored:
            return
        for line in listed(scored):
            console.print(line, markup=False, highlight=False)
        draw(title, what, scored, picture)
        console.print(f"{len(known)} of {total} runs so far: {picture}", markup=False)

    return follow


def listed(records: list[Record]) -> list[str]:
    """A line for each of the last ROWS records: name, seed, examples, score and a bar."""
    most = max(r["final"]["mean"] for r in records) or 1.0
    return [
        f"  {r['name']:<20} seed {r['seed']:<3} {r['steps'] * r['batch_size']:>9,} "
        f"{100 * r['final']['mean']:5.1f} % {'▆' * round(BAR * r['final']['mean'] / most)}"
        for r in sorted(records[-ROWS:], key=lambda r: (r["name"].split("@")[:2], r["steps"]))
    ]


def draw(title: str, what: str, records: list[Record], path: Path) -> None:
    """Scores against examples: runs that differ in length and seed alone are one line. what: the
    data, in words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    curves = [{**r, "name": r["name"].removesuffix(f"@{r['steps']}")} for r in records]
    seeds = ", ".join(map(str, sorted({r["seed"] for r in records})))
    note = f"Data: {what}; seeds {seeds}; the mean over seeds of each length's annealed end."
    ends: list[theme.End] = []
    with theme.themed(theme.LIGHT):
        figure, top = theme.frame(f"So far: {title}", "", note, 3.2, theme.LIGHT)
        axes = theme.place(figure, 0.75, top, 5.8, 2.7)
        for name in dict.fromkeys(r["name"] for r in curves):
            how, found = style(name.split("@")[0]), cells(curves, name)
            x, y = [c.examples for c in found], [100 * c.mean for c in found]
            colour = theme.LIGHT.colour(how.colour)
            axes.plot(x, y, ls=how.dash, marker=how.marker, color=colour)
            ends.append((x[-1], y[-1], name.replace(name.split("@")[0], how.label), colour))
        axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
        theme.log_ticks(axes)
        theme.label_ends(axes, ends)
        axes.set_xlabel("examples trained on")
        axes.set_ylabel("mean of the benchmarks, %")
        figure.savefig(path, dpi=theme.DPI // 2, metadata={"Software": None})
