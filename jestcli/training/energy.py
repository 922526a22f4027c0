"""Energy of a run where the hardware counts it; nothing is printed, or guessed, where it does not.

GPUs by NVML's own counter (package nvidia-ml-py), processor packages by Linux' RAPL counters. Both
count all that the device does, other jobs included."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, by device.

    powercap: the tree of RAPL zones.
    nvml: the module pynvml, or None to import it if it is there."""

    def __init__(self, powercap: Path = POWERCAP, nvml: Any = None):
        self._powercap = powercap
        # Readable zones of whole packages: intel-rapl:0, not its parts intel-rapl:0:0.
        zones = (zone for zone in sorted(powercap.glob("*-rapl:*")) if zone.name.count(":") == 1)
        self._zones = {z.name: z for z in zones if _number(z / "energy_uj") is not None}
        self._nvml, self._gpus = _gpus(nvml)
        self._joules = dict.fromkeys([*self._zones, *self._gpus], 0.0)
        self._last = self._counters()

    @property
    def devices(self) -> list[str]:
        """What is counted; empty where nothing can be read."""
        return list(self._joules)

    def why_none(self) -> str:
        """Why nothing is counted, in words; "" where something is."""
        if self._joules:
            return ""
        gpu = "no GPU counts energy through NVML (nvidia-ml-py, a driver and a GPU are needed)"
        if any(self._powercap.glob("*-rapl:*")):
            return f"{gpu}, and the RAPL counters in {self._powercap} are not readable"
        return f"{gpu}, and there are no RAPL counters in {self._powercap}"

    def read(self) -> dict[str, float] | None:
        """Joules by device since the meter was made; None where no counter can be read.

        A RAPL counter wraps: read at least every few minutes (its range is above 200 kJ)."""
        if not self._joules:
            return None
        now = self._counters()
        for name in list(self._joules):
            before, value = self._last[name], now.get(name)
            if value is None:  # a counter that went away: its sum would be wrong
                del self._joules[name]
                continue
            spent = value - before
            if spent < 0 and name in self._zones:
                spent += _number(self._zones[name] / "max_energy_range_uj") or 0.0
            self._joules[name] += max(0.0, spent)
        self._last = now
        return dict(self._joules) or None

    def _counters(self) -> dict[str, float]:
        """Joules on every device's own counter."""
        counts = {name: _number(zone / "energy_uj") for name, zone in self._zones.items()}
        found = {name: value for name, value in counts.items() if value is not None}
        for name, handle in self._gpus.items():
            try:
                found[name] = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
            except Exception:  # NVML's errors are its own classes
                continue
        return found


def _gpus(nvml: Any) -> tuple[Any, dict[str, Any]]:
    """NVML and the handles of the GPUs that count energy, by name."""
    try:
        nvml = nvml or importlib.import_module("pynvml")
        nvml.nvmlInit()
        found = {}
        for i in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(i)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            found[f"gpu:{i}"] = handle
        return nvml, found
    except Exception:  # no package, no driver or a GPU without a counter
        return None, {}


def _number(path: Path) -> float | None:
    """Microjoules in a file as joules; None if it cannot be read (often root's alone)."""
    try:
        return int(path.read_text()) / 1e6
    except (OSError, ValueError):
        return None
