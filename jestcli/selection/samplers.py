"""The strategies that joint selection is compared with. Each maps a Task to global indices."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jestcli.selection import noise
from jestcli.selection.task import Task


def uniform(task: Task) -> Tensor:
    """Every candidate alike; reads no embedding."""
    return task.draw(torch.zeros_like(task.index, dtype=torch.float64), task.size, 0)


def rho(task: Task) -> Tensor:
    """The largest scalar losses, learner minus reference, as in RHO-LOSS (Mindermann et al. 2022).

    A pair's scalar loss is `pair_losses`: its own loss with the whole super-batch as the batch
    (both directions, softmax or sigmoid), not its diagonal score. No noise."""
    return activeclip(replace(task, noise=noise.zero))


def activeclip(task: Task) -> Tensor:
    """Independent draws with p proportional to exp(scalar learnability), in the manner of
    ActiveCLIP (Evans et al. 2023); the scalar is that of `rho`. The proxy models and stale
    scores of that paper are not part of it."""
    return task.draw(task.pair_scores(), task.size, 0)


def gibbs(task: Task) -> Tensor:
    """Brute force, for Figure 2 (middle): Gibbs sampling of p(C) proportional to exp(score(C)).

    Start from a uniform sub-batch (draw 0). Iteration t = 1 ... `iterations` takes out the member
    at position (t - 1) mod size, scores every candidate given the others from scratch, and draws
    its successor, perhaps itself, with p proportional to exp(gain) (draw t). Each iteration costs
    a pass over size x B pairs: for small B. A shorter run is a prefix of a longer one. With
    the noise of zeros it is coordinate ascent. One process only."""
    if task.ranks.world > 1:
        raise ValueError("sampler 'gibbs' runs in one process; call select without a group")
    batch = uniform(task)
    for t in range(task.iterations):
        position = t % task.size
        others = torch.cat([batch[:position], batch[position + 1 :]])
        score = task.score()
        if len(others):
            score.add(others)
        logits = score.values().index_fill(0, others, -torch.inf)
        batch[position] = task.draw(logits, 1, t + 1)[0]
    return batch
