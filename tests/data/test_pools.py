"""What no run draws from, and pools that differ in what they show alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import fake_dataset, tiny_run

from jestcli.config import VERIFIED_SIZE, ConfigError
from jestcli.data.decoded import DecodedDataset, open_decoded
from jestcli.data.pools import (
    relevant,
    thinned,
    unverified_rows,
    verified_rows,
    verified_size,
)
from jestcli.runs.data import check_sizes
from jestcli.runs.inputs import sources
from jestcli.runs.reference import OpenedReference
from jestcli.runs.run_data import IconsData, data_of
from jestcli.runs.workspace import Workspace
from jestcli.utils.errors import DataError
from jestcli.utils.hashing import below, first_by_hash, hashes_of, salted
from jestcli.utils.spelling import words_of


def captioned(texts: list[str]) -> DecodedDataset:
    """A store whose row i has the first caption texts[i]."""
    store = fake_dataset(len(texts))
    captions = ["" for _ in store.tokens]
    for row, text in enumerate(texts):
        captions[int(store.caption_start[row])] = text
    store.__dict__["captions"] = captions
    return store


def icons(workspace: Workspace) -> IconsData:
    data = data_of(tiny_run(), workspace)
    assert isinstance(data, IconsData)
    return data


def test_salted_hashes_are_even_and_independent() -> None:
    hashes = hashes_of(f"set/icon-{i}" for i in range(20_000))
    assert len(np.unique(hashes)) == len(hashes) and hashes.dtype == np.uint64
    assert hashes_of(["a", "b"]).tolist() == hashes_of(["b", "a"]).tolist()[::-1]
    one, two = salted(hashes, "one"), salted(hashes, "two")
    assert len(np.unique(one)) == len(one)
    for share in (0.1, 0.5):
        a, b = below(one, share), below(two, share)
        assert a.mean() == pytest.approx(share, abs=0.015)
        assert b[a].mean() == pytest.approx(share, abs=0.04), "the one says nothing of the other"
    assert not below(one, 0.0).any() and below(one, 1.0).all()
    few, more = (set(first_by_hash(hashes, n, "x").tolist()) for n in (50, 500))
    assert len(few) == 50 and few < more
    assert first_by_hash(hashes[:3], 9, "x").tolist() == [0, 1, 2]


def test_verified_sets_are_nested_and_out_of_the_pool() -> None:
    assert verified_size(350_434) == VERIFIED_SIZE and verified_size(84) == 10
    pool = fake_dataset(400)
    sizes = [set(verified_rows(pool, n).tolist()) for n in (5, 20, 50, None)]
    assert [len(s) for s in sizes] == [5, 20, 50, 50] and sizes[0] < sizes[1] < sizes[2]
    rest = unverified_rows(pool)
    assert len(rest) == 350 and not sizes[3] & set(rest.tolist())
    assert unverified_rows(pool, 450).tolist() == [*rest.tolist(), *range(400, 450)]
    with pytest.raises(DataError, match="51 pairs asked for, but level 'verified' has 50"):
        verified_rows(pool, 51)


def test_verified_is_a_curated_set_and_in_no_pool_of_any_run(workspace: Workspace) -> None:
    inputs, none = icons(workspace), OpenedReference()
    kept_out = set(verified_rows(inputs.pool).tolist())
    assert len(kept_out) == 10
    run = tiny_run("curated", data={"level": "verified", "curated_size": 4})
    (part,) = sources(run, inputs, none)
    assert set(part.rows.tolist()) < kept_out and len(part.order) == 4
    assert part.dataset is inputs.pool and part.captions == 1
    plain: list[dict[str, Any]] = [
        {},
        {"noise_share": 0.5},
        {"pool_size": 40},
        {"curated_in_pool": True},
        {"relevant_share": 1},
    ]
    for method, source in [("mixed", {}), *(("uniform", source) for source in plain)]:
        parts = sources(tiny_run(method, source=source), inputs, none)
        assert not kept_out & set(parts[0].rows.tolist()), (method, source)
    with pytest.raises(DataError, match="75: the pool has 74"):
        sources(tiny_run(source={"pool_size": 75}), inputs, none)


def test_words_are_compared_singular_and_in_lower_case() -> None:
    assert words_of("Arrows Left-Right 24") == ("arrow", "left", "right", "24")
    assert words_of("T-Rex; men's_glasses") == ("t", "rex", "men", "s", "glasses")
    store = captioned(["two cats 24", "category", "shopping carts big", "cart shopping", "bells"])
    assert relevant(store, ["Cat", "shopping cart"]).tolist() == [True, False, True, False, False]
    assert not relevant(store, []).any()


def test_thinned_pools_have_one_size_and_differ_in_composition_alone() -> None:
    hashes = hashes_of(f"k{i}" for i in range(3000))
    shows = np.arange(3000) % 3 == 0
    pools = {share: thinned(hashes, shows, share) for share in (0.1, 0.3, 1.0)}
    sizes = {len(rows) for rows in pools.values()}
    assert len(sizes) == 1 and sizes.pop() == pytest.approx(2000 + 100, abs=40)
    shares = [shows[rows].mean() for rows in pools.values()]
    assert shares[0] == pytest.approx(100 / 2100, abs=0.02)
    assert shares[1] == pytest.approx(300 / 2300, abs=0.03)
    assert shares[2] == pytest.approx(1 / 3, abs=0.03), "the whole pool's own composition"
    assert shares == sorted(shares)


def test_hashes_and_relevance_are_kept_beside_the_store(workspace: Workspace) -> None:
    pool = icons(workspace).pool
    expected, words = hashes_of(pool.keys), ["cat", "bell"]
    assert np.array_equal(pool.hashes, expected)
    found = relevant(pool, words, pool.folder)
    assert 0 < found.sum() < len(pool)
    again = open_decoded(pool.folder)
    again.__dict__["captions"] = again.__dict__["keys"] = None  # neither is read a second time
    assert np.array_equal(again.hashes, expected) and np.array_equal(
        relevant(again, words, pool.folder), found
    )
    assert not [path for path in Path(pool.folder).iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"data": {"level": "strong", "curated_size": 13}}, "curated_size=13: level strong has 12"),
        ({"data": {"level": "verified", "curated_size": 11}}, "level verified has 10 pairs"),
        ({"data": {"level": "verfied"}}, r"no data.level=verfied \(did you mean verified\?\)"),
        ({"source": {"kind": "pool", "pool_size": 75}}, "pool_size=75: the pool has 74 pairs"),
    ],
)
def test_more_pairs_than_there_are_is_one_line_before_anything_runs(
    changes: dict[str, Any], message: str, workspace: Workspace
) -> None:
    run = tiny_run("curated", **changes)
    for asked in (run, tiny_run("finetune", reference=run.model_dump())):
        with pytest.raises(ConfigError, match=message):
            check_sizes(asked, workspace.data_root(asked))
    fits = tiny_run("curated", data={"level": "verified", "curated_size": 10})
    check_sizes(fits, workspace.data_root(fits))
