"""Offline filters: what a reference alone thinks of every pair, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jestcli.selection import PairEmbeddings
from jestcli.selection.scores import pair_losses
from jestcli.utils.randomness import generator

PairsOf = Callable[[np.ndarray], PairEmbeddings]


def matching_scores(pairs_of: PairsOf, n: int) -> np.ndarray:
    """The reference's own cosine of image and caption, float32 [n]: an offline filter's score.

    pairs_of: int64 [k] of range(n) -> the reference's embeddings of these pairs.
    """
    out = np.empty(n, np.float32)
    for first in range(0, n, 65536):
        pairs = pairs_of(np.arange(first, min(first + 65536, n)))
        product = pairs.image.numpy() * pairs.text.numpy()
        out[first : first + len(pairs)] = product.sum(axis=1)
    return out


def negclip_scores(pairs_of: PairsOf, n: int, batch: int = 4096, seed: int = 0) -> np.ndarray:
    """Minus each pair's softmax loss in a random batch, float32 [n]: negCLIPLoss (Wang et al.
    2024) with the reference as the scoring model. Unlike the cosine it takes off what a caption
    that fits every image, or an image that fits every caption, would gain by that.

    batch: pairs a batch; every pair is scored once, in one random division of all.
    """
    out = np.empty(n, np.float32)
    order = generator(seed, "negclip").permutation(n)
    for first in range(0, n, batch):
        rows = np.sort(order[first : first + batch])
        out[rows] = -pair_losses(pairs_of(rows), "softmax").numpy()
    return out


FILTERS = {"cosine": matching_scores, "negclip": negclip_scores}
