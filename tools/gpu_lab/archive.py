"""What a call leaves: measurements and run directories in one folder, and an archive of it.

    <state>/measurements/<part>.<name>.json   one measurement, done or failed, with its machine
    <state>/runs/<hash>/                      run directories, as everywhere else

An archive is untrusted like any other file: only regular files with names as above are read.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jestcli.utils.errors import DataError
from jestcli.utils.io import save_bytes, save_text

ARCHIVE = "results.tar.gz"
RECORDS = ("config.json", "environment.json", "metrics.jsonl", "done.json")
WEIGHTS = ("checkpoint.safetensors", "model.safetensors")
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"
_NAME = re.compile(
    rf"measurements/{_WORD}\.json"
    rf"|runs/[0-9a-f]{{12}}/({'|'.join(RECORDS + WEIGHTS)})"
)
LARGEST = 1 << 30  # bytes of one file in an archive


def save_json(path: Path, value: Any) -> None:
    """Write a measurement, or all of them, atomically; the folder is made."""
    save_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_measurements(state: Path) -> list[dict[str, Any]]:
    """All recorded measurements of a state folder, in the order of their names."""
    paths = sorted((state / "measurements").glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


def save_archive(state: Path, out: Path, megabytes: float = 0.0) -> list[str]:
    """Write `out`/results.tar.gz, atomically; returns the weights that were left out.

    Measurements and the records of all runs always; weights of unfinished runs, then of finished
    ones, smallest first, while at most `megabytes` (10^6 bytes) of them fit.
    """
    runs = sorted(path for path in state.glob("runs/*") if path.is_dir())
    taken = sorted(state.glob("measurements/*.json"))
    taken += [run / name for run in runs for name in RECORDS if (run / name).is_file()]
    left_out, room = [], megabytes * 1e6
    for path in _weights(runs):
        if path.stat().st_size <= room:
            room -= path.stat().st_size
            taken.append(path)
        else:
            left_out.append(str(path.relative_to(state)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for path in taken:
            content = path.read_bytes()
            member = tarfile.TarInfo(str(path.relative_to(state)))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    save_bytes(out / ARCHIVE, buffer.getvalue())
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
                    raise DataError(f"{archive} holds {member.name[:80]!r}: not the lab's archive")
                if member.size > LARGEST:
                    raise DataError(f"{archive}: {member.name} is too large")
                target, file = state / member.name, tar.extractfile(member)
                if target.exists() or file is None:
                    continue
                save_bytes(target, file.read())
                count += 1
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"cannot read the archive {archive}: {error}") from None
    return count
