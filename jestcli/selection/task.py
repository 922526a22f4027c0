"""Everything a strategy may look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from jestcli.selection.distributed import Ranks
from jestcli.selection.embeddings import PairEmbeddings
from jestcli.selection.noise import Noise
from jestcli.selection.scores import Score, pair_losses, terms


@dataclass(frozen=True, eq=False)
class Task:
    """The checked arguments of one call of `select`; a strategy maps it to global indices.

    With a process group, `learner` and `reference` hold this rank's candidates and `size` is
    the number to choose over all ranks."""

    learner: PairEmbeddings | None
    reference: PairEmbeddings | None
    size: int
    criterion: str
    loss: str
    n_chunks: int
    noise: Noise
    iterations: int
    ranks: Ranks
    learner_weight: float = 1.0
    labels: Tensor | None = None  # int64 [B, K], negative: padding

    @property
    def terms(self) -> list[tuple[float, PairEmbeddings]]:
        """(weight, embeddings) of each model that the criterion counts."""
        return terms(self.learner, self.reference, self.criterion, self.learner_weight)

    @cached_property
    def index(self) -> Tensor:
        """Global indices of this rank's candidates, int64 [B]."""
        pairs = self.learner if self.learner is not None else self.reference
        rows = self.labels if pairs is None else pairs.image
        assert rows is not None  # `select` checks
        return self.ranks.indices(len(rows), rows.device)

    def score(self) -> Score:
        """Scores of the candidates given the empty batch; grows by `Score.add`."""
        return Score(self.terms, self.loss, self.ranks)

    def pair_scores(self) -> Tensor:
        """Scalar score of each pair, its loss taken within the whole super-batch: float64 [B]."""
        losses = [w * pair_losses(pairs, self.loss, self.ranks) for w, pairs in self.terms]
        return torch.stack(losses).sum(0)

    def chunk_sizes(self) -> list[int]:
        """Chunks of size // n_chunks, the last takes the remainder; n_chunks above size: ones.

        In balanced mode each rank splits its own share so."""
        share = self.ranks.world if self.ranks.balanced else 1
        n = min(self.n_chunks, self.size // share)
        small = self.size // share // n
        last = self.size // share - small * (n - 1)
        return [share * m for m in [small] * (n - 1) + [last]]

    def shares(self) -> list[int]:
        """The most pairs that may come from each rank: all, or an equal part in balanced mode."""
        world = self.ranks.world
        return [self.size // world if self.ranks.balanced else self.size] * world

    def draw(self, logits: Tensor, count: int, number: int) -> Tensor:
        """`count` distinct draws with p proportional to exp(logits): Gumbel-top-k.

        logits: float64 [B], -inf where already chosen; `number` of the draw keys its noise.
        Returns global indices in the order drawn (descending perturbed score).
        Raises ValueError if the noise has another shape or is not finite."""
        noise = self.noise(number, self.index)
        if not isinstance(noise, Tensor) or noise.shape != logits.shape:
            shape = list(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise ValueError(f"noise must return shape {list(logits.shape)}, got {shape}")
        return self.ranks.top(logits + noise.to(logits), count)

    def free_of(self, free: Tensor, taken: Tensor) -> Tensor:
        """`free` (bool [B], this rank's candidates) without the global indices `taken`."""
        own = taken - self.ranks.rank * len(free)
        if self.ranks.world > 1:
            own = own[(own >= 0) & (own < len(free))]
        return free.index_fill(0, own, False)
