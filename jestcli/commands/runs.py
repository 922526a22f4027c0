"""List, compare and tidy what was trained: jest runs."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from jestcli.commands.options import RunWords
from jestcli.utils.plain import say
from jestcli.utils.tables import as_table, cropped

if TYPE_CHECKING:
    from pathlib import Path

    from jestcli.runs.listing import Listed

app = typer.Typer()


@app.command("runs")
def runs(
    words: RunWords = None,
    filters: Annotated[
        list[str],
        typer.Option(
            "--filter",
            help="Only runs with COLUMN=PATTERN, such as method=jest, state=stopped or "
            "'name=filtered*'; a setting's name, such as optim.steps=900, is a column, too.",
        ),
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="List left-overs: checkpoints of finished runs (their weights and records stay), "
            "runs that saved nothing, half-written files; of the named runs, or those that fit "
            "--filter, alone.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --prune: remove them.")] = False,
) -> None:
    """List runs, the newest last, or compare those that are named.

    A run is named by the beginning of its name or of its directory's, here and wherever a command
    asks for a run. In the column data, a percentage is the share of wrong captions. Of two runs and
    more: the settings that differ, scores with 95 % intervals over test images (another seed moves
    a score too), and learning curves."""
    from jestcli.runs import listing

    if yes and not prune:
        from jestcli.config import ConfigError

        raise ConfigError("--yes removes what --prune lists: give both")
    folder = listing.default_runs()
    if words:
        found = [listing.read(listing.find(word, folder)) for word in words]
    else:
        found = listing.list_all(folder)
    found = listing.matching(found, filters)
    if prune and (found or not filters):
        # All of them: also the folders that never came to be listed as a run.
        _prune(yes, [each.folder for each in found] if words or filters else None)
    elif as_json:
        for each in found:
            print(json.dumps({"folder": str(each.folder), **each.row()}))
    elif words:
        _compare(found)
    elif found:
        rows = [listing.short(each.row(), time.time()) for each in found]
        # A pipe's reader may look for whole names.
        gives = ((2, 9), (0, 12), (2, 6)) if sys.stdout.isatty() else ((2, 6),)
        say(as_table([list(listing.COLUMNS), *rows], (3, 4, 6, 7, 8), _width(), gives))
    else:
        say(f"no runs in {folder}" + (" fit these filters" if filters else ""))


def _width() -> int:
    """Columns of the terminal; 80 where the output is read by something else."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 80


def _compare(found: list[Listed]) -> None:
    from jestcli.runs import compare, listing

    for i, each in enumerate(found):
        if any(each.folder.samefile(other.folder) for other in found[:i]):
            from jestcli.config import ConfigError

            raise ConfigError(f"{each.name} is named twice: a run is compared with others")
    letters, width = [chr(ord("A") + i) for i in range(len(found))], _width()
    for letter, each in zip(letters, found, strict=True):
        row = each.row()
        words = listing.short(row, time.time())
        about = (words[1], cropped(words[2], 16), f"seed {words[3]}", words[5])
        here = each.folder.absolute().parent == listing.default_runs().absolute()
        where = each.folder.name if here else each.folder  # its digits find it, as its path does
        line = f"{letter}  {row['name']}: {', '.join(about)}, {words[4]} steps"
        gap = " " if len(f"{line} ({where})") <= width else "\n   "
        say(f"{line}{gap}({where})")
    if settings := compare.differing(found):
        settings = compare.fitted(settings, width)
        say(f"\n{as_table([['setting', *letters], *settings], (), width)}")
    if scores := compare.score_rows(found):
        head = ["score, %", *letters, *(["B - A"] if len(scores[0]) > len(letters) + 1 else [])]
        say(f"\n{as_table([head, *scores], range(1, len(head)), width)}")
    if drawn := compare.curves(found, width):
        say(f"\n{drawn}")


def _prune(yes: bool, folders: list[Path] | None) -> None:
    """Say what nothing needs in these run directories (None: in all there are); yes: remove it."""
    from jestcli.runs import leftovers, listing

    if folders is None:
        folders = [path for path in listing.default_runs().glob("*") if path.is_dir()]
    found, total = leftovers.leftovers(folders), 0
    for left in found:
        size = left.bytes
        gone = not yes or leftovers.remove(left)
        total += size if gone else 0
        say(f"{left.folder}: {left.why}, {listing.in_bytes(size)}{'' if gone else ' (in use)'}")
    verb = "freed" if yes else "could be freed: the same with --yes"
    say(f"{listing.in_bytes(total)} {verb}" if found else "nothing is left over")
