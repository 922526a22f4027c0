"""What a run draws its candidates from, and what share of what it trained on was of some kind."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from jestcli.config import VERIFIED, Run
from jestcli.data.joined import Joined
from jestcli.data.loader import Drawing, Part, StoreDrawing, on_device
from jestcli.data.noise import Mismatched, caption_of, mismatched
from jestcli.data.pools import relevant, thinned, unverified_rows, verified_rows
from jestcli.data.store import Store
from jestcli.runs import own
from jestcli.runs.cache import Cache
from jestcli.runs.filters import FILTERS
from jestcli.runs.own import OwnInputs
from jestcli.runs.references import ShardReference
from jestcli.runs.workspace import Inputs
from jestcli.training.distributed import ALONE, World
from jestcli.training.metrics import chosen_in_training
from jestcli.training.step import EmbedReference
from jestcli.utils.errors import DataError
from jestcli.utils.hashing import first_by_hash


def open_drawing(
    run: Run,
    inputs: Inputs | OwnInputs,
    reference: EmbedReference | None,
    folder: Path,
    world: World = ALONE,
) -> tuple[Drawing, dict[str, int]]:
    """The run's candidates, and how many different pairs it draws from."""
    if isinstance(inputs, OwnInputs):
        assert reference is None or isinstance(reference, ShardReference)
        with world.first():
            drawing = own.open_drawing(run, inputs, reference, folder, world.rank, world.size)
        return drawing, {p.stream.name: len(p) for p in drawing.portions}
    cache = reference if isinstance(reference, Cache) else None
    parts, counts = sources(run, inputs, cache)
    drawn = {p.stream: len(p.rows) for p in parts}
    if world.device.type == "cuda":
        # A quarter of what is free: other runs may share the card, and models come on top.
        parts = on_device(parts, world.device, torch.cuda.mem_get_info(world.device)[0] / 4)
    before = partial(before_step, run) if run.scheduled else None
    ranks = (world.rank, world.size)
    return StoreDrawing(parts, counts, run.seed, *ranks, before, run.selects), drawn


def before_step(run: Run, step: int) -> list[int]:
    """Pairs of every part of `sources` that the steps before `step` draw, with a schedule."""
    return [own.drawn_before(run, split, step) for split in own.splits(run)]


def sources(run: Run, inputs: Inputs, reference: Cache | None) -> tuple[list[Part], list[int]]:
    """What the run draws from, and how many candidates of each a step takes (with a schedule, its
    largest step)."""
    total, kind = run.super_batch_size, run.source.kind
    if kind in ("curated", "mixed"):
        curated = curated_part(run, inputs)
        if kind == "curated":
            return [curated], [total]
    rows = pool_rows(run, inputs)
    if kind == "pool":
        return [pool_part(run, inputs, rows)], [total]
    if kind == "filtered":
        assert reference is not None
        keep, pairs = round(run.source.keep * len(rows)), reference.pairs
        score = FILTERS[run.source.score](lambda at: pairs(rows[at]), len(rows))
        best = np.argpartition(-score, keep - 1)[:keep]
        return [pool_part(run, inputs, rows[np.sort(best)])], [total]
    counts = [total - run.curated_pairs, run.curated_pairs]
    return [pool_part(run, inputs, rows), curated], counts


def curated_part(run: Run, inputs: Inputs) -> Part:
    """The curated set of the run's level and size. Raises DataError where there is less."""
    level, size = run.data.level, run.data.curated_size
    if level == VERIFIED:  # pairs as the pool has them: with one caption each
        return Part(inputs.pool, verified_rows(inputs.pool, size), "curated", captions=1)
    # The weakest level is a list of pool pairs, too, but of such as stay in the pool.
    store = inputs.pool if level in inputs.pool.names["levels"] else inputs.curated
    return Part(store, store.choose(level, size), "curated", captions=2)


def pool_of(run: Run, inputs: Inputs) -> Store:
    """The uncurated store, with the curated one behind it where the run leaves that in."""
    return inputs.joined if run.source.curated_in_pool else inputs.pool


def pool_rows(run: Run, inputs: Inputs) -> np.ndarray:
    """int64, ascending: the pairs of `pool_of` that the run's pool holds, before any filter.

    Never the verified ones. Raises DataError for a pool_size of more than there are.
    """
    source, store = run.source, pool_of(run, inputs)
    rows = unverified_rows(inputs.pool, len(store))
    if source.relevant_share is not None:
        shows = relevant(store, asked_for(inputs))[rows]
        rows = rows[thinned(store.hashes[rows], shows, source.relevant_share)]
    if source.pool_size is not None:
        if source.pool_size > len(rows):
            raise DataError(f"source.pool_size={source.pool_size}: the pool has {len(rows):,}")
        rows = rows[first_by_hash(store.hashes[rows], source.pool_size, "pool size")]
    return rows


def asked_for(inputs: Inputs) -> list[str]:
    """The class names of all benchmarks."""
    marks = [each for each in inputs.benchmarks() if each.kind != "retrieval"]
    return [name for each in marks for name in each.classes]


def shown_captions(run: Run, inputs: Inputs) -> np.ndarray:
    """int64 [N]: the row of `pool_of` whose caption each row shows. A pair of the pool shows the
    same one whatever else the run leaves out (pool_rows)."""
    store = pool_of(run, inputs)
    return caption_of(store, run.source.noise_share, unverified_rows(inputs.pool, len(store)))


def pool_part(run: Run, inputs: Inputs, rows: np.ndarray) -> Part:
    """Rows of `pool_of`, with wrong captions where the run wants some."""
    store = pool_of(run, inputs)
    if run.source.noise_share:
        store = mismatched(store, shown_captions(run, inputs))
    return Part(store, rows, "pool", captions=1)


def noise_trained_on(run: Run, folder: Path, drawing: Drawing) -> float | None:
    """Share of moved captions among the pairs trained on: the logged sub-batches', or, where
    nothing is selected, those drawn from. None where no caption was moved."""
    parts = drawing.parts if isinstance(drawing, StoreDrawing) else []
    if not parts or not isinstance(parts[0].store, Mismatched):
        return None
    return float(parts[0].store.moved[_trained_on(folder, parts[0])].mean())


def curated_trained_on(folder: Path, drawing: Drawing) -> float | None:
    """The same share of pairs from the curated sources. None where those are not in the pool."""
    parts = drawing.parts if isinstance(drawing, StoreDrawing) else []
    store = parts[0].store if parts else None
    joined = store.original if isinstance(store, Mismatched) else store
    if not parts or not isinstance(joined, Joined):
        return None
    return float(joined.store_of(_trained_on(folder, parts[0])).mean())


def _trained_on(folder: Path, part: Part) -> np.ndarray:
    """Rows of the logged sub-batches, int64; of the whole part where nothing is selected."""
    chosen = chosen_in_training(folder)
    return np.concatenate([rows for _, rows in chosen]) if chosen else part.rows
