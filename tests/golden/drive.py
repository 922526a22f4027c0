"""How the guard makes a run: the command a user types, in a process of its own.

The one file of the guard that names anything inside the package: a restructuring may edit it, what
lies in the JSON files beside it may not change. It replaces nothing that computes: every step is
logged (a 4-step run would log the first alone).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import torch
import yaml
from safetensors.torch import load_file
from tiny import TINY

METHODS = ("uniform", "jest", "flexi", "mixed", "jest-curated")
REFERENCED = ("jest", "flexi", "jest-curated")
OPTIM = TINY["optim"] | {"weight_decay": 1.0}  # so much that four steps show it
TOWERS: dict[str, dict[str, Any]] = {"vit": {}, "cnn": {"tower": "cnn", "channels": [4, 8]}}
SHARDS = {"train": "pool", "curated": "curated", "window": 2, "benchmarks": "benchmarks"}
# Of a record, what does not say whether two runs are one: what was measured, and a title.
LEFT_OUT = (
    "seconds",
    "speed",
    "joules",
    "wall_seconds_of_last_sitting",
    "waiting_for_data_of_last_sitting",
    "label",
)
Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A run of the guard. world: "icons" (the miniature) or "shards" (a user's own)."""

    world: str
    tower: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.world} {self.tower} {self.method}"

    def settings(self) -> dict[str, Any]:
        """What stands in the file that --config names."""
        given: dict[str, Any] = {**TINY, "optim": OPTIM}
        given["model"] = TINY["model"] | TOWERS[self.tower]
        if self.world == "shards":
            given["data"] = TINY["data"] | SHARDS
        if self.method in REFERENCED:
            given["reference"] = {"optim": OPTIM | {"steps": 2}}
        return given


CASES = [
    Case(world, tower, method)
    for world in ("icons", "shards")
    for tower, methods in (("vit", METHODS), ("cnn", METHODS[:2]))
    for method in methods
]


@dataclass(frozen=True)
class Place:
    """Where the data lie. icons: a data root; shards: pool/, curated/ and benchmarks/."""

    icons: Path
    shards: Path


def run_one(case: Case, place: Place, folder: Path) -> Record:
    """`run_all` of one case."""
    return run_all([case], place, folder)[case.name]


def run_all(cases: list[Case], place: Place, folder: Path, ranks: int = 1) -> dict[str, Record]:
    """Train `cases` one after the other in one process a rank; their runs lie in folder/runs."""
    said = _commands(cases, place, folder, ranks)
    found = [text.partition("\n")[0] for text in said.split("run directory: ")[1:]]
    return {case.name: read_record(Path(run)) for case, run in zip(cases, found, strict=True)}


def kill_one(case: Case, place: Place, folder: Path, number: int) -> None:
    """SIGKILL the command when it is about to replace a checkpoint for the n-th time.

    What is logged is then ahead of the checkpoint; `run_all` in this folder goes on.
    """
    _commands([case], place, folder, 1, number)


def read_record(run: Path) -> Record:
    """What determines whether two runs are one: all records and scores, and the weights.

    A weight's mean and norm can be compared with a tolerance; its sha256 says whether the bits are.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    done = json.loads((run / "done.json").read_text())
    weights = {}
    for name, tensor in load_file(run / "model.safetensors").items():
        bits, values = tensor.contiguous().reshape(-1).view(torch.uint8), tensor.double()
        weights[name] = {
            "shape": list(tensor.shape),
            "mean": float(values.mean()),
            "norm": float(values.norm()),
            "sha256": hashlib.sha256(bits.numpy().tobytes()).hexdigest(),
        }
    return {
        "metrics": [_kept(line) for line in lines],
        "done": _kept(done),
        "weights": weights,
    }


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in LEFT_OUT}


def all_records(place: Place, folder: Path) -> dict[str, dict[str, Record]]:
    """case -> "one rank", "two ranks" and "killed" -> its record."""
    found = {"one rank": run_all(CASES, place, folder / "one")}
    found["two ranks"] = run_all(CASES, place, folder / "two", ranks=2)
    killed = [case for case in CASES if case.tower == "vit" or case.method == "jest"]
    trained = set()
    for case in killed:
        reference = case.method in REFERENCED and (case.world, case.tower) not in trained
        for number in (1, 2) if reference else (1,):  # in the reference, then in the run
            kill_one(case, place, folder / "killed", number)
        if reference:
            trained.add((case.world, case.tower))
    found["killed"] = run_all(killed, place, folder / "killed")
    return {
        case.name: {how: each[case.name] for how, each in found.items() if case.name in each}
        for case in CASES
    }


def digests() -> dict[str, dict[str, str]]:
    """experiment or profile -> "run seed" -> the digest that names its directory."""
    from jestcli.paper.experiment import jobs, profile_jobs, read_experiment
    from jestcli.runs.methods import FOLDER

    work = {path.stem: jobs(read_experiment(path), {}) for path in FOLDER.glob("*.yaml")}
    for path in (FOLDER / "profiles").glob("*.yaml"):
        work[f"profiles/{path.stem}"] = profile_jobs(path.stem, {})
    return {
        name: {f"{job.name} {job.seed}": job.run.digest() for job in each}
        for name, each in sorted(work.items())
    }


def surface() -> dict[str, Any]:
    """Every command with its options, every method, and every setting with its default."""
    import typer
    from pydantic import BaseModel

    from jestcli.cli import app
    from jestcli.config import METHODS, Run
    from jestcli.paper.experiment import Experiment

    def commands(command: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if hasattr(command, "commands"):
            for word, each in command.commands.items():
                yield from commands(each, f"{name} {word}")
        else:
            yield (
                name,
                {
                    " / ".join([*p.opts, *p.secondary_opts]): _plain(p.default)
                    for p in command.params
                },
            )

    def settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from settings(kind, f"{prefix}{name}.")
            else:
                yield prefix + name, _plain(field.default)

    return {
        "commands": dict(commands(typer.main.get_command(app), "jest")),
        "methods": dict.fromkeys(sorted(METHODS), ""),
        "settings": dict(settings(Run, "")),
        "experiment files": dict.fromkeys(sorted(Experiment.model_fields), ""),
    }


def _plain(value: Any) -> Any:
    """A default as JSON holds it."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | None) else str(value)


# --- the process ---------------------------------------------------------------------------------


def _commands(cases: list[Case], place: Place, folder: Path, ranks: int, kill: int = 0) -> str:
    """What rank 0 said. Raises AssertionError unless all ended as they should."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, case in enumerate(cases):
        file = folder / f"{number}.yaml"
        file.write_text(yaml.safe_dump(case.settings()))
        lines.append(
            [
                "train",
                "--method",
                case.method,
                "--config",
                str(file),
                "--device",
                "cpu",
                "--data-workers",
                "0",
                "--cache",
                str(folder / "cache"),
            ]
        )
    ports = [_free_port() for _ in cases]
    started = []
    for rank in range(ranks):
        env = {
            "JEST_DATA": str(place.icons),
            "JEST_RUNS": str(folder / "runs"),
            "COLUMNS": "500",
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",
        }
        if ranks > 1:  # as torchrun starts it
            env |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "GLOO_SOCKET_IFNAME": "lo",
                "TORCHELASTIC_RUN_ID": "golden",
            }
        said = folder / f"rank-{rank}"
        started.append(forked.start(_process, lines, ports, env, place.shards, said, kill))
    try:
        for process in started:
            process.join(300)
        codes = [process.exitcode for process in started]
    finally:
        for process in started:
            process.kill()
    said = (folder / "rank-0").read_text()
    expected = -signal.SIGKILL if kill else 0
    assert codes == [expected] * ranks, f"exit codes {codes}\n{said}"
    return said


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _process(
    lines: list[list[str]], ports: list[int], env: dict[str, str], cwd: Path, said: Path, kill: int
) -> None:
    """Every line of words as a `jest` command; ends with the first exit code that is not 0."""
    import jestcli.train as loop
    from jestcli import cli

    torch.set_num_threads(1)
    os.environ.update(env)
    os.chdir(cwd)  # the shards' paths are relative, so that their runs have one digest anywhere
    loop.LOG_EVERY = 1
    _kill_before_replacing(kill)
    with said.open("w") as sys.stdout:
        sys.stderr = sys.stdout
        for words, port in zip(lines, ports, strict=True):
            sys.argv, os.environ["MASTER_PORT"], code = ["jest", *words], str(port), 0
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
            sys.stdout.flush()
            if code:
                os._exit(code)
        os._exit(0)


def _kill_before_replacing(number: int) -> None:
    """SIGKILL this process when it is about to replace a checkpoint the n-th time (0: never)."""
    replace, seen = os.replace, 0

    def spy(source: Any, target: Any) -> None:
        nonlocal seen
        path = Path(target)
        seen += path.name == "checkpoint.safetensors" and path.exists()
        if number and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = spy
