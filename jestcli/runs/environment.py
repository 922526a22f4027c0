"""What a result was computed with: versions, hardware and the sources' commit."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from jestcli.training.energy import EnergyMeter


def environment() -> dict[str, Any]:
    """Versions, hardware and git commit, for the record."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    def version_of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    on_gpu, meter = torch.cuda.is_available(), EnergyMeter()
    return {
        "commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "energy_counters": meter.devices,
        "no_energy": meter.why_none(),
        "packages": {
            name: version_of(name)
            for name in ("torch", "open_clip_torch", "clip-benchmark", "webdataset", "numpy")
        },
    } | ({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if on_gpu else {})


def code_version() -> str:
    """12 hex digits of this package's sources, and torch's version."""
    import torch

    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return f"{digest.hexdigest()[:12]}, torch {torch.__version__}"


def git_commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """The commit of the sources in `package`, "+changes" where the work tree differs from it.

    $JEST_COMMIT where that is set: git knows nothing of a copy of the sources. None for a copy
    (or an installed package) inside another repository's work tree: that one's commit would pass
    for this project's.
    """
    if given := os.environ.get("JEST_COMMIT"):
        return given
    try:
        top = Path(_git(package, "rev-parse", "--show-toplevel"))
        if top.resolve() != package.parent.resolve():
            return None
        _git(package, "ls-files", "--error-unmatch", "__init__.py")  # fails where not tracked
        commit = _git(package, "rev-parse", "--short=12", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
