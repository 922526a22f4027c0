"""FLOPs and memory counted from the real modules; a run's cost in every convention of the paper.

One multiply-add is two FLOPs. A training step is taken as three forward passes (the paper's unit),
checked in the tests against torch's own count of forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jestcli.config import Run
from jestcli.models.flexi import Resolution
from jestcli.models.towers import Clip


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one forward pass of one example."""

    image_full: int
    image_low: int
    text: int

    @property
    def full(self) -> int:
        return self.image_full + self.text

    @property
    def low(self) -> int:
        return self.image_low + self.text


def forward_flops(model: Clip, image_size: int, context_length: int) -> ForwardFlops:
    """Count with torch's FLOP counter on the real modules (matmuls, convolutions, attention)."""
    device = next(model.parameters()).device  # "meta" counts the same and computes nothing
    images = torch.zeros(2, 3, image_size, image_size, device=device)
    tokens = torch.zeros(2, context_length, dtype=torch.long, device=device)

    def count(call: Callable[..., Tensor], batch: Tensor, *more: Resolution) -> int:
        # The second example's share: FlexiViT's resize maps are paid once a batch.
        two, one = (count_flops(call, given, *more) for given in (batch, batch[:1]))
        return two - one

    with model.scoring():  # zeros must not move batch statistics
        full, low = (count(model.encode_image, images, view) for view in (model.full, model.low))
        return ForwardFlops(full, low, count(model.encode_text, tokens))


def count_flops(call: Callable[..., Tensor], *given: Any) -> int:
    """FLOPs of a call of a model's."""
    # Plain attention: the counter knows its two matmuls, not every fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(*given)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Cost:
    """FLOPs spent so far by the four conventions of the paper's accounting.

    cached_reuse: reference cached, forwards of the selected pairs re-used (paper's 233 %).
    cached: reference cached, nothing re-used: what an engine executes (2.67 at f = .8).
    uncached: every candidate is also scored by the reference.
    charged: `cached`, plus the reference's own training and one scoring of each pool pair seen."""

    cached_reuse: float
    cached: float
    uncached: float
    charged: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    @property
    def uncached_reuse(self) -> float:
        """Nothing cached, forwards of the selected pairs re-used (the paper's 400 %)."""
        return self.uncached - (self.cached - self.cached_reuse)


def step_cost(
    run: Run, learner: ForwardFlops, reference: ForwardFlops | None, steps: int | None = None
) -> Cost:
    """FLOPs of one step. `charged` here leaves out what is spent once (see `run_cost`).

    Where the super-batch changes size: the mean of the first `steps` steps (default: of all)."""
    b, share = run.optim.batch_size, run.selection.low_res_share
    train = 3 * b * ((1 - share) * learner.full + share * learner.low)
    if run.model.lock_image:  # its forward pass alone
        train -= 2 * b * ((1 - share) * learner.image_full + share * learner.image_low)
    if not run.selection.scores:  # uniform; or cabs, which reads the captions of a super-batch
        return Cost(train, train, train, train)
    steps = max(1, run.optim.steps if steps is None else steps) if run.scheduled else 1
    candidates = run.scored_before(steps) / steps
    one_score = learner.low if run.selection.low_res_scoring else learner.full
    scored = candidates * one_score if run.selection.reads_learner else 0.0
    # At low resolution only the low-resolution share could be re-used; the paper counts none.
    chosen = b - run.curated_pairs
    reused = chosen * one_score if scored and not run.selection.low_res_scoring else 0.0
    reference_scored = candidates * reference_score(run, reference)
    cached = train + scored
    return Cost(cached - reused, cached, cached + reference_scored, cached)


def per_iteration(
    run: Run, learner: ForwardFlops, reference: ForwardFlops | None
) -> dict[str, float]:
    """Percent of a uniform full-resolution step of the same model, by convention.

    Two more than `Cost` has: `uncached_reuse`, and `cached_text_reuse`, where only the text
    forwards of the chosen pairs are re-used: texts look the same at every image resolution."""
    one, b = step_cost(run, learner, reference), run.optim.batch_size
    chosen = b - run.curated_pairs if run.selection.reads_learner else 0
    flops = {
        "cached_reuse": one.cached_reuse,
        "cached_text_reuse": one.cached - chosen * learner.text,
        "cached": one.cached,
        "uncached_reuse": one.uncached_reuse,
        "uncached": one.uncached,
    }
    return {name: 100 * value / (3 * b * learner.full) for name, value in flops.items()}


def reference_score(run: Run, reference: ForwardFlops | None) -> int:
    """FLOPs of the reference's embeddings of one pair, at the resolution it sees it."""
    if reference is None:
        return 0
    return reference.low if run.selection.reference_resolution == "low" else reference.full


def run_cost(
    run: Run,
    steps: int,
    learner: ForwardFlops,
    reference: ForwardFlops | None,
    reference_training: float,
    pool_size: int,
) -> Cost:
    """FLOPs after `steps` steps.

    reference_training: FLOPs that the reference's own training took.
    pool_size: candidates are drawn epoch by epoch, so a cache scores at most this many (of
        the pool: curated pairs of the batch are not scored)."""
    one = step_cost(run, learner, reference, steps)
    once = 0.0
    if reference is not None:
        reads = run.source.kind == "filtered" or run.selection.scores
        seen = pool_size if run.source.kind == "filtered" else run.scored_before(steps)
        one_score = reference_score(run, reference)
        once = reference_training + (min(seen, pool_size) * one_score if reads else 0.0)
    reuse, cached, uncached = (steps * x for x in (one.cached_reuse, one.cached, one.uncached))
    return Cost(reuse, cached, uncached, steps * one.charged + once)


@dataclass(frozen=True)
class Memory:
    """Bytes in float32. state: weights, gradients and AdamW's two moments.

    full, low: what autograd keeps for the backward pass of one pair, by the image's resolution."""

    state: int
    full: int
    low: int

    def training(self, batch_size: int, low_res_share: float) -> int:
        """Peak of one step on one device: state and activations of the whole batch at once."""
        low = round(batch_size * low_res_share)
        return self.state + low * self.low + (batch_size - low) * self.full


def training_memory(model: Clip, image_size: int, context_length: int) -> Memory:
    """Count tensors, by hooks on what autograd saves; a model on "meta" allocates nothing.

    On "meta" attention keeps its matrices, which fused kernels do not: an upper estimate (about a
    tenth over a CPU's at small images; more where there are many patches)."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    device = next(model.parameters()).device

    def saved(n: int, n_low: int) -> int:
        found: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage()._cdata] = tensor  # held: its address is not used again
            return tensor

        images = torch.zeros(n, 3, image_size, image_size, device=device)
        tokens = torch.zeros(n, context_length, dtype=torch.long, device=device)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = model(images, tokens, n_low)
        del outputs
        return sum(t.untyped_storage().nbytes() for key, t in found.items() if key not in own)

    # The third pair's share: resize maps are paid once a batch.
    full, low = saved(3, 0) - saved(2, 0), saved(3, 3) - saved(2, 2)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return Memory(4 * weights, full, low)
