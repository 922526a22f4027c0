"""Small towers that learn fast on a CPU: a convolutional network and a bag of tokens.

For the embedded scale. At equal processor time they learn several times faster than a ViT of the
same size (docs/protocol.md), because convolutions need not learn what an image is first. The image
tower is conv 3x3 -> max-pool 2x2 -> batch norm -> ReLU, a few times over (pooling first makes the
norm four times cheaper); the text tower is the mean of its tokens' embeddings, a layer norm and a
linear map. Low resolution is a smaller image: global pooling takes any side.

Batch norm couples the examples of a batch. So in a training step its sums run over all ranks, with
gradient; scoring and evaluation use running statistics, kept apart for every image side, because
what a 3x3 filter sees at 16 px has another mean than at 32 px."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from jestcli.models.flexi import Resolution


class BatchNorm(nn.Module):
    """Batch norm over images [n, c, h, w] with running statistics for each of several image sides.

    In training mode the statistics are the batch's, over all ranks of `group` (None: this process
    alone), and the running ones of `side` move towards them by `momentum`; in evaluation mode they
    are the running ones. Weight and bias are shared by all sides."""

    momentum, eps = 0.1, 1e-5

    def __init__(self, channels: int, sides: tuple[int, ...]):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.group: Any = None
        for side in sides:
            self.register_buffer(f"mean_{side}", torch.zeros(channels))
            self.register_buffer(f"var_{side}", torch.ones(channels))

    def forward(self, x: Tensor, side: int) -> Tensor:
        mean, var = getattr(self, f"mean_{side}"), getattr(self, f"var_{side}")
        if not self.training or self.group is None:
            if self.training and not len(x):
                return x
            return F.batch_norm(
                x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps
            )
        return _norm_over_ranks(self, x, mean, var, self.group)


def share_statistics(norm: nn.BatchNorm2d, group: Any) -> None:
    """Make a batch norm of torch's (or timm's, with its activation) train on the statistics of all
    ranks of `group`, with gradient, as `BatchNorm` does."""
    alone = norm.forward

    def forward(x: Tensor) -> Tensor:
        if not norm.training:
            return alone(x)
        norm.get_buffer("num_batches_tracked").add_(1)
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        x = _norm_over_ranks(norm, x, mean, var, group)
        for after in ("drop", "act"):
            x = getattr(norm, after, nn.Identity())(x)
        return x

    norm.forward = forward  # type: ignore[method-assign, assignment]


def _norm_over_ranks(norm: Any, x: Tensor, mean: Tensor, var: Tensor, group: Any) -> Tensor:
    """x [n, c, h, w] normalised by the statistics of all ranks, towards which mean and var go."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    # About the running mean, which all ranks share: squares of large means would cancel.
    shift = mean.detach().clone()
    wide = wide - shift[:, None, None]
    # Sums, not means: the ranks may hold different numbers of images at this resolution.
    local = torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])
    count = wide.new_full((1, x.shape[1]), x.numel() / x.shape[1])
    total = _SumOverRanks.apply(torch.cat([local, count]), group)
    n = total[2].detach().clamp(min=1)
    batch_mean = total[0] / n
    batch_var = (total[1] / n - batch_mean.square()).clamp(min=0)
    if float(n[0]) > 1:
        with torch.no_grad():
            mean.lerp_(shift + batch_mean.detach(), norm.momentum)
            var.lerp_(batch_var.detach() * n / (n - 1), norm.momentum)  # unbiased, as torch's
    factor = norm.weight / (batch_var + norm.eps).sqrt()
    offset = norm.bias - batch_mean * factor
    return (wide * factor[:, None, None] + offset[:, None, None]).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The ranks' sum of a tensor; each rank's gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group, total = group, x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class ConvTower(nn.Module):
    """Images float [n, 3, S, S] -> [n, embed_dim].

    channels: of each 3x3 convolution; all but the last halve the side.
    sides: image sides in pixels that it will be trained at."""

    def __init__(self, channels: tuple[int, ...], embed_dim: int, sides: tuple[int, ...]):
        super().__init__()
        self.sides = tuple(dict.fromkeys(sides))
        pairs = list(zip((3, *channels), channels, strict=False))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairs
        )
        self.norms = nn.ModuleList(BatchNorm(after, self.sides) for after in channels)
        self.projection = nn.Linear(channels[-1], embed_dim)
        self.to(memory_format=torch.channels_last)  # 3x faster than the other order on a CPU

    def prepare(self, view: Resolution) -> None:
        """ValueError for a side that it keeps no statistics of."""
        if view.side not in self.sides:
            known = " and ".join(map(str, self.sides))
            raise ValueError(f"this tower has batch statistics for {known} px, not {view.side} px")

    def forward(self, images: Tensor, view: Resolution | None = None) -> Tensor:
        """Images float [n, 3, S, S], seen at the view's side (None: the first of `sides`)."""
        side = view.side if view is not None else self.sides[0]
        if images.shape[-1] != side:
            # A quarter faster where the pixels of a channel lie side by side.
            images = images.contiguous()
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        x = images.contiguous(memory_format=torch.channels_last)
        last = len(self.convolutions) - 1
        for k, (convolve, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = convolve(x)
            x = _halved(x) if k < last else x
            x = F.relu(norm(x, side), inplace=True)
        return self.projection(x.mean((2, 3)))


def _halved(x: Tensor) -> Tensor:
    """Max-pool 2x2 of [n, c, h, w]. On a CPU without gradient by torch.maximum, three times faster
    where channels lie last; its backward pass is much slower, and a GPU waits for two launches."""
    even = x.shape[2] % 2 == 0 == x.shape[3] % 2
    last = x.is_contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled() or x.is_cuda or not even or not last:
        return F.max_pool2d(x, 2)
    n, c, h, w = x.shape
    cells = x.permute(0, 2, 3, 1).view(n, h // 2, 2, w // 2, 2, c)
    rows = torch.maximum(cells[:, :, 0], cells[:, :, 1])
    return torch.maximum(rows[:, :, :, 0], rows[:, :, :, 1]).permute(0, 3, 1, 2)


class BagOfTokens(nn.Module):
    """Tokens int [n, L] -> [n, embed_dim]: mean embedding of all tokens but padding (id 0)."""

    def __init__(self, vocab_size: int, width: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.embedding.weight
        # Scoring need not hold every token's row, which is most of this tower's time. In these
        # shapes a sum adds row by row, too: both give what training does, to the last bit.
        if not torch.is_grad_enabled() and tokens.shape[1] <= 16 and weight.shape[1] % 64 == 0:
            mean = F.embedding_bag(tokens, weight, mode="mean", padding_idx=0)
            return self.projection(self.norm(mean))
        there = (tokens != 0).to(weight.dtype)[:, :, None]
        mean = (self.embedding(tokens) * there).sum(1) / there.sum(1).clamp(min=1)
        return self.projection(self.norm(mean))


class SmallPair(nn.Module):
    """Both towers, temperature scale (as its logarithm) and bias, under open_clip's names.

    init_logit_bias: None for a model of the softmax loss, which has no bias."""

    def __init__(
        self,
        visual: ConvTower,
        text: BagOfTokens,
        init_logit_scale: float,
        init_logit_bias: float | None,
    ):
        super().__init__()
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.tensor(float(init_logit_scale)))
        self.logit_bias = (
            None if init_logit_bias is None else nn.Parameter(torch.tensor(float(init_logit_bias)))
        )

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int [n, L] -> [n, embed_dim], not normalised."""
        return self.text(tokens)
