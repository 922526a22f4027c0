"""Selection on each rank alone, emulated in one process."""

import torch

from jestcli.selection import PairEmbeddings, select
from jestcli.selection.noise import gumbel

NAME = "jestcli.selection.local:four_ranks"


def pairs(n, seed):
    image, text = torch.randn(2, n, 6, generator=torch.Generator().manual_seed(seed))
    unit = torch.nn.functional.normalize
    return PairEmbeddings(unit(image, dim=1), unit(text, dim=1), 10.0, -10.0)


def test_each_rank_chooses_its_share_as_if_alone():
    learner, reference = pairs(32, 0), pairs(32, 1)
    chosen = select(learner, reference, size=12, sampler=NAME, n_chunks=3, seed=5, step=2)
    assert torch.bincount(chosen // 8, minlength=4).tolist() == [3, 3, 3, 3]
    rows, noise = torch.arange(8, 16), gumbel(5, 2)
    alone = select(
        learner.rows(rows),
        reference.rows(rows),
        size=3,
        n_chunks=3,
        noise=lambda draw, index: noise(draw, index + 8),
    )
    assert (alone + 8).tolist() == chosen[3:6].tolist()


def test_sizes_that_do_not_divide_are_spread():
    learner, reference = pairs(30, 0), pairs(30, 1)
    for size in (1, 7, 30):
        chosen = select(learner, reference, size=size, sampler=NAME)
        assert len(set(chosen.tolist())) == size
