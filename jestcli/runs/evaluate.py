"""Evaluate a finished run's model on every benchmark again, from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jestcli.evaluation.evaluate import evaluate
from jestcli.runs.run_data import data_of
from jestcli.runs.trained import THREADS, load_folder
from jestcli.runs.workspace import Workspace, read_run
from jestcli.training.devices import set_threads


def evaluate_folder(folder: Path, workspace: Workspace) -> tuple[str, dict[str, dict[str, Any]]]:
    """Label of the run and its scores on all images of its part of every benchmark."""
    label, run = read_run(folder)
    set_threads(THREADS)
    inputs = data_of(run, workspace, folder)
    model, part = load_folder(run, folder), run.evaluation.part
    return label, evaluate(model, inputs.tokenizer, inputs.benchmarks(), part=part)


def list_runs(workspace: Workspace) -> list[Path]:
    """Run directories with a trained model, oldest first."""
    found = workspace.runs.glob("*/done.json")
    return [p.parent for p in sorted(found, key=lambda p: p.stat().st_mtime)]


def scores_table(label: str, scores: dict[str, dict[str, Any]], own: bool = False) -> Any:
    """A rich Table of scores in % with the binomial standard error over test images.

    own: the benchmarks are the user's; without any, a line that says so.
    """
    from rich.table import Table

    if not scores:
        return f"{label}: nothing was evaluated, for no benchmarks are named (data.benchmarks)"
    what = "own data" if own else "icons and emoji, not ImageNet"
    title = f"{label}: {what}; ± is one standard error over images"
    table = Table(title=title, title_justify="left")
    table.add_column("benchmark")
    for heading in ("score %", "±", "chance %", "n"):
        table.add_column(heading, justify="right")
    for name, s in scores.items():
        row = (100 * s["score"], 100 * s["stderr"], 100 * s["chance"])
        table.add_row(name, *(f"{x:.2f}" for x in row), f"{s['n']:,}")
    mean = sum(s["score"] for s in scores.values()) / len(scores)
    table.add_row("mean of all", f"{100 * mean:.2f}", "", "", "", end_section=True)
    return table
