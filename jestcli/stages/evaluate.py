"""Evaluate a finished run's model on every benchmark again, from its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jestcli.config import Run
from jestcli.evaluation.benchmarks import list_benchmarks
from jestcli.evaluation.evaluate import evaluate
from jestcli.stages.learner import THREADS, load_run
from jestcli.stages.workspace import StageError, Workspace
from jestcli.training.loop import set_threads


def read_run(folder: Path) -> tuple[str, Run]:
    """Label and config of a run directory. Raises StageError."""
    try:
        settings = json.loads((folder / "config.json").read_text())
        label = settings.pop("label")
        return label, Run.model_validate(settings)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise StageError(f"{folder} is not a run directory of this version") from None


def evaluate_folder(folder: Path, workspace: Workspace) -> tuple[str, dict[str, dict[str, Any]]]:
    """Label of the run and its scores on all images of every benchmark."""
    label, run = read_run(folder)
    set_threads(THREADS)
    model = load_run(run, Workspace(workspace.data, folder.parent))
    inputs = workspace.inputs(run)
    return label, evaluate(model, inputs.tokenizer, list_benchmarks(inputs.root))


def list_runs(workspace: Workspace) -> list[Path]:
    """Run directories with a trained model, oldest first."""
    found = workspace.runs.glob("*/done.json")
    return [p.parent for p in sorted(found, key=lambda p: p.stat().st_mtime)]


def scores_table(label: str, scores: dict[str, dict[str, Any]]) -> Any:
    """A rich Table of scores in % with the binomial standard error over test images."""
    from rich.table import Table

    title = f"{label}: icons and emoji, not ImageNet; ± is one standard error over images"
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
