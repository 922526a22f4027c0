"""Noise with known labels, keyed by pair: it does not depend on which other pairs there are."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from tiny import fake_store, tiny_run
from toy import train_run

from jestcli.data.loader import Part, draw
from jestcli.data.noise import caption_of, mismatched
from jestcli.data.pools import unverified_rows, verified_rows
from jestcli.data.store import Store
from jestcli.runs import drawn_from, scored_with, trained
from jestcli.runs.workspace import Workspace, read_done
from jestcli.training.step import embed


def wrong(store: Store, share: float, rows: np.ndarray | None = None) -> np.ndarray:
    return caption_of(store, share, rows) != np.arange(len(store))


def test_a_share_of_the_pairs_is_wrong_and_smaller_shares_lie_in_larger_ones() -> None:
    store = fake_store(2000)
    masks = {share: wrong(store, share) for share in (0.0, 0.2, 0.5, 0.8, 0.9)}
    for share, mask in masks.items():
        assert mask.mean() == pytest.approx(share, abs=0.04), "binomial: 3.6 standard errors"
    ordered = list(masks.values())
    for less, more in itertools.pairwise(ordered):
        assert not (less & ~more).any() and less.sum() < more.sum()
    rows = caption_of(store, 0.8)
    assert np.array_equal(rows, caption_of(fake_store(2000), 0.8)), "no generator, no state"
    assert len(set(rows.tolist())) == 2000, "where no caption repeats each is shown once"


def test_who_is_wrong_follows_from_the_key_alone() -> None:
    """Rows in another order, or among other pairs: the same pairs are wrong."""
    long, short = fake_store(300), fake_store(200)
    assert np.array_equal(wrong(long, 0.5)[:200], wrong(short, 0.5))
    names = list(reversed(short.keys))
    turned = fake_store(200)
    turned.__dict__["keys"] = names
    assert np.array_equal(wrong(turned, 0.5), wrong(short, 0.5)[::-1])


def test_no_wrong_pair_shows_a_caption_that_reads_like_its_own() -> None:
    store = fake_store(400)
    firsts = store.caption_start[:-1]
    store.tokens[firsts] = store.tokens[firsts[np.arange(400) % 3]]  # three captions in all
    rows = caption_of(store, 0.9)
    moved = rows != np.arange(400)
    assert moved.sum() > 320
    assert (store.tokens[firsts[rows]] != store.tokens[firsts]).any(axis=1)[moved].all()
    store.tokens[firsts] = store.tokens[0]
    assert not wrong(store, 0.9).any(), "one caption: none can be wrong"
    assert not wrong(fake_store(1), 0.99).any()


def test_only_the_rows_that_may_be_wrong_are() -> None:
    store = fake_store(400)
    rows = unverified_rows(store)
    given = caption_of(store, 0.9, rows)
    moved = given != np.arange(400)
    assert not moved[verified_rows(store)].any() and moved[rows].mean() > 0.8
    assert set(given[moved].tolist()) <= set(rows.tolist()), "no verified caption is lent out"


def test_a_store_with_moved_captions_shows_their_tokens() -> None:
    store = fake_store(40)
    given = caption_of(store, 0.5)
    noisy = mismatched(store, given)
    assert len(noisy) == 40 and noisy.identity != store.identity
    assert np.array_equal(noisy.moved, given != np.arange(40)) and noisy.moved.any()
    for row, source in enumerate(given.tolist()):
        shown = noisy.tokens[noisy.caption_start[row]]
        assert np.array_equal(shown, store.tokens[store.caption_start[source]])
        assert np.array_equal(noisy.token_rows(np.array([row]))[0].numpy(), shown)
        assert np.array_equal(noisy.images[row], store.images[row])


def test_candidates_say_which_are_wrong() -> None:
    store = fake_store(40)
    noisy = mismatched(store, caption_of(store, 0.5))
    pool = Part(noisy, np.arange(40), "pool", 1)
    clean = Part(fake_store(20), np.arange(20), "curated", 1)
    drawn = draw([pool, clean], [12, 6], 0, 0)
    assert drawn.wrong is not None
    assert np.array_equal(drawn.wrong[:12], noisy.moved[drawn.row[:12]]) and drawn.wrong.any()
    assert not drawn.wrong[12:].any(), "nothing moved in the curated set"
    second = draw([pool, clean], [12, 6], 0, 0, rank=1, world=2)
    assert second.wrong is not None and np.array_equal(second.wrong, drawn.wrong[9:])
    assert draw([clean], [6], 0, 0).wrong is None


def test_learner_and_reference_see_the_same_moved_captions(workspace: Workspace) -> None:
    """A run on noise scores the moved caption, by the cache as by the reference itself."""
    run = tiny_run("jest", source={"noise_share": 0.5}, selection={"filter_ratio": 0.5})
    folder = train_run(run, workspace, "jest", lambda *_: None)
    done = read_done(folder)
    chosen = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["chosen"]
    inputs = workspace.embedded(run)
    given = drawn_from.shown_captions(run, inputs)
    moved = given != np.arange(84)
    assert done["noise_trained_on"] == pytest.approx(moved[chosen].mean())
    cache, _, _ = scored_with.open_reference(run, workspace, inputs, "", lambda *_: None)
    assert cache is not None and run.reference is not None
    parts, counts = drawn_from.sources(run, inputs, cache)
    drawn = draw(parts, counts, 0, 0)
    live = embed(trained.load_run(run.reference, workspace), drawn.images, drawn.tokens, None)
    assert np.allclose(cache(drawn).text.numpy(), live.text.numpy(), atol=1e-6)
    assert np.allclose(cache(drawn).image.numpy(), live.image.numpy(), atol=1e-6)
    assert moved[drawn.row].any() and drawn.wrong is not None
    assert np.array_equal(moved[drawn.row], drawn.wrong)
    row = int(np.flatnonzero(moved)[0])
    assert parts[0].store.captions_of(row)[0] == inputs.pool.captions_of(int(given[row]))[0]


def test_a_pair_shows_the_same_caption_whatever_is_left_out(workspace: Workspace) -> None:
    """A smaller pool, a filter: the captions of the pairs that stay do not change."""
    noise = {"noise_share": 0.5}
    inputs = workspace.embedded(tiny_run())
    run = tiny_run(source=noise)
    (whole,), _ = drawn_from.sources(run, inputs, None)
    small = tiny_run(source=noise | {"pool_size": 30})
    (part,), _ = drawn_from.sources(small, inputs, None)
    assert len(part.rows) == 30
    for row in part.rows.tolist():
        assert part.store.captions_of(row) == whole.store.captions_of(row)


def test_a_clean_run_says_nothing_of_noise_and_a_plain_one_counts_the_pool(
    workspace: Workspace,
) -> None:
    clean, noisy = tiny_run(), tiny_run(source={"noise_share": 0.25})
    assert clean.digest() == tiny_run(source={"noise_share": 0.0}).digest() != noisy.digest()
    inputs = workspace.embedded(noisy)
    given, rows = drawn_from.shown_captions(noisy, inputs), drawn_from.pool_rows(noisy, inputs)
    share = (given != np.arange(84))[rows].mean()
    assert share > 0
    for run, expected in ((clean, None), (noisy, share)):
        folder = train_run(run, workspace, "uniform", lambda *_: None)
        assert read_done(folder)["noise_trained_on"] == expected
