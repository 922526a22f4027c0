"""Parts `figure1` and `figure3`: an experiment on the resident pool, within the minutes there are.

Before any score is seen every method's step is timed on this machine, and all steps but the
references' are scaled by one factor so that one seed fits the seconds it is given. That plan is
kept: later calls and later seeds train the same numbers of steps.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jestcli.config import Run, make_run, merge, read_yaml
from jestcli.data.loader import Candidates, StoreDrawing
from jestcli.gpu.energy import Meter
from jestcli.gpu.pool import PackedWorkspace
from jestcli.gpu.record import Budget, Notes, OutOfTime, describe, is_fatal
from jestcli.models.flops import run_cost, step_cost
from jestcli.paper.experiment import FOLDER, Experiment, Job, jobs, read_experiment
from jestcli.runs import drawn_from, learner, trained
from jestcli.runs.workspace import is_done, read_done
from jestcli.selection import PairEmbeddings
from jestcli.training.checkpoint import write_json
from jestcli.training.distributed import World
from jestcli.training.engine import make_trainee
from jestcli.training.loop import Interrupted, evaluation_steps
from jestcli.training.optimiser import make_optimiser
from jestcli.training.step import choose, update

PLAN = "plan.json"
TIMED_STEPS = 5
# Of the seconds that a seed is given: the rest is for evaluation, the references' embeddings and
# what the timing did not see.
SHARE = 0.80
LONGEST = 8.0  # the factor's bound: more would be another experiment
TINY: dict[str, Any] = {
    "data": {"image_size": 32, "vocab_size": 600, "context_length": 8, "curated_size": None},
    "model": {
        "embed_dim": 8, "width": 16, "layers": 1, "head_width": 8, "patch_sizes": [8, 16],
        "text_width": 16, "text_layers": 1,
    },
    "optim": {"batch_size": 8, "warmup": 2},
    "selection": {"n_chunks": 4},
    "evaluation": {"points": 2, "max_images": 8},
    "engine": {"precision": "float32", "scoring_batch": 8},
}  # fmt: skip


def read(part: str, tiny: bool) -> Experiment:
    """The part's experiment on its scale profile; tiny: its shape at a size for a CPU test."""
    experiment = read_experiment(FOLDER / "gpu" / f"{part}.yaml")
    profile = read_yaml(FOLDER / "profiles" / "gpu.yaml")
    profile = {key: profile[key] for key in ("data", "model")}
    if not tiny:
        return experiment.model_copy(update={"base": merge(profile, experiment.base)})
    small = {
        name: merge(_tiny(name, settings), {"optim": {"lr": 5e-4}})  # no learner is the same run
        for name, settings in experiment.references.items()
    }
    runs = {name: _tiny(name, settings) for name, settings in experiment.runs.items()}
    base = merge(merge(profile, experiment.base), TINY)
    return experiment.model_copy(
        update={"base": base, "references": small, "runs": runs, "seeds": experiment.seeds[:1]}
    )


def _tiny(name: str, settings: Any) -> dict[str, Any]:
    """The same run with few of the steps, on whole curated sets in small batches."""
    steps = settings.get("optim", {}).get("steps")
    small = merge(settings, {"optim": {"batch_size": 8}, "data": {"curated_size": None}})
    return (
        merge(small, {"optim": {"steps": max(2, steps // 200) + name.endswith("++")}})
        if steps
        else small
    )


def smallest_run(tiny: bool) -> Run:
    """A run that reads the data as all runs of the parts do."""
    return make_run({k: v for k, v in read("figure1", tiny).base.items() if k in ("data", "model")})


def scaled(work: list[Job], factor: float) -> list[Job]:
    """All learners' steps times `factor`; references keep theirs."""
    out = []
    for job in work:
        run = job.run
        if not job.name.startswith("reference"):
            steps = max(2, round(run.optim.steps * factor))
            run = run.model_copy(update={"optim": run.optim.model_copy(update={"steps": steps})})
        out.append(replace(job, run=run))
    return out


def measure(
    notes: Notes,
    workspace: PackedWorkspace,
    tiny: bool,
    machine: dict[str, Any],
    budget: Budget,
    seconds_a_seed: float,
) -> None:
    """Plan, unless that was done, then train what is missing. Raises OutOfTime."""
    experiment = read(notes.part, tiny)
    plan = _plan(notes, experiment, workspace, machine, budget, seconds_a_seed)
    for seed in experiment.seeds:
        work = scaled(jobs(experiment, {}, None, [seed]), plan["factor"])
        order = ["reference", "reference++", *experiment.runs]
        work.sort(key=lambda job: order.index(job.name) if job.name in order else 0)
        for job in work:
            _train(notes, job, workspace, machine, budget, plan)
    _say_epochs(notes, experiment, workspace, plan, machine)


def _plan(
    notes: Notes,
    experiment: Experiment,
    workspace: PackedWorkspace,
    machine: dict[str, Any],
    budget: Budget,
    seconds_a_seed: float,
) -> dict[str, Any]:
    path = notes.folder / PLAN
    plans: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if notes.part in plans:
        found: dict[str, Any] = plans[notes.part]
        return found
    work = jobs(experiment, {}, None, experiment.seeds[:1])
    seconds: dict[str, float] = {}
    for job in work:
        budget.need(5)
        try:
            seconds[job.name] = step_seconds(job.run, workspace)
        except Exception as error:  # the others are planned without it
            notes.fail(f"step.{_word(job.name)}", describe(error), machine=machine)
            if is_fatal(error):
                raise
        _forget(workspace.device)
    timed = [job for job in work if job.name in seconds]
    once = sum(
        job.run.optim.steps * seconds[job.name] for job in timed
        if job.name.startswith("reference")
    )  # fmt: skip
    one = sum(
        job.run.optim.steps * seconds[job.name] for job in timed
        if not job.name.startswith("reference")
    )  # fmt: skip
    given = min(seconds_a_seed, budget.left)
    factor = max(0.01, min(LONGEST, (SHARE * given - once) / max(one, 1e-9)))
    plan = {
        "factor": float(f"{factor:.3g}"),
        "step_seconds": seconds,
        "seconds_a_seed": given,
        "decided": "from step times alone, before anything was trained or scored",
    }
    write_json(path, plans | {notes.part: plan})
    print(f"{notes.part}: steps x {plan['factor']}; seconds a step: {seconds}", flush=True)
    return plan


def step_seconds(run: Run, workspace: PackedWorkspace, steps: int = TIMED_STEPS) -> float:
    """Median wall seconds of a step of `run`, from drawing to the weights' change.

    The model is as initialised and the reference's embeddings are random.
    """
    world, inputs = World(device=workspace.device), workspace.embedded(run)
    model = trained.new_learner(run)
    trainee = make_trainee(model, run, world)
    optimiser = make_optimiser(model, run.optim)
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(
            torch.randn(run.super_batch_size, run.model.embed_dim, generator=generator)
        ).to(workspace.device)
        for _ in range(2)
    )

    def reference(candidates: Candidates) -> PairEmbeddings:
        return PairEmbeddings(image, text, 10.0, -10.0)

    drawing = StoreDrawing(*drawn_from.sources(run, inputs, None), run.seed)
    uniform = run.selection.sampler == "uniform"
    times = []
    for step in range(steps + 2):
        _wait(workspace.device)
        started = time.perf_counter()
        candidates = drawing(step)
        choice = choose(model, None if uniform else reference, candidates, run, step, world=world)
        update(trainee, optimiser, candidates, choice.index, run, step, world)
        _wait(workspace.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def _train(
    notes: Notes,
    job: Job,
    workspace: PackedWorkspace,
    machine: dict[str, Any],
    budget: Budget,
    plan: dict[str, Any],
) -> None:
    """One run, to its end or to the end of the time; its record stays in its own folder."""
    folder, name = workspace.folder(job.run), f"run.{_word(job.name)}.{job.seed}"
    if is_done(folder) and not _is_needed_again(job, folder, plan, notes, workspace):
        if (notes.read(name) or {}).get("state") != "done":  # stopped just before it was noted
            notes.write(name, "done", machine=machine, sittings=[], folder=folder.name,
                        epochs=epochs(job.run, workspace))  # fmt: skip
        return
    if (notes.read(name) or {}).get("state") == "failed":
        return
    expected = plan["step_seconds"].get(job.name, 0.1) * job.run.optim.steps
    started_before = (folder / "checkpoint.safetensors").exists()
    if budget.left < 20 or (budget.left < expected and not started_before and _others(notes)):
        raise OutOfTime(f"{job.label} takes about {expected:.0f} s, {budget.left:.0f} s are left")
    print(f"{notes.part}: {job.label}, {job.run.optim.steps:,} steps, about {expected:.0f} s",
          flush=True)  # fmt: skip
    sittings = (notes.read(name) or {}).get("sittings", [])
    notes.write(name, "begun", sittings=sittings, limit=None)
    meter, started = Meter(workspace.device), time.perf_counter()

    def report(done: int, total: int, line: str) -> None:
        if budget.left <= 0:
            signal.raise_signal(signal.SIGTERM)  # the loop saves and stops; see `child`

    try:
        learner.train(job.run, workspace, job.label, report, world=World(device=workspace.device))
        state, error = "done", None
    except (Interrupted, OutOfTime) as stop:
        state, error = "interrupted", str(stop)
    except Exception as problem:
        notes.fail(name, describe(problem), machine=machine, sittings=sittings)
        if is_fatal(problem):
            raise
        return
    finally:
        _forget(workspace.device)
    sittings = [*sittings, {"seconds": time.perf_counter() - started, **meter.spent()}]
    notes.write(name, state, machine=machine, sittings=sittings, folder=folder.name,
                epochs=epochs(job.run, workspace))  # fmt: skip
    if state == "interrupted":
        raise OutOfTime(str(error))
    done = read_done(folder)
    print(f"{notes.part}: {job.label} done in {sittings[-1]['seconds']:.0f} s, "
          f"mean score {100 * done['mean']:.2f} %", flush=True)  # fmt: skip


def _others(notes: Notes) -> bool:
    """Whether any run of this part has been finished: then this one may wait for the next call."""
    found = (notes.folder / "measurements").glob(f"{notes.part}.run.*.json")
    return any(json.loads(path.read_text())["state"] == "done" for path in found)


def _is_needed_again(
    job: Job, folder: Path, plan: dict[str, Any], notes: Notes, workspace: PackedWorkspace
) -> bool:
    """Whether this is a reference that only its record is left of, and runs still need its weights.

    Weights are too large for an archive of some megabytes; a reference is trained again in seconds.
    """
    if not job.name.startswith("reference") or (folder / trained.MODEL).exists():
        return False
    work = scaled(jobs(read(notes.part, _is_tiny(job.run)), {}, None, [job.seed]), plan["factor"])
    readers = [
        other for other in work
        if other.run.reference is not None and workspace.folder(other.run.reference) == folder
    ]  # fmt: skip
    if all(is_done(workspace.folder(other.run)) for other in readers):
        return False
    shutil.rmtree(folder)
    print(f"{notes.part}: {job.label} again: its weights were not in the archive", flush=True)
    return True


def _is_tiny(run: Run) -> bool:
    return run.data.image_size == TINY["data"]["image_size"]


def epochs(run: Run, workspace: PackedWorkspace) -> dict[str, Any]:
    """How often what the run draws from was scored and trained on."""
    inputs = workspace.embedded(run)
    parts, _ = drawn_from.sources(run, inputs, None)
    n, steps = sum(len(part) for part in parts), run.optim.steps
    return {
        "pairs": n,
        "scored_epochs": round(steps * run.super_batch_size / n, 3),
        "trained_epochs": round(steps * run.optim.batch_size / n, 3),
    }


def _say_epochs(
    notes: Notes,
    experiment: Experiment,
    workspace: PackedWorkspace,
    plan: dict[str, Any],
    machine: dict[str, Any],
) -> None:
    """A table of what repetition there is, counted and FLOPs beside it."""
    rows = {}
    for job in scaled(jobs(experiment, {}, None, experiment.seeds[:1]), plan["factor"]):
        flops = trained.learner_flops(job.run, trained.new_learner(job.run))
        rows[job.name] = {
            **epochs(job.run, workspace),
            "steps": job.run.optim.steps,
            "batch_size": job.run.optim.batch_size,
            "super_batch_size": job.run.super_batch_size,
            "tflop_cached": run_cost(job.run, job.run.optim.steps, flops, None, 0, 0).cached / 1e12,
            "tflop_a_step": step_cost(job.run, flops, None).cached / 1e12,
            "step_seconds": plan["step_seconds"].get(job.name),
            "evaluations": len(evaluation_steps(job.run)),
        }
    notes.write("epochs", "done", machine=machine, result=rows)
    for name, row in rows.items():
        print(f"{notes.part}: {name}: {row['steps']:,} steps; of {row['pairs']:,} pairs it scores "
              f"{row['scored_epochs']:.1f} and trains {row['trained_epochs']:.1f} epochs",
              flush=True)  # fmt: skip


def _word(name: str) -> str:
    """A run's name as part of a file's."""
    return name.replace("@", "_at_")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
