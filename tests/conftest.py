from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported

import forked
import pytest
import torch
from miniature_world import Miniature, make_miniature
from tiny import make_root

from jestcli import cli
from jestcli.runs.workspace import Workspace

NUMERIC = {"evaluation", "models", "selection", "training"}  # folders; a module can mark itself


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `numeric` what must hold whichever kernels compute it (`make test-kernels`)."""
    for item in items:
        if item.path.parent.name in NUMERIC:
            item.add_marker(pytest.mark.numeric)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As in a run: floating-point results are fixed for one thread count."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="session")
def data_root(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's data, decoded, which every process takes for the embedded data."""
    forked.warm_up()
    return make_root(miniature, tmp_path_factory.mktemp("data-root"))


@pytest.fixture
def workspace(data_root: Path, tmp_path: Path) -> Workspace:
    """The miniature data and an empty folder for runs."""
    return Workspace(data_root, tmp_path / "runs")


@pytest.fixture(scope="session")
def quiet() -> Callable[..., None]:
    """A report that shows nothing."""
    return lambda *_: None


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`jest WORDS` in this process: exit code, output, errors."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jest", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, errors = capsys.readouterr()
        return int(stopped.value.code or 0), out, errors

    return call
