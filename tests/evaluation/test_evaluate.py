"""Scores: clip-benchmark's classifier, textbook least squares, models whose score is known."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier
from tiny import tiny_model, tiny_run
from torch import Tensor, nn

from jestcli.data.tokens import small_tokenizer
from jestcli.evaluation.benchmarks import Benchmark, Split, _read_split, list_benchmarks
from jestcli.evaluation.evaluate import (
    RIDGE,
    _batches,
    _logits,
    class_vectors,
    evaluate,
    first_best,
    mean_score,
    nats_above_guessing,
    ridge,
)

WORDS = ["cat", "dog", "bell", "key", "cloud"]
TOKENIZER = small_tokenizer(600, 8)


def test_class_vectors_are_clip_benchmarks() -> None:
    model, templates = tiny_model(tiny_run()).eval(), ["{c}", "an icon of {c}", "{c}, flat"]
    with torch.no_grad():
        ours = class_vectors(model, TOKENIZER, WORDS, templates)
    theirs = zero_shot_classifier(model, TOKENIZER, WORDS, templates, "cpu", amp=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert ours.shape == (8, 5)


def test_class_scores_are_clip_benchmarks(data_root: Path) -> None:
    model = tiny_model(tiny_run()).eval()
    objects = next(b for b in list_benchmarks(data_root) if b.kind == "zero-shot")
    with torch.no_grad():
        ours, scale = _logits(model, TOKENIZER, objects, objects.split())
        classifier = class_vectors(model, TOKENIZER, objects.classes, objects.templates)
        batches = _batches(objects.split())
        theirs, labels = run_classification(model, classifier, batches, "cpu", amp=False)
    torch.testing.assert_close(100 * ours, theirs, rtol=0, atol=1e-4)
    assert torch.equal(labels, objects.split().labels) and scale == pytest.approx(10)


def test_a_decoded_split_is_kept_beside_its_shard(data_root: Path, tmp_path: Path) -> None:
    for benchmark in list_benchmarks(data_root):
        folder = tmp_path / benchmark.folder.name
        if not folder.exists():
            shutil.copytree(benchmark.folder, folder, ignore=shutil.ignore_patterns("decoded-*"))
        here = replace(benchmark, folder=folder)
        first = here.split()
        (kept,) = (folder / "test").glob("decoded-*.npz")
        written = kept.stat().st_mtime_ns
        _read_split.cache_clear()
        again = here.split()
        assert again is not first and torch.equal(again.images, first.images)
        assert again.captions == first.captions
        if first.labels is not None:
            assert torch.equal(again.labels, first.labels)
        assert kept.stat().st_mtime_ns == written, "read, not decoded a second time"
    kept.write_bytes(b"PK torn")
    _read_split.cache_clear()
    assert torch.equal(here.split().images, first.images), "what is damaged is decoded again"
    shard = folder / "test" / "0.tar"
    os.utime(shard, ns=(1, 1))
    _read_split.cache_clear()
    here.split()
    assert len(list((folder / "test").glob("decoded-*.npz"))) == 2, "another shard, another copy"


def test_ridge_is_least_squares_with_the_penalty_as_extra_rows() -> None:
    dice = np.random.default_rng(0)
    x, labels = dice.normal(size=(30, 4)), dice.integers(0, 3, 30)
    with_one = np.hstack([x, np.ones((30, 1))])
    rows = np.vstack([with_one, np.sqrt(RIDGE) * np.eye(5)])
    targets = np.vstack([2 * np.eye(3)[labels] - 1, np.zeros((5, 3))])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0]
    found = ridge(torch.tensor(x).float(), torch.tensor(labels), 3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Toy(Benchmark):
    """A benchmark in memory: image k shows the number k % n_classes, written as a grey level."""

    n: int = 30
    n_classes: int = 5

    def split(self, name: str = "test") -> Split:
        shown = torch.arange(self.n) % (self.n if self.kind == "retrieval" else self.n_classes)
        images = shown.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
        if self.kind == "retrieval":
            return Split(images, None, [[str(k)] for k in range(self.n)])
        return Split(images, shown, None)

    @property
    def classes(self) -> list[str]:
        return [str(k) for k in range(self.n_classes)]

    @property
    def templates(self) -> list[str]:
        return ["{c}", "{c}"]


def toy(kind: str, metric: str = "acc1", **more: Any) -> Toy:
    return Toy(kind + metric, kind, metric, 0.2, Path(kind), {}, **more)


def numbers(texts: list[str]) -> Tensor:
    return torch.tensor([[int(text)] for text in texts])


class Reader(nn.Module):
    """Reads the number in an image exactly, and takes text k for text k + `shift`."""

    scale = torch.tensor(10.0)

    def __init__(self, shift: int = 0):
        super().__init__()
        self.shift = shift

    def encode_image(self, images: Tensor, patch_size: int | None = None) -> Tensor:
        assert not self.training, "scored in evaluation mode"
        return F.one_hot(((images[:, 0, 0, 0] + 1) * 127.5).round().long(), 64).float()

    def encode_text(self, tokens: Tensor) -> Tensor:
        return F.one_hot((tokens[:, 0] + self.shift) % 64, 64).float()


ALL = [
    toy("zero-shot"),
    toy("few-shot"),
    toy("retrieval", "text_retrieval_recall@1"),
    toy("retrieval", "image_retrieval_recall@1"),
]


def test_a_perfect_model_scores_one_everywhere() -> None:
    scores = evaluate(Reader(), numbers, ALL)
    assert [s["score"] for s in scores.values()] == [1.0] * 4 and mean_score(scores) == 1.0
    assert [s["n"] for s in scores.values()] == [30] * 4
    assert all(s["chance"] == 0.2 and s["stderr"] < 1e-6 for s in scores.values())
    expected = -np.log(1 + 4 * np.exp(-10))
    assert scores["zero-shotacc1"]["logprob"] == pytest.approx(expected, abs=1e-5)


def test_a_model_that_mistakes_every_word_scores_zero_but_for_few_shot() -> None:
    scores = evaluate(Reader(shift=-1), numbers, ALL)
    found = {name: s["score"] for name, s in scores.items()}
    assert found["zero-shotacc1"] == 0 and found["few-shotacc1"] == 1, "few-shot reads no word"
    assert found["retrievaltext_retrieval_recall@1"] < 0.1
    assert mean_score(scores) == pytest.approx(sum(found.values()) / 4)


def test_few_shot_of_a_blind_model_is_chance() -> None:
    class Blind(Reader):
        def encode_image(self, images: Tensor, patch_size: int | None = None) -> Tensor:
            return torch.ones(len(images), 64)

    score = evaluate(Blind(), numbers, [toy("few-shot")])["few-shotacc1"]
    assert score["score"] == 0.2
    assert score["stderr"] == pytest.approx((0.2 * 0.8 / 30) ** 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_few_shot_of_a_nearly_blind_model_is_chance(seed: int) -> None:
    """Features equal up to the rounding of float32, as another kernel leaves them."""
    noise = 1e-7 * torch.rand(30, 64, generator=torch.Generator().manual_seed(seed))

    class NearlyBlind(Reader):
        def encode_image(self, images: Tensor, patch_size: int | None = None) -> Tensor:
            return F.normalize(torch.ones(64), dim=0) + noise[: len(images)]

    assert evaluate(NearlyBlind(), numbers, [toy("few-shot")])["few-shotacc1"]["score"] == 0.2


def test_the_first_of_equal_classes_is_taken_and_no_other_choice_moves() -> None:
    near, apart = 0.3 + 1e-15, 0.3 + 1e-6
    rows = torch.tensor([[0.1, 0.3, 0.3], [0.3, near, 0.1], [0.3, apart, 0.1]], dtype=torch.float64)
    assert first_best(rows).tolist() == [1, 0, 1]
    scores = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first_best(scores), scores.argmax(1))


def test_along_the_run_a_fixed_subset_is_scored() -> None:
    large = toy("zero-shot", n=50)
    assert evaluate(Reader(), numbers, [large], 20)["zero-shotacc1"]["n"] == 20
    assert evaluate(Reader(), numbers, [large], 100)["zero-shotacc1"]["n"] == 50
    test = large.split()
    a, b = test.first(20), test.first(20)
    assert torch.equal(a.images, b.images) and len(test.first(50)) == 50
    assert torch.equal(a.labels, a.images[:, 0, 0, 0].long()), "images keep their labels"
    shown = toy("retrieval").split().first(7)
    assert shown.captions == [[str(int(i[0, 0, 0]))] for i in shown.images]


def test_the_miniatures_benchmarks_are_scored_and_twice_the_same(data_root: Path) -> None:
    model, benchmarks = tiny_model(tiny_run()), list_benchmarks(data_root)
    assert len(benchmarks) == 8 and model.training
    first = evaluate(model, TOKENIZER, benchmarks)
    torch.manual_seed(3)
    assert evaluate(model, TOKENIZER, benchmarks) == first
    assert model.training, "the mode is put back"
    assert list(first) == [b.name for b in benchmarks]
    for benchmark, score in zip(benchmarks, first.values(), strict=True):
        assert 0 <= score["score"] <= 1 and score["n"] == len(benchmark.split())
        assert score["chance"] == benchmark.chance
    assert {k for k in first["tagged_t2i"] if "recall" in k} == {
        "image_retrieval_recall@1",
        "image_retrieval_recall@5",
    }
    other = evaluate(tiny_model(tiny_run(), seed=1), TOKENIZER, benchmarks)
    assert other != first


def test_a_few_shot_classifier_never_sees_the_test_images(data_root: Path) -> None:
    few = next(b for b in list_benchmarks(data_root) if b.kind == "few-shot")
    test, shots = few.split(), few.split("train")
    pixels = {image.numpy().tobytes() for image in test.images}
    assert not pixels & {image.numpy().tobytes() for image in shots.images}


def test_nats_above_guessing_forgive_confidence_and_are_zero_for_a_guesser() -> None:
    labels = torch.arange(400) % 4
    signal = torch.nn.functional.one_hot(labels, 4).float()
    noise = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    useful = nats_above_guessing(signal + noise, labels)
    assert 0.1 < useful < math.log(4)
    assert nats_above_guessing(30 * (signal + noise), labels) == pytest.approx(useful, abs=1e-3)
    assert nats_above_guessing(noise, labels) < 0.02
    assert nats_above_guessing(-signal, labels) < 1e-2, "worse than chance is not below it"
