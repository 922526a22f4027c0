"""One training step: score, select, update. The paper's loop body."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from jestcli.config import Run
from jestcli.data.loader import SuperBatch
from jestcli.data.tokens import word_ids
from jestcli.models.flexi import Resolution
from jestcli.models.towers import Clip, joined
from jestcli.selection import PairEmbeddings, select
from jestcli.selection.scores import learnability_by_pair
from jestcli.training.augment import augment, normalise
from jestcli.training.clock import Timer, no_timer
from jestcli.training.distributed import SINGLE_PROCESS, DistEnv, share
from jestcli.training.engine import clip_gradients, running_statistics
from jestcli.training.loss import Batch, autocast, backward
from jestcli.training.optimiser import learning_rate
from jestcli.utils.randomness import torch_generator

GPU_PIXELS = 1 << 24  # numbers of one block: 5,461 images of 32 px, 111 of 224 px
EmbedReference = Callable[[SuperBatch], PairEmbeddings]


class NonFiniteError(Exception):
    """A step met a NaN or an infinity, and nothing was updated. Every rank raises it together.

    index: int64 [n], the candidates that it concerns; candidate i of rank r is number
    r * B + i."""

    def __init__(self, what: str, index: Tensor):
        super().__init__(f"{what} not finite")
        self.index = index


@torch.no_grad()
def encode_pairs(
    model: Clip, images: Tensor, tokens: Tensor, view: Resolution | None, micro_batch: int = 64
) -> PairEmbeddings:
    """Embeddings of the deterministic view: uint8 [B, 3, S, S], int64 [B, L] -> [B, d] twice.

    In evaluation mode, and the mode is left as it was. Computed `micro_batch` pairs at a time, as
    many more as the view has fewer tokens; 64 to 256 are fastest on a CPU: activations stay in its
    cache. A GPU takes small images more at a time, or it would wait for launches."""
    # Any parameter tells device and precision; this one every tower has.
    like = model.clip.logit_scale
    micro_batch = micro_batch * model.full.tokens // (view or model.full).tokens
    if like.is_cuda:
        micro_batch = max(micro_batch, GPU_PIXELS // max(1, images[0].numel()))
    image_rows, text_rows = [], []
    with model.scoring():
        # In evaluation mode no pair's embedding depends on its neighbours: blocks change nothing.
        for start in range(0, len(images), micro_batch):
            part = slice(start, start + micro_batch)
            pixels = normalise(images[part].to(like.device)).to(like.dtype)
            image_rows.append(model.encode_image(pixels, view))
            text_rows.append(model.encode_text(tokens[part].to(like.device)))
    scale, bias = model.scale.detach(), model.bias.detach()
    return PairEmbeddings(joined(image_rows), joined(text_rows), scale, bias)


@dataclass(frozen=True)
class SubBatch:
    """index: int64 [b] into the candidates: those that the sampler chose, then curated pairs.

    With several ranks candidate i of rank r is number r * len(candidates) + i.
    Where it was measured, over what the sampler could choose from: mean learnability of all and of
    the chosen; the share of captions known to be wrong among all and among the chosen; and mean
    learnability of the right and of the wrong pairs of all."""

    index: Tensor
    super_batch_learnability: float | None = None
    sub_batch_learnability: float | None = None
    wrong: tuple[float, float] | None = None
    learnability_right: float | None = None
    learnability_wrong: float | None = None

    @property
    def why(self) -> dict[str, Any]:
        """What is known of the pairs' captions, for the log: shares of wrong ones among all and
        among the chosen, and the mean learnability of either kind."""
        if self.wrong is None:
            return {}
        found: dict[str, Any] = {"wrong": list(self.wrong)}
        if self.super_batch_learnability is not None:
            found["learnability_right"] = self.learnability_right
            found["learnability_wrong"] = self.learnability_wrong
        return found


def offered(run: Run, candidates: SuperBatch, world: DistEnv = SINGLE_PROCESS) -> SuperBatch:
    """Those of this rank's candidates that a sampler chooses from: the curated pairs of the batch
    stand behind them."""
    # check_division (train.py) has seen to it that every rank holds equally many.
    curated = run.curated_pairs // world.size if run.selects else 0
    return candidates.first(len(candidates) - curated) if curated else candidates


def select_sub_batch(
    learner: Clip,
    reference: EmbedReference | None,
    candidates: SuperBatch,
    run: Run,
    step: int,
    measure: bool = False,
    world: DistEnv = SINGLE_PROCESS,
    watch: Timer = no_timer,
) -> SubBatch:
    """Pick the sub-batch (Algorithm 1, or what `run.selection` names). May raise NonFiniteError.

    With source.kind=mixed the curated pairs of the batch are in it, whatever is chosen beside them.
    """
    selection, engine, held = run.selection, run.engine, len(candidates)
    # Uniform training: the super-batch is the batch, and no one is scored for nothing.
    if not run.selects:
        return SubBatch(torch.arange(held * world.size))
    candidates = offered(run, candidates, world)
    learner_pairs = reference_pairs = None
    # A sampler that ignores the learner (easy-reference) pays for its forward on logged steps only.
    if selection.scores and (measure or selection.reads_learner):
        # Flexi-JEST scores candidates at the low resolution (paper, section 4.3).
        view = learner.low if selection.low_res_scoring else learner.full
        with autocast(run, world.device):
            learner_pairs = encode_pairs(
                learner, candidates.images, candidates.tokens, view, engine.scoring_batch
            )
    if selection.scores and reference:
        reference_pairs = reference(candidates).to(world.device)
    # One NaN would make every score NaN and the choice arbitrary: the step is skipped instead.
    scored = {"learner": learner_pairs, "reference": reference_pairs}
    known = {whose: pairs for whose, pairs in scored.items() if pairs is not None}
    # A sum is finite if all its terms are: twenty times as fast to ask, and a device answers once.
    sums = [side.sum() for pairs in known.values() for side in (pairs.image, pairs.text)]
    if sums and world.any(not math.isfinite(torch.stack(sums).sum())):
        for whose, pairs in known.items():
            good = pairs.image.isfinite().all(1) & pairs.text.isfinite().all(1)
            if world.any(not bool(good.all())):  # on any rank: all of them skip it
                rows = torch.nonzero(~good).flatten().cpu() + world.rank * held
                raise NonFiniteError(f"the {whose}'s embeddings are", rows)
    with watch("select"):
        cabs = selection.sampler == "cabs"
        words = word_ids(candidates.tokens, run.data.vocab_size) if cabs else None
        # By seed and step alone: a resumed run, or one on more ranks, draws the same noise.
        index = select(
            learner_pairs,
            reference_pairs,
            size=run.optim.batch_size - run.curated_pairs,
            sampler=selection.sampler,
            criterion=selection.criterion,
            learner_weight=selection.learner_weight,
            loss=run.optim.loss,
            n_chunks=selection.n_chunks,
            seed=run.seed,
            step=step,
            labels=words,
            group=world.group,
            mode=engine.selection_mode,
        ).cpu()
    # The sampler numbered what it was offered; training numbers all that every rank holds.
    batch = _with_curated(index, len(candidates), held, world)
    # Means over the whole super-batch cost a gather and a sync: logged steps alone pay.
    if not measure:
        return SubBatch(batch)
    measured = _measured(index, candidates, learner_pairs, reference_pairs, run, world)
    return replace(measured, index=batch)


def _with_curated(index: Tensor, offered: int, held: int, world: DistEnv) -> Tensor:
    """Global numbers of what was chosen of every rank's first `offered` candidates, int64 [n], as
    numbers among all `held` of every rank; the rest of those behind them."""
    if offered == held:
        return index
    curated = torch.arange(world.size)[:, None] * held + torch.arange(offered, held)
    return torch.cat([index + index // offered * (held - offered), curated.flatten()])


def _measured(
    index: Tensor,
    candidates: SuperBatch,
    learner: PairEmbeddings | None,
    reference: PairEmbeddings | None,
    run: Run,
    world: DistEnv,
) -> SubBatch:
    """What was chosen (int64 [n], of the candidates that were offered), with what tells why."""
    known, shares = None, None
    if candidates.wrong is not None:
        mine = torch.from_numpy(candidates.wrong).to(world.device, torch.uint8)
        known = world.all_gather(mine).bool().cpu()
        shares = (float(known.double().mean()), float(known[index].double().mean()))
    if learner is None or reference is None:
        return SubBatch(index, wrong=shares)
    # Learnability is against all negatives of the super-batch, so every rank's rows are needed.
    whole = [world.pairs(pairs) for pairs in (learner, reference)]
    everything = torch.arange(len(whole[0]))
    every, chosen = (
        learnability_by_pair(whole[0], whole[1], rows, run.optim.loss).cpu()
        for rows in (everything, index)
    )
    means: list[float | None] = [None, None]
    if known is not None:
        means = [float(every[k].mean()) if k.any() else None for k in (~known, known)]
    return SubBatch(index, float(every.mean()), float(chosen.mean()), shares, *means)


def train_step(
    learner: nn.Module,
    optimiser: torch.optim.Optimizer,
    candidates: SuperBatch,
    index: Tensor,
    run: Run,
    step: int,
    world: DistEnv = SINGLE_PROCESS,
) -> float:
    """One gradient step on the chosen pairs; returns the loss. May raise NonFiniteError: nothing of
    the model has changed then.

    A random `low_res_share` of them is seen at low resolution, the rest at full;
    their embeddings are joined in one ordinary b x b loss (Flexi-JEST). Which pair is seen how
    does not depend on the number of ranks."""
    dice = torch_generator(run.seed, "train", step)
    # The choice comes in chunks, hard ones first: unmixed, low resolution always meets the same.
    index = index[torch.randperm(len(index), generator=dice)]
    n_low = round(len(index) * run.selection.low_res_share)
    # Balanced selection took equally many from every rank already: no pair has to travel.
    balanced = run.engine.selection_mode == "balanced"
    pixels, tokens, places = share(candidates, index, n_low, world, balanced)
    # Pixels travel as uint8, a quarter of float32.
    images = normalise(pixels.to(world.device))
    images = images.double() if run.engine.precision == "float64" else images
    if run.optim.augment:
        # Drawn for the whole batch, then cut: a pair's crop does not depend on the ranks.
        images = augment(images, torch.rand(3, len(index), generator=dice)[:, places].to(images))
    batch = Batch(images, tokens.to(world.device), int((places < n_low).sum()))
    # Dropout and its kin draw from torch's own state: a resumed run is to draw what this one does.
    torch.manual_seed(int(torch.randint(2**62, (), generator=dice)) + world.rank)
    # The forward pass moves batch norms' running statistics; a skipped step must not.
    statistics = running_statistics(learner)
    before = torch.cat([*statistics, images.new_empty(0)])  # one copy; of none, too
    optimiser.zero_grad()
    mine = backward(learner, batch, run, world)
    gradient = clip_gradients(learner.parameters(), run.optim.clip_norm)
    mine, norm = torch.stack([mine, gradient]).tolist()  # a GPU is waited for once
    # Every rank must come to the same verdict on the step, or one would wait for ever.
    (loss,) = world.all_reduce_mean(mine)
    if not math.isfinite(loss + norm):
        for each, kept in zip(statistics, before.split(list(map(len, statistics))), strict=True):
            each.copy_(kept)
        raise NonFiniteError(f"the loss is {loss}, the gradient's norm {norm}:", index)
    # The rate is a function of the step, not of a scheduler's state: nothing to save or to resume.
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, run.optim)
    optimiser.step()
    return loss
