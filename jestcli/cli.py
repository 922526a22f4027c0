"""The `jest` command: its groups, and errors as one line each."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from jestcli.commands import bench, data, experiments, models, training

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Reproduce JEST (joint example selection, arXiv 2406.17711),
and use it on your own data.

jest reproduce: the headline figure on the embedded data, start to end
jest train --method jest: one model; makes its data and reference if missing

Without other settings everything runs on the embedded data: icons and emoji
from registry packages, not photographs. Runs lie in ./runs (or $JEST_RUNS),
data in ./.data (or $JEST_DATA). A finished stage is not run again, and an
interrupted one goes on where it stopped.
""",
)
for commands in (training, experiments, models):
    app.add_typer(commands.app)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def main(commands: typer.Typer = app) -> None:
    """Entry point: errors become one line; 2 for a wrong argument, 1 for what failed."""
    command = typer.main.get_command(commands)
    try:
        code = command.main(standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from there", 130)
    except Exception as error:
        _fail(*_explain(error))
    if code == 130:  # how typer passes Ctrl-C on
        _fail("interrupted; the same command goes on from there", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code; an error that nobody foresaw keeps its traceback."""
    name = type(error).__name__
    if hasattr(error, "format_message"):  # typer's own: unknown option, missing value, …
        return _with_near_word(error), getattr(error, "exit_code", 2)
    if name in ("Exit", "Abort"):
        return "", getattr(error, "exit_code", 1)
    if name == "ConfigError":
        return str(error), 2
    if name in ("DataError", "StageError", "CheckpointError", "TrainingError", "RanksError"):
        return str(error), 1
    if name == "Interrupted":
        return str(error), 130
    raise error


def _with_near_word(error: Any) -> str:
    """Typer's message in one line; an unknown command gets the nearest one."""
    import difflib

    message = " ".join(error.format_message().split())
    if "No such command 'gpu'" in message:
        return f"{message} It is `python -m tools.gpu_lab` in a checkout: docs/gpu.md."
    group, word = getattr(error, "ctx", None), message.partition("No such command '")[2]
    if word and group and "Did you mean" not in message:
        known = list(getattr(group.command, "commands", {}))
        close = difflib.get_close_matches(word.partition("'")[0], known, 1, 0.4)
        message += f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(known)}."
    return message


def _fail(message: str, code: int) -> None:
    if message:
        print(f"jest: {message}", file=sys.stderr)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a rank: the others may never answer a farewell
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
