"""Noise with known labels: exactly a share of the captions stand at other images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import fake_store, tiny_run

from jestcli.data.loader import draw
from jestcli.data.noise import caption_of, mismatched
from jestcli.stages import drawn_from, learner, scored_with, trained
from jestcli.stages.workspace import Workspace, read_done
from jestcli.training.step import embed


def test_exactly_a_share_of_rows_shows_another_rows_caption() -> None:
    rows = caption_of(1000, 0.3)
    moved = rows != np.arange(1000)
    assert moved.sum() == 300 and sorted(rows.tolist()) == list(range(1000)), "each caption once"
    assert np.array_equal(rows, caption_of(1000, 0.3))
    assert (caption_of(10, 0.0) == np.arange(10)).all()
    assert (caption_of(10, 0.1) == np.arange(10)).all(), "one caption alone cannot move"


def test_a_store_with_moved_captions_shows_their_tokens() -> None:
    store = fake_store(40)
    noisy = mismatched(store, 0.5)
    assert len(noisy) == 40 and noisy.identity != store.identity
    for row in range(40):
        shown = noisy.tokens[noisy.caption_start[row]]
        source = caption_of(40, 0.5)[row]
        assert np.array_equal(shown, store.tokens[store.caption_start[source]])
        assert np.array_equal(noisy.images[row], store.images[row])


def test_learner_and_reference_see_the_same_moved_captions(workspace: Workspace) -> None:
    """A run on noise scores the moved caption, by the cache as by the reference itself."""
    run = tiny_run("jest", source={"noise_share": 0.5}, selection={"filter_ratio": 0.5})
    folder = learner.train(run, workspace, "jest", lambda *_: None)
    done = read_done(folder)
    chosen = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["chosen"]
    moved = caption_of(84, 0.5) != np.arange(84)
    assert done["noise_trained_on"] == pytest.approx(moved[chosen].mean())
    inputs = workspace.inputs(run)
    cache, _, _ = scored_with.open_reference(run, workspace, inputs, "", lambda *_: None)
    assert cache is not None and run.reference is not None
    parts, counts = drawn_from.sources(run, inputs, cache)
    drawn = draw(parts, counts, 0, 0)
    live = embed(trained.load_run(run.reference, workspace), drawn.images, drawn.tokens, None)
    assert np.allclose(cache(drawn).text.numpy(), live.text.numpy(), atol=1e-6)
    assert np.allclose(cache(drawn).image.numpy(), live.image.numpy(), atol=1e-6)
    assert (moved[drawn.row]).any()
    row = int(np.flatnonzero(moved)[0])
    source = int(caption_of(84, 0.5)[row])
    assert parts[0].store.captions_of(row)[0] == inputs.pool.captions_of(source)[0]


def test_a_clean_run_says_nothing_of_noise_and_a_plain_one_counts_the_pool(
    workspace: Workspace,
) -> None:
    clean, noisy = tiny_run(), tiny_run(source={"noise_share": 0.25})
    assert clean.digest() == tiny_run(source={"noise_share": 0.0}).digest() != noisy.digest()
    for run, share in ((clean, None), (noisy, 0.25)):
        folder = learner.train(run, workspace, "uniform", lambda *_: None)
        assert read_done(folder)["noise_trained_on"] == share
