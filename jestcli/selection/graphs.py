"""`select` of small super-batches on a GPU as one CUDA graph.

Of some thousand candidates the arithmetic takes a GPU microseconds; the 600 operations that ask for
it take a CPU milliseconds, more than the rest of a training step. The third call with the same
shapes and settings records them, the later ones replay: one launch, and the same picks.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jestcli.selection import noise
from jestcli.selection.embeddings import PairEmbeddings, norms_and_good
from jestcli.selection.scores import full_precision
from jestcli.selection.task import Task

MOST = 16_384  # candidates; of more the arithmetic hides the launches
CALLS = 2  # alike, before one is recorded: a super-batch that grows is another every time
KEPT = 8  # recordings; each holds its inputs and what it computes between
HUGE = 1e30  # scales and biases below keep every sum finite

Sampler = Callable[[Task], Tensor]
Models = list[PairEmbeddings | None]
_seen: Counter[Hashable] = Counter()
_recorded: OrderedDict[Hashable, Recorded | None] = OrderedDict()


def key(models: Models, settings: tuple[Hashable, ...]) -> Hashable | None:
    """What calls that may share a recording have in common: everything that is checked before a
    selection but the numbers themselves. None where the CPU is not what costs."""
    shapes: list[Hashable] = []
    for pairs in models:
        sides = (pairs.image, pairs.text) if isinstance(pairs, PairEmbeddings) else ()
        if not all(isinstance(x, Tensor) and x.is_cuda and len(x) <= MOST for x in sides):
            return None
        shapes.append(tuple((x.shape, x.dtype, x.device) for x in sides))
    found = (*shapes, *settings)
    try:
        hash(found)
    except TypeError:  # a setting of a wrong type, which `select` will say
        return None
    return found if any(shapes) else None


def replayed(name: Hashable, models: Models, seed: int, step: int) -> Tensor | None:
    """The picks of the recording called `name`; None without one, or where these inputs are not
    what it can be trusted with: `select` then computes, and says what is wrong with them."""
    recorded = _recorded.get(name)
    if recorded is None or not isinstance(seed, int) or not isinstance(step, int):
        return None
    _recorded.move_to_end(name)
    index, good = recorded(models, seed, step)
    return index if good else None


def note(name: Hashable, task: Task, sampler: Sampler) -> None:
    """A call was checked and computed: record the next ones, if there were others like it."""
    _seen[name] += 1
    if _seen[name] < CALLS or name in _recorded:
        return
    try:
        _recorded[name] = Recorded(task, sampler)
    except RuntimeError as problem:  # another GPU or driver: slower is better than not at all
        _recorded[name] = None
        warnings.warn(f"selection goes on without a CUDA graph: {problem}", stacklevel=3)
    while len(_recorded) > KEPT:
        _recorded.popitem(last=False)


@dataclass
class Inputs:
    """What changes from call to call, where a recording reads it.

    models: with scale and bias as 0-d float64 tensors. keys: of the noise, int64 [draws, 1]."""

    models: Models
    keys: Tensor

    @classmethod
    def like(cls, task: Task) -> Inputs:
        device, draws = task.index.device, range(len(task.chunk_sizes()))

        def own(pairs: PairEmbeddings) -> PairEmbeddings:
            image, text = pairs.image.clone(), pairs.text.clone()
            numbers: list[Any] = [pairs.scale, pairs.bias]
            scale, bias = (torch.tensor(float(x), dtype=torch.float64) for x in numbers)
            return PairEmbeddings(image, text, scale.to(device), bias.to(device))

        models = [own(p) if p is not None else None for p in (task.learner, task.reference)]
        return cls(models, noise.keys(0, 0, draws).to(device))

    def fill(self, models: Models, seed: int, step: int) -> None:
        for ours, theirs in zip(self.models, models, strict=True):
            if ours is None or theirs is None:
                continue
            for name, mine in vars(ours).items():
                given = getattr(theirs, name)
                if isinstance(given, Tensor):  # of shape [1] are transformers' scale and bias
                    mine.copy_(given.detach().reshape(mine.shape))
                else:
                    mine.fill_(given)
        self.keys.copy_(noise.keys(seed, step, range(len(self.keys))))

    def run(self, task: Task, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Picks as `select` makes them, int64 [size], and whether the inputs are what it demands,
        bool []. No operation in here makes the host wait."""
        learner, reference = self.models
        own = replace(task, learner=learner, reference=reference)  # whose index nobody else frees
        rows = noise.rows(self.keys, own.index)
        good = [self._are_good(pairs) for pairs in self.models if pairs is not None]
        return sampler(replace(own, noise=lambda draw, _: rows[draw])), torch.stack(good).all()

    @staticmethod
    def _are_good(pairs: PairEmbeddings) -> Tensor:
        found = [norms_and_good(side)[1].all() for side in (pairs.image, pairs.text)]
        scale, bias = (torch.as_tensor(x) for x in (pairs.scale, pairs.bias))
        found += [(scale > 0) & (scale < HUGE), bias.abs() < HUGE]
        return torch.stack(found).all()


class Recorded:
    """A selection on inputs of its own, as a graph."""

    def __init__(self, task: Task, sampler: Sampler):
        self.inputs, self.graph = Inputs.like(task), torch.cuda.CUDAGraph()
        device = task.index.device
        with torch.cuda.device(device), full_precision(device):
            # Once as it is, on a stream aside: libraries set themselves up on their first call.
            aside, now = torch.cuda.Stream(), torch.cuda.current_stream()
            aside.wait_stream(now)
            with torch.cuda.stream(aside):
                self.inputs.run(task, sampler)
            now.wait_stream(aside)
            # Loaders' threads may use the GPU meanwhile.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.index, self.good = self.inputs.run(task, sampler)

    def __call__(self, models: Models, seed: int, step: int) -> tuple[Tensor, bool]:
        with torch.no_grad():
            self.inputs.fill(models, seed, step)
            self.graph.replay()
            return self.index.clone(), bool(self.good)
