"""Does choosing batches cost diversity? What is chosen against what is drawn, and the rare classes.

"Selecting diverse data promotes fairness" was said of JEST by the press; the paper measures no
such thing. Measured here: how many source sets, categories and captions the chosen pairs span, and
whether accuracy on rarely named classes suffers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jestcli.config import Part
from jestcli.data.dataset import Dataset
from jestcli.evaluation.benchmarks import Benchmark
from jestcli.evaluation.parts import belongs
from jestcli.paper import theme as look
from jestcli.paper.choices import diversity, sides
from jestcli.paper.experiment import Job
from jestcli.paper.inspection import near_duplicates, replay
from jestcli.paper.methods import BLUE, GREEN, ORANGE, VERMILLION, style
from jestcli.paper.statistics import hits_of
from jestcli.paper.theme import Figure, Theme
from jestcli.runs.opened import open_run
from jestcli.runs.run_data import data_of
from jestcli.runs.workspace import Workspace, is_done, read_done
from jestcli.training.checkpoint import write_json
from jestcli.utils.reading import read_json
from jestcli.utils.tables import Table

MEASURED = "diversity.json"
SUPER_BATCHES = 16
SPANS = {  # column -> what it is called
    "effective_sources": "effective source sets",
    "effective_categories": "effective categories",
    "distinct_captions": "distinct captions, share",
}
THIRDS = {"rare": ORANGE, "middle": GREEN, "frequent": BLUE}
LONGEST = 4  # words of a class name that are counted
Measured = list[dict[str, Any]]


def measure_all(jobs: list[Job], workspace: Workspace, folder: Path) -> Measured:
    """Measure every finished learner of `jobs` into `folder`, unless it was; returns all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MEASURED
    known = read_json(path) if path.exists() else {}
    counts: Counter[str] | None = None
    for job in jobs:
        where, key = workspace.folder(job.run), f"{job.name} {job.seed}"
        if not is_done(where) or known.get(key, {}).get("run") == where.name:
            continue
        data = data_of(job.run, workspace)
        counts = counts if counts is not None else phrases(first_captions(data.pool))
        scores, part = read_done(where)["scores"], job.run.evaluation.part
        accuracy = by_frequency(scores, data.benchmarks(), counts, part)
        known[key] = {"run": where.name, "name": job.name, "seed": job.seed, "accuracy": accuracy}
        known[key] |= choices_of(job, workspace)
        write_json(path, known)
    return [known[key] for key in sorted(known)]


def choices_of(job: Job, workspace: Workspace) -> dict[str, Any]:
    """Diversity of chosen and random sub-batches; neither where there is no reference to score
    with (plain uniform training: its sub-batches are the random ones)."""
    run = job.run
    if not (run.reference or run.reference_model) or run.source.kind in ("curated", "mixed"):
        return dict.fromkeys(("chosen", "random", "near_duplicates"))
    opened = open_run(workspace.folder(run), workspace)
    replays = replay(opened, SUPER_BATCHES)
    found: dict[str, Any] = {k: diversity(opened.pairs, x) for k, x in sides(replays).items()}
    return found | {"near_duplicates": list(near_duplicates(replays))}


def first_captions(pool: Dataset, most: int = 500_000) -> Iterable[str]:
    """The caption of every pair of the pool; of shards that hold more, of so many spread evenly:
    enough to order class names by how often they are named."""
    n = len(pool) if pool.in_memory else min(len(pool), most)
    return pool.captions_of(np.linspace(0, len(pool) - 1, n).astype(np.int64))


def phrases(captions: Iterable[str]) -> Counter[str]:
    """How many captions hold each phrase of up to LONGEST words."""
    counts: Counter[str] = Counter()
    for caption in captions:
        words = caption.lower().split()
        ends = [(i, i + n) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1)]
        counts.update({" ".join(words[start:end]) for start, end in ends})
    return counts


def by_frequency(
    scores: dict[str, dict[str, Any]],
    benchmarks: list[Benchmark],
    counts: Counter[str],
    part: Part = "all",
) -> dict[str, float]:
    """Accuracy on the rarest, middle and most frequent third of each benchmark's classes, mean
    over the benchmarks that record which items were right. part: of their images, scored."""
    found: dict[str, list[float]] = {third: [] for third in THIRDS}
    for benchmark in benchmarks:
        right = hits_of(scores[benchmark.name]) if benchmark.name in scores else None
        test = benchmark.split()
        if right is None or test.labels is None:
            continue
        labels = test.labels[belongs(benchmark, test, part)]
        frequency = np.array([counts[name.lower()] for name in benchmark.classes])
        order = np.argsort(frequency, kind="stable")
        for third, classes in zip(THIRDS, np.array_split(order, 3), strict=True):
            among = np.isin(labels.numpy(), classes)
            if among.any():
                found[third].append(float(right[among].mean()))
    return {third: float(np.mean(v)) for third, v in found.items() if v}


def _values(measured: Measured, name: str, part: str, key: str) -> list[float]:
    parts = [one[part] for one in measured if one["name"] == name]
    return [each[key] for each in parts if key in (each or {})]


def make_diversity(
    title: str, measured: Measured, names: list[str], note: str, theme: Theme
) -> Figure:
    """A row a method: chosen (filled) against random (hollow) batches, and accuracy by how often
    a class is named in the pool. measured: of `measure_all`."""
    words = (
        "Filled: chosen pairs; hollow: as many random pairs of the same pool. Effective: exp of "
        "the entropy.\nRight: accuracy by how often the pool names a class. Thin lines: range over "
        "seeds."
    )
    height = 0.32 * max(len(names), 3) + 0.3
    figure, top = look.frame(title, words, note, height + 0.75, theme)
    for i, (key, heading) in enumerate([*SPANS.items(), ("", "accuracy, %")]):
        axes = look.place(figure, 1.45 + 1.8 * i, top + 0.2, 1.5, height)
        kinds = [("random", key, BLUE, "none"), ("chosen", key, VERMILLION, None)]
        if not key:
            kinds = [("accuracy", third, colour, None) for third, colour in THIRDS.items()]
            for k, (third, colour) in enumerate(THIRDS.items()):
                look.say(axes, 0.34 * k, 1.03, third, color=theme.colour(colour))
        for y, name in enumerate(names):
            for part, field, bare, fill in kinds:
                values = [v if key else 100 * v for v in _values(measured, name, part, field)]
                if values:
                    colour = theme.colour(bare)
                    axes.plot([min(values), max(values)], [y, y], color=colour, lw=0.9)
                    axes.plot([np.mean(values)], [y], "o", color=colour, mfc=fill or colour)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [style(n).label for n in names] if i == 0 else [])
        axes.set_xlabel(heading, size=7.4)
        axes.tick_params(axis="x", labelsize=7)
        if not measured:
            look.say(axes, 0.5, 0.5, "not run", ha="center")
    return figure


def to_markdown(measured: Measured, names: list[str], note: str) -> str:
    """The same as a table, means over seeds; "not run" where nothing was measured."""
    head = ["method", "seeds", *SPANS.values(), "near-duplicates %", *THIRDS]
    rows = []
    for name in names:
        found = [m for m in measured if m["name"] == name]
        cells = ["not run"] * (len(head) - 1)
        if found:
            kinds = ("chosen", "random")
            both = ((_values(found, name, kind, key) for kind in kinds) for key in SPANS)
            pairs = [m["near_duplicates"] for m in found if m["near_duplicates"]]
            thirds = (_values(found, name, "accuracy", third) for third in THIRDS)
            cells = [
                str(len(found)),
                *(" / ".join(f"{np.mean(v):.2f}" for v in two if v) or "–" for two in both),
                " / ".join(f"{100 * x:.1f}" for x in np.mean(pairs, 0)) if pairs else "–",
                *(f"{100 * np.mean(v):.1f}" if v else "–" for v in thirds),
            ]
        rows.append([style(name).label, *cells])
    words = (
        "Chosen / random of the same pool. Near-duplicates: pairs with an image in their own batch "
        "at a cosine of .98 by the reference. Rare, middle, frequent: accuracy in % on each third "
        "of a benchmark's classes by how often the pool's captions name them."
    )
    return f"{Table('', head, rows).markdown()}\n\n{words} {note}\n"
