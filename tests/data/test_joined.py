"""Curated sources left in the pool: two stores read as one, scored as each by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import fake_store, tiny_run
from toy import train_run

from jestcli.config import ConfigError, make_run, merge
from jestcli.data.joined import Stacked, join
from jestcli.data.loader import draw
from jestcli.data.noise import caption_of, mismatched
from jestcli.paper.experiment import Job
from jestcli.paper.inspection import inspect
from jestcli.paper.scheduler import plan
from jestcli.runs import drawn_from, scored_with, trained
from jestcli.runs.workspace import Workspace, read_done
from jestcli.training.metrics import chosen_in_training
from jestcli.training.step import embed

LEFT_IN = {"curated_in_pool": True}


def test_rows_of_stacked_arrays_are_those_of_one() -> None:
    arrays = [np.arange(n * 6, dtype=np.int16).reshape(n, 2, 3) + 100 * n for n in (3, 1, 4)]
    stacked, whole = Stacked(arrays), np.concatenate(arrays)
    assert len(stacked) == 8
    rows = np.random.default_rng(0).integers(0, 8, 50)
    assert np.array_equal(stacked[rows], whole[rows]) and stacked[rows].dtype == np.int16
    for row in range(8):
        assert np.array_equal(stacked[row], whole[row])
    assert stacked[np.empty(0, np.int64)].shape == (0, 2, 3)


def test_every_row_of_joined_stores_is_a_row_of_one() -> None:
    """Pixels, captions, columns and levels, whose names and numbers differ between the two."""
    stores = fake_store(10), fake_store(6, "other", seed=1)
    for store, first in zip(stores, "ab", strict=True):
        store.codes["source"] = np.arange(len(store), dtype=np.int32) % 3 - 1
        store.names["source"] = (f"{first}-set", "shared")
        store.names["levels"] = ("even", first)
        store.__dict__["captions"] = [f"{first}{i}" for i in range(len(store.tokens))]
        store.__dict__["keys"] = [f"{first}-{i}" for i in range(len(store))]
    both = join(stores)
    assert len(both) == 16 and both.identity not in {s.identity for s in stores}
    assert both.store_of(np.arange(16)).tolist() == [0] * 10 + [1] * 6
    for row in range(16):
        store, at = (stores[0], row) if row < 10 else (stores[1], row - 10)
        assert both.keys[row] == store.keys[at]
        assert both.captions_of(row) == store.captions_of(at)
        one, other = np.array([row]), np.array([at])
        assert torch.equal(both.pixels(one), store.pixels(other))
        tokens = both.token_rows(both.caption_start[one])
        assert torch.equal(tokens, store.token_rows(store.caption_start[other]))
        code, mine = both.codes["source"][row], store.codes["source"][at]
        assert (code == -1) == (mine == -1)
        if code >= 0:
            assert both.names["source"][code] == store.names["source"][mine]
        assert {n for k, n in enumerate(both.names["levels"]) if both.levels[row] >> k & 1} == {
            n for k, n in enumerate(store.names["levels"]) if store.levels[at] >> k & 1
        }
    assert both.choose("b").tolist() == (10 + stores[1].choose("b")).tolist()
    moved = mismatched(both, caption_of(both, 0.5))
    assert moved.captions_of(3) == [both.captions_of(int(moved.caption_of[3]))[0]]
    assert moved.moved.any() and both.moved is None


def test_left_in_the_pool_curated_pairs_are_drawn_scored_and_counted(workspace: Workspace) -> None:
    run = tiny_run("jest", source=LEFT_IN, optim={"steps": 8})
    inputs = workspace.inputs(run)
    n_pool, n_curated = len(inputs.pool), len(inputs.curated)
    folder = train_run(run, workspace, "left", lambda *_: None)
    done = read_done(folder)
    assert done["rows_drawn_from"] == {"pool": n_pool - n_pool // 8 + n_curated}, "but the verified"
    cache, _, _ = scored_with.open_reference(run, workspace, inputs, "", lambda *_: None)
    assert cache is not None and run.reference is not None
    (part,), counts = drawn_from.sources(run, inputs, cache)
    drawn = [draw([part], counts, 0, step) for step in range(8)]
    rows = np.concatenate([d.row for d in drawn])
    assert (rows >= n_pool).any() and (rows < n_pool).any() and rows.max() < n_pool + n_curated
    reference = trained.load_run(run.reference, workspace)
    for one in drawn[:3]:
        live = embed(reference, one.images, one.tokens, None)
        torch.testing.assert_close(cache(one).image, live.image, rtol=0, atol=1e-5)
        torch.testing.assert_close(cache(one).text, live.text, rtol=0, atol=1e-5)
    chosen = np.concatenate([rows for _, rows in chosen_in_training(folder)])
    assert done["curated_trained_on"] == pytest.approx((chosen >= n_pool).mean())
    written = inspect(folder, workspace, workspace.runs.parent / "out", super_batches=2)
    assert all(path.exists() for path in written)


def test_uniform_training_counts_what_lies_there_and_other_pools_nothing(
    workspace: Workspace,
) -> None:
    plain, left = tiny_run(), tiny_run(source=LEFT_IN)
    assert plain.digest() == tiny_run(source={"curated_in_pool": False}).digest() != left.digest()
    inputs = workspace.inputs(left)
    share = len(inputs.curated) / (74 + len(inputs.curated))
    for run, expected in ((plain, None), (left, pytest.approx(share))):
        folder = train_run(run, workspace, "uniform", lambda *_: None)
        assert read_done(folder)["curated_trained_on"] == expected


def test_the_scheduler_embeds_both_stores_before_the_learners_start(workspace: Workspace) -> None:
    run = tiny_run("jest", source=LEFT_IN, seed=7, reference={"seed": 7})
    assert run.reference is not None
    work = [Job("left", 7, run), Job("removed", 7, tiny_run("jest", seed=7,
                                                           reference={"seed": 7}))]  # fmt: skip
    stages = plan(work, workspace)
    assert [(s.kind, s.split) for s in stages] == [
        ("train", "pool"), ("cache", "pool"), ("cache", "curated"), ("train", "pool"),
        ("train", "pool"),
    ]  # fmt: skip
    needs = {s.label: set(s.needs) for s in stages if s.kind == "train"}
    caches = {s.split: s.key for s in stages if s.kind == "cache"}
    assert needs["left (seed 7)"] >= set(caches.values())
    assert caches["curated"] not in needs["removed (seed 7)"]
    train_run(run.reference, workspace, "reference", lambda *_: None)
    scored_with.cache(run.reference, workspace, "cache", lambda *_: None)
    assert [s.split for s in plan(work, workspace) if s.kind == "cache"] == ["curated"]
    scored_with.cache(run.reference, workspace, "cache", lambda *_: None, None, "curated")
    assert not [s for s in plan(work, workspace) if s.kind == "cache"]


@pytest.mark.parametrize("change,message", [
    ({"source": {**LEFT_IN, "kind": "mixed"}}, "needs source.kind pool or filtered"),
    ({"source": LEFT_IN, "data": {"train": ["a.tar"]}}, "is for the embedded data"),
])  # fmt: skip
def test_where_nothing_can_be_left_in_it_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_run(merge(tiny_run().model_dump(), change))
