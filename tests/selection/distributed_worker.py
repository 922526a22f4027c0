"""One rank of test_distributed: python distributed_worker.py RANK WORLD STORE SCENARIO."""

import os
import sys
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from selection_oracle import make_pairs

from jestcli.selection import select
from jestcli.selection.noise import zero

COUNT = 48
LEARNER = make_pairs(COUNT, 8, seed=1)
REFERENCE = make_pairs(COUNT, 6, seed=2, scale=14.0)


def expect_error(message, call):
    try:
        call()
    except Exception as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"no error; expected {message!r}")


def equality(rank, world):
    each = COUNT // world
    own = torch.arange(rank * each, (rank + 1) * each)
    shard = (LEARNER.rows(own), REFERENCE.rows(own))
    group = dist.group.WORLD
    for loss in ("sigmoid", "softmax", "softmax_negatives"):
        for sampler in ("joint", "topk/hard_learner", "rho", "activeclip", "uniform"):
            for size, n_chunks in ((26, 5), (COUNT, 3), (1, 1))[: 3 if sampler == "joint" else 1]:
                arguments = dict(size=size, n_chunks=n_chunks, sampler=sampler, loss=loss, seed=3)
                alone = select(LEARNER, REFERENCE, **arguments)
                assert torch.equal(select(*shard, group=group, **arguments), alone), arguments
    arguments = dict(size=26, learner_weight=0.3, seed=3)
    alone = select(LEARNER, REFERENCE, **arguments)
    assert torch.equal(select(*shard, group=group, **arguments), alone)
    labels = torch.arange(COUNT * 3).reshape(COUNT, 3) % 11
    arguments = dict(size=26, sampler="cabs", seed=3)
    alone = select(None, None, labels=labels, **arguments)
    assert torch.equal(select(None, None, labels=labels[own], group=group, **arguments), alone)
    shared = select(
        None, None, labels=labels[own], size=24, sampler="cabs", group=group, mode="balanced"
    )
    assert torch.bincount(shared // each, minlength=world).tolist() == [24 // world] * world
    width = 2 + (rank == 1)
    uneven = lambda: select(*shard, labels=labels[own, :width], size=8, group=group)  # noqa: E731
    expect_error("other arguments", uneven)
    single = [replace(p, image=p.image.bfloat16(), text=p.text.bfloat16()) for p in shard]
    assert select(*single, size=24, group=group).unique().numel() == 24

    balanced = select(*shard, size=24, n_chunks=3, group=group, mode="balanced", noise=zero)
    parts = [torch.empty_like(balanced) for _ in range(world)]
    dist.all_gather(parts, balanced)
    assert all(torch.equal(part, balanced) for part in parts)
    for chunk in balanced.split(8):  # an equal share of every rank in every chunk
        assert torch.bincount(chunk // each, minlength=world).tolist() == [8 // world] * world
    # the first chunk is each rank's own best, the later ones are scored given all of it
    free = select(*shard, size=24, n_chunks=3, group=group, noise=zero)
    first = select(*shard, size=8 // world, n_chunks=1, noise=zero) + rank * each
    assert set(first.tolist()) <= set(balanced[:8].tolist())
    assert not torch.equal(free, balanced)

    expect_error("divide by", lambda: select(*shard, size=25, group=group, mode="balanced"))
    expect_error("gibbs", lambda: select(*shard, size=8, sampler="gibbs", group=group))
    wrong = replace(shard[0], image=shard[0].image * (torch.nan if rank == 1 else 1))
    message = "must be finite" if rank == 1 else "rank 1 rejected its arguments"
    expect_error(message, lambda: select(wrong, shard[1], size=8, group=group))
    expect_error("other arguments", lambda: select(*shard, size=8, seed=rank, group=group))
    few = [p.rows(torch.arange(each - (rank == 1))) for p in shard]
    expect_error("as many pairs on every rank", lambda: select(*few, size=8, group=group))
    assert len(select(*shard, size=8, group=group)) == 8  # and the group still works


def stalled(rank, world):
    """Rank 1 stops answering in the middle of a selection; rank 0 must get an error in time."""
    draws = []

    def noise(draw, index):
        draws.append(draw)
        if rank == 1 and draw == 1:
            sys.stdin.read()  # until the test lets go
            sys.exit(0)
        return zero(draw, index)

    own = torch.arange(rank * 24, (rank + 1) * 24)
    shard = (LEARNER.rows(own), REFERENCE.rows(own))
    call = lambda: select(*shard, size=8, n_chunks=4, noise=noise, group=dist.group.WORLD)  # noqa: E731
    expect_error("", call)
    assert draws[-1] == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, world, store, scenario = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    seconds = 2 if scenario == "stalled" else 60
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )
    {"equality": equality, "stalled": stalled}[scenario](rank, world)
    print("ok", flush=True)
    os._exit(0)  # as jest leaves: after a timeout gloo's threads can abort an ordinary exit
