"""Locks, workers and half-written files go with the process they belong to, however it ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
from own_shards import make_shards, shard_loader
from tiny import tiny_run

from jestcli import cli
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.runs import methods
from jestcli.runs.workspace import only_writer
from jestcli.training.signals import stop_signals
from jestcli.utils.io import sweep
from jestcli.utils.lock import Held, hold
from jestcli.utils.parallel import unordered

GONE = 4194304 + 1  # no process of Linux has this number


def until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def children() -> list[int]:
    return [
        int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    ]


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    there, go = context.Event(), context.Event()
    with hold(tmp_path):
        child = context.Process(target=lambda: (there.set(), go.wait()), daemon=True)
        child.start()
        assert there.wait(60)
        with pytest.raises(Held), hold(tmp_path):
            pass
    with hold(tmp_path):
        assert child.is_alive()
    go.set()
    child.join()
    assert child.exitcode == 0


def _hold_too(folder: Path, tell: Any) -> None:
    # A shell's background job ignores it, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tell.send("there")
    with hold(folder, wait=True):
        tell.send("held")


def test_who_waits_for_a_folder_gets_it_or_ends_by_a_signal(tmp_path: Path) -> None:
    hear, tell = forked.CONTEXT.Pipe(duplex=False)
    with hold(tmp_path):
        for number in (signal.SIGINT, signal.SIGTERM):
            process = forked.start(_hold_too, tmp_path, tell)
            assert hear.recv() == "there" and not hear.poll(0.2)
            os.kill(process.pid or 0, number)
            process.join(60)
            assert process.exitcode not in (0, None)
        process = forked.start(_hold_too, tmp_path, tell)
        assert hear.recv() == "there" and not hear.poll(0.2)
    assert hear.poll(60) and hear.recv() == "held"
    process.join(60)
    assert process.exitcode == 0


def _read_with_workers(shards: Path, tell: Any) -> None:
    loader = shard_loader(open_shards("pool", (str(shards),), Loading(2), window=2))
    loader(0)
    _tell(tell)


def _map_over_processes(_: Path, tell: Any) -> None:
    for _ in unordered(time.sleep, [0.01, 600, 600], 2):
        _tell(tell)


def _tell(tell: Any) -> None:
    """Names its children, then is killed as the kernel does that is out of memory."""
    tell.send(children())
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
@pytest.mark.parametrize("work", [_read_with_workers, _map_over_processes])
def test_workers_end_with_a_parent_that_is_killed(
    work: Callable[[Path, Any], None], tmp_path: Path
) -> None:
    make_shards(tmp_path / "pool", 2, 12)
    hear, tell = forked.CONTEXT.Pipe(duplex=False)
    process = forked.CONTEXT.Process(target=work, args=(tmp_path / "pool", tell))
    process.start()
    found = hear.recv()
    process.join()
    assert len(found) >= 2 and until(lambda: not any(map(alive, found)))


def _read_on_after_a_stop(shards: Path, tell: Any) -> None:
    before = set(children())
    loader = shard_loader(open_shards("pool", (str(shards),), Loading(2), window=2))
    loader(0)
    workers = set(children()) - before
    for worker in workers:
        os.kill(worker, signal.SIGTERM)  # as `timeout` and Slurm do, with the whole group
    time.sleep(0.2)
    read = [len(loader(step)) for step in range(1, 12)]
    loader.close()
    tell.send((len(workers), read, until(lambda: not any(map(alive, workers)))))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_workers_outlive_a_stop_that_the_whole_group_gets(tmp_path: Path) -> None:
    """The training process reads on with them until it has saved."""
    make_shards(tmp_path / "pool", 2, 12)
    hear, tell = forked.CONTEXT.Pipe(duplex=False)
    process = forked.CONTEXT.Process(target=_read_on_after_a_stop, args=(tmp_path / "pool", tell))
    process.start()
    assert hear.poll(60)
    workers, read, gone = hear.recv()
    assert workers >= 2 and len(read) == 11 and all(read) and gone
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_trainer_ends_with_a_scheduler_that_is_killed(data_root: Path, tmp_path: Path) -> None:
    """It is killed before it can tell its workers; they save and stop."""
    said, errors = tmp_path / "out", tmp_path / "errors"
    run = tiny_run(optim={"steps": 100_000}, evaluation={"points": 1})
    task = {"run": run.model_dump(mode="json"), "label": "uniform"}
    task |= {"data": str(data_root), "runs": str(tmp_path / "runs")}
    start = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from jestcli.paper import forked\n"
        "worker = forked.start(sys.argv[1], (Path(sys.argv[2]), Path(sys.argv[3])), os.environ)\n"
        "print(worker.process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    words = [sys.executable, "-c", start, json.dumps(task), str(said), str(errors)]
    scheduler = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert scheduler.stdout is not None
    trainer = int(scheduler.stdout.readline())
    assert until(lambda: said.exists() and '"done"' in said.read_text()) and alive(trainer)
    scheduler.kill()
    scheduler.wait()
    assert until(lambda: not alive(trainer))
    assert errors.read_text().endswith("of 100000; all is saved\n")
    scheduler.stdout.close()


def test_what_a_killed_write_left_is_swept_by_the_next_writer(tmp_path: Path) -> None:
    run, kept = tmp_path / "run", tmp_path / "run" / "checkpoints"
    kept.mkdir(parents=True)
    left = [
        run / f".checkpoint.safetensors.{GONE}",
        run / f".shards.json.{GONE}-140",
        kept / f".step-00000100.safetensors.{GONE}",
    ]
    stay = [run / "config.json", run / f".done.json.{os.getppid()}", run / ".hidden"]
    for path in (*left, *stay):
        path.write_text("{}")
    with only_writer(run):
        assert not any(path.exists() for path in left) and all(path.exists() for path in stay)


def test_who_does_not_hold_a_folder_spares_what_is_fresh(tmp_path: Path) -> None:
    """A process of another machine may be writing it."""
    old, fresh = tmp_path / f".a.{GONE}", tmp_path / f".b.{GONE}"
    for path in (old, fresh):
        path.write_text("")
    os.utime(old, (0, 0))
    sweep(tmp_path, idle=3600)
    assert not old.exists() and fresh.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_stop_a_command_also_where_a_shell_ignores_one(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of `nohup jest run map &` in a script: SIGINT is ignored when it starts."""
    monkeypatch.setattr(
        methods, "default_run", lambda *_: (os.kill(os.getpid(), number), time.sleep(60))
    )
    monkeypatch.setattr(sys, "argv", ["jest", "config"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "handlers are put back"
        with stop_signals() as stop:
            os.kill(os.getpid(), number)
            assert until(lambda: stop.came)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "jest: interrupted; the same command goes on from there\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    "number, alone", [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_a_signal_to_make_reproduce_stops_what_it_runs(
    number: int, alone: bool, tmp_path: Path
) -> None:
    """The Makefile's own recipe, with a stand-in for `jest` that waits for a signal as it does;
    started as `nohup make reproduce &` in a script: SIGINT is ignored. alone: sent to make's
    process only, not to its group."""
    root, stand_in = Path(__file__).parents[2], tmp_path / "bin" / "jest"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f"#!{sys.executable}\nimport sys, time\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        "from jestcli.training.signals import stop_signals\n"
        "with stop_signals() as stop:\n"
        f"    Path({str(tmp_path / 'waits')!r}).touch()\n"
        # In short waits: a signal just before one is heard after it alone.
        "    if any(time.sleep(0.1) or stop.came for _ in range(600)):\n"
        f"        Path({str(tmp_path / 'saved')!r}).touch()\n"
        "sys.exit(130)\n"
    )
    stand_in.chmod(0o755)
    (tmp_path / ".installed").touch()  # newer than what it depends on
    make = subprocess.Popen(
        ["make", "-C", str(root), "reproduce", f"VENV={tmp_path}"],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert until((tmp_path / "waits").exists)
        (os.kill if alone else os.killpg)(make.pid, number)
        assert make.wait(30) != 0 and (tmp_path / "saved").exists()
        with pytest.raises(ProcessLookupError):
            os.killpg(make.pid, 0)
    finally:
        if make.poll() is None:
            os.killpg(make.pid, signal.SIGKILL)
