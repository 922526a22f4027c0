"""Measure and run experiments within some minutes; the same call goes on where it stopped.

This process holds the clock. What computes are processes of their own: one a measurement
(measure.py), and `jest run` for an experiment, which saves every run when it is told to stop.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from jestcli.commands.experiments import read_jobs
from jestcli.config import ConfigError, did_you_mean
from jestcli.icons.build import default_root
from jestcli.paper.experiment import Job, read_experiment
from jestcli.runs.methods import FOLDER
from jestcli.runs.workspace import Workspace, is_done
from jestcli.training.energy import EnergyMeter
from jestcli.utils.errors import DataError
from tools.gpu_lab.archive import ARCHIVE, load_archive, read_measurements, save_archive, save_json
from tools.gpu_lab.collect import markdown
from tools.gpu_lab.measure import MEASUREMENTS, is_right
from tools.gpu_lab.pack import prepare

ROOT = Path(__file__).parents[2]  # of the checkout: what `python -m` needs as its folder
PARTS = ("selection", "train")
DONE, LATER = 0, 75
LIMIT = 300.0  # seconds after which a measurement counts as hung
GRACE = 20.0  # seconds before the end at which runs are told to save


class OutOfTime(Exception):
    """The call's minutes are over; what is finished is saved."""


@dataclass(frozen=True)
class Task:
    """What `run` was asked for. See the command's help.

    parts: of PARTS; experiments: YAML files; runs, seeds: as for `jest run`; megabytes: of weights
    in the archive.
    """

    parts: tuple[str, ...]
    experiments: tuple[Path, ...]
    out: Path
    work: Path
    minutes: float
    pack: tuple[Path, ...] = ()
    given: Path | None = None
    workers: int | None = None
    runs: str | None = None
    seeds: str | None = None
    device: str = "cuda"
    tiny: bool = False
    megabytes: float = 15.0

    @property
    def state(self) -> Path:
        return self.work / "state"


def known_experiments() -> dict[str, Path]:
    """The package's experiments and the lab's own, by name."""
    own = (Path(__file__).parent / "experiments").glob("*.yaml")
    return {path.stem: path for path in sorted([*FOLDER.glob("*.yaml"), *own])}


def parse(words: list[str]) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """Parts and experiments among names and YAML files. Raises ConfigError with the nearest."""
    known = known_experiments()
    parts, experiments = [], []
    for word in words:
        if word in PARTS:
            parts.append(word)
        elif word in known:
            experiments.append(known[word])
        elif Path(word).suffix in (".yaml", ".yml") and Path(word).is_file():
            experiments.append(Path(word).resolve())
        else:
            near = did_you_mean(word, [*PARTS, *known])
            raise ConfigError(f"no part or experiment {word!r}{near}")
    return tuple(parts), tuple(experiments)


def run(task: Task, say: Callable[[str], None] = print) -> int:
    """Do all that is asked for (0), or what the minutes allow (75: call again).

    Writes results.tar.gz and summary.md into task.out at the end, whatever that is. Raises
    DataError, ConfigError.
    """
    for file in (task.given, *task.pack):
        if file is not None and not file.is_file():
            raise DataError(f"no file {file}")
    task.state.mkdir(parents=True, exist_ok=True)
    if task.given is not None:
        say(f"{load_archive(task.given, task.state)} files from {task.given}")
    started, code = time.monotonic(), DONE
    deadline = started + 60 * task.minutes - GRACE
    before = signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - started, 1.0))
    try:
        for name in _measurements(task):
            _measure(name, task, deadline, say)
        for path in task.experiments:
            _experiment(path, task)
    except OutOfTime:
        code = LATER
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        left_out = save_archive(task.state, task.out, task.megabytes)
        summary = markdown(read_measurements(task.state))
        (task.out / "summary.md").write_text(summary)
    say(summary)
    if left_out:
        say(f"left out of {task.out / ARCHIVE} for their size: {', '.join(left_out)}")
    say(f"wrote {task.out / ARCHIVE} after {time.monotonic() - started:.0f} s")
    if code == LATER:
        say("the minutes are over, and not all is done: run the same again")
    return code


def _out_of_time(*_: Any) -> NoReturn:
    raise OutOfTime


def _measurements(task: Task) -> list[str]:
    """The kernel's check is always the first: what is measured after it does without a wrong one,
    and no experiment runs with it."""
    chosen = [name for name in MEASUREMENTS if name.partition(".")[0] in task.parts]
    first = bool(chosen) or task.device == "cuda"
    return list(dict.fromkeys(["selection.kernel", *chosen])) if first else []


def _measure(name: str, task: Task, deadline: float, say: Callable[[str], None]) -> None:
    """One measurement, unless it is done or has failed; what hangs or crashes fails alone.

    Raises OutOfTime, also where it would not end in the time left; ConfigError where no call of so
    many minutes would end it.
    """
    path = task.state.resolve() / "measurements" / f"{name}.json"
    if path.exists():
        return
    need = 0.0 if task.tiny else MEASUREMENTS[name][1]
    if need > max(60 * task.minutes - GRACE, 0):
        raise ConfigError(
            f"--minutes {task.minutes:g}: {name} takes up to {need:.0f} s, and saving"
        )
    if deadline - time.monotonic() < need:
        raise OutOfTime
    say(f"{name} ...")
    command = [sys.executable, "-m", "tools.gpu_lab.measure", name, str(path)]
    command += ["--device", task.device, *(["--tiny"] if task.tiny else [])]
    with tempfile.TemporaryFile() as errors:
        with _process(command, cwd=ROOT, stderr=errors) as process:
            try:
                code: int | None = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                code = None
        if code != 0:
            errors.seek(0)
            text = errors.read().decode(errors="replace").strip()
            print(text[-4000:], file=sys.stderr)
            last = (text.splitlines() or [""])[-1][:400]
            why = f"took over {LIMIT:.0f} s" if code is None else f"exit code {code}: {last}"
            _note(path, "failed", error=why)
            say(f"{name} FAILED: {why}")


def _note(path: Path, state: str, **more: Any) -> None:
    part, _, name = path.stem.partition(".")
    today = datetime.now(timezone.utc).date().isoformat()
    save_json(path, {"part": part, "name": name, "state": state, "measured": today} | more)


@contextmanager
def _process(command: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process group that ends with the block, whatever ends that."""
    process = subprocess.Popen(command, start_new_session=True, **more)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _experiment(path: Path, task: Task) -> None:
    """`jest run` on an experiment, all its processes on the one card. Raises OutOfTime, DataError
    when it fails (what is finished stays)."""
    experiment = read_experiment(path)
    work = read_jobs(str(path), [], task.runs, task.seeds)
    runs = task.state.resolve() / "runs"
    if _is_all_done(work, task.state):
        return
    check = task.state / "measurements" / "selection.kernel.json"
    if check.exists() and not is_right(json.loads(check.read_text())):
        raise DataError(
            f"the fused kernel failed its check here ({check}): runs would choose wrongly"
        )
    size = work[0].run.data.image_size
    root = default_root(size).resolve()
    if task.pack:
        root = task.work.resolve() / f"icons-{size}"
        prepare(task.pack, root, size, task.workers)
    _forget_references(work, Workspace(root, runs))
    note = task.state / "measurements" / f"experiment.{experiment.name}.json"
    sittings = json.loads(note.read_text())["sittings"] if note.exists() else []
    command = [sys.executable, "-m", "jestcli", "run", str(path)]
    for option in ("workers", "runs", "seeds"):
        value = getattr(task, option)
        command += [f"--{option}", str(value)] if value is not None else []
    task.out.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"JEST_DATA": str(root), "JEST_RUNS": str(runs), "PYTHONPATH": paths}
    if task.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    started, meter, more = time.monotonic(), EnergyMeter(), {}
    state, error = "interrupted", ""
    try:
        with (
            _shared_card(task.device) as more,
            _process(command, cwd=task.out, env=env | more) as process,
        ):
            code = _wait(process)
        if code != 0:
            state, error = "failed", f"exit code {code}"
        else:
            state = "done"
    finally:
        gpus = {k: v for k, v in (meter.read() or {}).items() if k.startswith("gpu:")}
        spent = {"seconds": time.monotonic() - started, "joules": gpus or None}
        spent |= {"workers": task.workers, "mps": bool(more)}
        _note(note, state, sittings=[*sittings, spent], **({"error": error} if error else {}))
    if error:
        raise DataError(f"{experiment.name} failed ({error}, see above); what is finished is kept")


def _is_all_done(work: list[Job], state: Path) -> bool:
    """Whether an archive (or an earlier call) holds every run: then no data are needed."""
    workspace = Workspace(None, state / "runs")
    return all(is_done(workspace.folder(job.run)) for job in work)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. When the time is over (or on Ctrl-C), tell its runs to save first."""
    try:
        return process.wait()
    except (OutOfTime, KeyboardInterrupt):
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            print("some runs did not save in time: they go on from the checkpoint before")
        raise


def _forget_references(work: list[Job], workspace: Workspace) -> None:
    """Take finished references whose weights did not fit into the archive for not yet trained,
    where an unfinished run reads them."""
    for job in work:
        if job.run.reference is None or is_done(workspace.folder(job.run)):
            continue
        folder = workspace.folder(job.run.reference)
        if is_done(folder) and not (folder / "model.safetensors").exists():
            shutil.rmtree(folder)


@contextmanager
def _shared_card(device: str) -> Iterator[dict[str, str]]:
    """NVIDIA's MPS for the block, as environment variables: kernels of several processes then run
    at the same time, not in turns. Nothing where the machine has none, or does not let it work."""
    control = shutil.which("nvidia-cuda-mps-control") if device == "cuda" else None
    if control is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:  # a short path: it holds sockets
        env = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        try:
            subprocess.run([control, "-d"], env=os.environ | env, check=False)
            probe = [sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"]
            works = subprocess.run(probe, env=os.environ | env, capture_output=True).returncode == 0
            yield env if works else {}
        finally:
            subprocess.run([control], input=b"quit\n", env=os.environ | env, check=False)
