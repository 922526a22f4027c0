"""The leakage check catches what it must, and its search finds what brute force finds."""

from __future__ import annotations

import numpy as np
import pytest

from jestcli.icons.draw import draw
from jestcli.icons.leakage import (
    Compared,
    Rasters,
    assert_no_leakage,
    near_duplicates,
    raster_digest,
    signatures,
)
from jestcli.utils.errors import DataError

TAU = 0.03


def glyph(body: str, size: int = 32, shift: float = 0.0) -> np.ndarray:
    box = f"{-shift} {-shift} 16 16"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='{box}'>{body}</svg>"
    return draw(svg, size)


BELL = (
    "<path d='M8 2a4 4 0 0 0-4 4v4l-1 2h10l-1-2V6a4 4 0 0 0-4-4z'/><circle cx='8' cy='14' r='1'/>"
)
BOX = "<rect x='2' y='4' width='12' height='9' fill='none' stroke='#000' stroke-width='1.5'/>"
SUN = "<circle cx='8' cy='8' r='4' fill='#e90'/>"


def rasters(images: list[np.ndarray], family: str, name: str) -> Rasters:
    keys = [f"{name}/{number}" for number in range(len(images))]
    digests = [raster_digest(image) for image in images]
    return Rasters(keys, [family] * len(images), digests)


def check(bench: Rasters, training: Rasters) -> None:
    """With everything compared, and found to be unlike."""
    sets = Compared(frozenset(bench.digests), frozenset(training.digests))
    assert_no_leakage(bench, training, sets)


@pytest.fixture
def training() -> Rasters:
    return rasters([glyph(BELL), glyph(BOX)], "open", "train")


def test_disjoint_sets_pass(training: Rasters) -> None:
    check(rasters([glyph(SUN)], "withheld", "bench"), training)


def test_exact_raster_is_caught(training: Rasters) -> None:
    bench = rasters([glyph(SUN), glyph(BELL)], "withheld", "bench")
    with pytest.raises(DataError, match=r"bench/1 = train/0"):
        check(bench, training)


def test_near_duplicate_is_caught(training: Rasters) -> None:
    """Another antialiasing of the same drawing: other pixels, the same picture."""
    moved, bell = glyph(BELL, shift=0.06), glyph(BELL)
    assert raster_digest(moved) not in training.digests
    both = (signatures(np.stack(images)) for images in ([glyph(SUN), moved], [bell, glyph(BOX)]))
    assert near_duplicates(*both, TAU) == [(1, 0)]


def test_what_was_written_must_be_what_was_compared(training: Rasters) -> None:
    bench = rasters([glyph(SUN)], "withheld", "bench")
    all_, none = frozenset(bench.digests), frozenset[str]()
    with pytest.raises(DataError, match=r"1 images were written .*: bench/0"):
        assert_no_leakage(bench, training, Compared(none, frozenset(training.digests)))
    with pytest.raises(DataError, match=r"1 images were written .*: train/1"):
        assert_no_leakage(bench, training, Compared(all_, frozenset(training.digests[:1])))


def test_art_family_is_caught(training: Rasters) -> None:
    bench = rasters([glyph(SUN)], "open", "bench")
    with pytest.raises(DataError, match=r"art families .* open .*train/0"):
        check(bench, training)


def test_other_drawing_or_colour_is_no_duplicate(training: Rasters) -> None:
    others = (signatures(glyph(SUN.replace("#e90", "#30f"))[None]), signatures(glyph(BOX)[None]))
    for other in others:
        assert near_duplicates(other, signatures(glyph(SUN)[None]), TAU) == []


@pytest.mark.parametrize("size", [32, 64])
def test_signature_barely_moves_with_antialiasing(size: int) -> None:
    one = signatures(glyph(BELL, size)[None]).astype(float)
    other = signatures(glyph(BELL, size, 0.06)[None]).astype(float)
    assert ((one - other) ** 2).sum() < TAU / 3 * ((one**2).sum() + (other**2).sum())


@pytest.mark.parametrize("tau", [0.01, 0.05, 0.3])
def test_search_finds_what_brute_force_finds(tau: float) -> None:
    dice = np.random.default_rng(0)
    base = (dice.random((60, 768)) ** 4 * 255).astype(np.uint8)
    noise = dice.normal(0, 1, (300, 768)) * dice.uniform(0, 60, (300, 1))
    right = np.clip(base[dice.integers(0, 60, 300)] + noise, 0, 255).astype(np.uint8)
    left = np.concatenate([base, np.zeros((2, 768), np.uint8)])
    a, b = left.astype(float), right.astype(float)
    square = ((a[:, None] - b[None]) ** 2).sum(-1)
    close = square < tau * ((a**2).sum(-1)[:, None] + (b**2).sum(-1)[None])
    found = near_duplicates(left, right, tau)
    assert [i for i, _ in found] == np.nonzero(close.any(1))[0].tolist()
    assert all(close[i, j] for i, j in found)
    assert 5 < len(found) <= 60


def test_empty_sets_are_fine(training: Rasters) -> None:
    nothing = Rasters([], [], [])
    check(nothing, training)
    check(training, nothing)
