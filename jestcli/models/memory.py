"""Memory that training takes, from the real modules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jestcli.models.towers import Clip


@dataclass(frozen=True)
class Memory:
    """Bytes in float32. state: weights, gradients and AdamW's two moments.

    full, low: what autograd keeps for the backward pass of one pair, by the image's resolution.
    """

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
    tenth over a CPU's at small images; more where there are many patches).
    """
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
