"""The `jest` command: its groups, and errors as one line each."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from jestcli import __version__
from jestcli.commands import bench, data, experiments, forecast, models, runs, training
from jestcli.training.signals import handling
from jestcli.utils.errors import explain
from jestcli.utils.extras import how_to_install
from jestcli.utils.plain import one_line
from jestcli.utils.quiet import quiet_libraries

DEBUG = "--debug"
UNFORESEEN = 70  # EX_SOFTWARE of sysexits.h

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Reproduce JEST (joint example selection, arXiv 2406.17711),
and use it on your own data.

jest reproduce: the headline figure on the embedded data, start to end
jest train --method jest: one model; makes its data and reference if missing
jest forecast: in minutes, would it pay on your own shards, and which recipe

Without other settings everything runs on the embedded data: icons and emoji
from registry packages, not photographs. Runs lie in ./runs (or $JEST_RUNS),
data in ./.data (or $JEST_DATA). A finished stage is not run again, and an
interrupted one goes on where it stopped.
""",
)
for commands in (training, forecast, experiments, models, runs):
    app.add_typer(commands.app)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"jest {__version__}")
        raise typer.Exit


@app.callback()
def everywhere(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show the traceback of an error (after a command, too).")
    ] = False,
) -> None:
    """Options that stand before a command; `main` reads --debug itself."""


def main(commands: typer.Typer = app) -> None:
    """Entry point: an error becomes one line. Exit codes: 2 for a wrong argument, 1 for what
    failed, 70 for what nobody foresaw (its trace is kept in a file), 130 after Ctrl-C or
    SIGTERM."""
    command = typer.main.get_command(commands)
    _unwrap(command)
    quiet_libraries()
    words = [word for word in sys.argv[1:] if word != DEBUG]
    debug = len(words) < len(sys.argv) - 1
    words = _spread(words)
    rank = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun's SIGTERM ends it at once
    try:
        with nullcontext() if rank else handling(signal.default_int_handler):
            code = command.main(words, standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        _fail(*_explain(error))
    if code == 130:  # how typer passes Ctrl-C on
        _fail("interrupted; the same command goes on from there", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _spread(words: list[str]) -> list[str]:
    """With `--set` before each word that a shell made of `--set data.train={00..99}.tar`."""
    out, key = [], ""
    for before, word in zip(["", *words], words, strict=False):
        if before == "--set":
            key = word[: word.find("=") + 1]
        elif key and word.startswith(key):
            out.append("--set")
        else:
            key = ""
        out.append(word)
    return out


def _unwrap(group: Any) -> None:
    """Let help fill the terminal's width: typer would keep the line breaks of docstrings."""
    for command in getattr(group, "commands", {}).values():
        paragraphs = (command.help or "").split("\n\n")
        command.help = "\n\n".join(" ".join(each.split()) for each in paragraphs)
        _unwrap(command)


def _explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code."""
    name = type(error).__name__
    if hasattr(error, "format_message"):  # typer's own: unknown option, missing value, …
        return _with_near_word(error), getattr(error, "exit_code", 2)
    if name in ("Exit", "Abort"):
        return "", getattr(error, "exit_code", 1)
    if isinstance(error, ModuleNotFoundError) and (advice := how_to_install(error.name or "")):
        return advice, 1
    return explain(error) or (_keep_trace(error), UNFORESEEN)


def _keep_trace(error: Exception) -> str:
    """Write the traceback to a file; the line that says what happened and where the file lies."""
    text = "".join(traceback.format_exception(error))
    what = " ".join(traceback.format_exception_only(error)[-1].split())
    try:
        kept, path = tempfile.mkstemp(prefix="jest-error-", suffix=".txt")
        with os.fdopen(kept, "w", errors="backslashreplace") as file:
            file.write(f"jest {__version__}\n{' '.join(sys.argv)}\n\n{text}")
    except OSError:
        return f"unforeseen: {what}; run it with {DEBUG} to see where"
    return f"unforeseen: {what}; the full trace is in {path}"


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
        print(f"jest: {one_line(message)}", file=sys.stderr)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a rank: the others may never answer a farewell
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
