"""Joint example selection: Algorithm 1 of "Data curation via joint example selection further
accelerates multimodal learning" (arXiv 2406.17711), without its B x B matrix.

The paper forms S = L(learner) - L(reference) for all pairs (i, j) and draws the batch in N
chunks: the first by S_kk, each later one by

    a_k = S_kk + sum_{i in C} S_ik + sum_{j in C} S_kj        (C: chosen so far; k not in C)

which is the change of the batch's summed loss difference when k joins. Only the sums are kept
here: a new chunk adds its m rows and m columns to them, computed tile by tile and forgotten.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jestcli.selection import noise
from jestcli.selection.task import Task


def joint(task: Task) -> Tensor:
    """Chunk after chunk, drawn without replacement with p proportional to exp(a_k)."""
    score = task.score()  # a_k = S_kk
    free = torch.ones_like(task.index, dtype=torch.bool)
    chosen: list[Tensor] = []
    sizes = task.chunk_sizes()
    for chunk, m in enumerate(sizes):
        logits = score.values().masked_fill(~free, -torch.inf)
        new = task.draw(logits, m, chunk)
        chosen.append(new)
        if chunk + 1 < len(sizes):
            free = task.free_of(free, new)
            score.add(new)  # a_k += sum_{i in new} S_ik + sum_{j in new} S_kj
    return torch.cat(chosen)


def independent(task: Task) -> Tensor:
    """One chunk: p proportional to exp(S_kk), blind to the other pairs of the batch."""
    return joint(replace(task, n_chunks=1))


def topk(task: Task) -> Tensor:
    """The largest S_kk, without noise."""
    return independent(replace(task, noise=noise.zero))
