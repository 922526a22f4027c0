"""CABS-DM: the sub-batch that covers the candidates' concepts most evenly, blind to any model.

Concept-aware batch sampling by diversity maximisation (Ghosh et al., arXiv 2511.20643, section 4;
released code: github.com/bethgelab/cabs). From the empty batch, take again and again the candidate
with the largest gain

    h(k) = 1/|C_k| sum_{c in C_k} { (t_c - n_c) / t_c + 1 / F_c    if n_c < t_c
                                  { -1/2                           otherwise

where C_k are k's concepts, n_c how many of the chosen hold c, F_c how many candidates hold it, and
t_c = b / |concepts of the super-batch|, the remainder going to the first of them, at least 1: the
target of an even batch. No candidate with a concept that already has `cap` chosen is taken.

As in the released code: the -1/2 (the paper's formula has 0 there) and the cap, 10 for the 1,024
pairs that a GPU trains on. Our own: the cap grows beyond that as 1 % of the batch; equal gains go
by the noise of (seed, step), not by position; where every candidate left is over the cap or has no
concept, the batch is filled from these by the same noise (the released code leaves it short); and
over several ranks the counts are the whole batch's, not each rank's own."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from jestcli.selection.samplers import uniform
from jestcli.selection.task import Task

CAP, CAP_SHARE = 10, 0.01  # most chosen pairs with one concept: a number, or this share if more
PAST_TARGET = -0.5


def cabs(task: Task) -> Tensor:
    """Greedy, by the gain above; `task.labels` are the concepts. Reads no embedding."""
    assert task.labels is not None  # `select` checks
    # The candidates of all ranks in random order, alike on every rank: earlier ones win ties.
    held = len(task.labels)
    everyone = replace(task, size=held * task.ranks.world)
    order = uniform(everyone).tolist()
    rows = task.ranks.all_gather(task.labels).tolist()
    concepts = [sorted({label for label in rows[i] if label >= 0}) for i in order]
    picks = greedy(concepts, task.size, [i // held for i in order], task.shares())
    return torch.tensor([order[i] for i in picks], dtype=torch.int64, device=task.index.device)


def greedy(concepts: list[list[int]], size: int, owner: list[int], shares: list[int]) -> list[int]:
    """Positions of `size` candidates in the order taken; the earlier of equal gains first.

    concepts: the distinct ones of each candidate; owner: its rank; shares: most of each rank.
    A gain never rises, so an old one is a bound: only the best candidate's has to be computed
    again, and if it still leads it is the largest of all (Minoux 1978)."""
    frequency = Counter(concept for each in concepts for concept in each)
    cap = max(CAP, round(CAP_SHARE * size))
    target, left = targets(sorted(frequency), size, cap), list(shares)
    chosen = dict.fromkeys(frequency, 0)

    def gain(each: list[int]) -> float:
        total = 0.0
        for c in each:
            n, t = chosen[c], target[c]
            if n >= cap:
                return -float("inf")
            total += (t - n) / t + 1 / frequency[c] if n < t else PAST_TARGET
        return total / len(each) if each else -float("inf")

    heap = [(-gain(each), k) for k, each in enumerate(concepts)]
    heapq.heapify(heap)
    picks: list[int] = []
    while len(picks) < size:
        bound, k = heap[0]
        now = -gain(concepts[k])
        if not left[owner[k]]:
            heapq.heappop(heap)
        elif now != bound:
            heapq.heapreplace(heap, (now, k))
        else:  # the best; of those with no gain at all, the first
            heapq.heappop(heap)
            picks.append(k)
            for c in concepts[k]:
                chosen[c] += 1
            left[owner[k]] -= 1
    return picks


def targets(concepts: list[int], size: int, cap: int) -> dict[int, int]:
    """t_c of each concept: `size` shared out evenly, at least 1 and at most `cap`."""
    each, rest = divmod(size, max(1, len(concepts)))
    return {c: min(max(each + (i < rest), 1), cap) for i, c in enumerate(concepts)}
