"""Steps that meet a NaN or an infinity."""

from __future__ import annotations

import torch
from torch import Tensor

from jestcli.selection import PairEmbeddings
from jestcli.training.distributed import DistEnv


class NonFiniteError(Exception):
    """A step met a NaN or an infinity, and nothing was updated. Every rank raises it together.

    index: int64 [n], the candidates that it concerns; candidate i of rank r is number
    r * B + i.
    """

    def __init__(self, what: str, index: Tensor):
        super().__init__(f"{what} not finite")
        self.index = index


def check_embeddings(what: str, pairs: PairEmbeddings | None, world: DistEnv, held: int) -> None:
    """Raise NonFiniteError on every rank if a row on any rank is not finite.

    pairs: of the first of `held` candidates, as many on every rank.
    """
    if pairs is None:
        return
    good = pairs.image.isfinite().all(1) & pairs.text.isfinite().all(1)
    if world.any(not bool(good.all())):
        rows = torch.nonzero(~good).flatten().cpu()
        raise NonFiniteError(f"{what} embeddings are", rows + world.rank * held)
