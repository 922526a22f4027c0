"""One stage in a process of its own: a JSON task on standard input, progress lines on output.

The scheduler (paper/scheduler.py) starts these; a signal saves and ends one with 128 + signal.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from jestcli.utils.errors import explain
from jestcli.utils.plain import one_line
from jestcli.utils.quiet import quiet_libraries


def main() -> int:
    quiet_libraries()  # a log holds what the run says
    task = json.load(sys.stdin)
    from pydantic import TypeAdapter

    from jestcli.config import Run
    from jestcli.data.sources import Loading
    from jestcli.runs.workspace import Workspace
    from jestcli.train import train
    from jestcli.training.devices import pick_device
    from jestcli.training.distributed import DistEnv
    from jestcli.utils.progress import JsonLines

    run, progress = Run.model_validate(task["run"]), JsonLines().show
    loading = TypeAdapter(Loading).validate_python(task.get("loading", {}))
    data = Path(task["data"]) if task["data"] else None
    workspace, what = Workspace(data, Path(task["runs"]), loading), task["label"]
    try:
        world = DistEnv(device=pick_device("auto"))
        train(run, workspace, what, progress, task.get("wandb", "off"), world)
    except Exception as error:
        said = explain(error)
        if said is None:
            traceback.print_exc()  # its last line says what happened
        else:
            print(one_line(said[0]), file=sys.stderr)
        return 130 if said and said[1] == 130 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
