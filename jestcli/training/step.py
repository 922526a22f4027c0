"""One training step: score, select, update. The paper's loop body."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from jestcli.config import Run
from jestcli.data.loader import Candidates
from jestcli.models.flexi import View
from jestcli.models.towers import Clip
from jestcli.selection import PairEmbeddings, learnability_of, select
from jestcli.training.augment import augment, normalise
from jestcli.training.optimiser import learning_rate
from jestcli.training.randomness import torch_generator

SCORING_MICRO_BATCH = 64  # fastest on a CPU: activations stay in cache
EmbedReference = Callable[[Candidates], PairEmbeddings]


@torch.no_grad()
def embed(model: Clip, images: Tensor, tokens: Tensor, view: View | None) -> PairEmbeddings:
    """Embeddings of the deterministic view: uint8 [B, 3, S, S], int64 [B, L] -> [B, d] twice."""
    image_rows, text_rows = [], []
    for start in range(0, len(images), SCORING_MICRO_BATCH):
        part = slice(start, start + SCORING_MICRO_BATCH)
        image_rows.append(model.encode_image(normalise(images[part]), view))
        text_rows.append(model.encode_text(tokens[part]))
    scale, bias = model.scale.detach(), model.bias.detach()
    return PairEmbeddings(torch.cat(image_rows), torch.cat(text_rows), scale, bias)


class NotFinite(Exception):
    """A step met a NaN or an infinity, and nothing was updated.

    what: which value; index: int64 [n], the candidates that it concerns.
    """

    def __init__(self, what: str, index: Tensor):
        super().__init__(f"{what} not finite")
        self.what, self.index = what, index


@dataclass(frozen=True)
class Choice:
    """index: int64 [b] into the candidates; mean learnability of all candidates and of those."""

    index: Tensor
    super_batch_learnability: float | None = None
    sub_batch_learnability: float | None = None


def choose(
    learner: Clip,
    reference: EmbedReference | None,
    candidates: Candidates,
    run: Run,
    step: int,
    measure: bool = False,
) -> Choice:
    """Pick the sub-batch (Algorithm 1, or what `run.selection` names). May raise NotFinite."""
    selection, size = run.selection, run.optim.batch_size
    if selection.sampler == "uniform":
        return Choice(torch.arange(len(candidates)))
    view = learner.low if selection.low_res_scoring else learner.full
    needs_learner = measure or selection.criterion != "easy_reference"
    learner_pairs = (
        embed(learner, candidates.images, candidates.tokens, view) if needs_learner else None
    )
    reference_pairs = reference(candidates) if reference else None
    _check_finite("the learner's embeddings are", learner_pairs)
    _check_finite("the reference's embeddings are", reference_pairs)
    index = select(
        learner_pairs,
        reference_pairs,
        size=size,
        sampler=selection.sampler,
        criterion=selection.criterion,
        loss=run.optim.loss,
        n_chunks=selection.n_chunks,
        seed=run.seed,
        step=step,
    )
    if not measure or learner_pairs is None or reference_pairs is None:
        return Choice(index)
    everything = torch.arange(len(candidates))
    means = [
        learnability_of(learner_pairs, reference_pairs, rows, loss=run.optim.loss)
        for rows in (everything, index)
    ]
    return Choice(index, *means)


def update(
    learner: Clip,
    optimiser: torch.optim.Optimizer,
    candidates: Candidates,
    index: Tensor,
    run: Run,
    step: int,
) -> float:
    """One gradient step on the chosen pairs; returns the loss. May raise NotFinite.

    A random `low_res_share` of them is seen at low resolution, the rest at full; their embeddings
    are joined in one ordinary b x b loss (Flexi-JEST).
    """
    generator = torch_generator(run.seed, "train", step)
    index = index[torch.randperm(len(index), generator=generator)]
    pixels, tokens = candidates.full(index)
    images = normalise(pixels)
    if run.optim.augment:
        images = augment(images, generator)
    n_low = round(len(index) * run.selection.low_res_share)
    image, text, scale, bias = learner(images, tokens, n_low)
    loss = contrastive_loss(image, text, scale, bias, run.optim.loss)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, run.optim)
    optimiser.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), run.optim.clip_norm)
    if not torch.isfinite(loss.detach() + norm):
        raise NotFinite(f"the loss is {float(loss)}, the gradient's norm {float(norm)}:", index)
    optimiser.step()
    return float(loss.detach())


def _check_finite(what: str, pairs: PairEmbeddings | None) -> None:
    if pairs is None:
        return
    good = pairs.image.isfinite().all(1) & pairs.text.isfinite().all(1)
    if not good.all():
        raise NotFinite(what, torch.nonzero(~good).flatten())


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, kind: str
) -> Tensor:
    """Mean loss over the batch, open_clip's own: the paper's eq. 1 (softmax) or 2 (sigmoid)."""
    if kind == "softmax":
        return ClipLoss()(image, text, scale)
    return SigLipLoss()(image, text, scale, bias)
