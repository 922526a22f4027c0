"""Loss and gradients of a sub-batch, within the memory that `run.engine` allows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jestcli.config import Run
from jestcli.training.distributed import SINGLE_PROCESS, DistEnv
from jestcli.training.engine import average_whole
from jestcli.training.loss import contrastive_loss


@dataclass(frozen=True)
class Batch:
    """What a rank trains in one step: the first n_low images are seen at low resolution.

    images: float [n, 3, S, S], normalised and augmented; tokens: int64 [n, L].
    """

    images: Tensor
    tokens: Tensor
    n_low: int

    def parts(self, size: int) -> list[Batch]:
        """Micro-batches of at most `size` pairs, in order."""
        starts = range(0, len(self.images), size)
        return [
            Batch(
                self.images[s : s + size],
                self.tokens[s : s + size],
                min(max(self.n_low - s, 0), size),
            )
            for s in starts
        ]


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
    that gradient on, one micro-batch at a time (GradCache, arXiv 2101.06983).
    """
    engine, kind = run.engine, run.optim.loss
    if engine.micro_batch is None or engine.micro_batch >= len(batch.images):
        with autocast(run, world.device):
            image, text, scale, bias = trainee(batch.images, batch.tokens, batch.n_low)
        loss = contrastive_loss(image, text, scale, bias, kind, engine.loss_chunk, world)
        loss.backward()
        average_whole(trainee, world)
        return loss.detach()
    parts = batch.parts(engine.micro_batch)
    with torch.no_grad(), autocast(run, world.device):
        rows = [trainee(part.images, part.tokens, part.n_low) for part in parts]
    image, text = (torch.cat([row[k] for row in rows]).requires_grad_() for k in (0, 1))
    scale, bias = (rows[0][k].detach().clone().requires_grad_() for k in (2, 3))
    loss = contrastive_loss(image, text, scale, bias, kind, engine.loss_chunk, world)
    loss.backward()
    slopes = [x.grad.split(engine.micro_batch) for x in (image, text)]  # type: ignore[union-attr]
    for k, part in enumerate(parts):
        last = k == len(parts) - 1
        hold = isinstance(trainee, DistributedDataParallel) and not last
        with trainee.no_sync() if hold else nullcontext():  # type: ignore[operator]
            with autocast(run, world.device):
                outputs = list(trainee(part.images, part.tokens, part.n_low))
            gradients = [slopes[0][k], slopes[1][k], scale.grad, bias.grad]
            if not last:  # those of scale and bias are whole already: once is enough
                outputs, gradients = outputs[:2], gradients[:2]
            used = [
                (x, g)
                for x, g in zip(outputs, gradients, strict=True)
                if g is not None and x.requires_grad
            ]
            torch.autograd.backward(*map(list, zip(*used, strict=True)))  # type: ignore[arg-type]
    average_whole(trainee, world)
    return loss.detach()
