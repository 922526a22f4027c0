"""Reference embeddings: equal to live ones, keyed by weights and data, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import fake_pool, fake_store, tiny_model, tiny_run

from jestcli.data.loader import draw
from jestcli.runs import cache as caches
from jestcli.runs.cache import Cache, build_cache, cache_key
from jestcli.runs.filters import matching_scores, negclip_scores
from jestcli.training.step import embed

RUN = tiny_run("jest")


def nothing(*_: Any) -> None:
    pass


def equal(a: Cache, b: Cache) -> bool:
    return np.array_equal(a.image, b.image) and np.array_equal(a.text, b.text)


def test_the_cache_gives_what_the_reference_gives_live(tmp_path: Path) -> None:
    model = tiny_model(RUN, (8,), seed=5)
    cache = build_cache(model, fake_store(), tmp_path, nothing)
    drawn = draw([fake_pool()], [16], 3, 7)
    live, stored = embed(model, drawn.images, drawn.tokens, None), cache(drawn)
    torch.testing.assert_close(stored.image, live.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(stored.text, live.text, rtol=0, atol=1e-6)
    assert (stored.scale, stored.bias) == (float(live.scale), float(live.bias))


def test_weights_and_data_key_the_cache(tmp_path: Path) -> None:
    model, store = tiny_model(RUN, (8,), seed=5), fake_store()
    key = cache_key(model, store)
    assert key == cache_key(tiny_model(RUN, (8,), seed=5), fake_store())
    assert cache_key(model, fake_store(identity="other shards")) != key
    assert cache_key(tiny_model(RUN, (8,), seed=6), store) != key
    first = build_cache(model, store, tmp_path, nothing)
    with torch.no_grad():
        model.clip.visual.visual.proj[0, 0] += 1e-3
    assert cache_key(model, store) != key
    changed = build_cache(model, store, tmp_path, nothing)
    assert not equal(first, changed) and len(list(tmp_path.iterdir())) == 2


def test_a_complete_cache_is_not_computed_again(tmp_path: Path) -> None:
    model = tiny_model(RUN, (8,), seed=5)
    seen: list[tuple[int, int]] = []
    first = build_cache(model, fake_store(), tmp_path, lambda *at: seen.append(at))
    assert seen == [(40, 40)]
    again = build_cache(model, fake_store(), tmp_path, lambda *at: seen.append(at))
    assert seen == [(40, 40)] and equal(first, again)


class Killed(BaseException):
    """Stands for the process dying."""


@pytest.mark.parametrize("died_at,goes_on_at", [(10, 1), (32, 1), (33, 33), (39, 33)])
def test_a_killed_build_goes_on_and_is_the_same(
    died_at: int, goes_on_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "BLOCK", 1)
    model = tiny_model(RUN, (8,), seed=5)
    whole = build_cache(model, fake_store(), tmp_path / "whole", nothing)

    def die(done: int, total: int) -> None:
        if done == died_at:
            raise Killed

    with pytest.raises(Killed):
        build_cache(model, fake_store(), tmp_path / "killed", die)
    assert not list(tmp_path.glob("killed/*/cache.json")), "half a cache is not a cache"
    seen: list[int] = []
    resumed = build_cache(
        model, fake_store(), tmp_path / "killed", lambda done, _: seen.append(done)
    )
    assert seen == list(range(goes_on_at, 41)) and equal(whole, resumed)


def test_matching_scores_are_the_cosines_of_pairs(tmp_path: Path) -> None:
    model, store = tiny_model(RUN, (8,), seed=5), fake_store()
    cache = build_cache(model, store, tmp_path, nothing)
    expected = [float(np.dot(cache.image[i], cache.text[i])) for i in range(len(store))]
    assert matching_scores(cache.pairs, len(cache.image)) == pytest.approx(expected, abs=1e-6)
    assert np.ptp(matching_scores(cache.pairs, len(cache.image))) > 0.01


def test_negclip_takes_off_what_fits_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caption that matches every image wins by cosine, not by negCLIPLoss."""
    image = np.eye(6, 7, dtype=np.float32)
    text = image.copy()
    text[0] = image.sum(0) / np.sqrt(6) * 1.0
    image[0] = text[0]  # its cosine is 1, as that of all others
    cache = Cache(image, text, 10.0, -10.0)
    scores = negclip_scores(cache.pairs, len(cache.image))
    assert scores.argmin() == 0 and np.allclose(scores[1:], scores[1])
    in_batches = negclip_scores(cache.pairs, len(cache.image), batch=4, seed=3)
    assert in_batches.shape == (6,) and np.isfinite(in_batches).all()
