"""Figure 2's measurements: how learnable a chosen sub-batch is, for a trained learner.

Nothing is trained here: super-batches are drawn anew and selected from with the final weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jestcli.config import Run
from jestcli.paper.figure2 import MATRIX, MEASURED
from jestcli.runs.opened import open_run
from jestcli.runs.workspace import Workspace
from jestcli.selection import PairEmbeddings, learnability_of, pairwise_learnability, select
from jestcli.training.checkpoint import write_json
from jestcli.training.step import encode_pairs
from jestcli.utils.reading import read_json

CHUNKS = (1, 2, 4, 8, 16, 32)
RATIOS = (0.0, 0.5, 0.8, 0.9)
GIBBS = (0, 125, 250, 500, 1000, 2000)  # iterations of the brute-force sampler
PICTURE = 256  # side of the matrix
DRAWS = 8  # super-batches that the curves are averaged over


def measure(run: Run, workspace: Workspace, picture: Path | None = None) -> dict[str, Any]:
    """Mean learnability, nats a pair, of sub-batches chosen from new super-batches.

    Args:
        run: finished, with a reference.
        picture: write the PICTURE x PICTURE learnability matrix of the first super-batch here.
    Returns: b, and by name of the setting a list over DRAWS: "uniform" and "chunks" at f = .5,
        "gibbs" by iterations at f = .5, "ratios" (joint, N = 16) with b fixed.
    """
    opened = open_run(workspace.folder(run), workspace)
    b, most = run.optim.batch_size, round(run.optim.batch_size / (1 - max(RATIOS)))
    found: dict[str, Any] = {"b": b, "chunks": {}, "gibbs": {}, "ratios": {}, "uniform": []}
    with opened.drawing(most) as loader:
        for step in range(DRAWS):
            drawn = loader(step)
            ours = encode_pairs(opened.learner, *drawn.full(torch.arange(most)), None)
            theirs = opened.reference(drawn)
            if step == 0 and picture is not None:
                n = min(PICTURE, most)
                matrix = pairwise_learnability(_rows(ours, n), _rows(theirs, n), run.optim.loss)
                np.save(picture, matrix.numpy().astype(np.float16))
            _one(found, ours, theirs, run, step)
    return found


def _one(
    found: dict[str, Any], ours: PairEmbeddings, theirs: PairEmbeddings, run: Run, step: int
) -> None:
    b = run.optim.batch_size

    def chosen(n: int, **how: Any) -> float:
        """Learnability of the b chosen from the first n candidates."""
        learner, reference = _rows(ours, n), _rows(theirs, n)
        settings = {"size": b, "loss": run.optim.loss, "seed": run.seed, "step": step, **how}
        index = select(learner, reference, **settings)
        return learnability_of(learner, reference, index, loss=run.optim.loss)

    found["uniform"].append(chosen(2 * b, sampler="uniform"))
    for n in CHUNKS:
        found["chunks"].setdefault(str(n), []).append(chosen(2 * b, n_chunks=n))
    for n in GIBBS[1:]:
        found["gibbs"].setdefault(str(n), []).append(chosen(2 * b, sampler="gibbs", iterations=n))
    found["gibbs"].setdefault("0", []).append(found["uniform"][-1])
    for ratio in RATIOS:
        found["ratios"].setdefault(str(ratio), []).append(chosen(round(b / (1 - ratio))))


def _rows(pairs: PairEmbeddings, n: int) -> PairEmbeddings:
    return replace(pairs, image=pairs.image[:n], text=pairs.text[:n])


def measure_all(runs: dict[int, Run], workspace: Workspace, folder: Path) -> list[dict[str, Any]]:
    """Measure every seed's finished run into `folder`, unless it was; returns all measurements."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MEASURED
    known = read_json(path) if path.exists() else {}
    for seed, run in sorted(runs.items()):
        name = workspace.folder(run).name
        if known.get(str(seed), {}).get("run") != name:
            picture = folder / MATRIX if seed == min(runs) else None
            known[str(seed)] = {"run": name, "seed": seed, **measure(run, workspace, picture)}
            write_json(path, known)
    return list(known.values())
