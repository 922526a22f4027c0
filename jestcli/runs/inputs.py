"""What a run trains on and what scores it: the one place that asks where data come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestcli.config import Run
from jestcli.data.loader import Drawing, rows_of
from jestcli.data.pools import unverified_rows
from jestcli.evaluation.benchmarks import Benchmark
from jestcli.evaluation.matching import matching_auc
from jestcli.models.flops import ForwardFlops
from jestcli.models.towers import Clip
from jestcli.runs.cache import Cache
from jestcli.runs.drawn_from import (
    curated_trained_on,
    noise_trained_on,
    open_drawing,
    pool_rows,
)
from jestcli.runs.own import OwnInputs
from jestcli.runs.scored_with import (
    live_reference,
    open_reference,
    own_reference,
    reads_pool_cache,
    scores_by_reference,
)
from jestcli.runs.workspace import Inputs, Report, Workspace
from jestcli.training.distributed import ALONE, World
from jestcli.training.step import EmbedReference
from jestcli.utils.hashing import first_by_hash


@dataclass(frozen=True)
class RunInputs:
    """What a run reads, opened: `close` ends the loader's worker processes.

    loader: step -> this rank's slice of the step's super-batch.
    reference: a super-batch -> its reference embeddings; None where the sampler reads none.
    reference_flops: of the reference on one pair; reference_training_flops: what training it took.
    candidates: pairs that the reference scores once for all (an offline filter: the whole pool).
    rows_drawn_from: how many different pairs each split offers.
    """

    run: Run
    loader: Drawing
    reference: EmbedReference | None
    reference_flops: ForwardFlops | None
    reference_training_flops: float
    benchmarks: list[Benchmark]
    tokenizer: Any
    rows_drawn_from: dict[str, int]
    candidates: int
    pool_rows_of: Callable[[], Any]

    def noise_trained_on(self, folder: Path) -> float | None:
        """Share of wrong captions among the pairs trained on, of the run directory `folder`; None
        where no caption was moved."""
        return noise_trained_on(self.run, folder, self.loader)

    def curated_trained_on(self, folder: Path) -> float | None:
        """The same share of pairs from curated sources; None where those are not in the pool."""
        return curated_trained_on(folder, self.loader)

    def pool_auc(self, model: Clip) -> float | None:
        """How well a model of the curated set tells right captions of the pool from others' (see
        `matching_auc`): its strength as a reference. None where that cannot be told."""
        if self.run.source.kind != "curated":
            return None
        pairs = self.pool_rows_of()
        return None if pairs is None else matching_auc(model, *pairs)

    def close(self) -> None:
        """Closing twice is fine."""
        self.loader.close()


def open_inputs(
    run: Run,
    workspace: Workspace,
    folder: Path,
    world: World = ALONE,
    label: str = "",
    report: Report = lambda *_: None,
) -> RunInputs:
    """Open what `run` reads; every rank calls it with its own `world`.

    The reference's embeddings are computed first where the run reads them from a table that is not
    complete. folder: the run directory, which keeps counts and what could not be read. report:
    (done, total, what) of that. Raises DataError, StageError.
    """
    inputs = workspace.inputs(run)
    benchmarks = inputs.benchmarks()  # first: without them nothing needs to be prepared
    reference: EmbedReference | None
    if isinstance(inputs, OwnInputs):
        reference, flops, spent = own_reference(run, workspace, inputs, world)
    elif scores_by_reference(run) and not reads_pool_cache(run):
        reference, flops, spent = live_reference(run, workspace, world)
    else:
        reference, flops, spent = open_reference(run, workspace, inputs, label, report, world)
    loader, drawn = open_drawing(run, inputs, reference, folder, world)
    if isinstance(reference, Cache) and world.device.type == "cuda":
        reference = reference.on(world.device)
    candidates = drawn.get("pool", sum(drawn.values()))  # curated pairs of a batch are not scored
    if run.source.kind == "filtered":  # which scores the whole pool, whatever it keeps
        whole = inputs.pool if isinstance(inputs, OwnInputs) else pool_rows(run, inputs)
        candidates = len(whole)
    return RunInputs(
        run=run,
        loader=loader,
        reference=reference if run.selection.scores else None,
        reference_flops=flops,
        reference_training_flops=spent,
        benchmarks=benchmarks,
        tokenizer=inputs.tokenizer,
        rows_drawn_from=drawn,
        candidates=candidates,
        pool_rows_of=lambda: _pairs_outside_curated(inputs),
    )


def _pairs_outside_curated(inputs: Inputs | OwnInputs) -> Any:
    """Images and tokens of 4,096 pairs of the pool that no curated set holds; None where a user's
    curated set may lie in the pool."""
    if isinstance(inputs, OwnInputs):
        return None
    rows = unverified_rows(inputs.pool)
    rows = rows[first_by_hash(inputs.pool.hashes[rows], 4096, "strength of a reference")]
    return rows_of(inputs.pool, rows)
