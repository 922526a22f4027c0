"""Joules of the GPU over a measurement, from the counter that its driver keeps."""

from __future__ import annotations

from typing import Any

import torch

from jestcli.training.energy import EnergyMeter


class Meter:
    """Joules of all GPUs of the machine since it was made, as fields of a result."""

    def __init__(self, device: torch.device):
        self.meter = EnergyMeter() if device.type == "cuda" else None

    def spent(self) -> dict[str, Any]:
        """joules; None where no GPU tells them, with the reason."""
        read = (self.meter.read() if self.meter else None) or {}
        gpus = [joules for name, joules in read.items() if name.startswith("gpu:")]
        if not gpus:
            return {"joules": None, "joules_why": "no energy counter could be read"}
        return {"joules": round(sum(gpus), 2)}
