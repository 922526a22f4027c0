"""Loss and gradients of a sub-batch, within the memory that `run.engine` allows.

The losses are open_clip's own, and the sigmoid loss in chunks for large batches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from jestcli.config import Run
from jestcli.training.distributed import SINGLE_PROCESS, DistEnv
from jestcli.training.engine import average_whole

PRIME = 1_000_003  # between the seeds of a step's parts


@dataclass(frozen=True)
class Batch:
    """What a rank trains in one step: the first n_low images are seen at low resolution.

    images: float [n, 3, S, S], normalised and augmented; tokens: int64 [n, L]."""

    images: Tensor
    tokens: Tensor
    n_low: int

    def parts(self, size: int) -> list[Batch]:
        """Micro-batches of at most `size` pairs, in order."""
        found = []
        for start in range(0, len(self.images), size):
            part, n_low = slice(start, start + size), min(max(self.n_low - start, 0), size)
            found.append(Batch(self.images[part], self.tokens[part], n_low))
        return found


def autocast(run: Run, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 if the run says so; weights, features and losses stay wide."""
    if run.engine.precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def backward(trainee: nn.Module, batch: Batch, run: Run, world: DistEnv = SINGLE_PROCESS) -> Tensor:
    """Add the loss's gradient to the parameters' .grad; returns this rank's loss, 0-d.

    trainee: (images, tokens, n_low) -> image and text embeddings, scale and bias.
    In micro-batches the negatives stay: all pairs are embedded without a graph, the loss of the
    whole sub-batch is differentiated with respect to the embeddings, and a second pass carries
    that gradient on, one micro-batch at a time (GradCache, arXiv 2101.06983)."""
    engine, kind = run.engine, run.optim.loss
    if engine.micro_batch is None or engine.micro_batch >= len(batch.images):
        with autocast(run, world.device):
            image, text, scale, bias = trainee(batch.images, batch.tokens, batch.n_low)
        loss = contrastive_loss(image, text, scale, bias, kind, engine.loss_chunk, world)
        loss.backward()
        average_whole(trainee, world)
        return loss.detach()
    parts = batch.parts(engine.micro_batch)
    dice, rows = torch.initial_seed(), []
    with torch.no_grad(), autocast(run, world.device):
        for k, part in enumerate(parts):
            torch.manual_seed(dice + PRIME * k)  # what a part drops, it drops in both passes
            rows.append(trainee(part.images, part.tokens, part.n_low))
    image, text = (torch.cat([row[k] for row in rows]).requires_grad_() for k in (0, 1))
    scale, bias = (rows[0][k].detach().clone().requires_grad_() for k in (2, 3))
    loss = contrastive_loss(image, text, scale, bias, kind, engine.loss_chunk, world)
    loss.backward()
    slopes = [x.grad.split(engine.micro_batch) for x in (image, text)]  # type: ignore[union-attr]
    for k, part in enumerate(parts):
        last = k == len(parts) - 1
        hold = isinstance(trainee, DistributedDataParallel) and not last
        with trainee.no_sync() if hold else nullcontext():  # type: ignore[operator]
            torch.manual_seed(dice + PRIME * k)
            with autocast(run, world.device):
                outputs = list(trainee(part.images, part.tokens, part.n_low))
            gradients = [slopes[0][k], slopes[1][k], scale.grad, bias.grad]
            if not last:  # those of scale and bias are whole already: once is enough
                outputs, gradients = outputs[:2], gradients[:2]
            both = zip(outputs, gradients, strict=True)
            used = [(x, g) for x, g in both if g is not None and x.requires_grad]
            torch.autograd.backward(*map(list, zip(*used, strict=True)))  # type: ignore[arg-type]
    average_whole(trainee, world)
    return loss.detach()


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

    image, text: [n, d], this rank's share, as many on every rank.
    chunk: sigmoid only: rows of the logits that exist at a time; None is all of them.
    Returns a 0-d loss whose average over the ranks is the batch's; so are its gradients'."""
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
        given = (rows, texts, scale, bias, own + start)
        part: Any = checkpoint(_sigmoid_rows, *given, use_reentrant=False)
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
        # Each rank's texts met every rank's images: gradients add up, then each takes its own.
        dist.all_reduce(gradient, group=ctx.world.group)
        return gradient[ctx.world.rank * ctx.n :][: ctx.n], None
