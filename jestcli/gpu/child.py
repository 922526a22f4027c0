"""The process that measures: a JSON task on standard input; ends with one of the codes below.

It is replaced by a fresh one when a measurement may have cost it its GPU context. The parent is
stages/gpu.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jestcli.gpu.record import Budget, Notes

# Workers that draw start by importing this module again: torch comes in inside functions.
DONE, FAILED, AGAIN, LATER = 0, 1, 3, 75


def main() -> int:
    from jestcli.gpu.record import Budget, Fatal, OutOfTime

    task: dict[str, Any] = json.load(sys.stdin)
    budget = Budget(task["deadline"])
    signal.signal(signal.SIGTERM, _out_of_time)  # outside of training loops, which save and stop
    try:
        for part in task["parts"]:
            _part(part, task, budget)
    except OutOfTime as stop:
        print(f"out of time: {stop}", flush=True)
        return LATER
    except Fatal as problem:
        print(f"a fresh process goes on after {problem}", flush=True)
        return AGAIN
    return DONE


def _out_of_time(*_: Any) -> NoReturn:
    from jestcli.gpu.record import OutOfTime

    raise OutOfTime("the minutes are over")


def _part(part: str, task: dict[str, Any], budget: Budget) -> None:
    import torch

    from jestcli.gpu.record import Notes
    from jestcli.runs.workspace import environment

    state, tiny = Path(task["state"]), bool(task["tiny"])
    device, notes = torch.device(task["device"]), Notes(Path(task["state"]), part)
    machine = environment() | {"device": str(device), "tiny": tiny}
    if part == "selection":
        from jestcli.gpu import selecting

        selecting.measure(notes, device, tiny, machine, budget)
    elif part == "train":
        from jestcli.gpu import training
        from jestcli.gpu.selecting import check_kernel

        check_kernel(notes, device, tiny, machine, budget)
        training.measure(notes, device, tiny, machine, budget)
    else:
        _on_data(part, notes, state, task, machine, budget, device, tiny)


def _on_data(
    part: str,
    notes: Notes,
    state: Path,
    task: dict[str, Any],
    machine: dict[str, Any],
    budget: Budget,
    device: Any,
    tiny: bool,
) -> None:
    from jestcli.gpu import figures
    from jestcli.gpu.pool import PackedWorkspace, prepare
    from jestcli.gpu.record import Fatal, Notes, OutOfTime, describe
    from jestcli.gpu.selecting import check_kernel

    run = figures.smallest_run(tiny)
    budget.need(0 if tiny else 60)
    try:
        prepared = prepare(Path(task["sources"]), Path(task["work"]), run, task["workers"])
    except OutOfTime:
        raise
    except Exception as error:
        notes.fail("data", describe(error), machine=machine)
        return
    Notes(state, "data").write("data", "done", machine=machine, result=prepared.about)
    if part == "data":
        return
    check_kernel(notes, device, tiny, machine, budget)
    workspace = PackedWorkspace(None, state / "runs", prepared=prepared, device=device)
    try:
        figures.measure(notes, workspace, tiny, machine, budget, task["seconds_a_seed"])
    except OutOfTime:
        raise
    except Exception as error:
        again = notes.read("experiment") is None
        notes.fail("experiment", describe(error), machine=machine)
        if again:  # once, in a fresh process
            raise Fatal(part) from error


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(main())
