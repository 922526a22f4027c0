"""What a run draws its candidates from, and what share of what it trained on was of some kind."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from jestcli.config import Run
from jestcli.data.joined import Joined
from jestcli.data.loader import Drawing, Part, StoreDrawing, on_device
from jestcli.data.noise import Mismatched, mismatched
from jestcli.data.store import Store
from jestcli.stages import own
from jestcli.stages.cache import Cache
from jestcli.stages.filters import FILTERS
from jestcli.stages.own import OwnInputs
from jestcli.stages.references import ShardReference
from jestcli.stages.workspace import Inputs
from jestcli.training.distributed import ALONE, World
from jestcli.training.loop import chosen_in_training
from jestcli.training.step import EmbedReference


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
    return StoreDrawing(parts, counts, run.seed, world.rank, world.size, before), drawn


def before_step(run: Run, step: int) -> list[int]:
    """Pairs of every part of `sources` that the steps before `step` draw, with a schedule."""
    return [own.drawn_before(run, split, step) for split in own.splits(run)]


def sources(run: Run, inputs: Inputs, reference: Cache | None) -> tuple[list[Part], list[int]]:
    """What the run draws from, and how many candidates of each a step takes (with a schedule, its
    largest step)."""
    total, kind = run.super_batch_size, run.source.kind
    pool = pool_of(run, inputs)
    rows = np.arange(len(pool))
    if run.source.pool_size is not None:
        rows = pool.choose(None, run.source.pool_size)
    if kind == "pool":
        return [pool_part(run, inputs, rows)], [total]
    if kind == "filtered":
        assert reference is not None
        keep = round(run.source.keep * len(rows))
        score = FILTERS[run.source.score](reference.pairs, len(pool))
        best = np.argpartition(-score[rows], keep - 1)[:keep]
        return [pool_part(run, inputs, rows[np.sort(best)])], [total]
    level = run.data.level  # the weakest one is a list of pool pairs
    store = inputs.pool if level in inputs.pool.names["levels"] else inputs.curated
    clean = store.choose(level, run.data.curated_size)
    curated = Part(store, clean, "curated", captions=2)
    if kind == "curated":
        return [curated], [total]
    n_curated = round(total * run.source.curated_share)
    parts = [pool_part(run, inputs, rows), curated]
    return parts, [total - n_curated, n_curated]


def pool_of(run: Run, inputs: Inputs) -> Store:
    """The uncurated store, with the curated one behind it where the run leaves that in."""
    return inputs.joined if run.source.curated_in_pool else inputs.pool


def pool_part(run: Run, inputs: Inputs, rows: np.ndarray) -> Part:
    share, pool = run.source.noise_share, pool_of(run, inputs)
    return Part(mismatched(pool, share) if share else pool, rows, "pool", captions=1)


def noise_trained_on(run: Run, folder: Path, drawing: Drawing) -> float | None:
    """Share of moved captions among the pairs trained on: the logged sub-batches', or, where
    nothing is selected, those drawn from. None where no caption was moved."""
    parts = drawing.parts if isinstance(drawing, StoreDrawing) else []
    if not parts or not isinstance(parts[0].store, Mismatched):
        return None
    moved = parts[0].store.caption_of != np.arange(len(parts[0].store))
    return float(moved[_trained_on(folder, parts[0])].mean())


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
