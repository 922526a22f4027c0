"""Order and draws are pure functions of their counters, so resuming needs no state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import draw, fake_dataset, fake_pool, fake_source, loader

from jestcli.data.loader import SuperBatch, on_device
from jestcli.utils.randomness import generator, shuffled, torch_generator

SEEDS = st.integers(0, 2**31)
FEW = settings(max_examples=40, deadline=None)


@FEW
@given(SEEDS, st.integers(1, 50), st.integers(0, 120), st.lists(st.integers(1, 30), max_size=5))
def test_reading_in_pieces_equals_reading_at_once(
    seed: int, n: int, start: int, pieces: list[int]
) -> None:
    whole = shuffled(seed, "pool", n, start, sum(pieces)) if pieces else np.empty(0, np.int64)
    at, read = start, []
    for count in pieces:
        read.append(shuffled(seed, "pool", n, at, count))
        at += count
    assert np.array_equal(whole, np.concatenate([np.empty(0, np.int64), *read]))
    assert whole.dtype == np.int64


@FEW
@given(SEEDS, st.integers(1, 60), st.integers(0, 4))
def test_every_epoch_is_a_permutation(seed: int, n: int, epoch: int) -> None:
    order = shuffled(seed, "pool", n, epoch * n, n)
    assert sorted(order) == list(range(n))


def test_epochs_streams_and_seeds_differ() -> None:
    orders = [
        shuffled(0, "pool", 50, 0, 50),
        shuffled(0, "pool", 50, 50, 50),
        shuffled(1, "pool", 50, 0, 50),
        shuffled(0, "curated", 50, 0, 50),
        np.arange(50),
    ]
    assert len({order.tobytes() for order in orders}) == len(orders)


@FEW
@given(SEEDS, st.sampled_from(["train", "caption"]), st.lists(st.integers(0, 99), max_size=3))
def test_generators_are_pure(seed: int, stream: str, counters: list[int]) -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    first = generator(seed, stream, *counters).random(3)
    torch_first = torch.rand(3, generator=torch_generator(seed, stream, *counters))
    np.random.seed(1)
    torch.manual_seed(1)
    assert np.array_equal(first, generator(seed, stream, *counters).random(3))
    again = torch.rand(3, generator=torch_generator(seed, stream, *counters))
    assert torch.equal(torch_first, again)
    other = generator(seed, stream, *counters, 1).random(3)
    assert not np.array_equal(first, other)


def same(a: SuperBatch, b: SuperBatch) -> bool:
    pixels = torch.equal(a.images, b.images) and torch.equal(a.tokens, b.tokens)
    return pixels and np.array_equal(a.row, b.row) and np.array_equal(a.part, b.part)


def test_a_draw_does_not_depend_on_history() -> None:
    store = fake_dataset()
    parts = [fake_pool(), fake_source(store, store.choose("odd"), "curated", 3)]
    straight = [draw(parts, [6, 2], 3, step) for step in range(25)]
    for step in (24, 0, 13, 13, 7):
        assert same(draw(parts, [6, 2], 3, step), straight[step])
    assert not same(draw(parts, [6, 2], 4, 13), straight[13]), "another seed, another draw"


def test_draws_read_the_pool_epoch_by_epoch() -> None:
    seen = np.concatenate([draw([fake_pool(40)], [8], 0, step).row for step in range(5)])
    assert sorted(seen) == list(range(40))


def test_a_draw_takes_the_right_share_and_pairs_images_with_their_captions() -> None:
    pool, store = fake_pool(40), fake_dataset(30, seed=1)
    rows = store.choose("odd")
    curated = fake_source(store, rows, "curated", 3)
    captions = set()
    for step in range(20):
        drawn = draw([pool, curated], [5, 3], 0, step)
        assert drawn.part.tolist() == [0] * 5 + [1] * 3 and len(drawn) == 8
        assert drawn.images.shape == (8, 3, 32, 32) and drawn.images.dtype == torch.uint8
        assert set(drawn.row[5:]) <= set(rows)
        read = pool.dataset.read(drawn.row[:5], None, None)  # type: ignore[arg-type]
        assert torch.equal(read.images, drawn.images[:5])
        assert torch.equal(read.tokens, drawn.tokens[:5])
        for row, image, token in zip(
            drawn.row[5:], drawn.images[5:], drawn.tokens[5:], strict=True
        ):
            assert np.array_equal(image.permute(1, 2, 0), store.images[row])
            own = store.tokens[store.caption_start[row] : store.caption_start[row + 1]].tolist()
            captions.add((row, own.index(token.tolist())))
    assert {which for _, which in captions} == {0, 1, 2}, "every caption is drawn, not the first"


def test_a_part_of_which_nothing_is_taken_is_left_out() -> None:
    drawn = draw([fake_pool(), fake_pool()], [0, 4], 0, 0)
    assert drawn.part.tolist() == [1] * 4


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_draw_slices_of_the_same_super_batch(world: int) -> None:
    store = fake_dataset()
    parts = [fake_pool(), fake_source(store, store.choose("odd"), "curated", 3)]
    whole = draw(parts, [6, 3], 3, 5)
    ranks = [loader(parts, [6, 3], 3, rank, world)(5) for rank in range(world)]
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    assert np.array_equal(np.concatenate([r.row for r in ranks]), whole.row)
    assert torch.equal(torch.cat([r.images for r in ranks]), whole.images)
    assert torch.equal(torch.cat([r.tokens for r in ranks]), whole.tokens), "captions too"


def test_candidates_know_their_keys_and_their_full_pixels() -> None:
    pool = fake_pool()
    pool.dataset.__dict__["keys"] = [f"icon-{row}" for row in range(40)]
    drawn = draw([pool], [8], 0, 0)
    assert drawn.keys == [f"icon-{row}" for row in drawn.row]
    index = torch.tensor([5, 0])
    images, tokens = drawn.full(index)
    assert torch.equal(images, drawn.images[index]) and torch.equal(tokens, drawn.tokens[index])


def test_parts_on_a_device_give_the_same_candidates_where_they_fit() -> None:
    store = fake_dataset(30, "curated", 1)
    parts = [fake_pool(), fake_source(store, store.choose("odd"), "curated", 3)]
    there = on_device(parts, torch.device("cpu"), 1e6)
    assert all(part.dataset.resident is not None for part in there)  # type: ignore[attr-defined]
    one, two = (draw(each, [6, 3], seed=1, step=3) for each in (parts, there))
    assert torch.equal(one.images, two.images) and torch.equal(one.tokens, two.tokens)
    assert one.tokens.dtype == two.tokens.dtype and one.keys == two.keys
    some = torch.tensor([4, 1])
    assert all(torch.equal(a, b) for a, b in zip(one.full(some), two.full(some), strict=True))
    assert on_device(parts, torch.device("cpu"), 70 * 32 * 32 * 3) is parts  # tokens come on top
