"""What a candidate is worth: losses of pairs, and the gain from adding a pair to a batch.

Legend: z_ij = scale * image_i . text_j + bias; C = the pairs chosen so far; k = a candidate.
A loss here is the sum over the pairs of a batch, one model at a time; `criterion` says which
models count and with what weight. Running values are float64 [B]; tiles are float32 (float64 for
float64 embeddings), whatever the input dtype.

Each gain starts as the diagonal score (how badly the pair matches by itself), which draws the
first chunk, and is told of every new chunk by `add`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from jestcli.selection.blocks import log_sum_exp, softplus, sum_softplus
from jestcli.selection.distributed import SINGLE_PROCESS, Ranks
from jestcli.selection.embeddings import PairEmbeddings, check_name, checked, wide

# criterion -> (weight of the learner's loss, weight of the reference's)    [paper, section 2.1]
CRITERIA = {
    "learnability": (1.0, -1.0),  # hard for the learner, easy for the reference
    "easy_reference": (0.0, -1.0),
    "hard_learner": (1.0, 0.0),
}


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autograd, and no autocast that would round the logits of the caller's model code."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def diagonal_logits(pairs: PairEmbeddings) -> Tensor:
    """z_kk of every pair: float64 [B]."""
    dtype = wide(pairs.image)
    cosine = torch.empty(len(pairs), dtype=torch.float64, device=pairs.image.device)
    for k in range(0, len(pairs), 4096):
        image, text = pairs.image[k : k + 4096], pairs.text[k : k + 4096]
        cosine[k : k + 4096] = (image.to(dtype) * text.to(dtype)).sum(1)
    return pairs.scale * cosine + pairs.bias


class SigmoidGain:
    """Change of the summed sigmoid loss when k joins C (paper, eq. 2 and Algorithm 1).

    L_kk + sum_{i in C} L_ik + sum_{j in C} L_kj, with L_kk = softplus(-z_kk) and, off the
    diagonal, L_ij = softplus(z_ij). Additive over C, so one running sum is all its state."""

    def __init__(self, pairs: PairEmbeddings, ranks: Ranks) -> None:
        self.pairs, self.ranks = pairs, ranks
        self.gain = softplus(-diagonal_logits(pairs))

    def values(self) -> Tensor:
        """Gains of all candidates, float64 [B]; meaningless for those already in C."""
        return self.gain

    def add(self, new: Tensor) -> None:
        """Put the pairs with global indices `new` (int64 [m]) into C."""
        image, text = _shared(self.pairs, new, self.ranks)
        scale, bias = self.pairs.scale, self.pairs.bias
        self.gain += sum_softplus(image, self.pairs.text, scale, bias)
        self.gain += sum_softplus(text, self.pairs.image, scale, bias)


class SoftmaxNegativesGain:
    """The published softmax adaptation: the candidate's own negatives only, both directions.

    -z_kk + 1/2 [log sum_{j in C} exp z_kj + log sum_{i in C} exp z_ik]: what k suffers from C;
    what k does to the members of C is left out, and k's own positive is not in its partition.
    With C empty there are no negatives, and the score is -z_kk."""

    def __init__(self, pairs: PairEmbeddings, ranks: Ranks) -> None:
        self.pairs, self.ranks = pairs, ranks
        self.positive = diagonal_logits(pairs) - pairs.bias  # the bias cancels in every softmax
        # log-partition over C of each pair's image (over texts) and of its text (over images)
        self.image_lse = torch.full_like(self.positive, -torch.inf)
        self.text_lse = torch.full_like(self.positive, -torch.inf)
        self.empty = True  # nothing chosen yet

    def values(self) -> Tensor:
        if self.empty:
            return -self.positive
        return (self.image_lse + self.text_lse) / 2 - self.positive

    def add(self, new: Tensor) -> None:
        self.grow(*_shared(self.pairs, new, self.ranks))

    def grow(self, image: Tensor, text: Tensor) -> None:
        """Put these pairs of C into the partitions."""
        scale = self.pairs.scale
        to_text = log_sum_exp(text, self.pairs.image, scale)
        to_image = log_sum_exp(image, self.pairs.text, scale)
        self.image_lse = torch.logaddexp(self.image_lse, to_text.double())
        self.text_lse = torch.logaddexp(self.text_lse, to_image.double())
        self.empty = False


class SoftmaxGain(SoftmaxNegativesGain):
    """Change of the summed softmax loss (paper, eq. 1) when k joins C: exact.

    k's own loss with k among its negatives' partition, and what k adds to the partitions of the
    members: with R_i = log sum_{j in C} exp z_ij, member i's image loss grows by
    log(exp R_i + exp z_ik) - R_i = softplus(z_ik - R_i); texts likewise; each direction by half.
    R_i changes with every chunk, so this term is recomputed over all of C: about n_chunks / 2
    times the arithmetic of the sigmoid loss; the members' embeddings are kept for it. With C empty
    the exact change is 0 for every k, which says nothing: the first chunk is drawn by -z_kk."""

    def __init__(self, pairs: PairEmbeddings, ranks: Ranks) -> None:
        super().__init__(pairs, ranks)
        self.members: list[tuple[Tensor, Tensor, Tensor]] = []  # global index, image, text

    def values(self) -> Tensor:
        if self.empty:
            return -self.positive
        own_image = torch.logaddexp(self.image_lse, self.positive)
        own_text = torch.logaddexp(self.text_lse, self.positive)
        return (own_image + own_text) / 2 - self.positive + self.members_loss / 2

    def add(self, new: Tensor) -> None:
        image, text = _shared(self.pairs, new, self.ranks)
        self.members.append((new, image, text))
        self.grow(image, text)
        self.members_loss = torch.zeros_like(self.positive)
        lse = torch.stack([self.image_lse, self.text_lse], dim=1)
        scale = self.pairs.scale
        for index, image, text in self.members:
            offset = -self.ranks.rows(lse, index)
            self.members_loss += sum_softplus(image, self.pairs.text, scale, offset[:, 0])
            self.members_loss += sum_softplus(text, self.pairs.image, scale, offset[:, 1])


def _shared(pairs: PairEmbeddings, index: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Image and text embeddings of the global indices, on every rank."""
    return ranks.rows(pairs.image, index), ranks.rows(pairs.text, index)


# loss -> gain of joint selection. Losses of whole batches and single pairs know two kinds:
# both softmax entries are the one softmax loss there.
GAINS: dict[str, Callable[[PairEmbeddings, Ranks], SigmoidGain | SoftmaxNegativesGain]] = {
    "sigmoid": SigmoidGain,
    "softmax": SoftmaxGain,
    "softmax_negatives": SoftmaxNegativesGain,
}


class Score:
    """Gains of the models that the criterion counts, weighted and summed."""

    def __init__(self, terms: list[tuple[float, PairEmbeddings]], loss: str, ranks: Ranks) -> None:
        self.terms = [(weight, GAINS[loss](pairs, ranks)) for weight, pairs in terms]

    def values(self) -> Tensor:
        """Score of every local candidate given C, float64 [B]."""
        (weight, first), *others = self.terms
        total = weight * first.values()
        for weight, gain in others:
            total += weight * gain.values()
        return total

    def add(self, new: Tensor) -> None:
        """Put the pairs with global indices `new` into C."""
        for _, gain in self.terms:
            gain.add(new)


def terms(
    learner: PairEmbeddings | None,
    reference: PairEmbeddings | None,
    criterion: str,
    learner_weight: float = 1.0,
) -> list[tuple[float, PairEmbeddings]]:
    """(weight, embeddings) of the models that `criterion` counts.

    learner_weight: multiplies the learner's. A model of weight 0 is left out, not multiplied by
    it: at 0 learnability is easy_reference to the last bit, and needs no learner.
    Raises ValueError if one of them is missing."""
    found = []
    ours, theirs = CRITERIA[criterion]
    models = ("learner", learner_weight * ours, learner), ("reference", theirs, reference)
    for name, weight, pairs in models:
        if weight and pairs is None:
            raise ValueError(f"{name} is None, but criterion {criterion!r} needs it")
        if weight and pairs is not None:
            found.append((weight, pairs))
    return found


def pair_losses(pairs: PairEmbeddings, loss: str, ranks: Ranks = SINGLE_PROCESS) -> Tensor:
    """Loss of each local pair with all pairs of all ranks as its batch, streaming: float64 [B].

    Both directions by half, so the values sum to the batch loss. softmax: paper, eq. 1.
    sigmoid: softplus(-z_kk) + 1/2 sum_{j != k} [softplus(z_kj) + softplus(z_jk)], which has the
    sum of the paper's eq. 2 (that counts the image's row only) and treats both sides alike."""
    if loss == "sigmoid":
        total = -2 * diagonal_logits(
            pairs
        )  # softplus(-z) = softplus(z) - z: the sums below include z_kk
        for image, text in ranks.shards(pairs):
            total += sum_softplus(image, pairs.text, pairs.scale, pairs.bias)
            total += sum_softplus(text, pairs.image, pairs.scale, pairs.bias)
        return total / 2
    partitions = SoftmaxNegativesGain(pairs, ranks)
    for image, text in ranks.shards(pairs):
        partitions.grow(image, text)
    return partitions.values()


def learnability_of(
    learner: PairEmbeddings | None,
    reference: PairEmbeddings | None,
    indices: Tensor,
    loss: str = "sigmoid",
    criterion: str = "learnability",
) -> float:
    """Mean of `learnability_by_pair`, nats per pair."""
    return float(learnability_by_pair(learner, reference, indices, loss, criterion).mean())


def learnability_by_pair(
    learner: PairEmbeddings | None,
    reference: PairEmbeddings | None,
    indices: Tensor,
    loss: str = "sigmoid",
    criterion: str = "learnability",
) -> Tensor:
    """l(.|learner) - l(.|reference) of every pair of a sub-batch, nats, float64 [b].

    indices: int64 [b], the sub-batch, which is also the batch of the loss. Memory: one tile.
    Another `criterion` gives -l(.|reference) or l(.|learner). Raises ValueError as `select`."""
    total: Any = 0.0
    for weight, pairs in terms(*checked_models(learner, reference, loss, criterion), criterion):
        index = torch.as_tensor(indices, device=pairs.image.device)
        if index.dtype != torch.int64 or index.dim() != 1 or len(index) == 0:
            raise ValueError("indices must be a one-dimensional, non-empty int64 tensor")
        if index.min() < 0 or index.max() >= len(pairs):
            raise ValueError(f"indices must lie in [0, {len(pairs)})")
        with full_precision(pairs.image.device):
            total = total + weight * pair_losses(pairs.rows(index), loss)
    return total


def pairwise_learnability(
    learner: PairEmbeddings | None,
    reference: PairEmbeddings | None,
    loss: str = "sigmoid",
    criterion: str = "learnability",
) -> Tensor:
    """The B x B matrix S of the paper's Algorithm 1 (row: image, column: text), for pictures.

    sigmoid: S = L(learner) - L(reference) with L as in `SigmoidGain`. The softmax loss is not a
    sum over pairs; its picture is L_ij = -1/2 [log softmax_j(z)_ij + log softmax_i(z)_ij], whose
    diagonal is the loss of each pair. float32 (float64 for float64). Memory O(B^2): small B only.
    """
    matrix: Any = None
    for weight, pairs in terms(*checked_models(learner, reference, loss, criterion), criterion):
        with full_precision(pairs.image.device):
            image, text = (x.to(wide(x)) for x in (pairs.image, pairs.text))
            z = pairs.scale * image @ text.T + pairs.bias
            if loss == "sigmoid":
                part = softplus(z)
                part.diagonal().copy_(softplus(-z.diagonal()))
            else:
                part = -(z.log_softmax(1) + z.log_softmax(0)) / 2
            matrix = weight * part if matrix is None else matrix + weight * part
    return matrix


def checked_models(
    learner: PairEmbeddings | None, reference: PairEmbeddings | None, loss: str, criterion: str
) -> tuple[PairEmbeddings | None, PairEmbeddings | None]:
    """Both models' pairs as `checked` gives them. Raises ValueError for these or a wrong name."""
    check_name("criterion", criterion, CRITERIA)
    check_name("loss", loss, GAINS)
    learner = None if learner is None else checked(learner, "learner")
    reference = None if reference is None else checked(reference, "reference")
    if learner is not None and reference is not None:
        if len(learner) != len(reference):
            raise ValueError(f"reference has {len(reference)} pairs, learner {len(learner)}")
        ours, theirs = learner.image.device, reference.image.device
        if ours != theirs:
            raise ValueError(f"reference is on {theirs}, learner on {ours}")
    return learner, reference
