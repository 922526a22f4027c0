"""The doctor finds what is broken, each thing broken once."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_run

from jestcli.stages import doctor
from jestcli.stages.doctor import BAD, GOOD, WARNING, Finding, examine
from jestcli.stages.workspace import Workspace


def found(workspace: Workspace, device: str = "cpu", wandb: str = "off", **run: Any) -> dict[str, Finding]:  # noqa: E501
    return {f.what: f for f in examine(tiny_run(**run), workspace, device, wandb)}


def test_a_healthy_machine(workspace: Workspace) -> None:
    states = {f.what: f.state for f in found(workspace).values()}
    assert BAD not in states.values() and len(states) == 13
    assert states["embedded data"] == states["imports"] == states["repeatable sums"] == GOOD


def test_what_will_break_is_said(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    real = metadata.version
    monkeypatch.setattr(doctor, "version", lambda n: "2.4.1" if n == "numpy" else real(n))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 2**20))
    nowhere = Workspace(tmp_path / "data", tmp_path / "runs")
    states = found(nowhere, wandb="online", engine={"compile": True})
    assert states["batches"] == Finding(
        "batches", BAD, "b = 8, B = 8, 3 processes: both must divide by the processes"
    )
    assert states["Weights & Biases"].state == states["compiler"].state == BAD
    assert states["packages"].state == BAD and "numpy 2.4" in states["packages"].text
    assert states["device"].state == states["run directories"].state == WARNING
    assert states["embedded data"].state == WARNING
    missing = found(nowhere, device="cuda")
    assert any("torch finds no GPU" in f.text for f in missing.values() if f.state == BAD)


def test_a_package_that_does_not_import(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert found(workspace)["imports"].state == BAD
