"""What a folder of runs holds and nothing needs."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jestcli.runs.listing import MODEL, files_of
from jestcli.utils.lock import Held, held, hold

ABANDONED = 3600.0  # seconds after which a half-written file is nobody's


@dataclass(frozen=True)
class Leftover:
    """Something that nothing needs. paths: of the folder, to be removed."""

    folder: Path
    why: str
    paths: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """What is freed; names of a file that stays free nothing."""
        about = [each for path in self.paths for each in files_of(path)]
        names = Counter(each.st_ino for each in about)
        return sum({x.st_ino: x.st_size for x in about if names[x.st_ino] >= x.st_nlink}.values())


def leftovers(folders: Iterable[Path]) -> list[Leftover]:
    """What may go from these run directories: training checkpoints of finished runs (weights and
    records stay, and the best checkpoint where it is not the last), runs that saved nothing, and
    half-written files."""
    folders = sorted({folder.resolve(): folder for folder in folders}.values())
    busy = {top: held(top) for top in {folder.resolve().parent for folder in folders}}
    found: list[Leftover] = []
    for folder in folders:
        real = folder.resolve()
        if real.name in busy[real.parent] or not _ours(real):
            continue
        done, last = (folder / "done.json").exists(), folder / "checkpoint.safetensors"
        if done and (folder / MODEL).exists():
            best, paths = folder / "best.safetensors", [last, folder / "checkpoints"]
            if best.exists() and last.exists() and best.samefile(last):
                paths.append(best)
            there = tuple(path for path in paths if path.exists())
            found += [Leftover(folder, "checkpoints of a finished run", there)] if there else []
        saved = done or last.exists() or (folder / "checkpoints").exists()
        if not saved and _age(folder) > ABANDONED:
            found.append(Leftover(folder, "a run that saved nothing", (folder,)))
            continue
        half = tuple(p for p in folder.glob(".*.*") if re.search(r"\.\d+(-\d+)?$", p.name))
        if half := tuple(path for path in half if _age(path) > ABANDONED):
            found.append(Leftover(folder, "half-written files", half))
    return found


def remove(left: Leftover) -> bool:
    """Remove it, unless another process holds the folder by now; whether it is gone."""
    try:
        with hold(left.folder):
            for path in left.paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except Held:
        return False
    return True


def _ours(folder: Path) -> bool:
    """Whether a folder was made for a run: nothing else is ever removed."""
    return (folder / ".lock").exists() and re.fullmatch("[0-9a-f]{12}", folder.name) is not None


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime
