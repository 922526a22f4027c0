"""No benchmark image in the training data: by art family, exact raster and near-duplicate.

*Near-duplicate.* A raster's signature is its ink (255 - value) averaged over a 16 x 16 grid, three
colours: 768 values that a one-pixel change of antialiasing hardly moves. Two rasters a and b are
near-duplicates when |a - b|^2 < tau * (|a|^2 + |b|^2), a distance that is 0 for equal and 1 for
disjoint drawings and does not depend on how much ink there is. The search is exact: every pair is
compared on 8 x 8 grey averages, where the same bound can only be looser, and the survivors on the
full signatures.

*False positives.* Simple shapes (plus sign, circle, arrow, heart) look alike whoever drew them and
are called near-duplicates of one another; a benchmark loses them, the training data never do. Big
flat shapes that differ in one small detail may be called so too. *False negatives.* A drawing that
was shifted by a pixel or more, mirrored, or recoloured is another drawing here; art families are
what guards against those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jestcli.data.errors import DataError

GRID = 16
COARSE = 8


def raster_digest(image: np.ndarray) -> str:
    """Hash of a raster's shape and pixels (uint8 [H, W, 3]): 24 hex digits."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=12)
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def signatures(images: np.ndarray) -> np.ndarray:
    """uint8 [n, S, S, 3] -> uint8 [n, 768]: ink averaged over a 16 x 16 grid.

    Raises ValueError when S is not a multiple of 16.
    """
    n, size = images.shape[:2]
    if size % GRID:
        raise ValueError(f"image size {size} is not a multiple of {GRID}")
    step = size // GRID
    out = np.empty((n, GRID * GRID * 3), np.uint8)
    for start in range(0, n, 4096):  # keeps the float copy small
        block = images[start : start + 4096].reshape(-1, GRID, step, GRID, step, 3)
        mean = block.astype(np.float32).mean(axis=(2, 4))
        out[start : start + 4096] = np.rint(255.0 - mean).reshape(len(block), -1)
    return out


def _coarse(signature: np.ndarray) -> np.ndarray:
    """uint8 [n, 768] -> float32 [n, 64]: grey ink over an 8 x 8 grid."""
    n = len(signature)
    step = GRID // COARSE
    cells = signature.reshape(n, COARSE, step, COARSE, step, 3).astype(np.float32)
    return cells.mean(axis=(2, 4, 5)).reshape(n, COARSE * COARSE)


def _squared(signature: np.ndarray) -> np.ndarray:
    """Squared norms of uint8 [n, 768], as float64 [n]."""
    return np.einsum("ij,ij->i", signature, signature, dtype=np.float64)


def near_duplicates(
    left: np.ndarray, right: np.ndarray, tau: float, block: int = 16_384
) -> list[tuple[int, int]]:
    """All (i, j) with left[i] a near-duplicate of right[j]; signatures uint8 [n, 768], [m, 768].

    Returns at most one j for each i (the first that is found). Memory: len(left) x block floats.
    """
    if not len(left) or not len(right):
        return []
    k = (GRID // COARSE) ** 2 * 3  # signature values averaged into one coarse value
    found: dict[int, int] = {}
    left_square, left_coarse = _squared(left), _coarse(left)
    # candidate <=> k |Aa - Ab|^2 < tau (|a|^2 + |b|^2) <=> Aa.Ab - p_a - p_b > 0
    left_half = (np.einsum("ij,ij->i", left_coarse, left_coarse) - tau * left_square / k) / 2
    for start in range(0, len(right), block):
        part = np.ascontiguousarray(right[start : start + block])
        square, coarse = _squared(part), _coarse(part)
        half = (np.einsum("ij,ij->i", coarse, coarse) - tau * square / k) / 2
        for first in range(0, len(left), 2048):
            rows = slice(first, first + 2048)
            product = left_coarse[rows] @ coarse.T
            # A little slack covers float32 rounding: survivors are compared exactly below.
            slack = 1e-3 * (left_square[rows] / k + 1.0)
            product -= (left_half[rows] - slack).astype(np.float32)[:, None]
            product -= half.astype(np.float32)
            i, j = np.nonzero(product > 0)
            for some in range(0, len(i), 65_536):
                a, b = i[some : some + 65_536] + first, j[some : some + 65_536]
                difference = left[a].astype(np.int16) - part[b].astype(np.int16)
                distance = np.einsum("ij,ij->i", difference, difference, dtype=np.float64)
                close = distance < tau * (left_square[a] + square[b])
                for x, y in zip(a[close].tolist(), b[close].tolist(), strict=True):
                    found.setdefault(x, y + start)
    return sorted(found.items())


@dataclass(frozen=True)
class Rasters:
    """What the leakage check knows of a set of images."""

    keys: Sequence[str]
    families: Sequence[str]
    digests: Sequence[str]
    signatures: np.ndarray  # uint8 [n, 768]

    def __len__(self) -> int:
        return len(self.keys)


def assert_no_leakage(benchmark: Rasters, training: Rasters, tau: float) -> None:
    """Raise DataError, naming offenders, unless families, rasters and look-alikes are disjoint."""
    shared = sorted(set(benchmark.families) & set(training.families))
    if shared:
        example = next(
            key
            for key, family in zip(training.keys, training.families, strict=True)
            if family in shared
        )
        raise DataError(
            f"leakage: art families of the benchmarks are in the training data: "
            f"{', '.join(shared)} (for example {example}); withhold them in world.py"
        )
    where = dict(zip(training.digests, training.keys, strict=True))
    same = [
        f"{key} = {where[digest]}"
        for key, digest in zip(benchmark.keys, benchmark.digests, strict=True)
        if digest in where
    ]
    if same:
        raise DataError(f"leakage: {len(same)} benchmark rasters are in the training data: "
                        f"{', '.join(same[:5])}")  # fmt: skip
    alike = near_duplicates(benchmark.signatures, training.signatures, tau)
    if alike:
        names = [f"{benchmark.keys[i]} ~ {training.keys[j]}" for i, j in alike[:5]]
        raise DataError(
            f"leakage: {len(alike)} benchmark images are near-duplicates of training images: "
            f"{', '.join(names)}"
        )
