"""Scores of groups of benchmarks; test images counted once."""

import math

import numpy as np
import pytest

from jestcli.paper.groups import GROUPS, distinct_mean, group_mean, image_ids, value


def row(right, chance=0.01, **more):
    bits = np.packbits(np.array(right, bool)).tobytes().hex()
    return {"score": float(np.mean(right)), "n": len(right), "chance": chance, "hits": bits, **more}


def record(scores):
    return {"final": {"mean": 0.5, "scores": scores}}


EMOJI = {
    "emoji_3d": row([1, 0, 0, 1], nats=0.2),
    "animals": row([1, 1], nats=0.4),
    "food": row([0, 0], nats=0.9),
}


def test_icons_and_emoji_are_means_of_their_own_benchmarks():
    made = record(EMOJI)
    assert group_mean(made, "emoji") == pytest.approx((0.5 + 1 + 0) / 3)
    assert value(made, "emoji:nats") == pytest.approx(0.5)
    assert value(made, "mean") == 0.5 and value(made, "nats") is None
    assert value(made, "icons") is None, "a benchmark is missing"
    assert {b for group in GROUPS.values() for b in group} == {
        *("objects", "objects_filled", "objects_fewshot", "tagged_i2t", "tagged_t2i"),
        *("emoji_3d", "animals", "food"),
    }


def test_an_image_that_several_benchmarks_show_counts_once():
    images = {"emoji_3d": ["a", "b", "c", "d"], "animals": ["a", "e"], "food": ["b", "f"]}
    mean, error, n = distinct_mean([record(EMOJI)], "emoji", images)
    each = [1, 0, 0, 1, 1, 0]  # a, b, c, d, e, f: a is right twice, b wrong twice
    assert (mean, n) == (pytest.approx(0.5), 6)
    assert error == pytest.approx(np.std(each, ddof=1) / math.sqrt(6))
    other = record(EMOJI | {"animals": row([0, 1])})  # another seed of the same method
    mean, _, n = distinct_mean([record(EMOJI), other], "emoji", images)
    assert (mean, n) == (pytest.approx((0.75 + 0 + 0 + 1 + 1 + 0) / 6), 6)
    with pytest.raises(ValueError, match="animals has 1 images, its records 2"):
        distinct_mean([other], "emoji", images | {"animals": ["a"]})


def test_retrieval_counts_both_directions_of_an_image_as_one_draw():
    rows, images = {}, {}
    for benchmark in GROUPS["icons"]:
        tagged = benchmark.startswith("tagged")
        rows[benchmark] = {"score": 0.2, "n": 2, "chance": 0.01} if tagged else row([1, 0])
        images[benchmark] = ["c", "d"] if tagged else ["a", "b"]
    mean, error, n = distinct_mean([record(rows)], "icons", images)
    values = [1, 0, 0.2, 0.2]
    assert (mean, n) == (pytest.approx(np.mean(values)), 4)
    seen = np.var(values, ddof=1) + 0.2 * 0.8 / 2  # half of the images are drawn with p = .2
    assert error == pytest.approx(math.sqrt(seen / 4))


def test_images_are_the_same_where_their_pixels_are():
    images = np.arange(3 * 3 * 4 * 4, dtype=np.uint8).reshape(3, 3, 4, 4)
    images[2] = images[0]
    a, b, c = image_ids(images)
    assert a == c != b
