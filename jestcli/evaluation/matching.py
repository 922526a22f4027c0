"""How well a model tells a right caption from a wrong one: the strength of a reference."""

from __future__ import annotations

import torch
from torch import Tensor

from jestcli.models.towers import Clip
from jestcli.training.step import encode_pairs


def matching_auc(model: Clip, images: Tensor, tokens: Tensor) -> float:
    """The chance that a pair's cosine is higher than that of an image with another's caption.

    1/2 is guessing, 1 perfect; ties count half (the area under the ROC curve, by ranks). The wrong
    captions are the same ones, moved on by one pair, so that both sides hold the same texts.

    Args:
        images, tokens: uint8 [n, 3, S, S] and int64 [n, L] of pairs that the model has not seen.
    """
    from scipy.stats import rankdata  # a second to import, which most runs do without

    pairs = encode_pairs(model, images, tokens, None)
    right = (pairs.image * pairs.text).sum(1)
    wrong = (pairs.image * pairs.text.roll(1, 0)).sum(1)
    n = len(right)
    ranks = rankdata(torch.cat([right, wrong]).double().cpu().numpy())
    return float((ranks[:n].sum() - n * (n + 1) / 2) / n**2)
