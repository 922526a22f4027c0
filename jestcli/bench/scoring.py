"""`jest bench scoring`: what cheaper scoring costs, and how far it agrees with full resolution.

For one learner and its reference, over super-batches of the pool: FLOPs and seconds a pair, rank
correlation of each pair's own learnability with that at full resolution, and how much of the
sub-batch chosen by joint selection stays the same (same noise), for every way of scoring.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from jestcli.config import Run
from jestcli.data.loader import SuperBatch
from jestcli.models.flexi import Resolution
from jestcli.models.flops import forward_flops
from jestcli.models.towers import Clip
from jestcli.selection import PairEmbeddings, select
from jestcli.training.step import encode_pairs


@dataclass(frozen=True)
class Scored:
    """One way of scoring, over all super-batches.

    image_mflop, text_mflop: a pair's forward pass. milliseconds: of the processor, a pair.
    spearman: of the diagonal learnability with full resolution's; overlap: share of the chosen
    sub-batch that full resolution chooses too. floor: what two choices by different noise share.
    """

    name: str
    image_mflop: float
    text_mflop: float
    percent_flops: float
    milliseconds: float
    spearman: float
    overlap: float


def ways(run: Run) -> dict[str, Resolution]:
    """Full resolution, twice its patch, half its image, and some of its cells."""
    patch, side = run.model.patch_sizes[0], run.data.image_size
    return {
        "full": Resolution(patch, side),
        f"patch {2 * patch} px": Resolution(2 * patch, side),
        f"image {side // 2} px": Resolution(patch, side // 2),
        "25 % of the cells": Resolution(patch, side, 0.25),
        "50 % of the cells": Resolution(patch, side, 0.5),
    }


def diagonal(learner: PairEmbeddings, reference: PairEmbeddings) -> torch.Tensor:
    """Each pair's own learnability, the score that orders the first chunk: float [B]."""
    losses = [
        F.softplus(-(p.scale * (p.image * p.text).sum(dim=1) + p.bias))
        for p in (learner, reference)
    ]
    return losses[0] - losses[1]


def measure(
    run: Run, learner: Clip, batches: list[tuple[SuperBatch, PairEmbeddings]]
) -> dict[str, Any]:
    """Score every batch in every way.

    Args:
        run: the learner's run; its selection settings choose.
        batches: super-batches and their reference embeddings at the reference's full resolution.
    Returns rows (see `Scored`) and `noise_overlap`, the share that two choices at full resolution
    with different noise have in common: what an overlap of 1 has to be compared with.
    """
    model_ways = ways(run)
    learner.eval()
    rows: list[Scored] = []
    full: list[tuple[torch.Tensor, torch.Tensor]] = []
    noise: list[float] = []
    full_flops = 0
    for name, view in model_ways.items():
        learner.set_low(view)
        flops = forward_flops(learner, run.data.image_size, run.data.context_length)
        full_flops = full_flops or flops.low
        seconds, correlations, overlaps = 0.0, [], []
        for step, (candidates, reference) in enumerate(batches):
            start = time.process_time()
            pairs = encode_pairs(learner, candidates.images, candidates.tokens, view)
            seconds += time.process_time() - start
            score, chosen = diagonal(pairs, reference), _choose(run, pairs, reference, step)
            if name == "full":
                full.append((score, chosen))
                other = _choose(run, pairs, reference, step + len(batches))
                noise.append(_shared(chosen, other))
            correlations.append(float(spearmanr(score, full[step][0]).statistic))
            overlaps.append(_shared(chosen, full[step][1]))
        count = sum(len(candidates) for candidates, _ in batches)
        rows.append(
            Scored(
                name,
                flops.image_low / 1e6,
                flops.text / 1e6,
                100 * flops.low / full_flops,
                1000 * seconds / count,
                sum(correlations) / len(batches),
                sum(overlaps) / len(batches),
            )
        )
    return {"rows": [asdict(row) for row in rows], "noise_overlap": sum(noise) / len(noise)}


def _choose(
    run: Run, learner: PairEmbeddings, reference: PairEmbeddings, step: int
) -> torch.Tensor:
    return select(
        learner,
        reference,
        size=run.optim.batch_size,
        sampler="joint",
        criterion="learnability",
        loss=run.optim.loss,
        n_chunks=run.selection.n_chunks,
        seed=run.seed,
        step=step,
    )


def _shared(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.isin(a, b).double().mean())


def as_markdown(result: dict[str, Any]) -> str:
    """The table, and on what it was measured."""
    head = ["scoring", "MFLOP image", "text", "% FLOPs", "CPU ms a pair", "Spearman", "overlap"]
    lines = ["# `jest bench scoring`", "", result["about"], ""]
    lines += [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in result["rows"]:
        cells = [
            row["name"],
            f"{row['image_mflop']:.2f}",
            f"{row['text_mflop']:.2f}",
            f"{row['percent_flops']:.0f}",
            f"{row['milliseconds']:.3f}",
            f"{row['spearman']:.3f}",
            f"{row['overlap']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Spearman: of every pair's own learnability (the diagonal score) with full resolution's, "
        "mean over super-batches. Overlap: share of the jointly chosen sub-batch that full "
        "resolution chooses too, with the same noise; two choices at full resolution with "
        f"different noise share {result['noise_overlap']:.3f}.",
        "",
    ]
    return "\n".join(lines)


def write(out: Path, result: dict[str, Any]) -> list[Path]:
    """`out` as .json and .md beside each other."""
    out.parent.mkdir(parents=True, exist_ok=True)
    made = [out.with_suffix(".json"), out.with_suffix(".md")]
    made[0].write_text(json.dumps(result, indent=1) + "\n")
    made[1].write_text(as_markdown(result))
    return made


def machine() -> str:
    return f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
