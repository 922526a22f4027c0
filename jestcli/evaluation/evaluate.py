"""Scores of a model on benchmarks, as clip-benchmark computes them.

Zero-shot: prompt-ensembled class vectors (as clip-benchmark's, in one batch). Few-shot: closed-form
L2-regularised least squares on frozen features, as in the paper's code family. Retrieval: recall at
k both ways, k and direction by the benchmark's metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jestcli.config import Part
from jestcli.evaluation.benchmarks import Benchmark, Split
from jestcli.evaluation.parts import belongs
from jestcli.models.towers import Clip
from jestcli.training.augment import normalise

Tokenizer = Callable[[list[str]], Tensor]
BATCH = 64
RIDGE = 1.0
TIE = 1e-9  # class scores closer than this are equal: far above float64's rounding, far below a gap


@torch.no_grad()
def evaluate(
    model: Clip,
    tokenizer: Tokenizer,
    benchmarks: list[Benchmark],
    max_images: int | None = None,
    part: Part = "all",
) -> dict[str, dict[str, Any]]:
    """Score every benchmark.

    Args:
        max_images: use at most this many test images of each (a fixed random subset); None: all.
        part: which of its images (evaluation/parts.py); the training images of a few-shot
            benchmark, all class names and a retrieval benchmark's whole gallery stay.
    Returns:
        name -> score, chance, n, stderr (binomial, over test items), and for classification
        logprob, the mean log-probability of the true class under the model's own scale, and nats,
        the same at the scale that is best for it, above guessing (see `nats_above_guessing`).
        Without max_images also hits: which items were right, bits packed into hexadecimal. For
        retrieval gallery: images, and images' captions, that a query is compared with.
    In evaluation mode; the mode is left as it was.
    """
    retrieved: dict[Path, dict[str, float]] = {}
    was = model.training
    model.eval()
    try:
        return {
            each.name: _score(model, tokenizer, each, max_images, part, retrieved)
            for each in benchmarks
        }
    finally:
        model.train(was)


def _score(
    model: Clip,
    tokenizer: Tokenizer,
    benchmark: Benchmark,
    max_images: int | None,
    part: Part,
    retrieved: dict[Path, dict[str, float]],
) -> dict[str, Any]:
    """retrieved: recalls both ways by folder, which two benchmarks share."""
    test = benchmark.split()
    if benchmark.kind == "retrieval":
        test = test.first(max_images) if max_images else test
        queries = belongs(benchmark, test, part)
        if benchmark.folder not in retrieved:
            asked = None if part == "all" else queries
            retrieved[benchmark.folder] = _retrieve(model, tokenizer, test, asked)
        found, way = retrieved[benchmark.folder], benchmark.metric[:5]
        score, n = found[benchmark.metric], int(queries.sum())
        more: dict[str, Any] = {k: v for k, v in found.items() if k.startswith(way)}
        more["gallery"] = len(test)
    else:
        if part != "all":
            test = test.take(belongs(benchmark, test, part).nonzero().flatten())
        test = test.first(max_images) if max_images else test
        logits, scale = _logits(model, tokenizer, benchmark, test)
        assert test.labels is not None
        right, n = first_best(logits) == test.labels, len(test)
        score = int(right.sum()) / n
        true = F.log_softmax(scale * logits, dim=1).gather(1, test.labels[:, None])
        more = {"logprob": float(true.mean()), "nats": nats_above_guessing(logits, test.labels)}
        if not max_images:  # which items were right: eight a byte, in hexadecimal
            more["hits"] = np.packbits(right.numpy()).tobytes().hex()
    stderr = math.sqrt(max(score * (1 - score), 1e-12) / n)
    return {"score": score, "chance": benchmark.chance, "n": n, "stderr": stderr, **more}


def first_best(logits: Tensor) -> Tensor:
    """The class of the highest score, int64 [n]; of classes within `TIE` of it, the first.

    A model whose features do not vary scores all classes alike. Without the tolerance the last bit
    of a sum would choose among them, and that bit is another one on another processor.

    Args:
        logits: [n, classes], finite.
    """
    best = logits.amax(dim=1, keepdim=True)
    return (logits >= best - TIE).to(torch.uint8).argmax(dim=1)


def nats_above_guessing(logits: Tensor, labels: Tensor) -> float:
    """Mean log-probability of the true class, softmax at the best temperature, plus ln(classes).

    0 for a model that tells the classes no better than chance: a smoother companion of accuracy
    where few items are right. The best temperature takes out over- and under-confidence, which
    differ between methods and are not what is compared.

    Args:
        logits: [n, classes]; labels: int64 [n].
    """
    from scipy.optimize import minimize_scalar

    wide = logits.double()

    def loss(log_scale: float) -> float:
        return float(F.cross_entropy(math.exp(log_scale) * wide, labels))

    best = minimize_scalar(loss, bounds=(-4.0, 7.0), method="bounded", options={"xatol": 0.01})
    return max(0.0, math.log(logits.shape[1]) - float(best.fun))


def mean_score(scores: dict[str, dict[str, Any]]) -> float:
    """The average over benchmarks, as in the paper's Figure 1."""
    return sum(s["score"] for s in scores.values()) / len(scores)


def class_vectors(
    model: Clip, tokenizer: Tokenizer, classes: list[str], templates: list[str]
) -> Tensor:
    """Normalised mean of the prompts' embeddings, [d, n_classes] (clip-benchmark's classifier)."""
    prompts = [template.format(c=name) for name in classes for template in templates]
    tokens = tokenizer(prompts)
    vectors = torch.cat([model.encode_text(t) for t in tokens.split(4 * BATCH)])
    means = vectors.unflatten(0, (len(classes), len(templates))).mean(dim=1)
    return F.normalize(means, dim=-1).T


def _logits(
    model: Clip, tokenizer: Tokenizer, benchmark: Benchmark, test: Split
) -> tuple[Tensor, float]:
    """Class scores [n, n_classes] and the factor that makes them logits."""
    if benchmark.kind == "few-shot":
        train = benchmark.split("train")
        assert train.labels is not None
        weights = ridge(_features(model, train), train.labels, len(benchmark.classes))
        features = _features(model, test).double()
        return F.pad(features, (0, 1), value=1.0) @ weights, 1.0
    classifier = class_vectors(model, tokenizer, benchmark.classes, benchmark.templates)
    # clip-benchmark's run_classification, but for its factor; importing it costs a second.
    return _features(model, test) @ classifier, float(model.scale)


def ridge(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Least-squares classifier, float64 [d + 1, n_classes], on one-hot targets in {-1, 1}."""
    x = F.pad(features.double(), (0, 1), value=1.0)
    y = 2 * F.one_hot(labels, n_classes).double() - 1
    gram = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ y)


def _features(model: Clip, split: Split) -> Tensor:
    return torch.cat([model.encode_image(images) for images, _ in _batches(split)])


RECALL_AT = (1, 5)


def _retrieve(
    model: Clip, tokenizer: Tokenizer, test: Split, queries: Tensor | None = None
) -> dict[str, float]:
    """Recalls by clip-benchmark's names. queries: bool [n], the images that are asked about, and
    their captions; None: all."""
    if queries is not None:
        return restricted_recall(*_embedded(model, tokenizer, test), queries)
    from clip_benchmark.metrics import zeroshot_retrieval

    found: dict[str, float] = zeroshot_retrieval.evaluate(
        model, _batches(test), tokenizer, "cpu", amp=False, recall_k_list=list(RECALL_AT)
    )
    return found


def _embedded(model: Clip, tokenizer: Tokenizer, test: Split) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images [n, d], texts [m, d] and the image of each text, int64 [m]; batch by batch
    as clip-benchmark's retrieval does."""
    images: list[Tensor] = []
    texts: list[Tensor] = []
    owner: list[int] = []
    for at, (pixels, captions) in enumerate(_batches(test)):
        images.append(F.normalize(model.encode_image(pixels), dim=-1))
        words = tokenizer([text for each in captions for text in each])
        texts.append(F.normalize(model.encode_text(words), dim=-1))
        owner += [at * BATCH + i for i, each in enumerate(captions) for _ in each]
    return torch.cat(images), torch.cat(texts), torch.tensor(owner)


def restricted_recall(
    images: Tensor, texts: Tensor, owner: Tensor, queries: Tensor
) -> dict[str, float]:
    """Recall at RECALL_AT both ways over some queries, the gallery being all images or texts.

    Over all queries it is clip-benchmark's: a query counts if any of its own is among the first k.

    Args:
        images: [n, d]; texts: [m, d]; owner: int64 [m], the image of each text; queries: bool [n],
            the images asked about, whose texts are the other direction's queries.
    """
    similarity, asked = texts @ images.T, queries[owner]
    found = {}
    for k in RECALL_AT:
        top = similarity.topk(min(k, len(images)), dim=1).indices[asked]
        right = (top == owner[asked][:, None]).any(dim=1)
        found[f"image_retrieval_recall@{k}"] = float(right.float().mean())
        top = similarity.T.topk(min(k, len(texts)), dim=1).indices[queries]
        right = (owner[top] == queries.nonzero()).any(dim=1)
        found[f"text_retrieval_recall@{k}"] = float(right.float().mean())
    return found


class _batches:
    """Normalised batches of a split, as often as wanted: what clip-benchmark calls a dataloader."""

    def __init__(self, split: Split):
        self.split = split

    def __len__(self) -> int:
        return math.ceil(len(self.split) / BATCH)

    def __iter__(self):
        for start in range(0, len(self.split), BATCH):
            part = slice(start, start + BATCH)
            labels = self.split.labels
            targets = labels[part] if labels is not None else (self.split.captions or [])[part]
            yield normalise(self.split.images[part]), targets
