"""The ranks that train one run together: who they are, and what they tell each other.

A super-batch is spread over the ranks in equal slices, and so are its embeddings. After a global
selection the surplus chosen pairs move once, so that every rank trains an equal share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jestcli.data.loader import SuperBatch
from jestcli.selection import PairEmbeddings
from jestcli.selection.distributed import Ranks

PATIENCE = timedelta(hours=24)  # for waits on what one rank does alone: data, evaluation


class RanksError(Exception):
    """The ranks cannot go on together; the message is one line for the user."""


@dataclass(frozen=True)
class DistEnv:
    """This process among the ranks. The default is a process alone, on the CPU.

    group: the ranks' process group, with a timeout; None: alone.
    patient: a gloo group of the same ranks for long waits."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: Any = None
    patient: Any = None

    @property
    def main(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every rank is here, however long it takes."""
        # Over gloo: NCCL's watchdog would end ranks that wait for an evaluation.
        if self.patient is not None:
            dist.barrier(group=self.patient)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Rank 0 goes through the block alone; the others follow when it is done."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def all_reduce_mean(self, *numbers: float) -> list[float]:
        """The ranks' average of each number, the same on every rank."""
        if self.group is None:
            return list(numbers)
        # float64, so that flags and losses come out the same whatever the order of the sum.
        wire = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(wire, group=self.group)
        return (wire / self.size).tolist()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank, the same on every rank."""
        return self.all_reduce_mean(float(flag))[0] > 0

    def broadcast_flag(self, value: bool) -> bool:
        """What rank 0 says, whatever the others think."""
        return self.all_reduce_mean(float(value and self.main))[0] > 0

    def all_gather(self, rows: Tensor) -> Tensor:
        """The ranks' equally many rows, one after the other."""
        # By rank: global index r * n + i is then simply a row of the result.
        return Ranks(self.group).all_gather(rows)

    def pairs(self, mine: PairEmbeddings) -> PairEmbeddings:
        """All ranks' pairs, in the order of their global indices."""
        image, text = self.all_gather(mine.image), self.all_gather(mine.text)
        return PairEmbeddings(image, text, mine.scale, mine.bias)

    def texts(self, mine: str) -> list[str]:
        """What every rank says, by rank."""
        if self.group is None:
            return [mine]
        # As bytes in tensors: all_gather_object would unpickle what another host sent.
        content = torch.frombuffer(bytearray(mine.encode() + b"\0"), dtype=torch.uint8)
        longest = torch.tensor([len(content)], device=self.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX, group=self.group)
        row = torch.zeros(1, int(longest), dtype=torch.uint8, device=self.device)
        row[0, : len(content)] = content.to(self.device)
        return [bytes(r.tolist()).rstrip(b"\0").decode() for r in self.all_gather(row).cpu()]

    def all_to_all(self, rows: Tensor, out: list[int], into: list[int]) -> Tensor:
        """Send out[r] of these rows (in order) to each rank r and get into[r] rows from it."""
        if self.group is None:
            return rows
        sent = rows.contiguous().to(self.device)
        received = sent.new_empty(sum(into), *rows.shape[1:])
        dist.all_to_all_single(received, sent, into, out, group=self.group)
        return received


SINGLE_PROCESS = DistEnv()


@contextmanager
def join(device: torch.device, timeout: timedelta = timedelta(minutes=10)) -> Iterator[DistEnv]:
    """The world that torchrun's environment describes: NCCL on GPUs, gloo otherwise.

    Outside torchrun (or with one process) the process is alone. A rank that dies or stops
    answering for `timeout` ends the others: their collectives raise, which becomes RanksError."""
    # No process group: one process must give the bits of a run without torchrun.
    if (size := int(os.environ.get("WORLD_SIZE", "1"))) == 1:
        yield DistEnv(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    rank = int(os.environ["RANK"])
    try:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout)
        # Its own group: a long wait must not share a timeout with collectives that should be quick.
        patient: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield DistEnv(rank, size, device, dist.group.WORLD, patient)
        # None leaves while another still reads from it.
        dist.barrier(group=patient)
        dist.destroy_process_group()
    except (RuntimeError, dist.DistError) as error:
        # Lost contact with another rank, in one line, and at once: cleaning up could hang.
        # torch raises a plain RuntimeError for a lost peer; others are faults of ours and go on.
        text = str(error)
        signs = ("gloo", "NCCL", "Connection", "Timed out", "timeout", "Broken pipe", "peer")
        if not isinstance(error, dist.DistError) and not any(sign in text for sign in signs):
            raise
        why = " ".join(text.split())[:160]
        raise RanksError(f"rank {rank}: another rank ended or stopped answering ({why})") from None


def owners(home: Tensor, n_low: int, world: int) -> Tensor:
    """Which rank trains each chosen pair: int64 [b], as few moves as an equal share allows.

    home: int64 [b], the rank that holds each pair; the first `n_low` are seen at low resolution.
    Every rank trains b / world pairs, and as many of them at low resolution as any other
    (give or take one). A pair stays where it is unless its rank has its share already."""
    owner = torch.full_like(home, -1)
    share = len(home) // world
    # Low-resolution pairs are cheaper: an equal count of each kind keeps ranks in step.
    low = torch.tensor([n_low // world + (rank < n_low % world) for rank in range(world)])
    for part, quota in ((slice(0, n_low), low), (slice(n_low, None), share - low)):
        at_home, free = home[part], quota.clone()
        mine = owner[part]
        for rank in range(world):
            # First come, first kept: every rank computes the same table without asking.
            stays = torch.nonzero(at_home == rank).flatten()[: int(quota[rank])]
            mine[stays] = rank
            free[rank] -= len(stays)
        mine[mine < 0] = torch.repeat_interleave(torch.arange(world), free)
    return owner


def share(
    candidates: SuperBatch, index: Tensor, n_low: int, world: DistEnv, balanced: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What this rank trains of the sub-batch: pixels, tokens and their places in `index`.

    candidates: this rank's slice of the super-batch, as many on every rank.
    index: int64 [b], global (rank * len(candidates) + i), in training order, the first n_low
        at low resolution.
    balanced: every rank holds b / world of them, and none moves.
    Returns uint8 [b / world, 3, S, S], int64 [b / world, L], ascending int64 [b / world]."""
    # Alone nothing travels: sixty small operations and two copies of the pixels less.
    if world.size == 1:
        return *candidates.full(index), torch.arange(len(index))
    # Global number r * n + i: the rank that holds a pair is the quotient.
    home = index // len(candidates)
    owner = home if balanced else owners(home, n_low, world.size)
    held = torch.nonzero(home == world.rank).flatten()
    held = held[owner[held].argsort(stable=True)]  # grouped by where they go
    mine = owner == world.rank
    places = torch.cat([torch.nonzero(mine & (home == r)).flatten() for r in range(world.size)])
    out, into = (
        torch.bincount(ranks, minlength=world.size).tolist()
        for ranks in (owner[held], home[places])
    )
    # Only now are the chosen decoded in full: the super-batch never is, and never travels.
    pixels, tokens = candidates.full(index[held] - world.rank * len(candidates))
    order = places.argsort()
    pixels, tokens = (world.all_to_all(x, out, into)[order.to(x.device)] for x in (pixels, tokens))
    return pixels, tokens, places[order]
