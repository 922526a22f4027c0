"""How a learner is made ready to train: compiled, checkpointed, and spread over the ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from jestcli.config import ConfigError, Run
from jestcli.models.cnn import BatchNorm, share_statistics
from jestcli.models.towers import Clip
from jestcli.training.distributed import DistEnv


def make_trainee(learner: Clip, run: Run, world: DistEnv) -> nn.Module:
    """What the training step calls: `learner` itself, or a wrapper that averages its gradients.

    `learner` moves to the rank's device and keeps its own methods, which score and evaluate. With
    `engine.shard=fsdp` its parameters become shards in place."""
    engine = run.engine
    learner.to(world.device)
    one_pass = engine.micro_batch is None and not engine.activation_checkpointing
    if any(isinstance(n, nn.BatchNorm2d) for n in learner.norms) and not (
        one_pass and engine.shard == "ddp"
    ):  # a place's towers are not known by name
        raise ConfigError("batch norms take no micro_batch, activation_checkpointing or shard=fsdp")
    if engine.precision == "float64":
        learner.double()
    if run.model.lock_image:
        learner.clip.visual.requires_grad_(False)
        learner.train()  # but for what a locked tower keeps in evaluation mode
    if run.optim.loss == "softmax" and learner.clip.logit_bias is not None:
        learner.clip.logit_bias.requires_grad_(False)  # no gradient: DDP would wait for it
    # Statistics over the whole batch, on however many ranks: torch's SyncBatchNorm is CUDA's alone.
    for norm in learner.norms:
        if isinstance(norm, BatchNorm):
            norm.group = world.group
        elif world.group is not None:
            share_statistics(norm, world.group)
    # Every block keeps its inputs alone and is computed again in the backward pass. Not by
    # open_clip's own switch, whose call does not fit its custom blocks (3.3.0).
    for block in _blocks(learner) if engine.activation_checkpointing else ():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    # The two encoders and not the module: scoring and training then share the compiled graphs.
    if engine.compile:
        learner.encode_image = torch.compile(learner.encode_image)  # type: ignore[method-assign]
        learner.encode_text = torch.compile(learner.encode_text)  # type: ignore[method-assign]
    # Alone there is nothing to average; a wrapper would only cost.
    if world.group is None:
        return learner
    if engine.shard == "fsdp":
        return _sharded(learner, world)
    on_gpu = [world.device] if world.device.type == "cuda" else None
    # Batch statistics are summed over the ranks: their buffers are alike and need no broadcast.
    with warnings.catch_warnings():  # torch 2.15 calls the name deprecated; 2.11 has no other
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            learner, on_gpu, process_group=world.group, broadcast_buffers=False
        )


def _blocks(learner: Clip) -> list[nn.Module]:
    """The transformer blocks of both towers (open_clip's `resblocks`, timm's `blocks`)."""
    found: list[nn.Module] = []
    for tower in learner.modules():
        blocks = getattr(tower, "resblocks", None) or getattr(tower, "blocks", None)
        if isinstance(blocks, nn.ModuleList | nn.Sequential):
            found += blocks
    return found


def _sharded(learner: Clip, world: DistEnv) -> nn.Module:
    """FSDP2: every transformer block's parameters are spread over the ranks.

    Scale and bias are single numbers, which cannot be spread: each rank has them whole, and
    `average_whole` averages their gradients."""
    mesh = dist.init_device_mesh(world.device.type, (world.size,))
    # Blocks first, the root last: FSDP2 groups what is left in the outer call.
    for block in _blocks(learner):
        fully_shard(block, mesh=mesh)
    whole = {p for p in learner.parameters() if p.ndim == 0}
    fully_shard(learner, mesh=mesh, ignored_params=whole)
    # Scoring calls these without forward(); unregistered they would see shards as weights.
    for name in ("encode_image", "encode_text"):
        register_fsdp_forward_method(learner, name)
    return learner


def average_whole(trainee: nn.Module, world: DistEnv) -> None:
    """Average those gradients that a sharded model keeps whole; a no-op for any other."""
    if world.group is None or isinstance(trainee, DistributedDataParallel):
        return
    for parameter in trainee.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad, group=world.group)
            # The loss is a mean over the batch: averaged, as DDP does with the others.
            parameter.grad /= world.size


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `limit`; the norm before, 0-d."""
    # Plain gradients beside shards are scale and bias, single numbers, which torch takes for
    # replicated ones.
    return whole(torch.nn.utils.clip_grad_norm_(parameters, limit))


def running_statistics(trainee: nn.Module) -> list[Tensor]:
    """The buffers that a training step moves, without gradient: those of batch norms (not torch's
    count of batches, which decides nothing)."""
    # A model without batch norms has no `norms`: nothing to restore.
    model = getattr(trainee, "module", trainee)  # DDP's
    buffers = (x for norm in getattr(model, "norms", ()) for x in norm.buffers(recurse=False))
    return [x for x in buffers if x.is_floating_point()]


def whole(tensor: Tensor) -> Tensor:
    """A shard's full tensor (every rank must ask), any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def unsharded(learner: Clip, fresh: Callable[[], Clip]) -> Clip:
    """`learner`, or a whole copy of a sharded one (every rank must ask)."""
    # The learner itself: a copy would double the memory for nothing.
    if not any(isinstance(p, DTensor) for p in learner.parameters()):
        return learner
    copy = fresh().to(next(learner.parameters()))
    copy.load_state_dict({name: whole(value) for name, value in learner.state_dict().items()})
    return copy


def on_cpu(model: Clip) -> Clip:
    """`model` as evaluation wants it: itself, if it is on the CPU in float32."""
    at = model.clip.logit_scale
    plain = at.device.type == "cpu" and at.dtype == torch.float32
    return model if plain else cast(Clip, FromCpu(model))


class FromCpu:
    """A Clip on any device, in any precision, to callers that live on the CPU in float32."""

    def __init__(self, model: Clip):
        self.model = model
        self.eval, self.train = model.eval, model.train

    @property
    def training(self) -> bool:
        return self.model.training

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images.to(self.model.clip.logit_scale)).float().cpu()

    def encode_text(self, tokens: Tensor) -> Tensor:
        device = self.model.clip.logit_scale.device
        return self.model.encode_text(tokens.to(device)).float().cpu()

    @property
    def scale(self) -> Tensor:
        return self.model.scale.float().cpu()


def like(tensor: Tensor, target: Any) -> Tensor:
    """A full tensor laid out in memory, or spread over the ranks, as `target` is.

    AdamW's fused kernel walks through weights and moments side by side: where convolutions lie
    channels-last, so must their moments."""
    if not isinstance(target, DTensor):
        same = target is None or tensor.stride() == target.stride()
        return tensor if same else torch.empty_like(target, dtype=tensor.dtype).copy_(tensor)
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements)
