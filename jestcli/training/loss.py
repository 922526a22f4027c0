"""The batch losses: open_clip's own, and the sigmoid loss in chunks for large batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jestcli.training.distributed import SINGLE_PROCESS, DistEnv


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    kind: str,
    chunk: int | None = None,
    world: DistEnv = SINGLE_PROCESS,
) -> Tensor:
    """The paper's eq. 1 (softmax) or 2 (sigmoid) over the ranks' whole batch, per pair.

    Args:
        image, text: [n, d], this rank's share, as many on every rank.
        chunk: sigmoid only: rows of the logits that exist at a time; None is all of them.
    Returns a 0-d loss whose average over the ranks is the batch's; so are its gradients'.
    """
    if chunk is not None:
        return _chunked_sigmoid(image, text, scale, bias, chunk, world)
    # open_clip's own, so that a loss here is a loss there; tests hold them equal.
    ranks = {"rank": world.rank, "world_size": world.size}
    if kind == "softmax":
        loss: Tensor = ClipLoss(local_loss=True, gather_with_grad=True, **ranks)(image, text, scale)
        return loss
    loss = SigLipLoss(**ranks)(image, text, scale, bias)
    return loss


def _chunked_sigmoid(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, chunk: int, world: DistEnv
) -> Tensor:
    """Memory for chunk x b logits: each chunk's are computed again in the backward pass."""
    texts = text if world.group is None else _Gathered.apply(text, world)
    own = world.rank * len(image)
    total = image.new_zeros(())
    # b x b logits of 32,768 pairs would be 4 GB; the gradient is the same.
    for start in range(0, len(image), chunk):
        rows = image[start : start + chunk]
        part: Any = checkpoint(
            _sigmoid_rows, rows, texts, scale, bias, own + start, use_reentrant=False
        )
        total = total + part
    return total / len(image)


def _sigmoid_rows(rows: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, first: int) -> Tensor:
    """Summed loss of `rows` of the logits, the first of which is row `first` of the batch."""
    logits = scale * rows @ texts.T + bias
    # +1 for the pair itself, -1 for all others (eq. 2).
    labels = torch.full_like(logits, -1)
    labels.diagonal(first).fill_(1)
    return -F.logsigmoid(labels * logits).sum()


class _Gathered(torch.autograd.Function):
    """The ranks' rows, one after the other; each rank's gradient is the sum of all ranks'."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: DistEnv) -> Tensor:
        ctx.world, ctx.n = world, len(rows)
        return world.all_gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.contiguous()
        # Each rank's texts met every rank's images: their gradients add up before each takes its
        # own.
        dist.all_reduce(gradient, group=ctx.world.group)
        return gradient[ctx.world.rank * ctx.n :][: ctx.n], None
