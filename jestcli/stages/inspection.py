"""`jest inspect RUN`: what did a run choose, and what did it leave?

Candidates of any step are a pure function of (seed, step) and the choice follows from the weights,
so nothing needs to have been stored: super-batches are drawn anew and chosen from with the final
weights. What was chosen *during* training is read from metrics.jsonl, where every logged step
names the rows of its sub-batch.
"""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jestcli.config import Run
from jestcli.data.contact_sheet import contact_sheet
from jestcli.data.loader import Candidates, Part, draw, rows_of
from jestcli.models.towers import Clip
from jestcli.reporting import choices
from jestcli.selection import PairEmbeddings, select
from jestcli.selection.scores import diagonal_logits
from jestcli.stages.cache import Cache
from jestcli.stages.drawn_from import sources
from jestcli.stages.evaluate import list_runs
from jestcli.stages.scored_with import open_reference
from jestcli.stages.trained import load_run, new_learner
from jestcli.stages.workspace import Inputs, StageError, Workspace, read_run
from jestcli.training.checkpoint import write_atomic, write_json
from jestcli.training.loop import chosen_in_training, set_threads
from jestcli.training.step import embed

ANEW = 1_000  # added to the seed: an order of the pool that was not trained in
SHEET = 40  # pictures a contact sheet
BLOCK = 4096
OTHERS = {
    "joint": ("joint", "learnability"),
    "independent": ("independent", "learnability"),
    "easy reference": ("joint", "easy_reference"),
    "hard learner": ("joint", "hard_learner"),
}


@dataclass(frozen=True)
class Opened:
    """A finished run with all that its choices follow from."""

    folder: Path
    label: str
    run: Run
    inputs: Inputs
    learner: Clip
    reference: Cache
    parts: list[Part]
    counts: list[int]

    @property
    def part(self) -> Part:
        return self.parts[0]


@dataclass(frozen=True)
class Replay:
    """One super-batch: rows int64 [B] of the store, index int64 [b] chosen, score float64 [B]:
    the diagonal learnability, learner's loss of a pair minus the reference's, in nats."""

    rows: np.ndarray
    index: np.ndarray
    score: np.ndarray
    learner: PairEmbeddings
    reference: PairEmbeddings


def find_run(word: str | None, workspace: Workspace) -> Path:
    """A run directory by path or the beginning of its name; default: the newest that selects.

    Raises StageError.
    """
    if word is None:
        for folder in reversed(list_runs(workspace)):
            if read_run(folder)[1].selection.sampler != "uniform":
                return folder
        raise StageError(f"no finished run in {workspace.runs} selects: name one, or train one")
    if (Path(word) / "config.json").exists():
        return Path(word)
    found = [p for p in list_runs(workspace) if p.name.startswith(word)]
    if len(found) != 1:
        some = "several runs" if found else "no finished run"
        raise StageError(f"{some} in {workspace.runs} called {word!r}")
    return found[0]


def open_run(folder: Path, workspace: Workspace) -> Opened:
    """Raises StageError for a run that is not finished or has no reference to score with."""
    label, run = read_run(folder)
    if run.reference is None:
        raise StageError(f"{folder} has no reference: there is no learnability to look at")
    set_threads(1)
    inputs = workspace.embedded(run)
    here = Workspace(workspace.data, folder.parent)
    learner = load_run(run, here).eval()
    # A run that reads no embeddings (fine-tuning, say) is scored with its reference all the same.
    scoring = run.model_copy(
        update={"selection": run.selection.model_copy(update={"sampler": "joint"})}
    )
    reference, _, _ = open_reference(scoring, here, inputs, label, lambda *_: None)
    assert reference is not None
    parts, counts = sources(run, inputs, reference)
    if len(parts) > 1 or run.source.kind == "curated":
        raise StageError(f"{folder} draws from the curated set, which has no cached embeddings")
    return Opened(folder, label, run, inputs, learner, reference, parts, counts)


def replay(opened: Opened, super_batches: int) -> list[Replay]:
    """Choose from new super-batches with the final weights, as the run itself would.

    A run that does not select gives the first b of as large a super-batch: a random sub-batch.
    Where f has a schedule, super-batches are as large as the last one.
    """
    run, found = opened.run, []
    size = round(run.optim.batch_size / (1 - run.selection.filter_ratio))
    if run.scheduled:
        size = run.super_batch_at(run.optim.steps)
    for step in range(super_batches):
        drawn: Candidates = draw(opened.parts, [size], run.seed + ANEW, step)
        ours, theirs = _embed(opened, drawn), opened.reference(drawn)
        index = np.arange(run.optim.batch_size)
        if run.selection.sampler != "uniform":
            index = _choice(ours, theirs, run, step).numpy()
        score = _diagonal(ours) - _diagonal(theirs)
        found.append(Replay(drawn.row, index, score, ours, theirs))
    return found


def _embed(opened: Opened, drawn: Candidates) -> PairEmbeddings:
    learner = opened.learner
    view = learner.low if opened.run.selection.low_res_scoring else learner.full
    return embed(learner, drawn.images, drawn.tokens, view)


def _choice(
    ours: PairEmbeddings, theirs: PairEmbeddings, run: Run, step: int, **how: Any
) -> torch.Tensor:
    selection = run.selection
    settings: dict[str, Any] = {
        "sampler": selection.sampler, "criterion": selection.criterion,
        "n_chunks": selection.n_chunks, **how,
    }  # fmt: skip
    return select(ours, theirs, size=run.optim.batch_size, loss=run.optim.loss, seed=run.seed,
                  step=step, **settings)  # fmt: skip


def _diagonal(pairs: PairEmbeddings) -> np.ndarray:
    """Sigmoid loss of every pair as a positive: softplus(-z_kk), float64 [B]."""
    z = diagonal_logits(pairs)
    return torch.nn.functional.softplus(-z).numpy()


def overlaps(opened: Opened, replays: list[Replay]) -> dict[str, dict[str, float]]:
    """Share of one strategy's sub-batch that another would choose too, all from the same
    super-batches and noise; by chance it is b/B."""
    found: dict[str, dict[str, list[float]]] = {a: {b: [] for b in OTHERS} for a in OTHERS}
    for step, one in enumerate(replays):
        sets = {
            name: set(_choice(one.learner, one.reference, opened.run, step, sampler=sampler,
                              criterion=criterion).tolist())
            for name, (sampler, criterion) in OTHERS.items()
        }  # fmt: skip
        for a in sets:
            for b in sets:
                found[a][b].append(len(sets[a] & sets[b]) / len(sets[a]))
    return {a: {b: float(np.mean(v)) for b, v in row.items()} for a, row in found.items()}


def drift(opened: Opened, replays: list[Replay]) -> dict[str, float]:
    """Spearman correlation of a pair's learnability by the final learner with that by the
    untrained one, and with the reference's loss alone: how far scores moved in training."""
    from scipy.stats import spearmanr

    untrained = new_learner(opened.run).eval()
    before = replace(opened, learner=untrained)
    early, late, fixed = [], [], []
    for step, one in enumerate(replays[:2]):
        drawn = draw(opened.parts, [len(one.rows)], opened.run.seed + ANEW, step)
        theirs = _diagonal(one.reference)
        early.append(_diagonal(_embed(before, drawn)) - theirs)
        late.append(one.score)
        fixed.append(-theirs)
    columns = [np.concatenate(x) for x in (early, late, fixed)]
    return {
        "final learner with untrained learner": float(spearmanr(columns[1], columns[0])[0]),
        "final learner with minus the reference's loss": float(
            spearmanr(columns[1], columns[2])[0]
        ),
    }


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


# --- what is written ------------------------------------------------------------------------------


def inspect(
    folder: Path, workspace: Workspace, out: Path, super_batches: int = 8, everything: bool = False
) -> list[Path]:
    """Write contact sheets, a figure, a report and the export under `out`; returns the paths.

    Args:
        super_batches: how many to draw and choose from.
        everything: score every pair of the run's source for the export, not only those drawn.
    """
    opened = open_run(folder, workspace)
    replays = replay(opened, super_batches)
    store, path = opened.part.store, out / folder.name
    path.mkdir(parents=True, exist_ok=True)
    facts = choices.describe(
        store, replays, chosen_in_training(folder), overlaps(opened, replays),
        drift(opened, replays), near_duplicates(replays),
    )  # fmt: skip
    facts = {"run": folder.name, "label": opened.label, "selects": _selects(opened.run), **facts}
    write_json(path / "facts.json", facts)
    sheets = _sheets(opened, replays, path)
    figures = choices.draw_choices(facts, path / "choices")
    report = path / "README.md"
    report.write_text(choices.to_markdown(facts, [p.name for p in sheets]))
    exported = _export(opened, replays, path, everything)
    return [report, *sheets, *figures, path / "facts.json", *exported]


def _selects(run: Run) -> str:
    selection = run.selection
    if selection.sampler == "uniform":
        return "nothing: every candidate is trained on; a random sub-batch stands for it here"
    to = f" to {selection.filter_ratio_end}" if run.scheduled else ""
    return f"{selection.sampler}, {selection.criterion}, f = {selection.filter_ratio}{to}"


def _sheets(opened: Opened, replays: list[Replay], path: Path) -> list[Path]:
    """Highest and lowest learnability of all super-batches; the first one's chosen and rejected."""
    store, first = opened.part.store, replays[0]
    rows = np.concatenate([r.rows for r in replays])
    score = np.concatenate([r.score for r in replays])
    order = np.argsort(-score)
    left = np.setdiff1d(np.arange(len(first.rows)), first.index)
    sheets = {
        "highest": (rows[order[:SHEET]], score[order[:SHEET]], "highest learnability"),
        "lowest": (rows[order[::-1][:SHEET]], score[order[::-1][:SHEET]], "lowest learnability"),
        "chosen": (first.rows[first.index[:SHEET]], first.score[first.index[:SHEET]],
                   "chosen from one super-batch, in the order chosen"),
        "rejected": (first.rows[left[:SHEET]], first.score[left[:SHEET]],
                     "rejected from the same super-batch"),
    }  # fmt: skip
    written = []
    for name, (shown, values, title) in sheets.items():
        images = [np.asarray(store.images[row]) for row in shown]
        texts = [
            f"{v:+.1f} {store.captions_of(int(r))[0]}" for r, v in zip(shown, values, strict=True)
        ]
        title = f"{opened.label}: {title} (nats, learner minus reference)"
        written.append(contact_sheet(images, texts, path / f"{name}.png", 10, title))
    return written


def _export(opened: Opened, replays: list[Replay], path: Path, everything: bool) -> list[Path]:
    """scores.csv (key, learnability, times drawn and chosen) and uids.npy, DataComp's format.

    uids.npy holds the chosen pairs (with `everything`: the best (1 - f) of the source) as sorted
    pairs of uint64, the two halves of a 128-bit uid: a key of 32 hexadecimal digits as it is,
    another key by its blake2b hash.
    """
    store = opened.part.store
    if everything:
        rows, score = opened.part.rows, score_all(opened)
        keep = round(len(rows) * (1 - opened.run.selection.filter_ratio))
        kept = np.zeros(len(rows), np.int64)
        kept[np.argsort(-score)[:keep]] = 1
        drawn = np.ones(len(rows), np.int64)
    else:
        every = np.concatenate([r.rows for r in replays])
        flags = [np.isin(np.arange(len(r.rows)), r.index).astype(np.int64) for r in replays]
        rows, inverse = np.unique(every, return_inverse=True)
        drawn = np.bincount(inverse)
        kept = np.bincount(inverse, np.concatenate(flags)).astype(np.int64)
        score = np.bincount(inverse, np.concatenate([r.score for r in replays])) / drawn
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "learnability", "drawn", "chosen"])
    for row, s, d, k in zip(rows.tolist(), score, drawn.tolist(), kept.tolist(), strict=True):
        writer.writerow([store.keys[row], f"{s:.5g}", d, k])
    write_atomic(path / "scores.csv", out.getvalue().encode())
    uids = np.array([uid(store.keys[row]) for row in rows[kept > 0].tolist()], "u8,u8")
    uids.sort()
    np.save(path / "uids.npy", uids)
    return [path / "scores.csv", path / "uids.npy"]


def score_all(opened: Opened) -> np.ndarray:
    """Diagonal learnability of every pair of the run's source, float64 [n]."""
    store, part = opened.part.store, opened.part
    out = np.empty(len(part.rows))
    for first in range(0, len(out), BLOCK):
        rows = part.rows[first : first + BLOCK]
        ours = embed(opened.learner, *rows_of(store, rows), None)
        out[first : first + BLOCK] = _diagonal(ours) - _diagonal(opened.reference.pairs(rows))
    return out


def uid(key: str) -> tuple[int, int]:
    """DataComp's two 64-bit halves of a key (see `_export`)."""
    word = key if len(key) == 32 and set(key) <= set("0123456789abcdef") else ""
    word = word or hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    return int(word[:16], 16), int(word[16:], 16)
