"""`jest doctor`: what this machine, its versions and the data will do to a long run."""

from __future__ import annotations

import fcntl
import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jestcli.config import ConfigError, Run
from jestcli.data.remote import ShardError, is_remote
from jestcli.data.sources import Loading, list_shards, not_taken, runs_beside
from jestcli.runs.workspace import Workspace
from jestcli.utils.errors import DataError

PACKAGES = ("torch", "torchvision", "open_clip_torch", "clip-benchmark", "webdataset", "numpy")
LOOKED_AT = 100  # local shards of a source
GOOD, WARNING, BAD = "ok", "warning", "will break"
Seen = tuple[str, str]
"""What a check found: its state and the text."""


@dataclass(frozen=True)
class Finding:
    """state: ok, warning (slower or lost convenience) or "will break" (and how to mend it)."""

    what: str
    state: str
    text: str


def examine(
    run: Run, workspace: Workspace, device: str, wandb: str, verify: bool = False
) -> list[Finding]:
    """Every check, in order. One that fails to run is a finding itself. verify: read again what
    checksums were taken of."""
    checks: dict[str, Callable[[], Seen | None]] = {
        "python": _python,
        "packages": _versions,
        "imports": _imports,
        "repeatable sums": _arithmetic,
        "device": partial(_device, run, device),
        "compiler": partial(_compiler, run),
        "several processes": _ranks,
        "memory": _memory,
        "model": partial(_model, run, device),
        "run directories": partial(_runs, run, workspace),
        "weights": partial(_weights, run),
        "reference": partial(_reference, run, workspace),
        "Weights & Biases": partial(_wandb, wandb),
        "batches": partial(_sizes, run),
        "other code": partial(_beside, run),
    }
    if run.data.own:
        checks["fetched shards"] = partial(_folder, workspace.loading.cache, 4)
        checks["own shards"] = partial(_shards, run, workspace)
        checks["benchmarks"] = partial(_benchmarks, run)
    else:
        checks["data"] = partial(_folder, workspace.data_root(run), 4)
        checks["embedded data"] = partial(_data, run, workspace)
    if verify:
        checks["checksums"] = partial(_verified, run, workspace)
    found = []
    for what, check in checks.items():
        seen: Seen | None
        try:
            seen = check()
        except (ConfigError, DataError) as error:
            seen = BAD, str(error)
        except Exception as error:
            seen = BAD, " ".join(f"{type(error).__name__}: {error}".split())
        if seen is not None:
            found.append(Finding(what, *seen))
    return found


def _python() -> Seen:
    good = sys.version_info >= (3, 10)
    return GOOD if good else BAD, platform.python_version()


def _versions() -> Seen:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return BAD, f"missing: {', '.join(missing)}; run `make install`"
    if tuple(int(x) for x in version("numpy").split(".")[:2]) >= (2, 4):
        return BAD, "numpy 2.4 and later break clip-benchmark's accuracy"
    return GOOD, ", ".join(found)


def _imports() -> Seen:
    for name in ("torchvision", "open_clip", "clip_benchmark.metrics.zeroshot_classification"):
        try:
            importlib.import_module(name)
        except Exception as error:  # torchvision raises RuntimeError for a torch of another build
            text = f"{name} does not import: {' '.join(str(error).split())[:120]}"
            return BAD, f"{text}; install torch and torchvision together"
    return GOOD, "torchvision, open_clip and clip-benchmark import"


def _arithmetic() -> Seen:
    """The same product twice: what bit-identical resume rests on."""
    import torch

    x = torch.randn(257, 129, generator=torch.Generator().manual_seed(0))
    same = torch.equal(x @ x.T, x @ x.T)
    text = "bit for bit" if same else "two equal products differ: resume is not exact"
    return GOOD if same else WARNING, text


def _device(run: Run, device: str) -> Seen:
    import torch

    from jestcli.training.clock import peak_flops
    from jestcli.training.devices import pick_device

    chosen = pick_device(device)
    if chosen.type == "cpu":
        text = f"CPU, {os.cpu_count()} cores, {peak_flops(chosen) / 1e9:.0f} GFLOP/s a thread"
        if run.engine.precision == "bfloat16" or run.engine.compile:
            return WARNING, text + "; bfloat16 and compile do not pay here"
        return GOOD, text
    free, total = torch.cuda.mem_get_info()
    text = f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    if run.engine.precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        return BAD, text + ": no bfloat16; set engine.precision=float32"
    return GOOD, text


def _compiler(run: Run) -> Seen:
    there = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if run.engine.compile and not there:
        return BAD, "engine.compile needs a C compiler: install gcc"
    return GOOD, there or "none, and none is needed without engine.compile"


def _ranks() -> Seen:
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        return BAD, "torch has no gloo: torchrun will not work"
    nccl = "NCCL and gloo" if dist.is_nccl_available() else "gloo"
    return GOOD, nccl


def _available() -> float:
    """GiB of memory that are free on this machine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return kib / 2**20


def _memory() -> Seen:
    gib = _available()
    return GOOD if gib >= 2 else WARNING, f"{gib:.1f} GiB free"


def _model(run: Run, device: str) -> Seen:
    """Whether the towers can be built, and one step of training fits."""
    import torch

    from jestcli.models.flops import training_memory
    from jestcli.runs.trained import on_meta
    from jestcli.training.devices import pick_device

    model = on_meta(run)
    size, ranks = run.data.image_size, int(os.environ.get("WORLD_SIZE", "1"))
    memory = training_memory(model, size, run.data.context_length)
    batch = min(run.engine.micro_batch or run.optim.batch_size, run.optim.batch_size // ranks)
    needs = memory.training(max(1, batch), run.selection.low_res_share) / 2**30
    on_gpu = pick_device(device).type == "cuda"
    there = torch.cuda.mem_get_info()[1] / 2**30 if on_gpu else _available()
    count = sum(p.numel() for p in model.parameters())
    text = f"{count / 1e6:.1f}M parameters; {batch} pairs in training take about {needs:.1f} GiB"
    saves = run.engine.activation_checkpointing or run.engine.shard == "fsdp"
    if needs > there and not saves:
        where = "the GPU has" if on_gpu else "there are"
        return BAD, f"{text}, {where} {there:.1f}: set engine.micro_batch"
    return GOOD, text


def _runs(run: Run, workspace: Workspace) -> Seen:
    """Room for two checkpoints, for the old one goes when the new one is there."""
    from jestcli.runs.trained import on_meta

    numbers = 3 * sum(p.numel() for p in on_meta(run).parameters())  # weights and two moments
    return _folder(workspace.runs, 2, 2 * 4 * numbers / 2**30)


def _weights(run: Run) -> None:
    from jestcli.runs.at_once import check_weights

    check_weights(run)


def _reference(run: Run, workspace: Workspace) -> Seen:
    """Whether the reference is there or can be made."""
    from jestcli.models.words import check_word, weights_file
    from jestcli.runs.workspace import is_done

    if run.reference_model is not None:
        check_word(run.reference_model)
        if not Path(weights_file(run.reference_model)).is_file():
            return WARNING, f"{run.reference_model} is fetched from the hub"
        return GOOD, run.reference_model
    if run.reference is None:
        return GOOD, "none, and none is needed"
    try:
        folder = workspace.folder(run.reference)
    except DataError:  # its shards are not there: another check says which
        return WARNING, "not trained, and its shards are not there"
    text = f"trained, in {folder}" if is_done(folder) else "not trained yet: it is trained first"
    return GOOD, text


def _folder(folder: Path, gib: float, least: float = 0.0) -> Seen:
    """Space (below `least` GiB a run fails), and that files can be locked and renamed there."""
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
        return BAD, f"{text}; cannot write, lock or rename there: {error.strerror}"
    if free < least:
        return BAD, f"{folder}: {free:.3f} GiB free; checkpoints take {least:.3f}"
    if free < gib:
        return WARNING, f"{text}; a run and its data can take {gib:.0f} GiB"
    return GOOD, text


def _data(run: Run, workspace: Workspace) -> Seen:
    from jestcli.evaluation.benchmarks import list_benchmarks

    root = workspace.data_root(run)
    if not (root / "manifest.json").exists():
        return WARNING, "not built yet: the first run builds it"
    return GOOD, f"{len(list_benchmarks(root))} benchmarks in {root}"


def _shards(run: Run, workspace: Workspace) -> Seen:
    """The headers of every source's shards, the reference's too, and the first pair of each: of
    LOOKED_AT local ones, or of one that is fetched. A shell command is not run: the configuration
    may be a stranger's."""
    from jestcli.runs.inputs import splits

    loading = replace(workspace.loading, layout=run.data.layout)
    read = [
        (split, entry)
        for each in (run, run.reference)
        if each is not None
        for split in splits(each)
        for entry in (each.data.train if split == "pool" else each.data.curated)
    ]
    sets: dict[tuple[str, str], list[str]] = {}  # files that a shell wrote out are one set
    for split, entry in dict.fromkeys(read):
        sets.setdefault((split, "" if Path(entry).is_file() else entry), []).append(entry)
    said, state = [], GOOD
    for (split, _), entries in sets.items():
        try:
            shards = [shard for entry in entries for shard in list_shards(entry)]
            if shards[0].startswith("pipe:"):
                said.append(f"{split}: {len(shards):,} shell commands, not tried")
                continue
            text, lost = _look_at(shards, loading)
        except DataError as error:
            raise DataError(f"{split}: {error}") from None
        more = not_taken(entries[0])
        state = WARNING if lost or more else state
        said.append(f"{split}: {len(shards):,} shards, {text}{more}{lost}")
    return state, "; ".join(said)


def _look_at(shards: list[str], loading: Loading) -> tuple[str, str]:
    """What the first of `shards` hold, and what of it cannot be read ("" for nothing). Raises
    DataError where more of them than a run allows have no first pair."""
    from jestcli.data.bad_samples import BadSample
    from jestcli.data.shard_dataset import ShardDataset
    from jestcli.data.tar import read_index

    some = shards[:1] if is_remote(shards[0]) else shards[:LOOKED_AT]
    lost: Counter[str] = Counter()
    where: dict[str, str] = {}
    pairs, size, broken = 0, "", 0
    for shard in some:
        reasons: dict[str, int] = {}
        try:
            index = read_index(shard, loading)
            reasons = index.faults
            if not len(index):
                raise BadSample("no image with a caption (.txt or .json)")
            one = ShardDataset(((shard,),), ((len(index),),), loading)
            image = one.pair(0).image
            one.close()
            pairs += len(index)
            size = size or f"{image.width} x {image.height} px"
        except (ShardError, BadSample) as reason:
            reasons, broken = reasons | {str(reason): 1}, broken + 1
        lost.update(reasons)
        where = {reason: shard for reason in reasons} | where
    words = ", ".join(f"{n:,} x {reason} ({where[reason]})" for reason, n in lost.most_common(6))
    if broken > loading.max_faults * len(some):
        raise DataError(f"{broken:,} of {len(some):,} shards looked at: {words}")
    what = "they hold" if len(some) == len(shards) else f"the first {len(some):,} hold"
    return f"{what} {pairs:,} pairs, {size}", f"; left out: {words}" if words else ""


def _benchmarks(run: Run) -> Seen:
    from jestcli.evaluation.benchmarks import find_benchmarks
    from jestcli.evaluation.folders import check_all

    data = run.data
    if data.benchmarks is None:
        return WARNING, "no data.benchmarks: nothing will be evaluated"
    found = find_benchmarks(Path(data.benchmarks), data.image_size, data.shots)
    checked = check_all(Path(data.benchmarks), data.shots)
    notes = [note for each in checked for note in each.notes]
    names = ", ".join(each.name for each in found)
    return WARNING if notes else GOOD, "; ".join([names, *notes])


def _beside(run: Run) -> Seen:
    found = runs_beside(run)
    if not found:
        return GOOD, "nothing runs but this suite"
    return WARNING, f"{'; '.join(found)}; read it before you train"


def _verified(run: Run, workspace: Workspace) -> Seen:
    from jestcli.runs.verify import verify

    count, wrong = verify(run, workspace)
    text = f"{count:,} files read, as they were written" if not wrong else "; ".join(wrong)
    return BAD if wrong else GOOD, text


def _wandb(mode: str) -> Seen:
    if mode != "online":
        return GOOD, mode
    import netrc

    try:
        known = bool(os.environ.get("WANDB_API_KEY") or netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        known = False
    text = "logged in" if known else "no login: run `wandb login`, or use --wandb offline"
    return GOOD if known else BAD, text


def _sizes(run: Run) -> Seen:
    """Batches over the ranks, as far as torchrun's environment says."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    b, B = run.optim.batch_size, run.super_batch_size
    text = f"b = {b}, B = {B}, {size} process{'es' * (size > 1)}"
    if b % size or B % size:
        return BAD, f"{text}: both must divide by the processes"
    return GOOD, text


def table(found: list[Finding]) -> Any:
    """A rich Table."""
    from rich.table import Table
    from rich.text import Text

    out = Table(title="jest doctor", title_justify="left")
    colours = {GOOD: "green", WARNING: "yellow", BAD: "red"}
    for heading in ("what", "state", "found"):
        out.add_column(heading, overflow="fold")
    for each in found:
        out.add_row(each.what, Text(each.state, colours[each.state]), each.text)
    return out
