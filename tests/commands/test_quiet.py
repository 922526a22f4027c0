"""What libraries say by themselves reaches no terminal and no log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from jestcli.utils.quiet import SETTINGS

ROOT = Path(__file__).parents[2]
NOISY = """
import logging, subprocess, sys, warnings
import typer
from jestcli import cli

app = typer.Typer()

@app.command()
def noisy():
    import tqdm
    list(tqdm.tqdm(range(3)))
    warnings.warn("a library")
    logging.warning("a library")
    logging.getLogger("open_clip").warning("a library")
    logging.getLogger("open_clip").error("wrong\\n\\x1b[2J")
    logging.getLogger("jestcli.data").warning("ours")
    subprocess.run([sys.executable, "-c", "import warnings; warnings.warn('a library')"])

sys.argv = ["jest"]
cli.main(app)
"""


def test_no_bar_and_no_warning_of_a_library_is_seen() -> None:
    env = {k: v for k, v in os.environ.items() if k not in SETTINGS} | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", NOISY], env=env, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == "wrong \\x1b[2J\nours\n", "errors, and what we say ourselves, a line each"


def test_who_asks_for_warnings_sees_them() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", "TQDM_DISABLE": "1"}
    ran = subprocess.run([sys.executable, "-c", NOISY], env=env, capture_output=True, text=True)
    assert ran.stderr.count("UserWarning: a library") == 2
