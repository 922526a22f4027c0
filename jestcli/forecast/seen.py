"""What a reference sees of a sampled pool, and what a pool shows without one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jestcli.config import Run
from jestcli.data.dataset import Dataset
from jestcli.data.decoded import DecodedDataset
from jestcli.data.shard_dataset import open_shards
from jestcli.forecast.share import Scores, Share, estimate, score
from jestcli.runs.reference import run_reference
from jestcli.runs.run_data import data_of
from jestcli.runs.trained import THREADS
from jestcli.runs.workspace import Workspace
from jestcli.training.devices import pick_device, set_threads
from jestcli.training.reference import (
    BLOCK,
    EmbeddingTable,
    LiveReference,
    fill,
    open_clip_reference,
)

COMPARED = 4_000  # pool pairs, and curated ones, whose pictures are compared
SHOWN = 40  # likely wrong pairs on the contact sheet


@dataclass(frozen=True)
class Seen:
    """near: share of the pool whose nearest curated picture is as near as that of the typical
    curated one (.5 would be a pool of the same kind); same_pictures, same_captions: shares of the
    sample that repeat another's. worst: rows of the sampled pool that fit their captions least."""

    share: Share
    scores: Scores
    near: float
    same_pictures: float
    same_captions: float
    worst: tuple[int, ...]


def opened(run: Run, workspace: Workspace) -> LiveReference:
    """The reference of a race that reads one."""
    device = pick_device("auto")
    if device.type == "cpu":
        set_threads(THREADS)
    if run.reference_model is not None:
        return open_clip_reference(run.reference_model, device)
    assert run.reference is not None
    tokenizer = data_of(run, workspace).tokenizer
    return run_reference(run.reference, workspace, tokenizer, device=device)


def _embed(live: LiveReference, dataset: Dataset, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Images and texts, float32 [n, d]."""
    parts = []
    for first in range(0, len(rows), BLOCK):
        pairs = live.embed(dataset.read(rows[first : first + BLOCK], live.transform))
        parts.append((pairs.image.cpu(), pairs.text.cpu()))
    return tuple(torch.cat(side).numpy() for side in zip(*parts, strict=True))


def look(run: Run, held: DecodedDataset, held_folder: str, workspace: Workspace) -> Seen:
    """Embed the sampled pool with the reference of the race `run` (which all races then read), and
    the curated pairs held out of its training."""
    live, data = opened(run, workspace), data_of(run, workspace)
    pool, curated = data.pool, data.curated

    def readable(entries: tuple[str, ...], decoded: Dataset) -> Dataset:
        """The sampled shards as this reference reads them: one with a preprocessing of its own
        needs pictures, not pixels of the races' size. The rows are the same."""
        if live.second is None:
            return decoded
        return open_shards("sample", entries, workspace.loading)

    files = pool.table_files(live, data.tables)
    fill(live, readable(run.data.train, pool), files)
    image, text, _ = (x.numpy() for x in EmbeddingTable(files, live).lookup(np.arange(len(pool))))
    own = readable((held_folder,), held)
    held_image, held_text = _embed(live, own, np.arange(len(held)))
    scores = score(image, text)
    rows = np.arange(min(len(curated), COMPARED))
    known, _ = _embed(live, readable(run.data.curated, curated), rows)
    typical = np.median((held_image[:COMPARED] @ known.T).max(1))
    nearest = (image[:COMPARED] @ known.T).max(1)
    captions = np.array(pool.captions_of(np.arange(len(pool))))
    return Seen(
        estimate(scores, score(held_image, held_text)),
        scores,
        float((nearest >= typical).mean()),
        1 - len({pool.image(row).tobytes() for row in range(len(pool))}) / len(pool),
        1 - len(np.unique(captions)) / len(pool),
        tuple(np.argsort(scores.right)[:SHOWN].tolist()),
    )
