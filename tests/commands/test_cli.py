"""The command as a user types it: quick help, one line for a mistake, and the way to a figure."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY, tiny_reference, tiny_run

import jestcli
from jestcli.runs import methods
from jestcli.runs.workspace import Workspace, is_done
from jestcli.train import Trainer
from jestcli.utils.extras import EXTRAS

ROOT = Path(__file__).parents[2]
Command = Callable[..., tuple[int, str, str]]
HEAVY = ("torch", "numpy", "open_clip", "yaml", "scipy", "PIL", "matplotlib", "wandb")


def jest(*words: str, cwd: Path, options: tuple[str, ...] = (), **env: str) -> tuple[int, str, str]:
    """`python -m jestcli` in a process of its own: exit code, output, errors."""
    done = subprocess.run(
        [sys.executable, *options, "-m", "jestcli", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **env},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["-h"], ["data", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code, out, errors = jest(*words, cwd=tmp_path, options=("-X", "importtime"))
    assert code == 0 and ("Usage" in out or out == f"jest {jestcli.__version__}\n")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in errors.splitlines()}
    assert "typer" in imported and not imported & set(HEAVY)


def test_help_names_every_command(tmp_path: Path) -> None:
    _, out, _ = jest("--help", cwd=tmp_path)
    for command in (
        "reproduce",
        "train-reference",
        "train",
        "run",
        "eval",
        "inspect",
        "report",
        "plot",
        "config",
        "data",
    ):
        assert command in out


def test_paragraphs_of_help_fill_the_width(tmp_path: Path) -> None:
    _, out, _ = jest("forecast", "--help", cwd=tmp_path)
    assert "for the one that won. Stopped, the same command goes on" in out  # two lines of source


@pytest.mark.parametrize(
    "words,message",
    [
        (["trian"], "No such command 'trian'"),
        (["data", "biuld"], "'build'"),
        (["train", "--metod", "jest"], "No such option: --metod"),
        (["train", "--seed", "one"], "Invalid value for '--seed'"),
        (["train", "--method", "jset"], "no method 'jset' (did you mean jest?)"),
        (["train", "--set", "optim.stesp=3"], "unknown setting optim.stesp (did you mean steps?)"),
        (["train", "--set", "optim.steps=many"], "optim.steps: Input should be a valid integer"),
        (["train", "--set", "optim.steps"], "expected key=value"),
        (["train", "--noise-share", "1"], "source.noise_share: Input should be less than 1"),
        (["train", "--set", "optim.steps=50"], "jest: optim: steps=50 is shorter than warmup=100"),
        (["train", "--reference-steps", "50"], "jest: reference: optim: steps=50 is shorter"),
        (
            ["train", "--config", "mien.yaml"],
            "cannot read mien.yaml: No such file or directory (did you mean mine.yaml?)",
        ),
        (["train", "--wandb", "onlin"], "--wandb onlin (did you mean online?)"),
        (["train-reference", "--wandb", "of"], "--wandb of (did you mean off?)"),
        (["run", "figure3", "--wandb", "onlin"], "--wandb onlin (did you mean online?)"),
        (["run", "figur3"], "no experiment 'figur3' (did you mean figure3?)"),
        (["run", "mine.yaml"], "title: Field required"),
        (["run", "table1", "--runs", "flexy"], "no run 'flexy' (did you mean flexi?)"),
        (["run", "figure3", "--seeds", "a"], "--seeds a: expected numbers, such as 0,1"),
        (["inspect", "--super-batches", "0"], "Input should be greater than or equal to 1"),
        (["run"], "Missing argument"),
        (["reproduce", "nothing.yaml"], "cannot read nothing.yaml"),
        (["report", "mpa"], "no experiment 'mpa' (did you mean map?)"),
        (["report", "tune"], "tune states no claims"),
        (["report", "map", "figure3"], "--out FOLDER is needed for a report of several"),
        (["config", "--method", "flexy"], "no method 'flexy' (did you mean flexi?)"),
        (["data", "build", "--size", "30"], "--size 30: must be a multiple of 16"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seeds: [0]\n")
    before = sorted(tmp_path.rglob("*"))
    code, out, errors = jest(*words, cwd=tmp_path)
    assert (code, out) == (2, "") and message in errors, errors
    assert errors.startswith("jest: ") and errors.count("\n") == 1 and "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before, "and leaves nothing behind"


def test_a_sampler_of_ones_own_that_is_not_there_is_said_before_anything_starts(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = command("train", "--set", "selection.sampler=mine:foo")
    assert code == 2 and "selection.sampler 'mine:foo' cannot be imported" in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["config"], ["--debug", "config"], ["config", "--debug"]])
def test_an_unforeseen_error_is_one_line_that_names_its_trace(
    words: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("[red]two\nlines")

    monkeypatch.setattr(methods, "default_run", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, errors = command(*words)
    (trace,) = tmp_path.glob("jest-error-*.txt")
    assert (code, out) == (70, "")
    line = f"jest: unforeseen: KeyError: '[red]two\\nlines'; the full trace is in {trace}\n"
    shown, _, rest = errors.partition("jest: ")
    assert "jest: " + rest == line and ("in broken" in shown) == ("--debug" in words)
    assert "--debug" in words or shown == ""
    text = trace.read_text()
    assert "in broken" in text and text.startswith(f"jest {jestcli.__version__}\n")


def test_what_the_machine_refuses_is_no_bug(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "results/figure1.png")

    monkeypatch.setattr(methods, "default_run", full)
    assert command("config") == (1, "", "jest: No space left on device: results/figure1.png\n")
    monkeypatch.setattr(tempfile, "mkstemp", full)  # no room for the trace either
    monkeypatch.setattr(methods, "default_run", lambda *_: 1 / 0)
    said = "jest: unforeseen: ZeroDivisionError: division by zero; run it with --debug to see where"
    assert command("config") == (70, "", said + "\n")


def test_a_missing_extra_is_said_before_anything_is_trained(
    home: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = "jest: this needs matplotlib: pip install 'jest-suite[plots]'\n"
    assert command("run", "small.yaml") == (1, "", said)
    assert not (home / "runs").exists()


def test_every_extra_is_declared_and_all_has_each() -> None:
    """A message that names an extra which does not exist would send people nowhere."""
    text = (ROOT / "pyproject.toml").read_text()
    core, _, optional = text.partition("[project.optional-dependencies]")
    (every,) = re.findall(r'^all = \["jest-suite\[(.*)\]"\]$', optional, re.MULTILINE)
    assert set(every.split(",")) == set(EXTRAS.values())
    for extra in EXTRAS.values():
        (package,) = re.findall(rf'^{extra} = \[\s*"([\w-]+)', optional, re.MULTILINE)
        assert package not in core, "what is optional is not required"


def test_an_install_for_the_selection_alone_says_what_the_command_needs(tmp_path: Path) -> None:
    """Without an extra there are torch and numpy: no traceback for who types the command."""
    core = re.search(r"^dependencies = (.+)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert core is not None
    assert [re.split(r"\W", name)[0] for name in yaml.safe_load(core[1])] == ["torch", "numpy"]
    code = "import sys, jestcli.__main__ as m; sys.modules['typer'] = None; m.main()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = "jest: this needs typer: pip install 'jest-suite[train]'\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", said)


def test_config_prints_what_config_reads(tmp_path: Path) -> None:
    words = ("config", "--method", "flexi", "--seed", "3", "--set", "optim.steps=700")
    code, out, _ = jest(*words, cwd=tmp_path)
    settings = yaml.safe_load(out)
    assert code == 0 and settings["optim"]["steps"] == 700 and settings["seed"] == 3
    (tmp_path / "mine.yaml").write_text(out)
    again = jest(
        "config", "--method", "flexi", "--seed", "3", "--config", "mine.yaml", cwd=tmp_path
    )
    assert again == (0, out, "")


def test_a_reference_is_trained_by_the_real_command(data_root: Path, tmp_path: Path) -> None:
    """No process is replaced here: one interpreter, which trains itself."""
    env = {"JEST_DATA": str(data_root), "JEST_RUNS": str(tmp_path / "runs")}
    (tmp_path / "reference.yaml").write_text(
        yaml.safe_dump(TINY | {"reference": tiny_reference().model_dump(mode="json")})
    )
    words = ("train-reference", "--config", "reference.yaml")
    code, out, errors = jest(*words, cwd=tmp_path, **env)
    assert (code, errors) == (0, "")
    assert "mean of all" in out
    assert "icons and emoji, not ImageNet" in out
    folder = Workspace(data_root, tmp_path / "runs").folder(tiny_reference())
    assert f"run directory: {folder}" in out and is_done(folder)
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {folder.name}


# --- the same commands in this process, their workers forked (see forked.py) ---------------------


@pytest.fixture
def home(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to type commands in, with settings files for tiny runs."""
    monkeypatch.setenv("JEST_DATA", str(data_root))
    monkeypatch.setenv("JEST_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    reference = {"optim": {"steps": 2}, "data": {"level": "strong"}}
    write(tmp_path / "tiny.yaml", TINY)
    write(
        tmp_path / "learner.yaml", {**TINY, "reference": tiny_reference().model_dump(mode="json")}
    )
    write(
        tmp_path / "small.yaml",
        {
            "title": "t",
            "claim": "c",
            "refuted_if": "r",
            "base": TINY,
            "references": {"strong": reference},
            "runs": {
                "uniform-long": {"optim": {"steps": 8}},
                "uniform": {},
                "jest": {"method": "jest", "reference": "strong"},
            },
            "seeds": [0],
            "quick": {"runs": ["uniform"], "seeds": [0]},
        },
    )
    return tmp_path


def write(path: Path, content: dict) -> None:
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("method", ["jest", "flexi", "uniform"])
def test_train_makes_what_is_missing_once(
    method: str, home: Path, command: Command, data_root: Path
) -> None:
    words = (
        "train",
        "--method",
        method,
        "--config",
        "tiny.yaml" if method == "uniform" else "learner.yaml",
    )
    code, out, errors = command(*words)
    assert (code, errors) == (0, "")
    workspace, run = Workspace(data_root, home / "runs"), tiny_run(method)
    wanted = {workspace.folder(run)} | (
        {workspace.folder(run.reference)} if run.reference else set()
    )
    assert set((home / "runs").iterdir()) == wanted and all(map(is_done, wanted))
    assert "mean of all" in out and f"run directory: {workspace.folder(run)}" in out
    assert f"called {method}-{workspace.folder(run).name[:4]} by `jest runs`" in out
    steps = f"{TINY['optim']['steps']}/{TINY['optim']['steps']} {method} (seed 0)"
    assert steps in out and ("(seed 0): reference" in out) == (run.reference is not None)
    before = {p: p.stat().st_mtime_ns for p in (home / "runs").rglob("*")}
    code, out, _ = command(*words)
    assert code == 0 and steps not in out and "mean of all" in out, "nothing is run again"
    assert command("eval", *words[1:], "--seed", "0")[0] == 0
    code, _, errors = command("eval", *words[1:], "--seed", "1")
    assert code == 1 and "no run of these settings" in errors
    assert before == {p: p.stat().st_mtime_ns for p in (home / "runs").rglob("*")}


def test_the_reference_of_train_reference_is_the_one_that_jest_uses(
    home: Path, command: Command
) -> None:
    assert command("train-reference", "--config", "learner.yaml")[0] == 0
    (only,) = (home / "runs").iterdir()
    code, out, _ = command("train", "--method", "jest", "--config", "learner.yaml")
    assert code == 0 and "4/4 jest (seed 0)" in out
    assert "2/2" not in out, "the reference is not trained again"
    assert len(list((home / "runs").iterdir())) == 2 and only in (home / "runs").iterdir()


def test_an_experiment_from_nothing_to_figure_and_table(
    home: Path, command: Command, data_root: Path
) -> None:
    code, out, errors = command("run", "small.yaml", "--workers", "2")
    assert (code, errors) == (0, ""), errors
    for name in ("uniform-long", "uniform", "jest", "reference"):
        assert f"done  {name} (seed 0)" in out or f"done  jest (seed 0): {name}" in out
    assert "4 of 4 runs so far" in out and "▆" in out
    made = {p.name for p in (home / "results" / "small").iterdir()}
    assert "so-far.png" not in made and made >= {
        "records.json",
        "figure1.png",
        "figure1.svg",
        "table.md",
        "table.csv",
    }
    assert all((home / "results" / "small" / name).stat().st_size > 100 for name in made)
    assert len(list((home / "runs").iterdir())) == 4

    code, out, _ = command("eval")
    assert code == 0 and out.count("mean of all") == 4 and "objects_fewshot" in out
    one = next(p for p in (home / "runs").iterdir())
    assert command("eval", str(one))[1].count("mean of all") == 1
    weights = one / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"damaged")
    code, out, errors = command("eval")
    assert code == 1 and out.count("mean of all") == 3, "the others are scored"
    assert errors.startswith(f"jest: skipped {one}: ") and errors.count("\n") == 1
    weights.write_bytes(kept)

    code, out, _ = command("reproduce", "small.yaml", "--headline", "--list")
    assert code == 0 and len(re.findall("done [0-9a-f]{6}", out)) == 4
    code, out, _ = command("reproduce", "small.yaml", "--list")
    assert len(re.findall("done [0-9a-f]{6}", out)) == 1, "the quick runs alone"

    monkey_out = home / "elsewhere"
    code, out, _ = command("plot", "small.yaml", "--collect", "--out", str(monkey_out))
    assert code == 0 and str(monkey_out / "small" / "figure1.png") in out
    assert (monkey_out / "small" / "records.json").read_bytes() == (
        home / "results" / "small" / "records.json"
    ).read_bytes()


def test_what_cannot_be_done_is_one_line_and_exit_1(home: Path, command: Command) -> None:
    (home / "runs").mkdir()
    for words, message in (
        (("eval",), "no trained model in"),
        (("plot", "small.yaml"), "no finished run of small"),
        (
            (
                "train",
                "--method",
                "uniform",
                "--config",
                "tiny.yaml",
                "--set",
                "source.curated_in_pool=true",
                "--set",
                "source.pool_size=5000",
            ),
            "source.pool_size=5000: the pool has 99",
        ),
    ):
        code, _, errors = command(*words)
        assert code == 1 and message in errors and errors.count("\n") == 1, (words, errors)
    words = ("train", "--method", "curated", "--config", "tiny.yaml", "--set", "data.level=storng")
    code, _, errors = command(*words)
    message = "jest: no data.level=storng (did you mean strong?)\n"
    assert (code, errors) == (2, message), "what the data say of the settings is a mistake, too"


def test_ctrl_c_is_one_line_and_exit_130(
    home: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is saved; the same command then goes on."""
    real = Trainer.one_step

    def interrupted(self: Trainer) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    monkeypatch.setattr(Trainer, "one_step", interrupted)
    words = ("train", "--method", "uniform", "--config", "tiny.yaml")
    code, _, errors = command(*words)
    assert (code, errors) == (130, "jest: stopped at step 1 of 4; all is saved\n")
    monkeypatch.setattr(Trainer, "one_step", real)
    assert command(*words)[0] == 0


PLAN = ["plan", "--method", "jest", "--no-time"]


@pytest.mark.parametrize("words", [PLAN, ["eval"], ["export", "--out", "x"]])
def test_an_unquoted_pattern_after_set_is_all_of_its_shards(
    words: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell leaves one --set before them, and a RUN may stand where the others come."""
    monkeypatch.setenv("JEST_RUNS", str(tmp_path))
    files = [tmp_path / f"{i:02d}.tar" for i in range(3)]
    for file in files:
        file.touch()
    shards = [f"data.train={file}" for file in files]
    code, _, errors = command(*words, "--set", *shards, "--set", f"data.curated={files[0]}")
    assert code == (0 if words[0] == "plan" else 1), errors
    assert words[0] == "plan" or f"no run of these settings in {tmp_path}" in errors
