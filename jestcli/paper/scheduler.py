"""Run an experiment: its runs as a graph of stages that share work, side by side on the cores.

Each stage is a process of one thread (a run is then bit-identical whatever the number of cores).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from jestcli.config import Run
from jestcli.models.flops import run_cost, step_cost
from jestcli.paper import forked
from jestcli.paper.experiment import Experiment, Job, jobs
from jestcli.paper.plan import counted
from jestcli.paper.records import TYPICAL
from jestcli.runs.reference import reads_pool_cache, scores_by_reference
from jestcli.runs.workspace import StageError, Workspace, is_done
from jestcli.training.checkpoint import CHECKPOINT, step_of
from jestcli.training.trunk import shared_steps, steps_there
from jestcli.utils.errors import DataError
from jestcli.utils.parallel import usable_cores
from jestcli.utils.progress import Row, Rows, parts_of
from jestcli.utils.reading import UNREADABLE, parse_json, read_json
from jestcli.utils.tables import Table

INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM)  # exit codes of a worker that was stopped
FAILURES = 3  # after which it is not a run that is wrong
JOBS = 64  # on a cluster at once, unless told
# For the estimate of time: seconds of a core a run takes beside its steps (opening data,
# evaluations; not the embeddings of the pool that the first run of a reference makes).
BESIDE = 10.0


class Process(Protocol):
    """What is used of a worker: `forked.Forked` here, `slurm.OnCluster` elsewhere."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self) -> Any: ...


# (a task as JSON, where to append progress and errors) -> the worker that does it
Launch = Callable[[str, tuple[Path, Path]], Process]


@dataclass
class Stage:
    """A node of the graph: a run to train, of a reference or of a learner. key: its directory."""

    key: str
    run: Run
    label: str
    work: float  # in FLOPs of training, for the time left: of the steps that remain
    needs: list[str] = field(default_factory=list)
    before: float = 0.0  # share of its steps that were trained before, here or in a shared trunk
    done: float = 0.0  # share of the rest
    tier: int = 0  # stages of a lower one start first
    line: str = ""
    old: dict[Path, int] = field(default_factory=dict)  # bytes of its logs from earlier attempts
    process: Process | None = None

    @property
    def folder(self) -> Path:
        return Path(self.key)

    @property
    def logs(self) -> tuple[Path, Path]:
        """Where its worker's progress and errors go. Appended to: another process may be writing
        the folder, and the worker holds its lock."""
        return self.folder / "progress.jsonl", self.folder / "errors.log"


# --- the graph -----------------------------------------------------------------------------------


def plan(jobs: list[Job], workspace: Workspace) -> list[Stage]:
    """The unfinished stages of these jobs, each once."""
    stages: dict[str, Stage] = {}

    def lift(stage: Stage) -> None:
        """What a stage waits for is worth as much as the stage."""
        for needed in (stages[key] for key in stage.needs if key in stages):
            if needed.tier > stage.tier:
                needed.tier = stage.tier
                lift(needed)

    for job in jobs:
        there = set(stages)
        _add_training(stages, job.run, job.label, workspace)
        for key in stages.keys() - there:
            stages[key].tier = job.tier
    found = list(stages.values())
    _share_trunks(found, workspace)
    for stage in found:
        lift(stage)
    return found


def _share_trunks(stages: list[Stage], workspace: Workspace) -> None:
    """Let lengths of one trunk run one after the other, the shortest first, so that each goes on
    from the one before; and count only the steps that remain of every training."""
    lengths: dict[Path, list[Stage]] = {}
    for stage in stages:
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
    works = {s.key: s.work for s in stages}

    @cache
    def chain(key: str) -> float:
        return works[key] + max((chain(t.key) for t in waiting[key]), default=0.0)

    return {key: chain(key) for key in works}


def _add_training(
    stages: dict[str, Stage], run: Run, label: str, workspace: Workspace
) -> list[str]:
    """Add what is missing for a trained `run`; returns the key to wait for, if any."""
    folder, needs = str(workspace.folder(run)), []
    if is_done(Path(folder)):
        return []
    if folder in stages:
        return [folder]
    if run.reference is not None:
        needs = _add_training(stages, run.reference, f"{label}: reference", workspace)
    live = run.reference if scores_by_reference(run) and not reads_pool_cache(run) else None
    scorer = counted(live).flops if live else None
    work = run_cost(run, run.optim.steps, counted(run).flops, scorer, 0.0, 0).uncached
    stages[folder] = Stage(folder, run, label, work, needs)
    return [folder]


# --- running it ----------------------------------------------------------------------------------


def run_stages(
    stages: list[Stage],
    workspace: Workspace,
    workers: int | None,
    console: Any,
    wandb: str = "off",
    launch: Launch | None = None,
    ended: Callable[[Path], None] = lambda _: None,
) -> None:
    """Run all of them, `workers` at a time (default: one per core, or 64 jobs on a cluster).
    launch: starts a worker elsewhere (paper/slurm.py); default: a process here. ended: told the
    folder of each stage that is done (paper/plot.py). What fails is left out, with all that needs
    it, and said at the end by a StageError; after FAILURES of them, or where a worker was
    interrupted, the others are told to save and stop. Raises KeyboardInterrupt on Ctrl-C after
    everything is saved."""
    waiting, pending = list(stages), {s.key for s in stages}
    running: list[Stage] = []
    failed: list[str] = []
    total, urgent = sum(s.work for s in stages) or 1.0, urgency(stages)
    most = workers or (JOBS if launch else usable_cores())
    said = time.monotonic()
    view = Rows(console)
    overall = view.add("", Row("all stages", total, view.clock(), percent=True))
    # A SIGTERM to `jest` stops its workers as Ctrl-C does: they save.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with view:
        try:
            while waiting or running:
                ready = [s for s in waiting if not pending.intersection(s.needs)]
                # What is worth most first; of that the longest: it must not start last.
                ready.sort(key=lambda s: (s.tier, -urgent[s.key]))
                for stage in ready[: most - len(running)]:
                    waiting.remove(stage)
                    running.append(stage)
                    _start(stage, workspace, wandb, launch or _here)
                    view.add(stage.key, Row(stage.label, 1.0, view.clock(), percent=True))
                    if not console.is_terminal:
                        console.print(f"start {stage.label}, {stage.run.optim.steps:,} steps")
                time.sleep(0.2)
                for stage in list(running):
                    for line in _written(stage, stage.logs[0])[-1:]:
                        _heard(stage, line, view.rows[stage.key], view.clock())
                    code = stage.process.poll() if stage.process else None
                    if code is None:
                        continue
                    running.remove(stage)
                    view.rows.pop(stage.key)
                    console.print(f"{'failed' if code else 'done '} {stage.label}")
                    if code:
                        failed.append(_failure(stage, code))
                        if code in INTERRUPTED or len(failed) >= FAILURES:
                            raise StageError(failed[-1])
                        waiting = _without(waiting, stage.key)
                        continue
                    stage.done = 1.0
                    pending.discard(stage.key)
                    ended(stage.folder)
                spent = sum(s.work * s.done for s in stages)
                overall.move(spent, view.clock())
                overall.left = "" if spent > 0.005 * total else "–"
                if not console.is_terminal and time.monotonic() - said > 60:
                    said = time.monotonic()
                    console.print(f"all stages: {overall.words(said)}")
                    for stage in running:
                        console.print(f"  {stage.line}", highlight=False)
        finally:
            for stop in (lambda p: p.poll() is None and p.terminate(), lambda p: p.wait()):
                for stage in (s for s in running if s.process):
                    stop(stage.process)
            signal.signal(signal.SIGTERM, previous)
    if failed:
        raise StageError("; ".join(failed))


def _without(stages: list[Stage], key: str) -> list[Stage]:
    """Those that need neither that stage nor one that needs it."""
    gone = {key}
    while more := {s.key for s in stages if gone.intersection(s.needs)} - gone:
        gone |= more
    return [stage for stage in stages if stage.key not in gone]


def _start(stage: Stage, workspace: Workspace, wandb: str, launch: Launch) -> None:
    stage.folder.mkdir(parents=True, exist_ok=True)
    stage.old = {path: path.stat().st_size for path in stage.logs if path.exists()}
    task = {
        "run": stage.run.model_dump(mode="json"),
        "label": stage.label,
        "data": str(workspace.data) if workspace.data else None,
        "runs": str(workspace.runs),
        "wandb": wandb,
        "loading": {**asdict(workspace.loading), "cache": str(workspace.loading.cache)},
    }
    stage.process = launch(json.dumps(task), stage.logs)


def _here(task: str, logs: tuple[Path, Path]) -> Process:
    return forked.start(task, logs, {**os.environ, **forked.SETTINGS})


def _written(stage: Stage, log: Path, most: int = 20_000) -> list[str]:
    """The last whole lines of a log, of this attempt."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(stage.old.get(log, 0), log.stat().st_size - most))
        lines = file.read().decode(errors="replace").split("\n")
    return [line for line in lines[:-1] if line.strip()]


def _heard(stage: Stage, line: str, row: Row, now: float) -> None:
    if line.startswith('{"done"'):  # libraries may print, too
        message = json.loads(line)
        share, stage.line = message["done"] / message["total"], message["line"]
        if message["total"] != stage.run.optim.steps:  # not its steps: it embeds the pool first
            row.left = f"reference embeddings {100 * share:.0f} %"
            return
        stage.done = max(0.0, share - stage.before) / max(1e-9, 1 - stage.before)
        if row.percent:  # its first word: now its steps are known, and which it began at
            row.total, row.first, row.percent = message["total"], message["done"], False
        row.move(message["done"], now)
        _, row.score, row.left, _ = parts_of(stage.line)


def _failure(stage: Stage, code: int) -> str:
    if code in INTERRUPTED:
        return f"{stage.label} was interrupted; the same command goes on from there"
    log = stage.logs[1]
    if code == 1 and (why := _written(stage, log)):
        return f"{stage.label} failed: {why[-1].strip()} (see {log})"
    return f"{stage.label} failed (exit {code}): see {log}"


# --- lists ---------------------------------------------------------------------------------------


def cost_table(jobs: list[Job], workspace: Workspace) -> Table:
    """Every run, what it costs, and whether it is done."""
    rows = []
    for job in jobs:
        run, folder, flops = job.run, workspace.folder(job.run), counted(job.run).flops
        one, b, steps = step_cost(run, flops, None).cached, run.optim.batch_size, run.optim.steps
        state = f"{'done' if is_done(folder) else 'started'} {folder.name[:6]}"
        percent = 100 * one / (3 * b * flops.full)
        work = (f"{steps:,}", f"{steps * b:,}", f"{one * steps / 1e12:.1f}", f"{percent:.0f}")
        rows.append((job.name, str(job.seed), *work, state if folder.exists() else "missing"))
    columns = ("run", "seed", "steps", "examples", "TFLOP", "% a step", "state")
    note = "% a step: FLOPs of an iteration, of a uniform one's"
    return Table("What runs, what it costs and what is done", columns, rows, note)


def overview(experiments: list[Experiment], workspace: Workspace) -> Table:
    """All experiments, in order of worth: runs, what is done, what is missing. Work that two share
    is counted in the first of them only; time is estimated (`seconds_per_flop`)."""
    seconds, rows, seen = seconds_per_flop(workspace), [], set()
    for experiment in experiments:
        work = jobs(experiment, {})
        folders = {workspace.folder(job.run) for job in work}
        done = sum(is_done(folder) for folder in folders)
        counts = [str(n) for n in (len(folders), done, len(folders) - done)]
        left = [stage for stage in plan(work, workspace) if stage.key not in seen]
        seen |= {stage.key for stage in left}
        hours = sum(stage.work * seconds + BESIDE for stage in left) / 3600
        rows.append([experiment.name, experiment.title, *counts, f"{hours:.1f}"])
    columns = ("experiment", "what", "runs", "done", "missing", "core-hours left")
    return Table("Experiments, in order of worth", columns, rows)


def seconds_per_flop(workspace: Workspace) -> float:
    """Processor seconds a training FLOP takes: from uniform runs that are finished here, or a
    typical core's where there is none."""
    found = []
    for path in workspace.runs.glob("*/done.json"):
        try:
            done, settings = read_json(path), read_json(path.parent / "config.json")
            last = (path.parent / "metrics.jsonl").read_text().splitlines()[-1]
            if settings["selection"]["sampler"] == "uniform":
                found.append(parse_json(last)["seconds"]["update"] / done["flops"]["cached"])
        except (OSError, DataError, *UNREADABLE, ZeroDivisionError):
            continue  # another version's
    return statistics.median(found) if found else TYPICAL
