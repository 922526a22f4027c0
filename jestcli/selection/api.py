"""`select`: check the arguments, on every rank, and call the strategy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jestcli.selection import graphs, registry
from jestcli.selection.distributed import MODES, Ranks
from jestcli.selection.embeddings import PairEmbeddings, check_name
from jestcli.selection.joint import independent, joint
from jestcli.selection.noise import Noise, gumbel
from jestcli.selection.scores import checked_models, full_precision, terms
from jestcli.selection.task import Task


def select(
    learner: PairEmbeddings | None,
    reference: PairEmbeddings | None,
    *,
    size: int,
    sampler: str = "joint",
    criterion: str = "learnability",
    learner_weight: float = 1.0,
    loss: str = "sigmoid",
    n_chunks: int = 16,
    noise: Noise | None = None,
    seed: int = 0,
    step: int = 0,
    iterations: int = 2000,
    labels: Tensor | None = None,
    group: Any = None,
    mode: str = "global",
) -> Tensor:
    """Choose `size` of the B candidate pairs: int64 [size], distinct, in the order chosen.

    learner, reference: embeddings of the same B pairs by the two models (widths, scales, biases
        and dtypes may differ). The one that the criterion does not count may be None; both, if
        the sampler reads no embedding and `labels` tell how many candidates there are.
    size: pairs to choose, 1 to B.
    sampler: joint (paper, Algorithm 1), independent, topk, gibbs, rho, activeclip, uniform,
        cabs (the most even cover of the labels);
        "sampler/criterion" for both at once; or "module:function" for your own.
    criterion: learnability (learner minus reference loss), easy_reference (minus the reference
        loss), hard_learner (the learner loss).
    learner_weight: w, 0 to 1, of learnability: w * learner's loss - reference's loss. 1 is the
        paper's learnability; 0 is easy_reference and needs no learner.
    loss: sigmoid; softmax, the exact change of the summed batch loss; softmax_negatives, the
        published adaptation that scores a candidate by its own negatives only.
    n_chunks: chunks of `joint`, size // n_chunks each, the last takes the remainder (above size:
        one at a time). 16 in the paper.
    noise: noise(draw, global_index) -> Gumbel noise of these candidates in that draw. Default:
        a function of (seed, step, draw, global index) and nothing else. Zeros: greedy.
    iterations: of gibbs only.
    labels: int64 [B, K], any integers that belong to each candidate, such as the ids of its
        caption's words; negative: padding, and repeats count once. Read by cabs, where they are
        its concepts, and by samplers of yours (`task.labels`). K is the same on every rank.
    group: a torch.distributed process group over whose ranks the candidates are spread, equally
        many on each; every rank calls with its own and the same other arguments. `size` counts
        all ranks, indices are global (rank * B + i) and the result is the same on every rank.
        None: this process alone, even if torch.distributed is initialised.
    mode: with a group, "global": what one process with all candidates would choose; "balanced":
        in each chunk every rank's own candidates give an equal share, scored given all that is
        chosen on all ranks, so that no pair has to move (size must divide by the ranks).

    The embeddings' device holds the result. Of few candidates on a GPU, calls alike are recorded as
    one CUDA graph (graphs.py). Sums are float32 per tile and float64 across tiles,
    float64 throughout for float64 embeddings. No gradient, and no autocast of the caller's.
    Raises ValueError, naming the argument, for anything wrong, on every rank if on one."""
    call = None
    if group is None and noise is None and labels is None:
        settings = (size, sampler, criterion, learner_weight, loss, n_chunks, iterations, mode)
        call = graphs.key([learner, reference], settings)
        picks = graphs.replayed(call, [learner, reference], seed, step)
        if picks is not None:
            return picks
    ranks = Ranks(group, mode == "balanced")
    problem, told, count = None, None, 0
    try:
        check_name("mode", mode, MODES)
        function, fixed = registry.find(sampler)
        if fixed and criterion not in ("learnability", fixed):
            raise ValueError(f"criterion {criterion!r} contradicts sampler {sampler!r}")
        criterion = fixed or criterion
        learner, reference = checked_models(learner, reference, loss, criterion)
        noise = gumbel(seed, step) if noise is None else noise
        more = (noise, iterations, ranks, learner_weight, labels)
        task = Task(learner, reference, size, criterion, loss, n_chunks, *more)
        _check(task, seed, step)
        if sampler == "cabs" and labels is None:
            raise ValueError("labels is None, but sampler 'cabs' needs the concepts of each pair")
        if sampler not in registry.BLIND:
            terms(learner, reference, criterion, learner_weight)
        count = len(task.index)
        models = [
            model is not None and (model.scale, model.bias, model.image.shape[1], model.image.dtype)
            for model in (learner, reference)
        ]
        width = None if labels is None else labels.shape[1]
        numbers = (size, learner_weight, n_chunks, seed, step, iterations, width)
        told = (sampler, criterion, loss, mode, numbers, models)
    except Exception as error:  # whatever it is, the other ranks must hear of it
        problem = error
    ranks.agree(problem, told, count)
    with full_precision(task.index.device):
        index = _distinct(function(task), task, sampler)
    if call is not None and function in (joint, independent):
        graphs.note(call, task, function)
    return index


def _check(task: Task, seed: int, step: int) -> None:
    """Raises ValueError for what is wrong with the arguments of `select` beside the embeddings."""
    pairs = task.learner if task.learner is not None else task.reference
    if pairs is None and task.labels is None:
        raise ValueError("learner and reference are both None: there is nothing to choose from")
    if task.labels is not None:
        _check_labels(task.labels, pairs)
    counts = {"size": task.size, "n_chunks": task.n_chunks, "iterations": task.iterations}
    for name, value in (counts | {"seed": seed, "step": step}).items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (name in counts and value < 1):
            least = " of at least 1" if name in counts else ""
            raise ValueError(f"{name} must be an int{least}, got {value!r}")
    weight, ranks = task.learner_weight, task.ranks
    if not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise ValueError(f"learner_weight must be a number from 0 to 1, got {weight!r}")
    if weight != 1 and task.criterion != "learnability":
        raise ValueError(f"learner_weight is for criterion 'learnability', got {task.criterion!r}")
    total = len(task.index) * ranks.world
    if task.size > total:
        raise ValueError(f"size must be at most the {total} candidates, got {task.size}")
    if ranks.balanced and task.size % ranks.world:
        each = f"divide by the {ranks.world} ranks if balanced"
        raise ValueError(f"size must {each}, got {task.size}")
    if not callable(task.noise):
        raise ValueError(f"noise must be a function, got {type(task.noise).__name__}")


def _check_labels(labels: Tensor, pairs: PairEmbeddings | None) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 2:
        raise ValueError("labels must be an int64 tensor of shape [B, K]")
    if not labels.numel():
        raise ValueError(f"labels must not be empty, got shape {list(labels.shape)}")
    if pairs is not None and len(labels) != len(pairs):
        raise ValueError(f"labels has {len(labels)} rows, but there are {len(pairs)} pairs")
    if pairs is not None and labels.device != pairs.image.device:
        raise ValueError(f"labels is on {labels.device}, the embeddings on {pairs.image.device}")


def _distinct(index: Tensor, task: Task, sampler: str) -> Tensor:
    """`index` if it is what a strategy must return, else ValueError."""
    total = len(task.index) * task.ranks.world
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        raise ValueError(f"sampler {sampler!r} must return a one-dimensional int64 tensor")
    ordered = index.sort().values
    good = len(index) == task.size and bool((ordered[1:] > ordered[:-1]).all())
    if not good or ordered[0] < 0 or ordered[-1] >= total:
        raise ValueError(
            f"sampler {sampler!r} must return {task.size} distinct indices in [0, {total})"
        )
    return index
