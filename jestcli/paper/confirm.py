"""The headline on a benchmark that nobody has looked at (docs/protocol.md: confirmation).

Every setting was chosen on a part of the eight benchmarks. The withheld one is scored once, when
the headline stands, for the runs behind it; what it says is written as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jestcli.evaluation.benchmarks import list_benchmarks
from jestcli.evaluation.evaluate import evaluate
from jestcli.paper.map import at_quality, named
from jestcli.paper.methods import MARK, style
from jestcli.paper.records import Record
from jestcli.paper.saving import Ratio, cells, savings
from jestcli.runs.run_data import data_of
from jestcli.runs.trained import THREADS, load_folder
from jestcli.runs.workspace import StageError, Workspace, read_run
from jestcli.training.devices import set_threads
from jestcli.utils.io import save_text
from jestcli.utils.reading import read_json
from jestcli.utils.tables import Table

QUALITY = 0.8
METHODS = ("jest", "jest-90", "filtered", "filtered-20", "curated", "uniform")
FILE = "confirmation.json"


def confirm(records: list[Record], workspace: Workspace, folder: Path) -> list[Path]:
    """Score the runs of METHODS at QUALITY on the withheld benchmarks, all images; write
    confirmation.json and .md into `folder`. Runs scored before are not scored again. Raises
    StageError where the data have no withheld benchmark, or no run is here."""
    names = tuple(named(m, QUALITY) + MARK for m in METHODS)
    asked = [r for r in records if r["name"].startswith(names)]
    path = folder / FILE
    known = read_json(path) if path.exists() else {}
    set_threads(THREADS)
    for digest in (record["digest"] for record in asked):
        run_folder = workspace.runs / digest
        if digest in known or not run_folder.exists():
            continue
        _, run = read_run(run_folder)
        withheld = list_benchmarks(workspace.data_root(run), confirmation=True)
        if not withheld:
            root = workspace.data_root(run)
            raise StageError(f"no withheld benchmark in {root}: build the data again")
        model, tokenizer = load_folder(run, run_folder), data_of(run, workspace).tokenizer
        known[digest] = evaluate(model, tokenizer, withheld)
    if not known:
        raise StageError("no run of the headline is here to score")
    save_text(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
    page = path.with_suffix(".md")
    save_text(page, "\n".join(said(records, known)) + "\n")
    return [path, page]


def said(records: list[Record], known: dict[str, Any]) -> list[str]:
    """The page: every cell's score there, and each saving of JEST beside the eight benchmarks'."""
    withheld = at_quality([_there(r, known[r["digest"]]) for r in records if r["digest"] in known])
    benchmarks = next(iter(known.values()))
    what = ", ".join(f"{name} ({row['n']:,} images)" for name, row in sorted(benchmarks.items()))
    chance = sum(row["chance"] for row in benchmarks.values()) / len(benchmarks)
    scores = [
        [style(m).label, f"{c.examples / 1000:,.0f}k", str(len(c.scores)), f"{100 * c.mean:.2f}"]
        for m in METHODS
        for c in cells(withheld, named(m, QUALITY))
    ]
    both = []
    for method in ("jest", "jest-90"):
        names = named(method, QUALITY), named("uniform", QUALITY)
        here, there = (
            {s.cell.examples: s.ratio() for s in savings(each, *names)}
            for each in (withheld, at_quality(records))
        )
        for examples in sorted(here.keys() & there.keys()):
            a, b = here[examples], there[examples]
            cell = f"{style(method).label}, {examples / 1000:,.0f}k examples"
            both.append([cell, str(a), str(b), "yes" if overlap(a, b) else "no"])
    saved = ("JEST's saving in examples over uniform", "withheld", "the eight", "overlap")
    return [
        "# Confirmation: the withheld benchmark",
        "",
        f"{what}: another vendor's emoji, in no training set, used for no choice; chance "
        f"{100 * chance:.2f} %. {100 * QUALITY:g} % wrong captions.",
        "",
        Table("", ("method", "examples", "seeds", "withheld %"), scores).markdown(),
        "",
        Table("", saved, both).markdown(),
    ]


def overlap(a: Ratio, b: Ratio) -> bool:
    """Whether two intervals have a point in common. False without intervals."""
    return a.low <= b.high and b.low <= a.high


def _there(record: Record, scores: dict[str, Any]) -> Record:
    """The record with the withheld benchmarks' mean for its own."""
    mean = sum(row["score"] for row in scores.values()) / len(scores)
    return {**record, "final": {**record["final"], "mean": mean}}
