"""Noise with known labels, keyed by pair: it does not depend on which other pairs there are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from own_shards import caption, sample, write_tar
from tiny import draw, fake_dataset, fake_source, tiny_run
from toy import train_run

from jestcli.config import Run
from jestcli.data.caption_noise import CaptionNoise
from jestcli.data.dataset import Transform
from jestcli.data.decoded import DecodedDataset
from jestcli.data.loader import Source, SuperBatchLoader
from jestcli.data.pools import unverified_rows, verified_rows
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.data.tokens import small_tokenizer
from jestcli.runs import trained
from jestcli.runs.inputs import open_inputs, sources
from jestcli.runs.reference import OpenedReference
from jestcli.runs.run_data import data_of
from jestcli.runs.workspace import Workspace, read_done
from jestcli.training.step import encode_pairs


def noise(dataset: DecodedDataset, share: float, rows: np.ndarray | None = None) -> CaptionNoise:
    return CaptionNoise(dataset, share, lambda texts: texts, rows)


def caption_of(dataset: DecodedDataset, share: float, rows: np.ndarray | None = None) -> np.ndarray:
    """Whose caption every row shows."""
    return noise(dataset, share, rows).caption_rows(np.arange(len(dataset)))


def wrong(dataset: DecodedDataset, share: float, rows: np.ndarray | None = None) -> np.ndarray:
    return noise(dataset, share, rows).wrong(np.arange(len(dataset)))


def test_a_share_of_the_pairs_is_wrong_and_smaller_shares_lie_in_larger_ones() -> None:
    store = fake_dataset(2000)
    masks = {share: wrong(store, share) for share in (0.0, 0.2, 0.5, 0.8, 0.9)}
    for share, mask in masks.items():
        assert mask.mean() == pytest.approx(share, abs=0.04), "binomial: 3.6 standard errors"
    ordered = list(masks.values())
    for less, more in itertools.pairwise(ordered):
        assert not (less & ~more).any() and less.sum() < more.sum()
    rows = caption_of(store, 0.8)
    assert np.array_equal(rows, caption_of(fake_dataset(2000), 0.8)), "no generator, no state"
    assert len(set(rows.tolist())) == 2000, "where no caption repeats each is shown once"


def test_who_is_wrong_follows_from_the_key_alone() -> None:
    """Rows in another order, or among other pairs: the same pairs are wrong."""
    long, short = fake_dataset(300), fake_dataset(200)
    assert np.array_equal(wrong(long, 0.5)[:200], wrong(short, 0.5))
    names = list(reversed(short.keys))
    turned = fake_dataset(200)
    turned.__dict__["keys"] = names
    assert np.array_equal(wrong(turned, 0.5), wrong(short, 0.5)[::-1])


def test_no_wrong_pair_shows_a_caption_that_reads_like_its_own() -> None:
    store = fake_dataset(400)
    firsts = store.caption_start[:-1]
    store.tokens[firsts] = store.tokens[firsts[np.arange(400) % 3]]  # three captions in all
    rows = caption_of(store, 0.9)
    moved = rows != np.arange(400)
    assert moved.sum() > 320
    assert (store.tokens[firsts[rows]] != store.tokens[firsts]).any(axis=1)[moved].all()
    store.tokens[firsts] = store.tokens[0]
    assert not wrong(store, 0.9).any(), "one caption: none can be wrong"
    assert not wrong(fake_dataset(1), 0.99).any()


def test_only_the_rows_that_may_be_wrong_are() -> None:
    store = fake_dataset(400)
    rows = unverified_rows(store)
    given = caption_of(store, 0.9, rows)
    moved = given != np.arange(400)
    assert not moved[verified_rows(store)].any() and moved[rows].mean() > 0.8
    assert set(given[moved].tolist()) <= set(rows.tolist()), "no verified caption is lent out"


def test_a_data_set_with_moved_captions_shows_their_tokens() -> None:
    dataset = fake_dataset(40)
    given, noisy, rows = caption_of(dataset, 0.5), noise(dataset, 0.5), np.arange(40)
    assert len(noisy) == 40 and noisy.identity != dataset.identity
    assert np.array_equal(noisy.wrong(rows), given != rows) and noisy.wrong(rows).any()
    read = noisy.read(rows, Transform(32, lambda texts: texts), None)
    assert np.array_equal(read.caption_row, given) and np.array_equal(read.row, rows)
    assert torch.equal(read.tokens, dataset.tokens_of(given))
    assert torch.equal(read.images, dataset.read(rows).images)


def test_candidates_say_which_are_wrong() -> None:
    noisy = noise(fake_dataset(40), 0.5)
    part = fake_source(noisy, np.arange(40), "pool")  # type: ignore[arg-type]
    clean = fake_source(fake_dataset(12, seed=1), np.arange(12), "curated")
    drawn = draw([part, clean], [10, 4], 0, 1)
    assert drawn.wrong is not None and not drawn.wrong[10:].any(), "no curated pair is"
    assert np.array_equal(drawn.wrong[:10], noisy.wrong(drawn.row[:10])) and drawn.wrong.any()
    assert draw([clean], [4]).wrong is None, "where none was moved nothing is known"


def noisy_sources(run: Run, workspace: Workspace) -> tuple[CaptionNoise, Source]:
    (source,) = sources(run, data_of(run, workspace), OpenedReference())
    assert isinstance(source.dataset, CaptionNoise)
    return source.dataset, source


def test_learner_and_reference_see_the_same_moved_captions(workspace: Workspace) -> None:
    """A run on noise scores the moved caption, by the table as by the reference itself."""
    run = tiny_run("jest", source={"noise_share": 0.5}, selection={"filter_ratio": 0.5})
    folder = train_run(run, workspace, "jest", lambda *_: None)
    chosen = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["chosen"]
    dataset, _ = noisy_sources(run, workspace)
    moved = dataset.wrong(np.arange(84))
    assert read_done(folder)["noise_trained_on"] == pytest.approx(moved[chosen].mean())
    inputs = open_inputs(run, workspace, folder)
    assert inputs.reference.call is not None and run.reference is not None
    drawn = inputs.loader(0)
    live = encode_pairs(
        trained.load_run(run.reference, workspace), drawn.images, drawn.tokens, None
    )
    assert np.allclose(inputs.reference.call(drawn).text.numpy(), live.text.numpy(), atol=1e-6)
    assert np.allclose(inputs.reference.call(drawn).image.numpy(), live.image.numpy(), atol=1e-6)
    assert moved[drawn.row].any() and np.array_equal(moved[drawn.row], drawn.wrong)
    rows = np.flatnonzero(moved)
    assert dataset.captions_of(rows) == inputs.data.pool.captions_of(dataset.caption_rows(rows))


def test_a_pair_shows_the_same_caption_whatever_is_left_out(workspace: Workspace) -> None:
    """A smaller pool, a filter: the captions of the pairs that stay do not change."""
    noise = {"noise_share": 0.5}
    whole, _ = noisy_sources(tiny_run(source=noise), workspace)
    part, source = noisy_sources(tiny_run(source=noise | {"pool_size": 30}), workspace)
    assert len(source.rows) == 30
    assert part.captions_of(source.rows) == whole.captions_of(source.rows)


def test_a_clean_run_says_nothing_of_noise_and_a_plain_one_counts_the_pool(
    workspace: Workspace,
) -> None:
    clean, noisy = tiny_run(), tiny_run(source={"noise_share": 0.25})
    assert clean.digest() == tiny_run(source={"noise_share": 0.0}).digest() != noisy.digest()
    dataset, source = noisy_sources(noisy, workspace)
    share = dataset.wrong(source.rows).mean()
    assert share > 0
    for run, expected in ((clean, None), (noisy, share)):
        folder = train_run(run, workspace, "uniform", lambda *_: None)
        assert read_done(folder)["noise_trained_on"] == expected


# --- a user's shards -----------------------------------------------------------------------------


def test_captions_of_shards_are_moved_in_the_same_way(tmp_path: Path) -> None:
    """One more read each; a caption that cannot be read, or reads alike, is passed over."""
    members = [sample(n) for n in range(40)]
    members[3] = sample(3, txt=b"\xff", json=None)
    members[4] = sample(4, txt=caption(5).encode(), json=None)
    write_tar(tmp_path / "a.tar", *members)
    loading = Loading(workers=0, cache=tmp_path / "cache", max_faults=0.5)
    shards = open_shards("pool", (str(tmp_path / "a.tar"),), loading)
    tokenizer = small_tokenizer(600, 8)
    noisy = CaptionNoise(shards, 0.9, tokenizer)
    rows = np.array([row for row in range(40) if row != 3])
    given = noisy.caption_rows(rows)
    assert (given != rows).mean() > 0.7 and 3 not in given[given != rows]
    assert np.array_equal(noisy.wrong(rows), given != rows)
    shown, own = noisy.captions_of(rows), shards.captions_of(rows)
    assert [a != b for a, b in zip(shown, own, strict=True)] == (given != rows).tolist()
    loader = SuperBatchLoader(
        [Source(noisy, noisy.order(0, "pool"), 12)], Transform(32, tokenizer), loading
    )
    plain = SuperBatchLoader(
        [Source(shards, shards.order(0, "pool"), 12)], Transform(32, tokenizer), loading
    )
    for step in range(4):
        drawn, right = loader(step), plain(step)
        assert np.array_equal(drawn.row, right.row) and torch.equal(drawn.images, right.images)
        assert drawn.texts == shards.captions_of(drawn.caption_row)
        assert torch.equal(drawn.tokens, tokenizer(list(drawn.texts)))
        assert drawn.wrong is not None and right.wrong is None
        assert np.array_equal(drawn.wrong, drawn.caption_row != drawn.row)
