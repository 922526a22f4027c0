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
what guards against those."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from jestcli.utils.errors import DataError
from jestcli.utils.parallel import usable_cores

GRID = 16
COARSE = 8


def raster_digest(image: np.ndarray) -> str:
    """Hash of a raster's shape and pixels (uint8 [H, W, 3]): 24 hex digits."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=12)
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def signatures(images: np.ndarray) -> np.ndarray:
    """uint8 [n, S, S, 3] -> uint8 [n, 768]: ink averaged over a 16 x 16 grid.

    Raises ValueError when S is not a multiple of 16."""
    n, size = images.shape[:2]
    if size % GRID:
        raise ValueError(f"image size {size} is not a multiple of {GRID}")
    step = size // GRID
    total = np.zeros((n, GRID, GRID, 3), np.uint16 if step <= 16 else np.uint32)
    for row in range(step):
        for column in range(step):
            total += images[:, row::step, column::step]
    ink = 255 * step**2 - total.astype(np.int32) + step**2 // 2
    return (ink // step**2).astype(np.uint8).reshape(n, -1)


def _parts(stop: int, start: int = 0) -> Iterator[slice]:
    return (slice(at, min(stop, at + 2048)) for at in range(start, stop, 2048))  # fits a cache


def near_duplicates(left: np.ndarray, right: np.ndarray, tau: float) -> list[tuple[int, int]]:
    """All i with left[i] a near-duplicate of some right[j], as (i, one such j), i ascending.

    Signatures: uint8 [n, 768], [m, 768]. 0 < tau < 1. Memory: about 16 MB a core beside the
    inputs' coarse versions. Both sides are walked in the order of their norms: near-duplicates have
    (|a| - |b|)^2 <= |a - b|^2 < tau (|a|^2 + |b|^2), so only a window of norms is compared."""
    if not len(left) or not len(right):
        return []
    k = (GRID // COARSE) ** 2 * 3  # signature values averaged into one coarse value
    a_order, a_square, a_coarse = _by_norm(left)
    b_order, b_square, b_coarse = _by_norm(right)
    # candidate <=> k |Aa - Ab|^2 < tau (|a|^2 + |b|^2) <=> Aa.Ab - p_a - p_b > 0, a dot product
    # once -p and 1 are appended; a little slack on one side covers float32 rounding.
    slack = 1e-3 * (a_square / k + 1.0)
    a_half = (np.einsum("ij,ij->i", a_coarse, a_coarse) - tau * a_square / k) / 2 - slack
    b_half = (np.einsum("ij,ij->i", b_coarse, b_coarse) - tau * b_square / k) / 2
    a_wide = np.column_stack([a_coarse, -a_half, np.ones(len(left))]).astype(np.float32)
    b_wide = np.column_stack([b_coarse, np.ones(len(right)), -b_half]).astype(np.float32)
    # The widest ratio r of squared norms: (1 - sqrt r)^2 = tau (1 + r).
    root = (1.0 + np.sqrt(max(0.0, 1.0 - (1.0 - tau) ** 2))) / (1.0 - tau)
    ratio = root**2 * (1 + 1e-6)

    def alike(first: int) -> dict[int, int]:
        rows, found = slice(first, first + 512), dict[int, int]()
        low = np.searchsorted(b_square, a_square[rows][0] / ratio, "left")
        high = np.searchsorted(b_square, a_square[rows][-1] * ratio, "right")
        for columns in _parts(high, low):
            products = a_wide[rows] @ b_wide[columns].T
            i, j = np.divmod(np.flatnonzero(products > 0), products.shape[1])
            for some in _parts(len(i)):
                x, y = i[some] + first, j[some] + columns.start
                from_a, from_b = a_order[x], b_order[y]
                difference = left[from_a].astype(np.int32) - right[from_b]
                distance = np.einsum("ij,ij->i", difference, difference)
                close = distance < tau * (a_square[x] + b_square[y])
                for one, other in zip(from_a[close].tolist(), from_b[close].tolist(), strict=True):
                    found.setdefault(one, other)
        return found

    # Each row of `left` lies in one block. By threads: numpy computes without Python's lock. Its
    # library's own threads would only wait for one another beside them.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(usable_cores()) as pool:
        blocks = pool.map(alike, range(0, len(left), 512))
        return sorted(pair for found in blocks for pair in found.items())


def _by_norm(signature: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order by norm of uint8 [n, 768]; in that order the squared norms, float64 [n], and the grey
    ink over an 8 x 8 grid, float32 [n, 64]."""
    n, step = len(signature), GRID // COARSE
    square, coarse = np.empty(n), np.empty((n, COARSE * COARSE), np.float32)
    for part in _parts(n):  # keeps the wide copies small
        wide = signature[part].astype(np.int32)
        square[part] = np.einsum("ij,ij->i", wide, wide)
        cells = signature[part].reshape(-1, COARSE, step, COARSE, step, 3)
        coarse[part] = cells.mean(axis=(2, 4, 5), dtype=np.float32).reshape(len(cells), -1)
    order = np.argsort(square, kind="stable")
    return order, square[order], coarse[order]


@dataclass(frozen=True)
class Rasters:
    """What the leakage check knows of a set of images."""

    keys: Sequence[str]
    families: Sequence[str]
    digests: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Compared:
    """Digests of rasters that were compared, each of one set with each of the other, and of which
    no two are near-duplicates."""

    benchmark: frozenset[str]
    training: frozenset[str]


def assert_no_leakage(benchmark: Rasters, training: Rasters, compared: Compared) -> None:
    """Raise DataError, naming offenders, unless families, rasters and look-alikes are disjoint.
    What was written is not compared again: it must be what was."""
    shared = sorted(set(benchmark.families) & set(training.families))
    if shared:
        both = zip(training.keys, training.families, strict=True)
        example = next(key for key, family in both if family in shared)
        raise DataError(
            f"leakage: art families of the benchmarks are in the training data: "
            f"{', '.join(shared)} (for example {example}); withhold them in world.py"
        )
    where = dict(zip(training.digests, training.keys, strict=True))
    tested = zip(benchmark.keys, benchmark.digests, strict=True)
    same = [f"{key} = {where[digest]}" for key, digest in tested if digest in where]
    if same:
        raise DataError(
            f"leakage: {len(same)} benchmark rasters are in the training data: "
            f"{', '.join(same[:5])}"
        )
    for written, known in ((benchmark, compared.benchmark), (training, compared.training)):
        both = zip(written.keys, written.digests, strict=True)
        strange = [key for key, digest in both if digest not in known]
        if strange:
            raise DataError(
                f"leakage: {len(strange)} images were written that were not found to be no "
                f"near-duplicates: {', '.join(strange[:5])}"
            )
