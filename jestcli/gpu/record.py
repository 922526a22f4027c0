"""What the parts leave: measurements and run directories in one folder, and an archive of it.

    <state>/measurements/<part>.<name>.json   one measurement, done or failed, with its machine
    <state>/plan.json                         what the experiment parts decided before any score
    <state>/runs/<hash>/                      run directories, as everywhere else

The archive is untrusted like any other file: only regular files with names as above are read.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestcli.training.checkpoint import write_json
from jestcli.utils.errors import DataError

ARCHIVE = "results.tar.gz"
RUN_FILES = ("config.json", "environment.json", "metrics.jsonl", "done.json")
WEIGHTS = ("checkpoint.safetensors", "model.safetensors")
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"
_NAME = re.compile(
    rf"plan\.json|measurements/{_WORD}\.json|runs/[0-9a-f]{{12}}/({'|'.join(RUN_FILES + WEIGHTS)})"
)
LARGEST = 1 << 30  # bytes of one file in an archive


class OutOfTime(Exception):
    """The part's minutes are over; what is finished is saved."""


@dataclass(frozen=True)
class Budget:
    """The minutes of one part. `reserve` seconds of them are for saving."""

    deadline: float  # of time.time(), which child processes share
    reserve: float = 15.0

    @property
    def left(self) -> float:
        """Seconds until saving must begin."""
        return self.deadline - self.reserve - time.time()

    def need(self, seconds: float) -> None:
        """Raises OutOfTime unless so many are left."""
        if self.left < seconds:
            raise OutOfTime(f"{max(self.left, 0):.0f} s are left, {seconds:.0f} s are needed")


class Fatal(Exception):
    """A measurement failed in a way that this process's GPU context may not survive."""


def is_fatal(error: BaseException) -> bool:
    """Whether the GPU context may be lost: a fresh process must go on."""
    text = f"{type(error).__name__} {error}"
    if "OutOfMemoryError" in text or "out of memory" in text:
        return False
    return any(word in text for word in ("CUDA error", "device-side assert", "cuBLAS", "CUDNN_"))


@dataclass(frozen=True)
class Notes:
    """The measurements of one part."""

    folder: Path  # of the state
    part: str

    def path(self, name: str) -> Path:
        return self.folder / "measurements" / f"{self.part}.{name}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """A measurement as recorded, done, failed or begun; None where there is none."""
        try:
            found: dict[str, Any] = json.loads(self.path(name).read_text())
        except (OSError, ValueError):
            return None
        return found

    def write(self, name: str, state: str, **content: Any) -> None:
        """state: begun, done or failed."""
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        about = {"part": self.part, "name": name, "state": state}
        write_json(self.path(name), about | content)

    def settled(self, name: str) -> bool:
        """Whether it is done, or failed so that trying again is no use."""
        found = self.read(name)
        return found is not None and found["state"] in ("done", "failed")

    def attempt(
        self,
        name: str,
        measure: Callable[[], dict[str, Any]],
        machine: dict[str, Any],
        budget: Budget,
        seconds: float = 10.0,
    ) -> None:
        """Measure, unless that is settled; a failure is recorded and the part goes on.

        seconds: what it takes, roughly: with less time left it is not begun. Raises OutOfTime;
        Fatal where the process must be replaced after a failure (which is recorded).
        """
        if self.settled(name):
            return
        budget.need(seconds)
        self.write(name, "begun")
        started = time.perf_counter()
        print(f"{self.part}: {name} ...", flush=True)
        try:
            result = measure()
        except OutOfTime:
            self.path(name).unlink(missing_ok=True)  # the next part begins it again
            raise
        except Exception as error:
            self.fail(name, describe(error), machine=machine)
            if is_fatal(error):
                raise Fatal(name) from error
            return
        spent = round(time.perf_counter() - started, 2)
        self.write(name, "done", seconds=spent, machine=machine, result=result)
        print(f"{self.part}: {name} done in {spent:.1f} s", flush=True)

    def fail(self, name: str, why: str, **content: Any) -> None:
        self.write(name, "failed", error=why, **content)
        print(f"{self.part}: {name} FAILED: {why}", flush=True)

    def begun(self) -> list[str]:
        """Measurements that a process began and did not end."""
        found = sorted((self.folder / "measurements").glob(f"{self.part}.*.json"))
        names = [path.name.removeprefix(f"{self.part}.").removesuffix(".json") for path in found]
        return [name for name in names if (self.read(name) or {}).get("state") == "begun"]


def describe(error: BaseException) -> str:
    """The last line of a traceback, and where in this package it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "jestcli" in frame.filename]
    where = f" (at {Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}{where}"


def read_measurements(folder: Path) -> list[dict[str, Any]]:
    """All recorded measurements of a state folder, in the order of their names."""
    paths = sorted((folder / "measurements").glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


def save_archive(state: Path, out: Path, megabytes: float = 0.0) -> list[str]:
    """Write `out`/results.tar.gz, atomically; returns the weights that were left out.

    Measurements, plan and records of all runs always; weights of unfinished runs, then of finished
    ones, smallest first, while at most `megabytes` of them fit.
    """
    always = [*state.glob("plan.json"), *sorted(state.glob("measurements/*.json"))]
    runs = sorted(path for path in state.glob("runs/*") if path.is_dir())
    always += [run / name for run in runs for name in RUN_FILES if (run / name).is_file()]
    taken, left_out, room = [], [], megabytes * 1e6
    for path in _weights(runs):
        if path.stat().st_size <= room:
            room -= path.stat().st_size
            taken.append(path)
        else:
            left_out.append(str(path.relative_to(state)))
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".{ARCHIVE}.{os.getpid()}"
    with tarfile.open(temporary, "w:gz", compresslevel=6) as tar:
        for path in [*always, *taken]:
            content = path.read_bytes()
            member = tarfile.TarInfo(str(path.relative_to(state)))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    os.replace(temporary, out / ARCHIVE)
    return left_out


def _weights(runs: Iterable[Path]) -> list[Path]:
    """Of each run what it can go on from, or be read from: the unfinished first, then by size."""
    found = []
    for run in runs:
        done = (run / "done.json").exists()
        path = run / WEIGHTS[done]
        if path.is_file():
            found.append((done, path.stat().st_size, path))
    return [path for _, _, path in sorted(found)]


def load_archive(archive: Path, state: Path) -> int:
    """Put an archive's files into `state` where nothing is yet; returns how many.

    Raises DataError for what is no archive of `save_archive`.
    """
    count = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if not member.isfile() or not _NAME.fullmatch(member.name):
                    raise DataError(f"{archive} holds {member.name[:80]!r}: not a part's archive")
                if member.size > LARGEST:
                    raise DataError(f"{archive}: {member.name} is too large")
                target = state / member.name
                file = tar.extractfile(member)
                if target.exists() or file is None:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.{os.getpid()}")
                temporary.write_bytes(file.read())
                os.replace(temporary, target)
                count += 1
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"cannot read the archive {archive}: {error}") from None
    return count
