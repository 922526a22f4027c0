"""Super-batches from shards: one order whatever reads it, every source alike, reduced decoding
close."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_shards import caption, jpeg, make_shards, sample, served, shard_loader, write_tar

from jestcli.data import fetch
from jestcli.data.fetch import local
from jestcli.data.images import decode_image, fit
from jestcli.data.loader import SuperBatch
from jestcli.data.order import ShardOrder, shares, weighted
from jestcli.data.remote import ShardError
from jestcli.data.shard_dataset import ShardDataset, open_shards
from jestcli.data.sources import Loading, list_shards
from jestcli.data.tar import TarFiles
from jestcli.data.tokens import small_tokenizer
from jestcli.utils.errors import DataError
from jestcli.utils.layout import Layout

B = 10


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("own"))


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    return Loading(workers=0, cache=tmp_path / "cache", timeout=0.5, retries=1, pause=0.01)


def opened(source: Any, loading: Loading, **more: Any) -> ShardDataset:
    entries = source if isinstance(source, tuple) else (str(source),)
    return open_shards("pool", entries, loading, **{"window": 2, **more})


def drawn(dataset: ShardDataset, steps: Any = range(12), **more: Any) -> list[SuperBatch]:
    loader = shard_loader(dataset, B, **more)
    try:
        return [loader(step) for step in steps]
    finally:
        loader.close()


def same(a: SuperBatch, b: SuperBatch) -> bool:
    pixels = torch.equal(a.images, b.images) and torch.equal(a.tokens, b.tokens)
    return pixels and np.array_equal(a.row, b.row)


def numbers(candidates: SuperBatch) -> list[int]:
    return [int(key.rpartition(":")[2]) for key in candidates.keys]


# --- the order -----------------------------------------------------------------------------------


def test_an_epoch_reads_every_sample_once_window_by_window() -> None:
    order = ShardOrder(1, "pool", (3, 0, 5, 4, 2, 6), 2)
    epochs = [[order.place(epoch * 20 + i) for i in range(20)] for epoch in range(3)]
    for places in epochs:
        assert sorted(places) == [(s, i) for s, n in enumerate(order.counts) for i in range(n)]
        seen = [shard for shard, _ in places]
        spans = {s: (seen.index(s), 19 - seen[::-1].index(s)) for s in set(seen)}
        for position in range(20):
            open_now = [s for s, (a, b) in spans.items() if a <= position <= b]
            assert len(open_now) <= 2, "no more shards at once than a window has"
    assert epochs[0] != epochs[1]
    assert [order.place(i) for i in (7, 55, 7)] == [epochs[0][7], epochs[2][15], epochs[0][7]]
    assert ShardOrder(2, "pool", order.counts, 2).place(7) != order.place(7) or (
        ShardOrder(2, "pool", order.counts, 2).place(8) != order.place(8)
    )


def test_a_substitute_is_another_sample_of_the_window() -> None:
    order = ShardOrder(1, "pool", (5, 5, 5, 5), 2)
    for position in (0, 13, 27):
        begin = position // 10 * 10
        window = {order.place(begin + i)[0] for i in range(10)}
        found = {order.substitute(position, attempt) for attempt in range(1, 20)}
        assert {shard for shard, _ in found} == window and len(found) > 5
        assert order.substitute(position, 3) == order.substitute(position, 3)
    assert order.near(0)[:2] == [int(x) for x in order.near(0)[:2]] and len(order.near(0)) == 4
    assert set(order.near(0)[2:]) == {order.place(10 + i)[0] for i in range(10)}
    assert set(order.near(15)[2:]) == {order.place(20 + i)[0] for i in range(10)}, "next epoch"


@pytest.mark.parametrize("weights", [(1.0, 3.0), (0.2, 0.2, 0.6), (1.0, 1e-9)])
def test_weights_mix_sources_and_each_is_read_in_its_own_order(weights: tuple[float, ...]) -> None:
    found = [weighted(0, "pool", weights, i) for i in range(3000)]
    for source, share in enumerate(shares(weights)):
        inner = [at for which, at in found if which == source]
        assert inner == list(range(3 * share)), "nothing is left out or read twice"
        assert abs(share / 1000 - weights[source] / sum(weights)) <= 1e-3
    assert sum(shares(weights)) == 1000


# --- the same candidates, whoever reads them -----------------------------------------------------


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SuperBatch]:
    """Twelve steps: two and a half epochs of 48 samples."""
    loading = Loading(workers=0, cache=tmp_path_factory.mktemp("cache"))
    return drawn(opened(shards, loading))


def test_candidates_are_the_decoded_samples(straight: list[SuperBatch], shards: Path) -> None:
    for candidates in straight:
        assert candidates.images.shape == (B, 3, 32, 32) and candidates.images.dtype == torch.uint8
        for i, number in enumerate(numbers(candidates)):
            expected = fit(decode_image(jpeg(number)), 32)
            assert np.array_equal(candidates.images[i].permute(1, 2, 0), expected)
            tokens = small_tokenizer(600, 8)(caption(number))[0]
            assert torch.equal(candidates.tokens[i], tokens)
            assert candidates.row[i] == number and str(shards) in candidates.keys[i]
    first = [n for c in straight for n in numbers(c)][:48]
    assert sorted(first) == list(range(48)), "an epoch is every sample once"


@pytest.mark.parametrize("workers", [1, 3, 9])
def test_workers_change_nothing(
    workers: int, shards: Path, straight: list[SuperBatch], loading: Loading
) -> None:
    """Nine workers are more than there are shards, and nearly as many as candidates."""
    more = Loading(workers=workers, cache=loading.cache)
    found = drawn(opened(shards, more), range(5))
    assert all(map(same, found, straight))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_take_slices(
    world: int, shards: Path, straight: list[SuperBatch], loading: Loading
) -> None:
    dataset = opened(shards, loading)
    ranks = [drawn(dataset, range(3), rank=r, world=world) for r in range(world)]
    for step in range(3):
        parts = [rank[step] for rank in ranks]
        assert [n for p in parts for n in numbers(p)] == numbers(straight[step])
        assert torch.equal(torch.cat([p.images for p in parts]), straight[step].images)


def test_any_step_can_be_the_next_with_any_workers(
    shards: Path, straight: list[SuperBatch], tmp_path: Path
) -> None:
    for workers, steps in ((2, [7, 8]), (0, [11, 3, 4])):
        loading = Loading(workers=workers, cache=tmp_path)
        for step, found in zip(steps, drawn(opened(shards, loading), steps), strict=True):
            assert same(found, straight[step])


def test_folder_braces_pipe_and_http_give_the_same(
    shards: Path, straight: list[SuperBatch], loading: Loading
) -> None:
    with served(shards) as address:
        for source in (
            f"{shards}/{{00..03}}.tar",
            f"{shards}/*.tar",
            f"file:{shards}/{{00..03}}.tar",
            f"pipe:cat {shards}/{{00..03}}.tar",
            address + "/{00..03}.tar",
        ):
            dataset = opened(source, loading)
            found = drawn(dataset, range(2))
            assert all(map(same, found, straight)), source
    fetched = list((loading.cache / "shards").glob("*.tar"))
    assert len(fetched) == 8, "each was fetched once"
    assert all(map(same, drawn(dataset, range(2)), straight)), "the server is not needed"


def test_several_sources_are_joined_or_weighted(shards: Path, loading: Loading) -> None:
    one, two = f"{shards}/00.tar", f"{shards}/{{01..02}}.tar"
    joined = drawn(opened((one, two), loading), range(4))
    assert sorted(n for c in joined for n in numbers(c))[:36] != []
    assert len({n for c in joined for n in numbers(c)}) == 36
    mixed = drawn(opened((one, two), loading, weights=(3.0, 1.0)), range(40))
    from_one = [n < 12 for c in mixed for n in numbers(c)]
    assert 0.7 < np.mean(from_one) < 0.8


def test_captions_are_drawn_by_position(tmp_path: Path, loading: Loading) -> None:
    many = [sample(n, txt=b"one\ntwo\nthree", json=None) for n in range(20)]
    write_tar(tmp_path / "a.tar", *many)
    whole = opened(tmp_path / "a.tar", loading)
    assert whole.captions_of(np.arange(1)) == ["one two three"], "unless each line is a caption"
    dataset = opened(tmp_path / "a.tar", replace(loading, layout=Layout(lines=True)))
    first = drawn(dataset, range(4))
    one = small_tokenizer(600, 8)("one")
    assert all((c.tokens == one).all() for c in first)
    found, again = (drawn(dataset, range(4), captions=2) for _ in range(2))
    assert all(map(same, found, again))
    assert len({tuple(row.tolist()) for c in found for row in c.tokens}) == 2


# --- scoring at low resolution -------------------------------------------------------------------


def test_reduced_decoding_is_close_and_training_sees_every_pixel(
    tmp_path: Path, loading: Loading
) -> None:
    write_tar(tmp_path / "a.tar", *[sample(n, jpg=jpeg(n, (300, 260))) for n in range(20)])
    dataset = opened(tmp_path / "a.tar", loading)
    (full,) = drawn(dataset, [0], size=64)
    loader = shard_loader(dataset, B, size=64, scoring_size=32)
    low = loader(0)
    assert low.images.shape == (B, 3, 32, 32) and torch.equal(low.tokens, full.tokens)
    index = torch.tensor([7, 0, 3])
    images, tokens = low.full(index)
    assert torch.equal(images, full.images[index]) and torch.equal(tokens, full.tokens[index])
    for i, number in enumerate(numbers(low)):
        exact = fit(decode_image(jpeg(number, (300, 260))), 32).astype(float)
        reduced = low.images[i].permute(1, 2, 0).numpy()
        assert np.corrcoef(exact.ravel(), reduced.ravel())[0, 1] > 0.99
    loader.close()


def test_reduced_decoding_is_reduced() -> None:
    assert decode_image(jpeg(1, (300, 260)), 32).size == (38, 33)
    assert decode_image(jpeg(1, (300, 260)), 64).size == (75, 65), "never below what is asked for"
    assert decode_image(jpeg(1, (300, 260)), 200).size == (300, 260)


# --- remote shards -------------------------------------------------------------------------------


def test_the_cache_of_remote_shards_is_bounded(shards: Path, loading: Loading) -> None:
    size = (shards / "00.tar").stat().st_size
    small = Loading(workers=0, cache=loading.cache, gigabytes=2.5 * size / 1e9)
    with served(shards) as address:
        found = drawn(opened(address + "/{00..03}.tar", small), range(6))
    kept = list((loading.cache / "shards").glob("*.tar"))
    assert len(kept) <= 2 and len(found) == 6
    assert not list((loading.cache / "shards").glob("*.part*"))


def test_a_shard_evicted_before_it_is_opened_is_fetched_again(
    shards: Path, loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another reader does that fetches beside this one into a small cache."""
    evictions = iter([True, True, False])

    def then_evicted(url: str, loading: Loading) -> Path:
        path = local(url, loading)
        if next(evictions):
            path.unlink()
        return path

    monkeypatch.setattr(fetch, "local", then_evicted)
    with served(shards) as address:
        with fetch.opened(f"{address}/00.tar", loading) as file:
            assert file.read() == (shards / "00.tar").read_bytes()
        monkeypatch.setattr(fetch, "local", lambda *_: Path("/nowhere"))
        with pytest.raises(ShardError, match="cache of shards is too small"):
            fetch.opened(f"{address}/00.tar", loading)


def test_a_server_that_recovers_is_tried_again(shards: Path, loading: Loading) -> None:
    with served(shards, **{"00_tar": [503], "01_tar": ["short"], "02_tar": ["stall"]}) as address:
        for name in ("00", "01", "02"):
            path = local(f"{address}/{name}.tar", loading)
            assert path.read_bytes() == (shards / f"{name}.tar").read_bytes()


def test_what_is_not_there_is_one_line(tmp_path: Path, loading: Loading) -> None:
    (tmp_path / "empty").mkdir()
    for source, words in (
        (tmp_path / "empty", "no .tar shard in the folder"),
        (f"{tmp_path}/*.tar", "no shard matches"),
        (tmp_path / "missing.tar", "1 of 1 shards cannot be read"),
        ("pipe:exit 3", "the command fails (exit 3)"),
        ("http://127.0.0.1:9/a.tar", "no connection"),
    ):
        with pytest.raises(DataError) as caught:
            opened(source, loading)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    assert list_shards("pipe:cat a::b") == ["pipe:cat a::b"]


def test_any_sample_is_one_read_away(shards: Path, loading: Loading) -> None:
    dataset = opened(shards, loading)
    dataset.files = TarFiles(loading, keep=2)
    for row in (47, 0, 23, 12, 36):
        assert int(dataset.pair(row).key) == row and dataset.captions_of(np.array([row]))
    assert len(dataset.files.open) == 2 and len(dataset) == 48
    assert sorted(dataset.order(0, "pool").near(0)) == [0, 1, 2, 3]
    assert dataset.keys_of(np.array([5])) == ["uid-5"] and dataset.name(5).endswith(
        "00.tar:000000005"
    )
    dataset.close()
