"""`jest gpu pack | run | collect`: measure on one GPU in parts of a few minutes.

The parent of the process that measures. It holds the clock: a process that hangs, crashes or may
have lost its GPU context is replaced, what it had begun is noted as failed, and the rest goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestcli.config import ConfigError, did_you_mean
from jestcli.gpu import figures
from jestcli.gpu.child import AGAIN, DONE, LATER
from jestcli.gpu.record import ARCHIVE, Notes, load_archive, read_measurements, save_archive
from jestcli.training.checkpoint import write_json
from jestcli.utils.errors import DataError

PARTS = ("selection", "train", "data", "figure1", "figure3")
NEED_SOURCES = ("data", "figure1", "figure3")
LIMIT = 300.0  # seconds after which a measurement that is not a run counts as hung
TRIES = 8
GRACE = 6.0  # seconds between being told to stop and being stopped


@dataclass(frozen=True)
class Task:
    """What `jest gpu run` was asked for. See the command's help."""

    parts: tuple[str, ...]
    sources: Path | None
    given: Path | None
    out: Path
    work: Path
    minutes: float
    seed_minutes: float | None = None
    tiny: bool = False
    device: str = "cuda"
    workers: int | None = None
    megabytes: float = 15.0


def parts_of(words: str) -> tuple[str, ...]:
    """`all`, or names with commas between. Raises ConfigError."""
    if words == "all":
        return PARTS
    for word in words.split(","):
        if word not in PARTS:
            raise ConfigError(f"no part {word!r}{did_you_mean(word, [*PARTS, 'all'])}")
    return tuple(words.split(","))


def run(task: Task, say: Callable[[str], None] = print) -> int:
    """Measure until all is done (0) or the minutes are over (75: call again).

    Writes results.tar.gz into task.out whenever a process ends, and at the end. Raises DataError,
    ConfigError.
    """
    started = time.time()
    if set(task.parts) & set(NEED_SOURCES) and (task.sources is None or not task.sources.exists()):
        raise ConfigError("--sources: these parts need the file that `jest gpu pack` writes")
    state = task.work / "state"
    state.mkdir(parents=True, exist_ok=True)
    if task.given is not None:
        if not task.given.exists():
            raise DataError(f"no archive {task.given}")
        say(f"{load_archive(task.given, state)} files from {task.given}")
    deadline = started + 60 * task.minutes
    seconds_a_seed = 60 * (task.seed_minutes or max(task.minutes - 2, task.minutes / 2))
    code = AGAIN
    for _ in range(TRIES):
        process = _start(task, state, deadline, seconds_a_seed)
        try:
            code = _watch(process, task, state, deadline, say)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code in (DONE, LATER) or time.time() > deadline - GRACE:
            break
        _note_begun(task, state, f"the process ended with code {code}")
        save_archive(state, task.out)
    _note_begun(task, state, "it was stopped")
    left_out = save_archive(state, task.out, task.megabytes)
    (task.out / "summary.txt").write_text(summary(state))
    say(summary(state))
    if left_out:
        say(f"left out of {task.out / ARCHIVE} for their size: {', '.join(left_out)}")
    say(f"wrote {task.out / ARCHIVE} after {time.time() - started:.0f} s"
        + ("" if code == DONE else "; not all is done: run the same again"))  # fmt: skip
    return DONE if code == DONE else LATER


def _start(
    task: Task, state: Path, deadline: float, seconds_a_seed: float
) -> subprocess.Popen[str]:
    content = {
        "parts": task.parts, "state": str(state), "work": str(task.work),
        "sources": str(task.sources) if task.sources else None, "deadline": deadline,
        "seconds_a_seed": seconds_a_seed, "tiny": task.tiny, "device": task.device,
        "workers": task.workers,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "jestcli.gpu.child"], stdin=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(content))
    process.stdin.close()
    return process


def _watch(
    process: subprocess.Popen[str],
    task: Task,
    state: Path,
    deadline: float,
    say: Callable[[str], None],
) -> int:
    """The process's exit code; LATER if it was stopped for the time, AGAIN if it hung."""
    told = False
    while (code := process.poll()) is None:
        now = time.time()
        if now > deadline - GRACE and not told:
            say("the minutes are over: told to stop")
            process.terminate()
            told = True
        if now > deadline:
            return LATER
        hung = _hung(task, state, now)
        if hung:
            say(f"{hung} hangs: stopped, a fresh process goes on")
            return AGAIN
        time.sleep(0.2)
    return LATER if told and code else code


def _hung(task: Task, state: Path, now: float) -> str | None:
    for part in task.parts:
        notes = Notes(state, part)
        for name in notes.begun():
            found = notes.read(name) or {}
            limited = "limit" not in found
            if limited and now - notes.path(name).stat().st_mtime > LIMIT:
                return f"{part}: {name}"
    return None


def _note_begun(task: Task, state: Path, why: str) -> None:
    """What was begun and not ended: a measurement failed, a run goes on from its checkpoint."""
    for part in task.parts:
        notes = Notes(state, part)
        for name in notes.begun():
            found = notes.read(name) or {}
            crashes = found.get("crashes", 0) + 1
            if "limit" in found and crashes < 3:
                again = {k: v for k, v in found.items() if k not in ("part", "name", "state")}
                notes.write(name, "interrupted", **(again | {"crashes": crashes}))
            else:
                notes.fail(name, why)


def collect(archives: list[Path], out: Path, console: Any) -> list[Path]:
    """Merge the archives and write measurements, tables, records and figures into `out`.

    Later archives win where two hold the same. Raises DataError.
    """
    from jestcli.paper.curves import draw_benchmarks, draw_learnability
    from jestcli.paper.figure1 import draw_figure1
    from jestcli.paper.grid import draw_grid
    from jestcli.paper.plot import DATA, RECORDS
    from jestcli.paper.records import collect as record_of
    from jestcli.paper.records import load_records, save_records
    from jestcli.paper.table import HEADLINE, build, render, write

    written: list[Path] = []
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        for archive in reversed(archives):  # what is there already stays
            load_archive(archive, state)
        found = read_measurements(state)
        if not found:
            raise DataError("these archives hold no measurement")
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "measurements.json", found)
        (out / "summary.md").write_text(markdown(found))
        written += [out / "measurements.json", out / "summary.md"]
        if (state / figures.PLAN).exists():
            write_json(out / figures.PLAN, json.loads((state / figures.PLAN).read_text()))
        for part in ("figure1", "figure3"):
            done = [
                each for each in found
                if each["part"] == part and each["name"].startswith("run.")
                and each["state"] == "done"
            ]  # fmt: skip
            records = []
            for each in done:
                word, seed = each["name"].removeprefix("run.").rsplit(".", 1)
                run_name = word.replace("_at_", "@")
                records.append(record_of(state / "runs" / each["folder"], run_name, int(seed)))
            if not records:
                continue
            tiny = done[0]["machine"]["tiny"]
            hardware = done[0]["machine"].get("gpu") or done[0]["machine"].get("cpu")
            profile = f"gpu: {32 if tiny else 64} px, {hardware}"
            folder, experiment = out / part, figures.read(part, tiny)
            save_records(folder / RECORDS, records, f"{DATA}, a selection", profile)
            header, records = load_records(folder / RECORDS)
            names = HEADLINE if part == "figure1" else tuple(experiment.runs)
            report = build(header, records, names, with_paper=part == "figure1")
            render(console, report)
            written += [folder / RECORDS, *write(report, folder / "table")]
            if part == "figure1":
                written += draw_figure1(header, records, folder / "figure1", None)
                written += draw_benchmarks(header, records, folder / "benchmarks")
                written += draw_learnability(header, records, folder / "learnability")
            else:
                panels = experiment.figure.panels
                written += draw_grid(
                    experiment.title, panels, header, records, folder / part, list(names)
                )
    return written


def markdown(found: list[dict[str, Any]]) -> str:
    """All measurements for people: what was measured, on what, and what failed."""
    lines = ["# Measured on one GPU", ""]
    machines = {json.dumps(each["machine"], sort_keys=True) for each in found if "machine" in each}
    for text in sorted(machines):
        about = json.loads(text)
        packages = about.get("packages", {})
        lines.append(
            f"- {about.get('gpu') or about.get('cpu')}; torch {packages.get('torch')}, Python "
            f"{about.get('python')}, commit {about.get('commit')}"
            + (" (a trial at a tiny size: no results)" if about.get("tiny") else "")
        )
    lines += ["", "| part | measurement | state | seconds |", "|---|---|---|---|"]
    for each in found:
        spent = each.get("seconds") or sum(s["seconds"] for s in each.get("sittings", []))
        state = each["state"] + (f": {each['error']}" if each.get("error") else "")
        lines.append(f"| {each['part']} | {each['name']} | {state} | {spent:.1f} |")
    for each in found:
        if "result" in each:
            lines += ["", f"## {each['part']}: {each['name']}", "", *_table(each["result"])]
    return "\n".join(lines) + "\n"


def _table(result: dict[str, Any]) -> list[str]:
    rows = result.get("rows")
    if isinstance(rows, list) and rows:
        keys = [key for key in rows[0] if not isinstance(rows[0][key], list | dict)]
        table = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
        table += ["| " + " | ".join(_cell(row.get(key)) for key in keys) + " |" for row in rows]
        rest = {key: value for key, value in result.items() if key != "rows"}
        return [*table, "", *_table(rest)]
    lines = ["| | |", "|---|---|"]
    return lines + [f"| {key} | {_cell(value)} |" for key, value in result.items()]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(each)}" for key, each in value.items())
    return str(value)


def summary(state: Path) -> str:
    """A few lines a person reads first: what is done, what failed, and the main numbers."""
    lines = []
    for found in read_measurements(state):
        line = f"{found['part']:10} {found['name']:22} {found['state']:12}"
        result = found.get("result", {})
        numbers = [f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, float)]
        numbers += [
            f"{row['name']}: {row['seconds']:.4f} s, MFU {100 * row['mfu']:.1f} %, "
            f"over counted {row['over_counted']:.2f}"
            for row in result.get("rows", []) if isinstance(row, dict) and "mfu" in row
        ]  # fmt: skip
        lines.append(line + (found.get("error") or "; ".join(numbers)))
    return "\n".join(lines) + "\n"
