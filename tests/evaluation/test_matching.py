"""The area under the curve that measures a reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jestcli.evaluation.matching import matching_auc
from jestcli.selection import PairEmbeddings


def given(monkeypatch, image, text) -> float:
    pairs = PairEmbeddings(F.normalize(image, dim=1), F.normalize(text, dim=1), 1.0)
    monkeypatch.setattr("jestcli.evaluation.matching.encode_pairs", lambda *_: pairs)
    return matching_auc(None, None, None)  # type: ignore[arg-type]


def test_auc_of_a_perfect_a_blind_and_a_wrong_model(monkeypatch) -> None:
    eye, flat = torch.eye(6), torch.ones(6, 4)
    assert given(monkeypatch, eye, eye) == 1.0
    assert given(monkeypatch, flat, flat) == 0.5
    assert given(monkeypatch, eye, eye.roll(-1, 0)) == 0.0


def test_auc_counts_pairs_as_the_definition_does(monkeypatch) -> None:
    torch.manual_seed(0)
    image, text = torch.randn(9, 3), torch.randn(9, 3)
    found = given(monkeypatch, image, text)
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    right, wrong = (image * text).sum(1), (image * text.roll(1, 0)).sum(1)
    above = (right[:, None] > wrong[None]).double() + 0.5 * (right[:, None] == wrong[None])
    assert abs(found - float(above.mean())) < 1e-12
