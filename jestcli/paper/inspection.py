"""`jest inspect RUN`: what did a run choose, and what did it leave?

Candidates of any step are a pure function of (seed, step) and the choice follows from the weights,
so nothing needs to have been stored: super-batches are drawn anew and chosen from with the final
weights. What was chosen *during* training is read from metrics.jsonl, where every logged step
names the rows of its sub-batch.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from jestcli.config import Run
from jestcli.data.bad_samples import BadSample
from jestcli.data.contact_sheet import contact_sheet
from jestcli.data.dataset import Dataset
from jestcli.data.images import fit
from jestcli.data.uids import uids_of
from jestcli.paper import choices
from jestcli.paper import theme as look
from jestcli.paper.choices import Replay
from jestcli.runs.opened import CPU, Opened, open_run
from jestcli.runs.trained import new_learner
from jestcli.runs.workspace import Workspace
from jestcli.selection import PairEmbeddings, select
from jestcli.selection.scores import diagonal_logits
from jestcli.training.checkpoint import write_atomic, write_json
from jestcli.training.metrics import chosen_in_training
from jestcli.utils.progress import Progress, silent

SHEET = 40  # pictures a contact sheet
PICTURE = 72  # pixels at which a shard's image is shown
BLOCK = 4096
OTHERS = {
    "joint": ("joint", "learnability"),
    "independent": ("independent", "learnability"),
    "easy reference": ("joint", "easy_reference"),
    "hard learner": ("joint", "hard_learner"),
}


def replay(opened: Opened, super_batches: int) -> list[Replay]:
    """Choose from new super-batches with the final weights, as the run itself would. A run that
    does not select gives the first b of as large a super-batch: a random sub-batch. Where f has a
    schedule, super-batches are as large as the last one."""
    run, found = opened.run, []
    with opened.drawing(_super_batch(run)) as draw:
        for step in range(super_batches):
            drawn = draw(step)
            pairs = opened.embed(drawn), opened.reference(drawn)
            index = np.arange(run.optim.batch_size)
            if run.selection.sampler != "uniform":
                index = np.array(_choice(*pairs, run, step))
            found.append(Replay(drawn.row, index, own_learnability(*pairs), *pairs))
    return found


def _super_batch(run: Run) -> int:
    """B; the last one where f has a schedule."""
    if run.scheduled:
        return run.super_batch_at(run.optim.steps)
    return round(run.optim.batch_size / (1 - run.selection.filter_ratio))


def _choice(
    ours: PairEmbeddings, theirs: PairEmbeddings, run: Run, step: int, **how: Any
) -> list[int]:
    own = {"sampler", "criterion", "learner_weight", "n_chunks"}
    settings = run.selection.model_dump(include=own) | how
    b, loss = run.optim.batch_size, run.optim.loss
    return select(ours, theirs, size=b, loss=loss, seed=run.seed, step=step, **settings).tolist()


def _diagonal(pairs: PairEmbeddings) -> np.ndarray:
    """Sigmoid loss of every pair as a positive: softplus(-z_kk), float64 [B]."""
    return torch.nn.functional.softplus(-diagonal_logits(pairs)).cpu().numpy()


def own_learnability(learner: PairEmbeddings, reference: PairEmbeddings) -> np.ndarray:
    """Each pair's own, the score that orders the first chunk: float64 [B], nats."""
    return _diagonal(learner) - _diagonal(reference)


def overlaps(opened: Opened, replays: list[Replay]) -> dict[str, dict[str, float]]:
    """Share of one strategy's sub-batch that another would choose too, all from the same
    super-batches and noise; by chance it is b/B."""
    found: dict[str, dict[str, list[float]]] = {a: {b: [] for b in OTHERS} for a in OTHERS}
    for step, one in enumerate(replays):
        sets = {}
        for name, (sampler, criterion) in OTHERS.items():
            how = {"sampler": sampler, "criterion": criterion, "learner_weight": 1.0}
            sets[name] = set(_choice(one.learner, one.reference, opened.run, step, **how))
        for a, b in product(sets, sets):
            found[a][b].append(len(sets[a] & sets[b]) / len(sets[a]))
    return {a: {b: float(np.mean(v)) for b, v in row.items()} for a, row in found.items()}


def drift(opened: Opened, replays: list[Replay]) -> dict[str, float]:
    """Spearman correlation of a pair's learnability by the final learner with that by the
    untrained one, and with the reference's loss alone: how far scores moved in training."""
    at = opened.learner.clip.logit_scale.device
    before, few = replace(opened, learner=new_learner(opened.run).to(at).eval()), replays[:2]
    minus = -np.concatenate([_diagonal(one.reference) for one in few])
    with opened.drawing(_super_batch(opened.run)) as draw:
        early = [_diagonal(before.embed(draw(step))) for step in range(len(few))]
    late = np.concatenate([one.score for one in few])
    others = {"untrained learner": np.concatenate(early) + minus}
    others["minus the reference's loss"] = minus
    return {f"final learner with {k}": float(spearmanr(late, x)[0]) for k, x in others.items()}


def near_duplicates(replays: list[Replay], cosine: float = 0.98) -> tuple[float, float]:
    """Share of a batch with a near-duplicate image in it, by the reference's image embeddings:
    (chosen sub-batches, random ones of the same size)."""

    def share(image: torch.Tensor) -> float:
        close = image @ image.T
        close.fill_diagonal_(-1.0)
        return float((close.max(1).values >= cosine).float().mean())

    chosen = [share(r.reference.image[torch.from_numpy(r.index)]) for r in replays]
    random = [share(r.reference.image[: len(r.index)]) for r in replays]
    return float(np.mean(chosen)), float(np.mean(random))


def inspect(
    folder: Path,
    workspace: Workspace,
    out: Path,
    super_batches: int = 8,
    everything: bool = False,
    device: torch.device = CPU,
    report: Progress = silent,
) -> list[Path]:
    """Write contact sheets, a figure, a report and the export under `out`; returns the paths.
    super_batches: how many to draw and choose from. everything: score every pair of the run's
    source for the export, not only those drawn. device: where learner and reference embed. report:
    (done, total, what) of the scoring of everything."""
    opened = open_run(folder, workspace, device, report)
    replays, path = replay(opened, super_batches), out / folder.name
    path.mkdir(parents=True, exist_ok=True)
    facts = {
        **{"run": folder.name, "label": opened.label, "selects": _selects(opened.run)},
        **choices.describe(opened.pairs, replays, chosen_in_training(folder)),
        **{"overlap": overlaps(opened, replays), "drift": drift(opened, replays)},
        "near_duplicates": dict(zip(("chosen", "random"), near_duplicates(replays), strict=True)),
    }
    write_json(path / "facts.json", facts)
    sheets = _sheets(opened, replays, path)
    figures = look.both(lambda theme: choices.make_choices(facts, theme), path / "choices")
    words = path / "README.md"
    words.write_text(choices.to_markdown(facts, [p.name for p in sheets]))
    exported = _export(opened, replays, path, report if everything else None)
    return [words, *sheets, *figures, path / "facts.json", *exported]


def _selects(run: Run) -> str:
    selection = run.selection
    if selection.sampler == "uniform":
        return "nothing: every candidate is trained on; a random sub-batch stands for it here"
    to = f" to {selection.filter_ratio_end}" if run.scheduled else ""
    return f"{selection.sampler}, {selection.criterion}, f = {selection.filter_ratio}{to}"


def _sheets(opened: Opened, replays: list[Replay], path: Path) -> list[Path]:
    """Highest and lowest learnability of all super-batches; the first one's chosen and rejected."""
    first = replays[0]
    rows = np.concatenate([r.rows for r in replays])
    score = np.concatenate([r.score for r in replays])
    order = np.argsort(-score)
    left = np.setdiff1d(np.arange(len(first.rows)), first.index)
    sheets = {
        "highest": (rows, score, order, "highest learnability"),
        "lowest": (rows, score, order[::-1], "lowest learnability"),
        "chosen": (first.rows, first.score, first.index, "chosen, in the order chosen"),
        "rejected": (first.rows, first.score, left, "rejected from the same super-batch"),
    }
    written = []
    for name, (rows, score, index, title) in sheets.items():
        shown, values = rows[index[:SHEET]], score[index[:SHEET]]
        captions = opened.pairs.captions_of(shown)
        texts = [f"{v:+.1f} {c}" for v, c in zip(values, captions, strict=True)]
        images = [picture(opened.pairs, row) for row in shown.tolist()]
        title = f"{opened.label}: {title} (nats, learner minus reference)"
        written.append(contact_sheet(images, texts, path / f"{name}.png", 10, title))
    return written


def _export(
    opened: Opened, replays: list[Replay], path: Path, report: Progress | None
) -> list[Path]:
    """scores.csv (key, source, learnability, times drawn and chosen) and uids.npy, DataComp's
    format: the chosen pairs (with `report`, where everything is scored: the best (1 - f) of the
    source) as sorted pairs of uint64, the two halves of a 128-bit uid: a key of 32 hexadecimal
    digits as it is, another key by its blake2b hash."""
    if report is not None:
        rows, score = score_all(opened, report)
        keep = round(len(rows) * (1 - opened.run.selection.filter_ratio))
        drawn, kept = np.ones(len(rows), np.int64), np.zeros(len(rows), np.int64)
        kept[np.argsort(-score)[:keep]] = 1
    else:
        every = np.concatenate([r.rows for r in replays])
        flags = [np.isin(np.arange(len(r.rows)), r.index).astype(np.int64) for r in replays]
        rows, inverse = np.unique(every, return_inverse=True)
        drawn = np.bincount(inverse)
        kept = np.bincount(inverse, np.concatenate(flags)).astype(np.int64)
        score = np.bincount(inverse, np.concatenate([r.score for r in replays])) / drawn
    keys, places = opened.pairs.keys_of(rows), opened.pairs.places(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "source", "learnability", "drawn", "chosen"])
    scores = (f"{value:.5g}" for value in score)
    writer.writerows(zip(keys, places, scores, drawn.tolist(), kept.tolist(), strict=True))
    write_atomic(path / "scores.csv", out.getvalue().encode())
    uids = uids_of([keys[i] for i in np.flatnonzero(kept).tolist()])
    np.save(path / "uids.npy", np.sort(uids))
    return [path / "scores.csv", path / "uids.npy"]


def picture(pairs: Dataset, row: int) -> np.ndarray:
    """uint8 [H, W, 3], at most PICTURE pixels high; white where it cannot be read."""
    try:
        image = pairs.image(row, PICTURE)
    except BadSample:
        return np.full((PICTURE, PICTURE, 3), 255, np.uint8)
    small = image.width == image.height <= PICTURE and pairs.in_memory
    return np.asarray(image) if small else fit(image, PICTURE)


def score_all(opened: Opened, report: Progress = silent) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the run's source that can be read, int64 [n], and their diagonal learnability."""
    size = min(BLOCK, opened.size)
    steps, rows, score = math.ceil(opened.size / size), [], []
    with opened.drawing(size) as draw:
        for step in range(steps):
            drawn = draw(step)
            rows.append(drawn.row)
            score.append(own_learnability(opened.embed(drawn), opened.reference(drawn)))
            report(step + 1, steps, f"scoring {opened.size:,} pairs")
    # The last draw begins a second epoch, and what cannot be read has a substitute: once each.
    once, first = np.unique(np.concatenate(rows), return_index=True)
    return once, np.concatenate(score)[first]
