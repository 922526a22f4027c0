"""Development and test: disjoint, complete, the same concept on one side, the gallery whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_evaluate import Reader, numbers, toy
from tiny import tiny_model, tiny_run

from jestcli.data.tokens import small_tokenizer
from jestcli.evaluation import evaluate as scoring
from jestcli.evaluation.benchmarks import list_benchmarks
from jestcli.evaluation.evaluate import evaluate, restricted_recall
from jestcli.evaluation.parts import belongs, in_development
from jestcli.utils.errors import DataError


def test_a_quarter_is_development_and_spelling_does_not_matter() -> None:
    names = [f"thing {n}" for n in range(4000)]
    assert float(in_development(names).float().mean()) == pytest.approx(0.25, abs=0.03)
    for name in names[:40]:
        dashed = name.replace("thing", "Things").replace(" ", "-")
        same = in_development([name, name.upper(), dashed])
        assert len(set(same.tolist())) == 1
    assert in_development(["…"]).shape == (1,), "a name without a word"


@pytest.mark.parametrize("kind", ["zero-shot", "few-shot", "retrieval"])
def test_parts_are_disjoint_and_complete(kind: str) -> None:
    benchmark = toy(kind, n=60, n_classes=30)
    test = benchmark.split()
    development, rest = (belongs(benchmark, test, part) for part in ("development", "test"))
    assert development.any() and rest.any() and torch.equal(development, ~rest)
    assert belongs(benchmark, test, "all").all()
    if test.labels is not None:
        sides = {(int(k), bool(d)) for k, d in zip(test.labels, development, strict=True)}
        assert len(sides) == 30, "all images of a class are on one side"


def test_the_parts_scores_average_to_the_whole() -> None:
    """Of a model that is right on some images only; the few-shot classifier is fitted on all."""

    class Sometimes(Reader):
        def encode_image(self, images: Any, patch_size: int | None = None) -> Any:
            seen = super().encode_image(images, patch_size)
            return seen.where((seen.argmax(1) % 3 > 0)[:, None], seen.roll(1, 1))

    marks = [
        toy(kind, metric, n=60, n_classes=30)
        for kind, metric in (
            ("zero-shot", "acc1"),
            ("few-shot", "acc1"),
            ("retrieval", "text_retrieval_recall@1"),
            ("retrieval", "image_retrieval_recall@1"),
        )
    ]
    whole, one, other = (evaluate(Sometimes(), numbers, marks, part=p) for p in PARTS)
    for name, score in whole.items():
        a, b = one[name], other[name]
        assert a["n"] + b["n"] == score["n"] == 60 and min(a["n"], b["n"]) > 5
        total = a["score"] * a["n"] + b["score"] * b["n"]
        assert total == pytest.approx(60 * score["score"], abs=1e-5)
        assert a["chance"] == score["chance"], "all classes, the whole gallery, stay candidates"
        if "retrieval" in name:
            assert a["gallery"] == b["gallery"] == score["gallery"] == 60
        else:
            assert len(bytes.fromhex(a["hits"])) == -(-a["n"] // 8)
    assert 0 < whole["zero-shotacc1"]["score"] < 1
    few = evaluate(Sometimes(), numbers, marks[:1], 4, "development")["zero-shotacc1"]
    assert few["n"] == 4, "a subset of the part"


PARTS = ("all", "development", "test")


def test_restricted_recall_over_all_queries_is_clip_benchmarks(data_root: Path) -> None:
    model = tiny_model(tiny_run()).eval()
    tokenizer = small_tokenizer(600, 8)
    tagged = next(b for b in list_benchmarks(data_root) if b.kind == "retrieval").split()
    with torch.no_grad():
        theirs = scoring._retrieve(model, tokenizer, tagged)
        everyone = torch.ones(len(tagged), dtype=torch.bool)
        assert scoring._retrieve(model, tokenizer, tagged, everyone) == pytest.approx(theirs)


def test_restricted_recall_of_several_captions_an_image() -> None:
    """Three images; the first has two captions, of which one lies at the second image."""
    images = F.one_hot(torch.arange(3), 3).float()
    texts = torch.tensor([[1, 0, 0], [0, 0.9, 0], [0, 1, 0], [0, 0, 1.0]])
    owner = torch.tensor([0, 0, 1, 2])
    first, rest = torch.tensor([True, False, False]), torch.tensor([False, True, True])
    found = restricted_recall(images, texts, owner, first)
    assert found["image_retrieval_recall@1"] == 0.5, "one of its two captions finds it"
    assert found["text_retrieval_recall@1"] == 1.0
    assert found["image_retrieval_recall@5"] == found["text_retrieval_recall@5"] == 1.0
    assert restricted_recall(images, texts, owner, rest)["image_retrieval_recall@1"] == 1.0


def test_a_benchmark_without_such_images_is_one_line() -> None:
    alone = toy("zero-shot", n=6, n_classes=1)
    side = "test" if in_development(["0"])[0] else "development"
    with pytest.raises(DataError, match=f"has no {side} image: use evaluation.part=all"):
        evaluate(Reader(), numbers, [alone], part=side)
