"""Names from outside are shown as they are written: no escape reaches a terminal, no bracket is
markup."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jestcli import cli
from jestcli.data.bad_samples import BadSampleLog, BadSampleRecord
from jestcli.runs.doctor import BAD, Finding, table
from jestcli.utils.console import Terminal
from jestcli.utils.errors import DataError
from jestcli.utils.plain import one_line, plain
from jestcli.utils.progress import Bar, Row, Rows, bars

EVIL = "[red]a[/x]:smile:\x1b]0;t\x01\x1b[2J\u202eb\udcff"
SHOWN = "[red]a[/x]:smile:\\x1b]0;t\\x01\\x1b[2J\\u202eb\\udcff"


def test_what_is_printable_stays() -> None:
    for text in ("é – ‰ 学 🙂 [b]x[/b]", "a\nb\tc", "5 000\u202fB"):
        assert plain(text) is text or plain(text) == text
    assert plain(EVIL) == SHOWN and one_line("a\nb\r\x85") == "a b\\r\\x85"


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_that_is_printed_is_markup_or_a_command(terminal: bool) -> None:
    out = io.StringIO()
    console = Terminal(
        file=out, force_terminal=terminal, width=200, color_system="standard" if terminal else None
    )
    cells = Table(EVIL, title=EVIL, caption=EVIL)
    cells.add_row(EVIL)
    for one in (EVIL, Text(EVIL, style="red"), cells, table([Finding(EVIL, BAD, EVIL)])):
        out.seek(0)
        out.truncate()
        console.print(one, highlight=False)
        assert SHOWN in out.getvalue()
        assert "\x1b]" not in out.getvalue() and "\x1b[2J" not in out.getvalue()
    console.print(Text("x", style="red"))
    assert ("\x1b[31m" in out.getvalue()) is terminal, "our own colours stay"


def test_a_progress_bar_shows_what_it_is_told() -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=True, width=200)
    with Bar(console) as bar:
        bar.show(1, 2, EVIL)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(EVIL, total=1)
    assert out.getvalue().count("[red]a[/x]:smile:") >= 2 and "\x1b]" not in out.getvalue()


def test_an_error_and_a_warning_are_one_plain_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    app = typer.Typer()

    @app.command()
    def broken() -> None:
        logged = logging.getLogger("jestcli.data.bad_samples")
        monkeypatch.setattr(logged, "propagate", False)  # pytest listens above
        BadSampleLog().add([BadSampleRecord("pool", 0, 0, EVIL, f"{EVIL}\nx", EVIL)])
        raise DataError(f"{EVIL}\nsecond line")

    monkeypatch.setattr(sys, "argv", ["jest"])
    with pytest.raises(SystemExit):
        cli.main(app)
    errors = capsys.readouterr().err
    assert errors == (
        f"skipped {SHOWN} x of {SHOWN}: {SHOWN} (more of the same are counted only)\n"
        f"jest: {SHOWN} second line\n"
    )


def test_the_live_view_has_all_that_matters_in_80_columns() -> None:
    out, now = io.StringIO(), [0.0]
    console = Terminal(file=out, force_terminal=True, width=80, no_color=True)
    bar = Bar(console, lambda: now[0])
    line = "jest-with-a-long-name@0.8@3000 (seed 11) · score 24.3 % · loss 1.234; " + 9 * "detail "
    bar.show(0, 30_000, line)
    now[0] = 60.0
    bar.show(15_000, 30_000, line)
    console.print(bar.render())
    first, second = Text.from_ansi(out.getvalue()).plain.splitlines()[:2]
    assert first.startswith("jest-with-a-long-na") and max(len(first), len(second)) <= 80
    assert first.endswith("15,000/30,000 · score 24.3 % · 60 s left") and "━" in first
    assert second.startswith("loss 1.234; detail")


def test_several_pieces_of_work_have_all_that_matters_in_80_columns() -> None:
    out, now = io.StringIO(), [0.0]
    console = Terminal(file=out, force_terminal=True, width=80, no_color=True)
    rows = Rows(console, lambda: now[0])
    rows.add("", Row("all stages", 2e15, 0.0, percent=True)).move(5e14, 60.0)
    train = rows.add("a", Row("jest-with-a-long-name@0.8@3000 (seed 11): reference", 30_000, 0.0))
    train.move(15_000, 60.0)
    train.score = "score 24.3 %"
    rows.add("b", Row("decoding once (pool)", 313_400, 10.0, first=300_000)).move(313_400, 50.0)
    now[0] = 60.0
    console.print(rows.render())
    lines = Text.from_ansi(out.getvalue()).plain.splitlines()
    assert max(map(len, lines)) <= 80
    ends = (
        "25 % · 3 min left",
        "15,000/30,000 · score 24.3 % · 60 s left",
        "313,400/313,400 · took 40 s",
    )
    assert [line.rpartition("━ ")[2].strip() for line in lines[:3]] == list(ends)
    assert lines[1].startswith("jest-with-a-long-name@0.8")


def test_a_log_says_what_is_done_how_far_and_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(Rows.__init__, "__defaults__", (lambda: now[0],))
    with bars(Terminal(file=out, width=80)) as report:
        for second in range(0, 100, 10):
            now[0] = float(second)
            report(second, 100, "decode")
    assert out.getvalue().splitlines() == [
        "decoding once (100)",
        "decoding once: 30/100 · 70 s left",
        "decoding once: 60/100 · 40 s left",
        "decoding once: 90/100 · 10 s left",
    ]
