"""Joules come from counters, wraps included; where there is none there is no number."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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
        nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: len(millijoules),
        nvmlDeviceGetHandleByIndex=lambda i: i, nvmlDeviceGetTotalEnergyConsumption=total,
    )  # fmt: skip


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
    assert EnergyMeter(tmp_path, nvml([])).devices == []


def test_a_counter_that_goes_away_is_left_out(tmp_path: Path) -> None:
    package, used = zone(tmp_path, "intel-rapl:0", 0), [0]
    meter = EnergyMeter(tmp_path, nvml(used))
    (package / "energy_uj").unlink()
    used[0] = 1_000
    assert meter.read() == {"gpu:0": 1.0}
