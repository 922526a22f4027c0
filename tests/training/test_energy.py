"""Joules come from counters, wraps included; where there is none there is no number."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import draw, fake_pool, tiny_model, tiny_run
from toy import train

from jestcli.models.flops import Cost
from jestcli.training.checkpoint import read
from jestcli.training.energy import EnergyMeter


def zone(root: Path, name: str, microjoules: int, most: int = 1_000_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


def nvml(millijoules: list[int]) -> SimpleNamespace:
    """A fake NVML whose GPU i has used millijoules[i]; -1 counts none."""

    def total(handle: int) -> int:
        if millijoules[handle] < 0:
            raise RuntimeError("not supported")
        return millijoules[handle]

    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(millijoules),
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )


def test_packages_are_summed_once_and_a_wrap_is_no_loss(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", 900_000_000)
    zone(tmp_path, "intel-rapl:0:0", 5)  # a part of it
    meter = EnergyMeter(tmp_path, nvml([]))
    assert meter.devices == ["intel-rapl:0"]
    (package / "energy_uj").write_text("950000000")
    assert meter.read() == {"intel-rapl:0": 50.0}
    (package / "energy_uj").write_text("20000000")  # 50 J to the end, 20 J after it
    assert meter.read() == {"intel-rapl:0": 120.0}
    assert meter.read() == {"intel-rapl:0": 120.0}


def test_gpus_count_from_where_the_meter_was_made(tmp_path: Path) -> None:
    used = [7_000, 1_000]
    meter = EnergyMeter(tmp_path, nvml(used))
    assert meter.read() == {"gpu:0": 0.0, "gpu:1": 0.0}
    used[0] += 2_500
    assert meter.read() == {"gpu:0": 2.5, "gpu:1": 0.0}


def test_nothing_readable_is_none_not_zero(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path / "absent", nvml([])).read() is None
    assert EnergyMeter(tmp_path, nvml([-1])).read() is None
    (zone(tmp_path, "intel-rapl:0", 3) / "energy_uj").write_text("secret")
    none = EnergyMeter(tmp_path, nvml([]))
    assert none.devices == [] and "are not readable" in none.why_none()
    absent = EnergyMeter(tmp_path / "absent", nvml([])).why_none()
    assert "there are no RAPL counters" in absent and "through NVML" in absent


def test_a_counter_that_goes_away_is_left_out(tmp_path: Path) -> None:
    package, used = zone(tmp_path, "intel-rapl:0", 0), [0]
    meter = EnergyMeter(tmp_path, nvml(used))
    (package / "energy_uj").unlink()
    used[0] = 1_000
    assert meter.read() == {"gpu:0": 1.0}


def test_a_run_writes_joules_beside_seconds_and_keeps_them_in_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a meter that counts a joule a read; without one there is no such field."""
    monkeypatch.setattr("jestcli.train.EnergyMeter", CountsReads)
    run = tiny_run(optim={"steps": 2})

    def sitting() -> list[dict[str, Any]]:
        train(
            run,
            tmp_path,
            tiny_model(run, (8,)),
            lambda step: draw([fake_pool()], [8], 0, step),
            None,
            lambda final: {},
            lambda steps: Cost(0, 0, 0, 0),
            lambda *_: None,
            lambda record: None,
        )
        return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    spent = [record["joules"]["gpu:0"] for record in sitting()]
    assert spent == sorted(spent) and spent[0] == 1
    saved = read(tmp_path / "checkpoint.safetensors")[1]["joules"]
    assert saved == {"gpu:0": spent[-1] + 1}
    monkeypatch.setattr("jestcli.train.EnergyMeter", lambda: EnergyMeter(tmp_path, nvml([])))
    (tmp_path / "checkpoint.safetensors").unlink()
    assert all("joules" not in record for record in sitting())


class CountsReads:
    def __init__(self) -> None:
        self.reads = 0.0

    def read(self) -> dict[str, float]:
        self.reads += 1
        return {"gpu:0": self.reads}


def test_what_is_counted_has_no_reason_why_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 5)
    assert EnergyMeter(tmp_path, nvml([])).why_none() == ""
    assert EnergyMeter(tmp_path / "empty", nvml([7])).why_none() == ""
