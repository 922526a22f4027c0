"""AdamW with a linear warm-up, then a cosine to zero or a constant rate and a short decay."""

from __future__ import annotations

import math

import torch
from torch import nn

from jestcli.config import Optim


def make_optimiser(model: nn.Module, settings: Optim) -> torch.optim.AdamW:
    """Weight decay on matrices only, as in the SigLIP family."""
    # Decay of scale, bias and norms would pull the temperature to a value of its own.
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(0.9, settings.beta2),
        fused=True,
    )


def learning_rate(step: int, settings: Optim) -> float:
    """Learning rate of `step` (0-based).

    With wsd (warm-up, stable, decay) it does not depend on the run's length before the decay; that
    falls as 1 - sqrt of its share that is over (Haegele et al. 2024, arXiv 2405.18392)."""
    # Before the decay no term holds `steps`: runs of all lengths are one trunk (trunk.py).
    stable = settings.schedule == "wsd"
    warmup = settings.warmup if stable else min(settings.warmup, settings.steps // 2)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if stable:
        over = (step - settings.trunk_steps) / (settings.steps - settings.trunk_steps)
        return settings.lr * (1 - math.sqrt(max(0.0, over)))
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
