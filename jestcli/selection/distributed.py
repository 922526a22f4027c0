"""Selection over candidates that are spread over the ranks of a process group.

Each rank holds the same number of candidates, B; candidate i of rank r has the global index
r * B + i. Ranks exchange the scores and indices of their best m and the embeddings of the chosen
chunk, nothing else, and all reach the same result. A group of one exchanges nothing.

A rank that never arrives is noticed by the process group: its collectives raise after the
timeout given to `init_process_group` (or `new_group`). Wrong arguments on one rank raise on all."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jestcli.selection.embeddings import PairEmbeddings

MODES = ("global", "balanced")


@dataclass(frozen=True)
class Ranks:
    """This process's place in `group` (None: alone)."""

    group: Any = None
    balanced: bool = False

    @property
    def world(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    def indices(self, count: int, device: torch.device) -> Tensor:
        """Global indices of this rank's `count` candidates: int64 [count]."""
        first = self.rank * count
        return torch.arange(first, first + count, dtype=torch.int64, device=device)

    def agree(self, problem: Exception | None, arguments: object, count: int) -> None:
        """Raise on every rank if any rank has a `problem`, or if arguments or counts differ.

        The rank with the problem raises it; the others raise ValueError naming that rank."""
        if self.group is None:
            if problem is not None:
                raise problem
            return
        mine = [int(problem is None), zlib.crc32(repr(arguments).encode()), count]
        everyone = self._gather(torch.tensor(mine, dtype=torch.int64)).view(-1, 3).tolist()
        if problem is not None:
            raise problem
        for rank, (valid, fingerprint, theirs) in enumerate(everyone):
            if not valid:
                raise ValueError(f"rank {rank} rejected its arguments; see the error raised there")
            if theirs != count:
                raise ValueError(
                    f"learner/reference must hold as many pairs on every rank, got {theirs} on "
                    f"rank {rank} and {count} on rank {self.rank}"
                )
            if fingerprint != mine[1]:
                raise ValueError(
                    f"rank {rank} calls select with other arguments than rank {self.rank} "
                    f"(here: {arguments})"
                )

    def top(self, scores: Tensor, count: int) -> Tensor:
        """Global indices (int64 [count]) of the best scores, best first, the lower index on ties.

        scores: float64 [B], -inf for a candidate that must not be taken. If balanced, each rank
        contributes count / world. Raises ValueError, on every rank, if a pick's score is not
        finite."""
        held = scores.shape[0]
        each = count // self.world if self.balanced else min(count, held)
        best, order = largest(scores, each)
        index = order + self.rank * held
        if self.group is not None:
            best, index = self._gather(best), self._gather(index)
            best, order = best.sort(descending=True, stable=True)
            best, index = best[:count], index[order[:count]]
        # While a CUDA graph is recorded nothing can be read: graphs.py checks what goes in.
        if not _recording(best) and not best.isfinite().all():
            raise ValueError("scores are not finite: check scale, bias and noise for huge values")
        return index

    def rows(self, x: Tensor, index: Tensor) -> Tensor:
        """x[index] for x spread over the ranks ([B, d] each), global index int64 [m]: [m, d]."""
        if self.group is None:
            return x[index]
        local = index - self.rank * len(x)
        mine = (local >= 0) & (local < len(x))
        out = x.new_zeros(len(index), x.shape[1])
        out[mine] = x[local[mine]]
        wire = out.to(self._wire())
        dist.all_reduce(wire, group=self.group)  # every row has one owner: adding zeros is exact
        return wire.to(x.device)

    def shards(self, pairs: PairEmbeddings) -> Iterator[tuple[Tensor, Tensor]]:
        """Image and text embeddings of each rank in turn; one rank's worth of memory."""
        for rank in range(self.world):
            block = torch.arange(len(pairs), device=pairs.image.device) + rank * len(pairs)
            if self.group is None:
                yield pairs.image, pairs.text
            else:
                yield self.rows(pairs.image, block), self.rows(pairs.text, block)

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's rows of x, one rank after the other: [B, ...] each -> [world * B, ...]."""
        return x if self.group is None else self._gather(x)

    def _gather(self, x: Tensor) -> Tensor:
        """The ranks' tensors of one shape, one after the other."""
        wire = x.contiguous().to(self._wire())
        parts = [torch.empty_like(wire) for _ in range(self.world)]
        dist.all_gather(parts, wire, group=self.group)
        return torch.cat(parts).to(x.device)

    def _wire(self) -> torch.device:
        """Where the group's backend wants its tensors."""
        if "nccl" in str(dist.get_backend(self.group)):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


def _recording(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of x and where they are, as a stable descending sort has them."""
    if not x.is_cuda and 8 * count < x.shape[0]:  # on a CPU a sort of all of x is what costs
        best, order = x.topk(count + 1)
        if bool((best[:-1] > best[1:]).all()):  # no ties (and no NaN): there is but one order
            return best[:count], order[:count]
    best, order = x.sort(descending=True, stable=True)
    return best[:count], order[:count]


SINGLE_PROCESS = Ranks()
