"""What scores a run's candidates: its reference, live, from its cache, or over the user's shards.

Named like drawn_from.py, which says what they are drawn from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from jestcli.config import Run
from jestcli.data.joined import Joined
from jestcli.data.loader import Candidates
from jestcli.models.flexi import View
from jestcli.models.flops import ForwardFlops
from jestcli.models.towers import Clip, low_view
from jestcli.runs import own
from jestcli.runs.cache import Cache, build_cache, cache_key, joined_cache
from jestcli.runs.data import bars
from jestcli.runs.drawn_from import pool_of, shown_captions
from jestcli.runs.own import OwnInputs
from jestcli.runs.references import ShardReference, fill
from jestcli.runs.trained import THREADS, learner_flops, load_run
from jestcli.runs.workspace import Inputs, Report, Workspace, read_done
from jestcli.selection import PairEmbeddings
from jestcli.training.devices import set_threads
from jestcli.training.distributed import ALONE, World
from jestcli.training.step import EmbedReference, embed

if TYPE_CHECKING:
    from rich.console import Console

CACHES = "reference-embeddings"


def cache(
    run: Run,
    workspace: Workspace,
    label: str,
    report: Report,
    view: View | None = None,
    split: str = "pool",
    device: torch.device = own.CPU,
) -> None:
    """Compute the embeddings of the pool, or of the "curated" store, by the finished reference
    `run`, on this device, unless they are there."""
    inputs, more = workspace.embedded(run), {}
    if device.type == "cpu":
        set_threads(THREADS)
    else:
        more["micro_batch"] = run.engine.scoring_batch
    model, store = load_run(run, workspace).to(device), getattr(inputs, split)

    def shown(done: int, total: int) -> None:
        report(done, total, label)

    build_cache(model, store, inputs.root / CACHES, shown, view, **more)


def cached(run: Run, workspace: Workspace, view: View | None = None, split: str = "pool") -> bool:
    """Whether what `cache` computes is complete."""
    inputs = workspace.embedded(run)
    key = cache_key(load_run(run, workspace), getattr(inputs, split), view)
    return (inputs.root / CACHES / key / "cache.json").exists()


def scores_by_reference(run: Run) -> bool:
    """Whether the run scores pairs with a reference."""
    scored = run.selection.reads_reference or run.source.kind == "filtered"
    return scored and (run.reference is not None or run.reference_model is not None)


def reads_pool_cache(run: Run) -> bool:
    """Whether it does so with the reference's embeddings of the pool, computed before."""
    kept = run.engine.reference_cache or run.source.kind == "filtered"  # which scores all of it
    return scores_by_reference(run) and kept


def reference_view(run: Run) -> View | None:
    """How the reference of `run` sees the candidates; None: at its own full resolution."""
    if run.reference is None or run.selection.reference_resolution == "full":
        return None
    return low_view(run.reference.model, run.reference.data, run.selection)


def _reference(
    run: Run, reference: Run, workspace: Workspace
) -> tuple[Clip, View | None, ForwardFlops, float]:
    """The trained reference, how it sees candidates, FLOPs per example, and what training took."""
    model, view = load_run(reference, workspace), reference_view(run)
    if view is not None:
        model.set_low(view)
    spent = read_done(workspace.folder(reference))["flops"]["charged"]
    return model, view, learner_flops(reference, model), spent


def live_reference(
    run: Run, workspace: Workspace, world: World
) -> tuple[EmbedReference, ForwardFlops, float]:
    """The same without a cache: the reference embeds the candidates of each step."""
    assert run.reference is not None
    model, view, flops, spent = _reference(run, run.reference, workspace)
    model.to(world.device).eval()

    def embed_candidates(candidates: Candidates) -> PairEmbeddings:
        return embed(model, candidates.images, candidates.tokens, view, run.engine.scoring_batch)

    return embed_candidates, flops, spent


def open_reference(
    run: Run,
    workspace: Workspace,
    inputs: Inputs,
    label: str,
    report: Report,
    world: World = ALONE,
) -> tuple[Cache | None, ForwardFlops | None, float]:
    """The reference's cache over the pool, its FLOPs per example and what its training took."""
    if run.reference is None:
        return None, None, 0.0
    model, view, flops, spent = _reference(run, run.reference, workspace)
    if not scores_by_reference(run):
        return None, flops, spent
    model.to(world.device)
    store = pool_of(run, inputs)
    with world.first():
        caches = [
            build_cache(
                model, one, inputs.root / CACHES,
                lambda done, total: report(done, total, f"{label} · reference embeddings"), view,
                run.engine.scoring_batch,
            )
            for one in (store.stores if isinstance(store, Joined) else (store,))
        ]  # fmt: skip
    cache = joined_cache(caches) if len(caches) > 1 else caches[0]
    if run.source.noise_share:
        cache = replace(cache, caption_of=shown_captions(run, inputs))
    return cache, flops, spent


def own_reference(
    run: Run, workspace: Workspace, inputs: OwnInputs, world: World = ALONE
) -> tuple[ShardReference | None, ForwardFlops | None, float]:
    """The same over the user's shards: what is cached is read, the rest embedded when needed.

    Each rank embeds its own candidates, on its own device.
    """
    where: dict[str, Any] = {"device": world.device, "micro_batch": run.engine.scoring_batch}
    if run.reference_model is not None:
        foreign = own.open_reference(inputs, run.reference_model, **where)
        return foreign, own.foreign_flops(foreign), 0.0
    if run.reference is None:
        return None, None, 0.0
    model, view, flops, spent = _reference(run, run.reference, workspace)
    if not scores_by_reference(run):
        return None, flops, spent
    return own.open_reference(inputs, model, view, **where), flops, spent


def cache_reference(
    run: Run, workspace: Workspace, console: Console, device: torch.device = own.CPU
) -> list[str]:
    """Embed the pool with the run's reference, on this device, with a bar; returns what to tell the
    user."""
    inputs = workspace.inputs(run)
    with bars(console) as report:
        if not isinstance(inputs, OwnInputs):
            assert run.reference is not None

            def progress(done: int, total: int, line: str) -> None:
                report(line, done, total)

            view = reference_view(run)
            cache(run.reference, workspace, "embedding the pool", progress, view, device=device)
            return ["the pool's embeddings are complete"]
        if device.type == "cpu":
            set_threads(THREADS)
        seen = reference_view(run)
        model: Clip | str = run.reference_model or ""
        if run.reference is not None:
            model = load_run(run.reference, workspace)
            if seen is not None:
                model.set_low(seen)
        reference = own.open_model(inputs, model, seen, device, run.engine.scoring_batch)

        def shown(done: int, total: int) -> None:
            report("embedding the pool's shards", done, total)

        made = fill(reference, inputs.pool, inputs.loading, shown)
    total = len(inputs.pool.shards)
    return [f"reference embeddings {reference.key}: {made:,} of {total:,} shards embedded now"]
