"""`jest doctor`: what this machine, its versions and the data will do to a long run."""

from __future__ import annotations

import fcntl
import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jestcli.config import Run
from jestcli.stages.workspace import Workspace

PACKAGES = ("torch", "torchvision", "open_clip_torch", "clip-benchmark", "webdataset", "numpy")
GOOD, WARNING, BAD = "ok", "warning", "will break"


@dataclass(frozen=True)
class Finding:
    """state: ok, warning (slower or lost convenience) or "will break" (and how to mend it)."""

    what: str
    state: str
    text: str


def examine(run: Run, workspace: Workspace, device: str, wandb: str) -> list[Finding]:
    """Every check, in order. One that fails to run is a finding itself."""
    checks: list[Callable[[], Finding]] = [
        _python, _versions, _imports, _arithmetic, lambda: _device(run, device),
        lambda: _compiler(run), _ranks, _memory,
        lambda: _folder("run directories", workspace.runs, 2),
        lambda: _folder("data", workspace.data_root(run), 4),
        lambda: _data(run, workspace), lambda: _wandb(wandb), lambda: _sizes(run),
    ]  # fmt: skip
    found = []
    for check in checks:
        try:
            found.append(check())
        except Exception as error:
            name = getattr(check, "__name__", "check").strip("_<>")
            found.append(Finding(name, BAD, " ".join(f"{type(error).__name__}: {error}".split())))
    return found


def _python() -> Finding:
    good = sys.version_info >= (3, 10)
    return Finding("python", GOOD if good else BAD, platform.python_version())


def _versions() -> Finding:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", BAD, f"missing: {', '.join(missing)}; run `make install`")
    if tuple(int(x) for x in version("numpy").split(".")[:2]) >= (2, 4):
        return Finding("packages", BAD, "numpy 2.4 and later break clip-benchmark's accuracy")
    return Finding("packages", GOOD, ", ".join(found))


def _imports() -> Finding:
    for name in ("torchvision", "open_clip", "clip_benchmark.metrics.zeroshot_classification"):
        try:
            importlib.import_module(name)
        except Exception as error:  # torchvision raises RuntimeError for a torch of another build
            text = f"{name} does not import: {' '.join(str(error).split())[:120]}"
            return Finding("imports", BAD, f"{text}; install torch and torchvision together")
    return Finding("imports", GOOD, "torchvision, open_clip and clip-benchmark import")


def _arithmetic() -> Finding:
    """The same product twice: what bit-identical resume rests on."""
    import torch

    x = torch.randn(257, 129, generator=torch.Generator().manual_seed(0))
    same = torch.equal(x @ x.T, x @ x.T)
    text = "bit for bit" if same else "two equal products differ: resume is not exact"
    return Finding("repeatable sums", GOOD if same else WARNING, text)


def _device(run: Run, device: str) -> Finding:
    import torch

    from jestcli.training.clock import peak_flops
    from jestcli.training.devices import pick_device

    chosen = pick_device(device)
    if chosen.type == "cpu":
        text = f"CPU, {os.cpu_count()} cores, {peak_flops(chosen) / 1e9:.0f} GFLOP/s a thread"
        if run.engine.precision == "bfloat16" or run.engine.compile:
            return Finding("device", WARNING, text + "; bfloat16 and compile do not pay here")
        return Finding("device", GOOD, text)
    free, total = torch.cuda.mem_get_info()
    text = f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    if run.engine.precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        return Finding("device", BAD, text + ": no bfloat16; set engine.precision=float32")
    return Finding("device", GOOD, text)


def _compiler(run: Run) -> Finding:
    there = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if run.engine.compile and not there:
        return Finding("compiler", BAD, "engine.compile needs a C compiler: install gcc")
    return Finding("compiler", GOOD, there or "none, and none is needed without engine.compile")


def _ranks() -> Finding:
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        return Finding("several processes", BAD, "torch has no gloo: torchrun will not work")
    nccl = "NCCL and gloo" if dist.is_nccl_available() else "gloo"
    return Finding("several processes", GOOD, nccl)


def _memory() -> Finding:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    gib = kib / 2**20
    return Finding("memory", GOOD if gib >= 2 else WARNING, f"{gib:.1f} GiB free")


def _folder(what: str, folder: Path, gib: float) -> Finding:
    """Space, and that files can be locked, synced and renamed there."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free / 2**30
    text = f"{folder}: {free:.0f} GiB free"
    try:
        with tempfile.TemporaryDirectory(dir=there) as name:
            path = Path(name) / "probe"
            with path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fsync(file.fileno())
            os.replace(path, path.with_name("renamed"))
    except OSError as error:
        return Finding(what, BAD, f"{text}; cannot write, lock or rename there: {error.strerror}")
    if free < gib:
        return Finding(what, WARNING, f"{text}; a run and its data can take {gib:.0f} GiB")
    return Finding(what, GOOD, text)


def _data(run: Run, workspace: Workspace) -> Finding:
    from jestcli.evaluation.benchmarks import list_benchmarks

    root = workspace.data_root(run)
    if not (root / "manifest.json").exists():
        return Finding("embedded data", WARNING, "not built yet: the first run builds it")
    return Finding("embedded data", GOOD, f"{len(list_benchmarks(root))} benchmarks in {root}")


def _wandb(mode: str) -> Finding:
    if mode != "online":
        return Finding("Weights & Biases", GOOD, mode)
    import netrc

    try:
        known = bool(os.environ.get("WANDB_API_KEY") or netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        known = False
    text = "logged in" if known else "no login: run `wandb login`, or use --wandb offline"
    return Finding("Weights & Biases", GOOD if known else BAD, text)


def _sizes(run: Run) -> Finding:
    """Batches over the ranks, as far as torchrun's environment says."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    b, B = run.optim.batch_size, run.super_batch_size
    text = f"b = {b}, B = {B}, {size} process{'es' * (size > 1)}"
    if b % size or B % size:
        return Finding("batches", BAD, f"{text}: both must divide by the processes")
    return Finding("batches", GOOD, text)


def table(found: list[Finding]) -> Any:
    """A rich Table."""
    from rich.table import Table

    out = Table(title="jest doctor", title_justify="left")
    colours = {GOOD: "green", WARNING: "yellow", BAD: "red"}
    for heading in ("what", "state", "found"):
        out.add_column(heading, overflow="fold")
    for each in found:
        out.add_row(each.what, f"[{colours[each.state]}]{each.state}[/]", each.text)
    return out
