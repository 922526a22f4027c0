"""What a run trains on and what scores it, opened."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jestcli.config import Run, file_hash
from jestcli.data.bad_samples import BadSampleLog
from jestcli.data.caption_noise import CaptionNoise
from jestcli.data.dataset import Dataset, Transform
from jestcli.data.loader import Source, SuperBatchLoader, on_device
from jestcli.data.uids import rows_in
from jestcli.evaluation.benchmarks import Benchmark
from jestcli.evaluation.matching import matching_auc
from jestcli.models.towers import Clip, low_view
from jestcli.runs.filters import FILTERS
from jestcli.runs.reference import CPU, OpenedReference, open_reference
from jestcli.runs.run_data import RunData, data_of
from jestcli.runs.same_data import stamps
from jestcli.runs.workspace import Workspace
from jestcli.selection import PairEmbeddings
from jestcli.training.distributed import SINGLE_PROCESS, DistEnv
from jestcli.training.metrics import chosen_in_training
from jestcli.utils.errors import DataError
from jestcli.utils.hashing import first_by_hash
from jestcli.utils.io import save_array
from jestcli.utils.progress import Progress, silent

KEPT = "kept.npy"


# --- what is drawn from it ----------------------------------------------------------------------


def splits(run: Run) -> dict[str, int]:
    """Pairs of the pool and of the curated set in every super-batch (with a schedule, in the
    largest), those that are read."""
    total, kind = run.super_batch_size, run.source.kind
    if kind != "mixed":
        return {"curated" if kind == "curated" else "pool": total}
    return {"pool": total - run.curated_pairs, "curated": run.curated_pairs}


def drawn_before(run: Run, split: str, step: int) -> int:
    """Pairs of a split that the steps before `step` draw, where f has a schedule."""
    total = run.candidates_before(step)
    if run.source.kind != "mixed":
        return total
    curated = step * run.curated_pairs
    return curated if split == "curated" else total - curated


def pool_rows(run: Run, data: RunData) -> np.ndarray | None:
    """int64, ascending: the pairs of `pool_of` that the run's pool holds, before any filter; None:
    all. Raises DataError for a pool_size of more than there are."""
    rows, size, dataset = data.drawable(run), run.source.pool_size, None
    if run.data.uids is not None:
        dataset, named = data.pool_of(run), run.data
        path, sha256 = Path(named.uids or ""), named.uids_sha256
        if sha256 is None or (path.is_file() and file_hash(path) != sha256):
            raise DataError(f"data.uids={path} is not the file this run was made for")
        # A shard may be written anew with as many pairs: then other rows have these names.
        state = json.dumps([repr(named.layout), stamps(run)])
        rows = rows_in(dataset, rows, path, sha256, data.tables, state)
    if size is None:
        return rows
    dataset = dataset or data.pool_of(run)
    rows = np.arange(len(dataset)) if rows is None else rows
    if size > len(rows):
        raise DataError(f"source.pool_size={size}: the pool has {len(rows):,}")
    return rows[first_by_hash(dataset.hashes[rows], size, "pool size")]


def sources(
    run: Run, data: RunData, reference: OpenedReference, folder: Path | None = None
) -> list[Source]:
    """What the run draws from, and how many candidates of each a step takes (with a schedule, its
    largest step). folder: of the run, where what a filter keeps is written."""
    found = []
    for number, (split, count) in enumerate(splits(run).items()):
        if split == "curated":
            dataset, rows, captions = data.curated_of(run)
        else:
            dataset, rows, captions = data.pool_of(run), pool_rows(run, data), 1
            if run.source.noise_share:
                # Which captions are wrong does not depend on what else the run leaves out.
                dataset = CaptionNoise(
                    dataset, run.source.noise_share, data.tokenizer, data.may_be_wrong(run)
                )
            if run.source.kind == "filtered":
                rows = kept_rows(run, dataset, rows, reference, folder)
        before = partial(drawn_before, run, split) if run.scheduled else None
        order = dataset.order(run.seed, split, rows, number)
        found.append(Source(dataset, order, count, captions, before))
    return found


def kept_rows(
    run: Run,
    dataset: Dataset,
    rows: np.ndarray | None,
    reference: OpenedReference,
    folder: Path | None,
) -> np.ndarray:
    """Rows of the pool that an offline filter keeps, int64, ascending: the best by the reference of
    those that can be read. Kept in `folder`, so that a resumed run has the same.

    Raises DataError unless the whole pool has been embedded.
    """
    path = folder / KEPT if folder else None
    if path is not None and path.exists():
        kept: np.ndarray = np.load(path, allow_pickle=False)
        return kept
    table = reference.table
    if table is None or not table.complete:
        raise DataError(
            "a filter scores the whole pool: embed it with the reference first (`jest "
            "cache-reference`, with the same settings)"
        )
    there = table.readable()
    if rows is not None:
        there = np.intersect1d(there, rows, assume_unique=True)
    captions = dataset.caption_rows(there)

    def pairs_of(i: np.ndarray) -> PairEmbeddings:
        return table.pairs(there[i], captions[i]).to(CPU)  # on a GPU the table may lie there

    score = FILTERS[run.source.score](pairs_of, len(there))
    keep = max(1, round(run.source.keep * len(there)))
    best = there[np.sort(np.argpartition(-score, keep - 1)[:keep])]
    if path is not None and path.parent.is_dir():
        save_array(path, best)
    return best


def transform_of(run: Run, data: RunData, reference: OpenedReference) -> Transform:
    """What the run's candidates are turned into.

    A run that scores at low resolution decodes reduced, unless its reference must see every pixel.
    """
    cached = reference.call is None or (reference.table is not None and reference.table.complete)
    second = reference.live.second if reference.live is not None else None
    size = scoring_size(run) if cached else None
    return Transform(run.data.image_size, data.tokenizer, size, second, seldom=cached)


def scoring_size(run: Run) -> int | None:
    """Pixels at which the learner scores candidates, where that is a smaller image."""
    if not (run.selection.low_res_scoring and run.selection.scores):
        return None
    side = low_view(run.model, run.data, run.selection).side
    return side if side < run.data.image_size else None


# --- all of it, opened --------------------------------------------------------------------------


@dataclass(frozen=True)
class RunInputs:
    """What a run reads, opened: `close` ends the loader's worker processes.

    loader: step -> this rank's slice of the step's super-batch.
    reference: what scores candidates, and what it costs; without a call where the sampler reads
    none.
    candidates: pairs that the reference scores once for all (an offline filter: the whole pool).
    rows_drawn_from: how many different pairs each split offers.
    """

    run: Run
    data: RunData
    loader: SuperBatchLoader
    reference: OpenedReference
    benchmarks: list[Benchmark]
    rows_drawn_from: dict[str, int]
    candidates: int

    @property
    def tokenizer(self) -> Any:
        return self.data.tokenizer

    def noise_trained_on(self, folder: Path) -> float | None:
        """Share of wrong captions among the pairs trained on, of the run directory `folder`; None
        where no caption was moved."""
        dataset = self.loader.sources[0].dataset
        if not self.run.source.noise_share or self.run.source.kind == "curated":
            return None
        return float(dataset.wrong(self._trained_on(folder)).mean())

    def curated_trained_on(self, folder: Path) -> float | None:
        """The same share of pairs from curated sources; None where those are not in the pool."""
        if not self.run.source.curated_in_pool:
            return None
        return float((self._trained_on(folder) >= len(self.data.pool)).mean())

    def pool_auc(self, model: Clip) -> float | None:
        """How well a model of the curated set tells right captions of the pool from others' (see
        `matching_auc`), on 4,096 pairs that no curated set holds: its strength as a reference."""
        if self.run.source.kind != "curated":
            return None
        rows = self.data.outside_curated()
        if rows is None:
            return None
        pool = self.data.pool
        rows = rows[first_by_hash(pool.hashes[rows], 4096, "strength of a reference")]
        samples = pool.read(rows, self.loader.transform, None)
        return matching_auc(model, samples.images, samples.tokens)

    def _trained_on(self, folder: Path) -> np.ndarray:
        """Rows of the logged sub-batches, int64; of all drawn from where none is chosen."""
        chosen = chosen_in_training(folder)
        if chosen:
            return np.concatenate([rows for _, rows in chosen])
        return self.loader.sources[0].rows

    def close(self) -> None:
        """Closing twice is fine."""
        self.loader.close()


def open_inputs(
    run: Run,
    workspace: Workspace,
    folder: Path,
    world: DistEnv = SINGLE_PROCESS,
    label: str = "",
    report: Progress = silent,
) -> RunInputs:
    """Open what `run` reads; every rank calls it with its own `world`.

    The reference's embeddings are computed first where the run reads them from a table that is not
    complete. folder: the run directory, which keeps counts and what could not be read. report:
    (done, total, what) of that. Raises DataError, StageError.
    """
    data = data_of(run, workspace, folder)
    benchmarks = data.benchmarks()  # first: without them nothing needs to be prepared
    with world.main_process_first():  # of all ranks one counts the shards and scores the pool
        data.pool_of(run) if "pool" in splits(run) else data.curated
    reference = open_reference(run, workspace, data, world, label, report)
    with world.main_process_first():
        drawn = sources(run, data, reference, folder)
    counts = {source.name: len(source.order) for source in drawn}
    candidates = counts.get("pool", sum(counts.values()))  # curated pairs are not scored
    if run.source.kind == "filtered":  # which scores the whole pool, whatever it keeps
        rows = pool_rows(run, data)
        candidates = len(data.pool_of(run) if rows is None else rows)
    if world.device.type == "cuda":
        # A quarter of what is free: other runs may share the card, and models come on top.
        drawn = on_device(drawn, world.device, torch.cuda.mem_get_info(world.device)[0] / 4)
    log = BadSampleLog(folder, world.rank, data.loading.max_faults)
    transform, place = transform_of(run, data, reference), (world.rank, world.size)
    loader = SuperBatchLoader(drawn, transform, data.loading, log, *place, run.selects)
    if not run.selection.scores:  # a filter is done with it: its memory is free again
        reference = replace(reference, call=None, live=None, table=None)
    return RunInputs(run, data, loader, reference, benchmarks, counts, candidates)
