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

from jestcli.data.dataset import Dataset
from jestcli.evaluation.benchmarks import Benchmark
from jestcli.paper.choices import diversity
from jestcli.paper.diversity import MEASURED
from jestcli.paper.experiment import Job
from jestcli.paper.inspection import near_duplicates, replay
from jestcli.paper.statistics import hits_of
from jestcli.runs.opened import open_run
from jestcli.runs.workspace import Workspace, is_done, read_done
from jestcli.training.checkpoint import write_json
from jestcli.utils.reading import read_json

SUPER_BATCHES = 16
THIRDS = ("rare", "middle", "frequent")
LONGEST = 4  # words of a class name that are counted


def measure_all(jobs: list[Job], workspace: Workspace, folder: Path) -> list[dict[str, Any]]:
    """Measure every finished learner of `jobs` into `folder`, unless it was; returns all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MEASURED
    known = read_json(path) if path.exists() else {}
    counts: Counter[str] | None = None
    for job in jobs:
        where, key = workspace.folder(job.run), f"{job.name} {job.seed}"
        if not is_done(where) or known.get(key, {}).get("run") == where.name:
            continue
        data = workspace.inputs(job.run)
        counts = counts if counts is not None else phrases(first_captions(data.pool))
        known[key] = {
            "run": where.name,
            "name": job.name,
            "seed": job.seed,
            **choices_of(job, workspace),
            "accuracy": by_frequency(read_done(where)["scores"], data.benchmarks(), counts),
        }
        write_json(path, known)
    return [known[key] for key in sorted(known)]


def choices_of(job: Job, workspace: Workspace) -> dict[str, Any]:
    """Diversity of chosen and random sub-batches; neither where there is no reference to score
    with (plain uniform training: its sub-batches are the random ones)."""
    run = job.run
    if not (run.reference or run.reference_model) or run.source.kind in ("curated", "mixed"):
        return {"chosen": None, "random": None, "near_duplicates": None}
    opened = open_run(workspace.folder(job.run), workspace)
    replays = replay(opened, SUPER_BATCHES)
    pairs = opened.pairs
    return {
        "chosen": diversity(pairs, np.concatenate([r.rows[r.index] for r in replays])),
        "random": diversity(pairs, np.concatenate([r.rows[: len(r.index)] for r in replays])),
        "near_duplicates": list(near_duplicates(replays)),
    }


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
        found = {
            " ".join(words[i : i + n])
            for n in range(1, LONGEST + 1)
            for i in range(len(words) - n + 1)
        }
        counts.update(found)
    return counts


def by_frequency(
    scores: dict[str, dict[str, Any]], benchmarks: list[Benchmark], counts: Counter[str]
) -> dict[str, float]:
    """Accuracy on the rarest, middle and most frequent third of each benchmark's classes, mean
    over the benchmarks that record which items were right; "classes" counts them."""
    found: dict[str, list[float]] = {third: [] for third in THIRDS}
    for benchmark in benchmarks:
        right = hits_of(scores[benchmark.name]) if benchmark.name in scores else None
        labels = benchmark.split().labels if right is not None else None
        if right is None or labels is None:
            continue
        frequency = np.array([counts[name.lower()] for name in benchmark.classes])
        order = np.argsort(frequency, kind="stable")
        for third, classes in zip(THIRDS, np.array_split(order, 3), strict=True):
            among = np.isin(labels.numpy(), classes)
            if among.any():
                found[third].append(float(right[among].mean()))
    return {third: float(np.mean(v)) for third, v in found.items() if v}
