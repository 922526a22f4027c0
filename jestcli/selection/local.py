"""Selection as some public code does it: every rank chooses among its own candidates only.

Here the ranks are slices of one process's super-batch, to measure what that costs. (With real
ranks `select(..., group=...)` chooses among all of them; see distributed.py.)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jestcli.selection.embeddings import PairEmbeddings
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

        own = replace(
            task,
            learner=_rows(task.learner, rows),
            reference=_rows(task.reference, rows),
            size=size,
            noise=noise,
        )
        chosen.append(joint(own) + first)
    return torch.cat(chosen)


def _rows(pairs: PairEmbeddings | None, rows: Tensor) -> PairEmbeddings | None:
    return None if pairs is None else pairs.rows(rows)
