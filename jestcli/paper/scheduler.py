"""Run an experiment: its runs as a graph of stages that share work, side by side on the cores.

Each stage is a process of one thread (a run is then bit-identical whatever the number of cores).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from jestcli.config import Run
from jestcli.models.flexi import Resolution
from jestcli.models.flops import ForwardFlops, run_cost, step_cost
from jestcli.paper.experiment import Experiment, Job, jobs
from jestcli.paper.slurm import OnCluster
from jestcli.paper.worker import STARTED_BY
from jestcli.runs.reference import (
    cached,
    reads_pool_cache,
    reference_view,
    scores_by_reference,
)
from jestcli.runs.trained import learner_flops, on_meta
from jestcli.runs.workspace import StageError, Workspace, is_done
from jestcli.training.checkpoint import CHECKPOINT, step_of
from jestcli.training.trunk import shared_steps, steps_there
from jestcli.utils.errors import DataError
from jestcli.utils.parallel import usable_cores
from jestcli.utils.reading import UNREADABLE, parse_json, read_json

JOBS = 64  # on a cluster at once, unless told
Launch = Callable[[dict[str, Any], Path], OnCluster]
# For the estimate of time only:
POOL_SIZE, CURATED_SIZE = 350_000, 10_500
TYPICAL = 3.2e-11  # seconds a training FLOP of one core: 31 GFLOP/s
BESIDE = 35.0  # seconds of a core a run takes beside its steps: imports, benchmarks, evaluations


@dataclass
class Stage:
    """A node of the graph. kind: "train" or "cache" (a reference's embeddings of the pool)."""

    key: str
    kind: str
    run: Run
    label: str
    work: float  # in FLOPs of training, for the time left: of the steps that remain
    needs: list[str] = field(default_factory=list)
    view: Resolution | None = (
        None  # cache: how the reference sees the pool; None is full resolution
    )
    split: str = "pool"  # cache: or "curated"
    before: float = 0.0  # share of its steps that were trained before, here or in a shared trunk
    done: float = 0.0  # share of the rest
    tier: int = 0  # stages of a lower one start first
    line: str = ""
    errors_before: int = 0  # bytes of errors.log that earlier attempts wrote
    process: subprocess.Popen[str] | OnCluster | None = None

    @property
    def folder(self) -> Path:
        return Path(self.key).parent if self.kind == "cache" else Path(self.key)


def plan(jobs: list[Job], workspace: Workspace) -> list[Stage]:
    """The unfinished stages of these jobs, each once."""
    stages: dict[str, Stage] = {}
    caches: dict[str, bool] = {}
    for job in jobs:
        there = set(stages)
        _add_training(stages, caches, job.run, job.label, workspace)
        for key in stages.keys() - there:
            stages[key].tier = job.tier
    _share_trunks(list(stages.values()), workspace)
    for stage in list(stages.values()):
        _lift(stage, stages)
    return list(stages.values())


def _lift(stage: Stage, stages: dict[str, Stage]) -> None:
    """What a stage waits for is worth as much as the stage."""
    for needed in (stages[key] for key in stage.needs if key in stages):
        if needed.tier > stage.tier:
            needed.tier = stage.tier
            _lift(needed, stages)


def _share_trunks(stages: list[Stage], workspace: Workspace) -> None:
    """Let lengths of one trunk run one after the other, the shortest first, so that each goes on
    from the one before; and count only the steps that remain of every training."""
    lengths: dict[Path, list[Stage]] = {}
    for stage in (s for s in stages if s.kind == "train"):
        trunk, start = workspace.trunk(stage.run), step_of(stage.folder / CHECKPOINT)
        if trunk is not None and not start:
            start = max(steps_there(trunk, shared_steps(stage.run)), default=0)
        stage.before = min(1.0, start / stage.run.optim.steps)
        if trunk is not None:
            lengths.setdefault(trunk, []).append(stage)
    for each in lengths.values():
        each.sort(key=lambda s: s.run.optim.trunk_steps)
        for shorter, longer in pairwise(each):
            left_at = shorter.run.optim.trunk_steps
            if left_at <= shared_steps(longer.run):
                longer.needs.append(shorter.key)
                longer.before = max(longer.before, left_at / longer.run.optim.steps)
    for stage in stages:
        stage.work *= 1 - stage.before


def urgency(stages: list[Stage]) -> dict[str, float]:
    """Work of the longest chain of stages from each on: what cannot be done side by side."""
    waiting = {s.key: [t for t in stages if s.key in t.needs] for s in stages}
    found: dict[str, float] = {}

    def chain(stage: Stage) -> float:
        if stage.key not in found:
            found[stage.key] = stage.work + max(map(chain, waiting[stage.key]), default=0.0)
        return found[stage.key]

    for stage in stages:
        chain(stage)
    return found


def _add_training(
    stages: dict[str, Stage], caches: dict[str, bool], run: Run, label: str, workspace: Workspace
) -> list[str]:
    """Add what is missing for a trained `run`; returns the key to wait for, if any.

    caches: of those references that are trained, whether the pool's embeddings are there.
    """
    folder = workspace.folder(run)
    if is_done(folder):
        return []
    if str(folder) in stages:
        return [str(folder)]
    needs: list[str] = []
    flops = _flops(run)
    if run.reference is not None:
        before = _add_training(stages, caches, run.reference, f"{label}: reference", workspace)
        view = reference_view(run)
        needs += before
        splits = {"pool": POOL_SIZE} if reads_pool_cache(run) and not run.data.own else {}
        if splits and run.source.curated_in_pool:
            splits["curated"] = CURATED_SIZE
        for split, size in splits.items():
            key = f"{workspace.folder(run.reference)}/cache"
            key += f"-{view.patch}-{view.side}-{view.keep:g}" if view else ""
            key += f"-{split}" if split != "pool" else ""
            if not before and key not in caches:
                caches[key] = cached(run.reference, workspace, view, split)
            if caches.get(key):
                continue
            one = _flops(run.reference).full
            stages.setdefault(
                key,
                Stage(
                    key,
                    "cache",
                    run.reference,
                    "reference embeddings",
                    size * one,
                    before,
                    view,
                    split,
                ),
            )
            needs.append(key)
    live = scores_by_reference(run) and not reads_pool_cache(run)
    scorer = _flops(run.reference) if live and run.reference else None
    work = run_cost(run, run.optim.steps, flops, scorer, 0.0, 0).uncached
    stages[str(folder)] = Stage(str(folder), "train", run, label, work, needs)
    return [str(folder)]


def _flops(run: Run) -> ForwardFlops:
    """Counted once for all runs of the same towers."""
    selection = run.selection
    flexible = selection.low_res_share > 0 or selection.low_res_scoring
    low = selection.model_dump_json(include={"approximation", "keep_tokens"}) if flexible else ""
    data = run.data.model_dump_json(include={"image_size", "context_length"})
    key = (run.model.model_dump_json(), data, low)
    if key not in _COUNTED:
        _COUNTED[key] = learner_flops(run, on_meta(run))
    return _COUNTED[key]


_COUNTED: dict[tuple[str, str, str], ForwardFlops] = {}


def run_stages(
    stages: list[Stage],
    workspace: Workspace,
    workers: int | None,
    console: Any,
    wandb: str = "off",
    launch: Launch | None = None,
    device: str = "auto",
    keep_last: int = 1,
) -> None:
    """Run all of them, `workers` at a time (default: one per core, or 64 jobs on a cluster).

    launch: starts a stage elsewhere (see stages/slurm.py); default: a process here.
    Raises StageError if one fails (the others are told to save and stop), KeyboardInterrupt on
    Ctrl-C after everything is saved.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    waiting: list[Stage] = list(stages)
    running: list[Stage] = []
    total, urgent = sum(s.work for s in stages) or 1.0, urgency(stages)
    pending = {s.key for s in stages}
    most = workers or (JOBS if launch else usable_cores())
    started = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>5.1f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )
    overall = bar.add_task("all stages", total=total, note="")
    shown: dict[str, Any] = {}
    last_line = 0.0
    # A SIGTERM to `jest` stops its workers as Ctrl-C does: they save.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with bar:
        try:
            while waiting or running:
                ready = [s for s in waiting if not pending.intersection(s.needs)]
                # What is worth most first; of that the longest: it must not start last.
                for stage in sorted(ready, key=lambda s: (s.tier, -urgent[s.key])):
                    if len(running) < most:
                        waiting.remove(stage)
                        running.append(stage)
                        _start(stage, workspace, wandb, launch, device, keep_last)
                        shown[stage.key] = bar.add_task(stage.label, total=1.0, note="")
                        if not console.is_terminal:
                            console.print(f"start {stage.label}")
                time.sleep(0.2)
                for stage in list(running):
                    if isinstance(stage.process, OnCluster):
                        _heard(stage, stage.process.line())
                    note = stage.line.rpartition(" · ")[2]
                    bar.update(shown[stage.key], completed=stage.done, note=note)
                    code = stage.process.poll() if stage.process else None
                    if code is None:
                        continue
                    if code != 0:
                        raise StageError(_failure(stage, code))
                    running.remove(stage)
                    stage.done = 1.0
                    pending.discard(stage.key)
                    bar.remove_task(shown[stage.key])
                    console.print(f"done  {stage.label}")
                spent = sum(s.work * s.done for s in stages)
                elapsed = time.monotonic() - started
                left = elapsed * (total / spent - 1) if spent else 0.0
                note = f"about {left / 60:.0f} min left" if spent > 0.005 * total else ""
                bar.update(overall, completed=spent, note=note)
                if not console.is_terminal and time.monotonic() - last_line > 60:
                    last_line = time.monotonic()
                    console.print(f"{100 * spent / total:.0f} % of training, {note}")
                    for stage in running:
                        console.print(f"  {stage.line}", highlight=False)
        finally:
            _stop(running)
            signal.signal(signal.SIGTERM, previous)


def _start(
    stage: Stage,
    workspace: Workspace,
    wandb: str,
    launch: Launch | None = None,
    device: str = "auto",
    keep_last: int = 1,
) -> None:
    task = {
        "kind": stage.kind,
        "run": stage.run.model_dump(mode="json"),
        "label": stage.label,
        "data": str(workspace.data) if workspace.data else None,
        "runs": str(workspace.runs),
        "wandb": wandb,
        "view": asdict(stage.view) if stage.view else None,
        "split": stage.split,
        "device": device,
        "keep_last": keep_last,
        "loading": {**asdict(workspace.loading), "cache": str(workspace.loading.cache)},
    }
    if launch is not None:
        stage.process = launch(task, stage.folder)
        return
    quiet = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    quiet |= {STARTED_BY: str(os.getpid())}
    stage.process = process = subprocess.Popen(
        [sys.executable, "-m", "jestcli.paper.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=_error_log(stage),
        text=True,
        env={**os.environ, **quiet},
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(task))
    process.stdin.close()
    threading.Thread(target=_follow, args=(stage, process.stdout), daemon=True).start()


def _error_log(stage: Stage) -> IO[str]:
    """Appended to: another process may be writing the folder, and the worker holds its lock."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    log = stage.folder / "errors.log"
    stage.errors_before = log.stat().st_size if log.exists() else 0
    return log.open("a")


def _follow(stage: Stage, output: IO[str]) -> None:
    for line in output:
        _heard(stage, line)


def _heard(stage: Stage, line: str) -> None:
    if line.startswith('{"done"'):  # libraries may print, too
        message = json.loads(line)
        share = message["done"] / message["total"]
        stage.done = max(0.0, share - stage.before) / max(1e-9, 1 - stage.before)
        stage.line = message["line"]


def _failure(stage: Stage, code: int) -> str:
    assert stage.process is not None
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        return f"{stage.label} was interrupted; the same command goes on from there"
    log = stage.folder / "errors.log"
    text = log.read_bytes()[stage.errors_before :] if log.exists() else b""
    lines = text.decode(errors="replace").split("\n")
    why = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if code != 1 or not why:
        return f"{stage.label} failed (exit {code}): see {log}"
    return f"{stage.label} failed: {why} (see {log})"


def _stop(running: list[Stage]) -> None:
    for stage in running:
        if stage.process and stage.process.poll() is None:
            stage.process.terminate()
    for stage in running:
        if stage.process:
            stage.process.wait()


def cost_table(jobs: list[Job], workspace: Workspace) -> Any:
    """A rich Table: every run, what it costs by convention, and whether it is done."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "What runs, what it costs and what is done"
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    columns = ("run", "seed", "steps", "examples", "TFLOP", "% a step", "state")
    for heading in columns:
        words = heading in ("run", "state")
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    for job in jobs:
        run, folder = job.run, workspace.folder(job.run)
        flops = _flops(run)
        one = step_cost(run, flops, None).cached
        uniform = 3 * run.optim.batch_size * flops.full
        state = "missing"
        if folder.exists():
            state = f"{'done' if is_done(folder) else 'started'} {folder.name[:6]}"
        table.add_row(
            job.name,
            str(job.seed),
            f"{run.optim.steps:,}",
            f"{run.optim.steps * run.optim.batch_size:,}",
            f"{one * run.optim.steps / 1e12:.1f}",
            f"{100 * one / uniform:.0f}",
            state,
        )
    table.caption = "% a step: FLOPs of an iteration, of a uniform one's"
    return table


def overview(experiments: list[Experiment], workspace: Workspace) -> Any:
    """A rich Table of all experiments, in order of worth: runs, what is done, what is missing.

    Work that two experiments share is counted in the first of them only. Time is estimated from
    the finished runs' processor seconds, or from a typical core's where there is none.
    """
    from rich.table import Table

    seconds = seconds_per_flop(workspace)
    table = Table(title="Experiments, in order of worth", title_justify="left")
    for heading in ("experiment", "what", "runs", "done", "missing", "core-hours left"):
        table.add_column(heading, justify="left" if heading in ("experiment", "what") else "right")
    counted: set[str] = set()
    for experiment in experiments:
        work = jobs(experiment, {})
        folders = {workspace.folder(job.run) for job in work}
        done = sum(is_done(folder) for folder in folders)
        left = [stage for stage in plan(work, workspace) if stage.key not in counted]
        counted |= {stage.key for stage in left}
        hours = sum(stage.work * seconds + BESIDE for stage in left) / 3600
        table.add_row(
            experiment.name,
            experiment.title,
            str(len(folders)),
            str(done),
            str(len(folders) - done),
            f"{hours:.1f}",
        )
    return table


def seconds_per_flop(workspace: Workspace) -> float:
    """Processor seconds a training FLOP takes, from uniform runs that are finished here."""
    found = []
    for path in workspace.runs.glob("*/done.json"):
        try:
            done = read_json(path)
            lines = (path.parent / "metrics.jsonl").read_text().splitlines()
            settings = read_json(path.parent / "config.json")
            if settings["selection"]["sampler"] == "uniform":
                spent = parse_json(lines[-1])["seconds"]["update"]
                found.append(spent / done["flops"]["cached"])
        except (OSError, DataError, *UNREADABLE, ZeroDivisionError):
            continue  # another version's
    return statistics.median(found) if found else TYPICAL
