"""Selection as some public code does it: every rank chooses among its own candidates only.

Here the ranks are slices of one process's super-batch, to measure what that costs. (With real
ranks `select(..., group=...)` chooses among all of them; see distributed.py.)"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jestcli.selection.joint import joint
from jestcli.selection.task import Task


def four_ranks(task: Task) -> Tensor:
    """Joint selection within each quarter of the super-batch, blind to the other three."""
    return within_slices(task, 4)


def within_slices(task: Task, ranks: int) -> Tensor:
    """Joint selection within each of `ranks` contiguous slices; sizes differ by at most one."""
    total = len(task.index)
    bounds = [total * r // ranks for r in range(ranks + 1)]
    shares = [task.size * (r + 1) // ranks - task.size * r // ranks for r in range(ranks)]
    chosen = []
    for first, end, size in zip(bounds, bounds[1:], shares, strict=False):
        if not size:
            continue
        rows = torch.arange(first, end)

        def noise(draw: int, index: Tensor, first: int = first) -> Tensor:
            return task.noise(draw, index + first)

        models = [each and each.rows(rows) for each in (task.learner, task.reference)]
        own = replace(task, learner=models[0], reference=models[1], size=size, noise=noise)
        chosen.append(joint(own) + first)
    return torch.cat(chosen)
