"""The paper's matrix algorithm in NumPy float64, written from the paper, sharing no code."""

import numpy as np
import torch
import torch.nn.functional as F

from jestcli.selection import PairEmbeddings


def make_pairs(count, dim, seed, scale=10.0, bias=-10.0, dtype=torch.float64, match=0.6):
    """Random pairs whose texts resemble their images."""
    generator = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)
    text = torch.randn(count, dim, generator=generator, dtype=torch.float64) * (1 - match)
    text = F.normalize(text / dim**0.5 + match * image, dim=1)
    return PairEmbeddings(image.to(dtype), text.to(dtype), scale, bias)


def logits(pairs):
    image, text = pairs.image.double().numpy(), pairs.text.double().numpy()
    return float(pairs.scale) * image @ text.T + float(pairs.bias)


def sigmoid_losses(pairs):
    """L_ij of all pairs of pairs (paper, eq. 2): -log sigmoid of the logit with its label."""
    z = logits(pairs)
    label = 2 * np.eye(len(z)) - 1
    return np.logaddexp(0, -label * z)


def softmax_batch_loss(pairs, batch):
    """Summed softmax loss of a batch (paper, eq. 1)."""
    z = logits(pairs)[np.ix_(batch, batch)]
    rows = np.logaddexp.reduce(z, axis=1)
    columns = np.logaddexp.reduce(z, axis=0)
    return float((0.5 * (rows + columns) - np.diag(z)).sum())


def sigmoid_batch_loss(pairs, batch):
    return float(sigmoid_losses(pairs)[np.ix_(batch, batch)].sum())


def score_matrix(learner, reference, criterion, learner_weight=1.0):
    matrix = 0.0
    if criterion != "easy_reference":
        matrix = matrix + learner_weight * sigmoid_losses(learner)
    if criterion != "hard_learner":
        matrix = matrix - sigmoid_losses(reference)
    return matrix


def gumbel_top(scores, noise, draw, count):
    index = torch.arange(len(scores))
    perturbed = scores + noise(draw, index).numpy()
    return np.argsort(-perturbed, kind="stable")[:count]


def listing(scores, noise, size, n_chunks):
    """Algorithm 1 with the matrix, sums over it anew for every chunk, drawn by Gumbel-top-m.

    Differs from the printed listing where that is loose: the last chunk takes the remainder, and
    the chosen are masked by -inf and not by -1e8, which large scores overcome.
    """
    n_chunks = min(n_chunks, size)
    m = size // n_chunks
    inds = gumbel_top(np.diag(scores), noise, 0, m if n_chunks > 1 else size)
    for n in range(1, n_chunks):
        is_sampled = np.zeros(len(scores))
        is_sampled[inds] = 1
        logits_ij = (scores * is_sampled[:, None]).sum(0)
        logits_ji = (scores * is_sampled[None, :]).sum(1)
        a = np.diag(scores) + logits_ij + logits_ji
        a[inds] = -np.inf
        draws = m if n < n_chunks - 1 else size - len(inds)
        inds = np.concatenate([inds, gumbel_top(a, noise, n, draws)])
    return inds
