"""How much of a pool a reference cannot tell from wrong captions.

A wrong caption is one that was written for another image, so what wrong pairs score is known: the
same images under each other's captions. With c the QUANTILE of those scores, a share pi of wrong
captions puts at least pi * QUANTILE of the pool below c, whatever right pairs score:

    pi <= (share of the pool below c) / QUANTILE

(Storey 2002, J. R. Stat. Soc. B 64:479, where it estimates the share of true null hypotheses). It
is near equality where right pairs hardly ever score so low. Whether they do is seen on curated
pairs that the reference was not trained on, if the pool's right pairs are of their kind; whether
they are, in how well both are told from wrong captions: the pool's AUC, a mixture with 1/2 for the
share pi, taken apart, against that of the curated pairs. Where those are told worse, they are no
measure of what right pairs score: some of them may be wrong themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jestcli.utils.randomness import generator

QUANTILE = 0.05  # of wrong captions' scores
SHIFTS = 4  # other captions that every image is scored with
DRAWS = 300  # of the bootstrap
LEVEL = 0.9
KNOWS = 0.05  # AUC that the pool's right pairs may fall short of curated ones, or these of them
TELLS = 0.25  # share of curated pairs that may look wrong
ESTIMATE, BOUND, UNCLEAR = "estimate", "upper bound", "cannot tell"


@dataclass(frozen=True)
class Scores:
    """Cosines by a reference. right: float [n], of pairs as they are; wrong: float [n, SHIFTS], of
    the same images under other pairs' captions."""

    right: np.ndarray
    wrong: np.ndarray


def score(image: np.ndarray, text: np.ndarray, seed: int = 0) -> Scores:
    """Of embeddings, float32 [n, d] each, n > SHIFTS. A wrong caption is that of the pair some
    places on in a random order: every caption is used equally often, as right and as wrong."""
    order = generator(seed, "permuted captions").permutation(len(image))
    image, text = image[order], text[order]
    wrong = [(image * np.roll(text, shift + 1, 0)).sum(1) for shift in range(SHIFTS)]
    right = (image * text).sum(1)
    out = np.empty(len(order), np.float32), np.empty((len(order), SHIFTS), np.float32)
    out[0][order], out[1][order] = right, np.stack(wrong, 1)
    return Scores(*out)


class _Ranked:
    """Scores in order, once, so that a bootstrap draw costs two passes over them."""

    def __init__(self, scores: Scores):
        wrong = scores.wrong.ravel()
        self.order = np.argsort(wrong, kind="stable")
        self.owner = self.order // scores.wrong.shape[1]
        ordered = wrong[self.order]
        self.below = np.searchsorted(ordered, scores.right, "left")
        self.up_to = np.searchsorted(ordered, scores.right, "right")

    def share_and_auc(self, weight: np.ndarray) -> tuple[float, float]:
        """(share that looks wrong, AUC of the pairs against wrong captions), every image counting
        `weight`, float [n]."""
        mass = np.concatenate([[0.0], np.cumsum(weight[self.owner])])
        cut = np.searchsorted(mass, QUANTILE * mass[-1])  # so many wrong scores are below c
        low = weight[self.up_to <= cut].sum() / weight.sum() / QUANTILE
        ahead = (mass[self.below] + mass[self.up_to]) / 2 / mass[-1]
        return float(low), float((ahead * weight).sum() / weight.sum())


def looks_wrong(scores: Scores) -> float:
    """Share of the pairs below the QUANTILE of wrong captions' scores, over QUANTILE; not cut off
    at 1."""
    return _Ranked(scores).share_and_auc(np.ones(len(scores.right)))[0]


@dataclass(frozen=True)
class Interval:
    """A number and its interval at LEVEL."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """What a reference sees of a pool. looks_wrong: share of the pool that it cannot tell from
    wrong captions; curated: the same of curated pairs, which are right; beyond: of the pool beyond
    what right pairs as hard as the curated ones would show. auc: pool pairs as they are against
    wrong captions; auc_right: the same of those that are not wrong; auc_curated: of curated pairs.
    kind: ESTIMATE where the pool's right pairs are told as well as curated ones, BOUND where they
    are not, or UNCLEAR. doubtful: curated pairs look wrong, too: they are told worse than the
    pool's right ones (then it is UNCLEAR)."""

    looks_wrong: Interval
    beyond: Interval
    curated: float
    auc: float
    auc_right: Interval
    auc_curated: float
    kind: str
    n: int
    n_curated: int
    doubtful: bool = False


def estimate(pool: Scores, curated: Scores, seed: int = 0) -> Share:
    """From scores of a random part of the pool and of curated pairs that the reference has not
    seen. Intervals: percentiles of DRAWS bootstrap draws of images (Poisson weights)."""
    ranked = _Ranked(pool), _Ranked(curated)
    sizes = len(pool.right), len(curated.right)
    dice, rows = generator(seed, "bootstrap"), []
    for draw in range(DRAWS + 1):  # the first is no draw, but the data
        both = []
        for each, n in zip(ranked, sizes, strict=True):
            weight = dice.poisson(1.0, n).astype(float) if draw else np.ones(n)
            both.append(each.share_and_auc(weight if weight.any() else np.ones(n)))
        (share, auc), (base, auc_curated) = both
        left = max(1 - share, 1e-9)  # right pairs of the pool, as far as they are told
        right = min(1.0, max(0.0, (auc - min(share, 1) / 2) / left))
        excess = max(0.0, (share - base) / max(1 - base, 1e-9))
        rows.append((share, excess, right, auc_curated - right, base, auc, auc_curated))
    found = np.array(rows)
    low, high = np.quantile(found[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    numbers = [Interval(*map(float, x)) for x in zip(found[0], low, high, strict=True)]
    base, auc, auc_curated = (x.value for x in numbers[4:])
    wrong, beyond = (Interval(*(min(1.0, y) for y in vars(x).values())) for x in numbers[:2])
    gap = numbers[3]  # of the AUC, from curated pairs to the pool's right ones
    doubtful, kind = gap.high < -KNOWS, UNCLEAR
    if not doubtful and (base > TELLS or gap.low > KNOWS):
        kind = BOUND
    elif not doubtful and gap.high <= KNOWS:
        kind = ESTIMATE
    return Share(wrong, beyond, base, auc, numbers[2], auc_curated, kind, *sizes, doubtful)
