"""Figure 2: the learnability matrix, and the learnability of a sub-batch by chunks and ratio.

Nothing is trained here: super-batches are drawn anew and selected from with the final weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jestcli.config import Run
from jestcli.paper import theme as look
from jestcli.paper.methods import BLUE, VERMILLION
from jestcli.paper.theme import Axes, Figure, Theme
from jestcli.runs.opened import open_run
from jestcli.runs.workspace import Workspace
from jestcli.selection import PairEmbeddings, learnability_of, pairwise_learnability, select
from jestcli.training.checkpoint import write_json
from jestcli.training.step import encode_pairs
from jestcli.utils.reading import read_json

MEASURED, MATRIX = "measured.json", "matrix.npy"  # in the experiment's results
CHUNKS = (1, 2, 4, 8, 16, 32)
RATIOS = (0.0, 0.5, 0.8, 0.9)
GIBBS = (0, 125, 250, 500, 1000, 2000)  # iterations of the brute-force sampler
PICTURE = 256  # side of the matrix
DRAWS = 8  # super-batches that the curves are averaged over
# The paper's Fig. 2, digitised [P]: learnability of the chosen sub-batch, by chunks at f = .5.
PAPER_CHUNKS = {1: 0.0, 2: 0.69, 4: 0.885, 8: 0.96, 16: 0.993, 32: 1.0}
PAPER_RATIOS = {0.0: 0.0, 0.5: 1.0, 0.8: 1.12, 0.9: 1.15}
Measured = list[dict[str, Any]]


def measure_all(runs: dict[int, Run], workspace: Workspace, folder: Path) -> Measured:
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


def measure(run: Run, workspace: Workspace, picture: Path | None = None) -> dict[str, Any]:
    """Mean learnability, nats a pair, of sub-batches that a finished run chooses from new
    super-batches. picture: where to write the PICTURE x PICTURE matrix of the first one.
    Returns b, and by name of the setting a list over DRAWS: "uniform" and "chunks" at f = .5,
    "gibbs" by iterations at f = .5, "ratios" (joint, N = 16) with b fixed."""
    opened = open_run(workspace.folder(run), workspace)
    b, most = run.optim.batch_size, round(run.optim.batch_size / (1 - max(RATIOS)))
    found: dict[str, Any] = {"b": b, "chunks": {}, "gibbs": {}, "ratios": {}, "uniform": []}

    def first(pairs: PairEmbeddings, n: int) -> PairEmbeddings:
        return replace(pairs, image=pairs.image[:n], text=pairs.text[:n])

    with opened.drawing(most) as loader:
        for step in range(DRAWS):
            drawn = loader(step)
            ours = encode_pairs(opened.learner, *drawn.full(torch.arange(most)), None)
            theirs = opened.reference(drawn)
            if step == 0 and picture is not None:
                few = first(ours, PICTURE), first(theirs, PICTURE)
                matrix = pairwise_learnability(*few, run.optim.loss)
                np.save(picture, matrix.numpy().astype(np.float16))

            def chosen(n: int, **how: Any) -> float:
                """Learnability of the b chosen from the first n candidates."""
                both, loss = (first(ours, n), first(theirs, n)), run.optim.loss  # noqa: B023
                index = select(*both, size=b, loss=loss, seed=run.seed, step=step, **how)  # noqa: B023
                return learnability_of(*both, index, loss=loss)

            found["uniform"].append(chosen(2 * b, sampler="uniform"))
            values = {
                "chunks": {n: chosen(2 * b, n_chunks=n) for n in CHUNKS},
                "gibbs": {n: chosen(2 * b, sampler="gibbs", iterations=n) for n in GIBBS[1:]}
                | {0: found["uniform"][-1]},
                "ratios": {ratio: chosen(round(b / (1 - ratio))) for ratio in RATIOS},
            }
            for key, by_setting in values.items():
                for setting, value in by_setting.items():
                    found[key].setdefault(str(setting), []).append(value)
    return found


def _means(measured: Measured, key: str) -> dict[float, float]:
    """Of all seeds' values of a setting together; settings as numbers, ascending."""
    settings = sorted({setting for one in measured for setting in one[key]}, key=float)
    every = {k: [x for one in measured for x in one[key].get(k, [])] for k in settings}
    return {float(k): float(np.mean(values)) for k, values in every.items()}


def _scaled(means: dict[float, float], zero: float, one: float) -> dict[float, float]:
    return {k: (value - zero) / ((one - zero) or 1.0) for k, value in means.items()}


def chunk_curves(measured: Measured) -> tuple[dict[float, float], dict[float, float], float]:
    """(by chunks, by Gibbs iterations, uniform): 0 is independent selection, 1 the best found."""
    chunks, gibbs = _means(measured, "chunks"), _means(measured, "gibbs")
    ends = chunks[1.0], max(*chunks.values(), *gibbs.values())
    uniform = float(np.mean([x for m in measured for x in m["uniform"]]))
    return _scaled(chunks, *ends), _scaled(gibbs, *ends), _scaled({0: uniform}, *ends)[0]


def ratio_curve(measured: Measured) -> dict[float, float]:
    """By filter ratio: 0 is f = 0 (uniform), 1 is f = .5."""
    means = _means(measured, "ratios")
    return _scaled(means, means[0.0], means[0.5])


def make_figure2(
    title: str, measured: Measured, matrix: np.ndarray | None, note: str, theme: Theme
) -> Figure:
    """The matrix (float [n, n], learner minus reference loss of image i with text j) and both
    curves. note: on what it was measured."""
    words = (
        "Learnability of a sub-batch chosen by the trained learner from new super-batches; "
        f"mean over seeds ({len(measured)}) and super-batches. Grey: the paper, digitised [P]."
    )
    figure, top = look.frame(title, words, note, 2.9, theme)
    left, middle, right = (look.place(figure, x, top + 0.25, 2.1, 2.1) for x in (0.45, 3.75, 6.55))
    left.set_title("The learnability matrix")
    left.grid(False)
    if matrix is None:
        look.empty(left)
    else:
        _picture(left, look.place(figure, 2.63, top + 0.25, 0.09, 2.1), matrix.astype(float))
    middle.set_title("By number of chunks, f = .5")
    right.set_title("By filter ratio")
    if not measured:
        look.empty(middle)
        look.empty(right)
        return figure
    chunks, ratios = chunk_curves(measured)[0], ratio_curve(measured)
    middle.set_xscale("log", base=2)
    for at, value in list(ratios.items())[2:]:  # the first two are 0 and 1 by definition
        right.text(at - 0.02, value + 0.02, f"{value:.2f}", size=7, ha="right")
    for axes, paper, curve in ((middle, PAPER_CHUNKS, chunks), (right, PAPER_RATIOS, ratios)):
        x, y = list(paper), list(paper.values())
        axes.plot(x, y, color=theme.muted, lw=1.0, ls=(0, (3, 2)), marker="s", ms=2.6)
        axes.plot(list(curve), list(curve.values()), color=theme.colour(BLUE), lw=1.8, marker="o")
        axes.set_xticks(list(curve), [f"{at:g}" for at in curve], size=7)
    middle.set_xlabel("chunks N (0: independent, 1: best found)", size=7.6)
    middle.set_ylabel("learnability", size=8)
    right.set_xlabel("filter ratio f (0: uniform, 1: f = .5)", size=7.6)
    _gibbs(middle, measured, theme.colour(VERMILLION))
    return figure


def _gibbs(axes: Axes, measured: Measured, colour: str) -> None:
    _, gibbs, uniform = chunk_curves(measured)
    last = max(gibbs)
    axes.axhline(gibbs[last], color=colour, lw=1.0, ls=(0, (4, 2)))
    half = next((n for n, v in gibbs.items() if v >= 0.5), None)
    words = f"Gibbs, {last:,.0f} iterations: {gibbs[last]:.2f}"
    words += f"\n(half way after {half:,.0f})" if half is not None else ""
    words += f"\nuniform: {uniform:.1f}" if abs(uniform) < 100 else ""
    look.say(axes, 0.98, 0.3, words, ha="right", size=7, color=colour)


def _picture(axes: Axes, beside: Axes, matrix: np.ndarray) -> None:
    """Colours saturate at the 99th percentile off the diagonal, whose scale is another."""
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    most = float(np.quantile(np.abs(off), 0.99)) or 1.0
    shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    axes.set_xlabel("text (colour: learner − reference, nats)", size=7.6)
    axes.set_ylabel("image")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.figure.colorbar(shown, cax=beside, extend="both").ax.tick_params(labelsize=6.5)
