"""The data that a run names: the one place that asks where they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jestcli.config import VERIFIED, Data, Model, Run
from jestcli.data.concat import ConcatDataset
from jestcli.data.dataset import Dataset
from jestcli.data.decoded import DecodedDataset, build_decoded
from jestcli.data.pools import relevant, thinned, unverified_rows, verified_rows
from jestcli.data.shard_dataset import RECORD, open_shards
from jestcli.data.sources import Loading, all_shards
from jestcli.data.tokens import SmallTokenizer, named_tokenizer, small_tokenizer
from jestcli.evaluation.benchmarks import Benchmark, find_benchmarks, list_benchmarks
from jestcli.icons.build import shard_urls
from jestcli.runs.workspace import Workspace
from jestcli.utils import catalogue
from jestcli.utils.progress import Progress, silent


@dataclass(frozen=True)
class RunData:
    """The data that a run names, opened when they are asked for: a user's shards.

    folder: the run directory, which keeps the counts.
    """

    data: Data
    model: Model
    loading: Loading
    folder: Path

    @property
    def embeds_first(self) -> bool:
        """Whether the pool is small enough to be embedded by the reference before training."""
        return self.data.decoded

    @property
    def tables(self) -> Path:
        """Under it lie the reference's embeddings of what is decoded."""
        return self.loading.cache

    @cached_property
    def tokenizer(self) -> Any:
        return tokenizer_of(self.model, self.data)

    def dataset(
        self, split: str, workers: int | None = None, progress: Progress = silent
    ) -> Dataset:
        """ "pool" or "curated", decoded or counted unless it is already. Raises DataError."""
        data, pool = self.data, split == "pool"
        entries = data.train if pool else data.curated
        if data.decoded:
            folder = self.loading.cache / "decoded"
            shards, size = all_shards(entries), data.image_size
            return build_decoded(
                shards, folder, size, self.tokenizer, workers=workers, progress=progress
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        weights, record = data.weights if pool else (), self.folder / RECORD
        return open_shards(
            split, entries, self.loading, weights, data.window, record=record, progress=progress
        )

    def benchmarks(self) -> list[Benchmark]:
        """Those of data.benchmarks; none without."""
        if self.data.benchmarks is None:
            return []
        return find_benchmarks(Path(self.data.benchmarks), self.data.image_size, self.data.shots)

    @cached_property
    def pool(self) -> Dataset:
        return self.dataset("pool")

    @cached_property
    def curated(self) -> Dataset:
        return self.dataset("curated")

    def pool_of(self, run: Run) -> Dataset:
        """What the run's pool is a part of, under right captions."""
        return self.pool

    def drawable(self, run: Run) -> np.ndarray | None:
        """Rows of `pool_of` that the run may draw from, int64 ascending; None: all."""
        return None

    def may_be_wrong(self, run: Run) -> np.ndarray | None:
        """Rows of `pool_of` whose captions source.noise_share may move; None: all."""
        return None

    def curated_of(self, run: Run) -> tuple[Dataset, np.ndarray | None, int]:
        """The run's curated set: a data set, the rows of it (None: all), and how many of a pair's
        captions are shown."""
        return self.curated, None, 2

    def outside_curated(self) -> np.ndarray | None:
        """Rows of the pool that surely lie in no curated set; None where that is not known."""
        return None  # a user's curated pairs may lie in the pool, too


@dataclass(frozen=True)
class IconsData(RunData):
    """The embedded data, which lie decoded under `folder`."""

    embeds_first = True

    @property
    def tables(self) -> Path:
        return self.folder

    @cached_property
    def tokenizer(self) -> SmallTokenizer:
        return small_tokenizer(self.data.vocab_size, self.data.context_length)

    def dataset(
        self, split: str, workers: int | None = None, progress: Progress = silent
    ) -> DecodedDataset:
        return build_decoded(
            shard_urls(self.folder, split),
            self.folder / "store" / split,
            self.data.image_size,
            self.tokenizer,
            decoder=None,
            workers=workers,
            progress=progress,
        )

    def benchmarks(self) -> list[Benchmark]:
        return list_benchmarks(self.folder)

    @cached_property
    def pool(self) -> DecodedDataset:
        return self.dataset("pool")

    @cached_property
    def curated(self) -> DecodedDataset:
        return self.dataset("curated")

    @cached_property
    def both(self) -> ConcatDataset:
        """The pool with the curated sources left in it, behind its own pairs."""
        return ConcatDataset((self.pool, self.curated))

    def pool_of(self, run: Run) -> Dataset:
        return self.both if run.source.curated_in_pool else self.pool

    def drawable(self, run: Run) -> np.ndarray:
        dataset, share = self.pool_of(run), run.source.relevant_share
        rows = self.may_be_wrong(run)  # never the verified ones
        if share is not None:
            labelled = [each for each in self.benchmarks() if each.kind != "retrieval"]
            asked_for = [name for each in labelled for name in each.classes]
            shows = relevant(dataset, asked_for, self.pool.folder)[rows]
            rows = rows[thinned(dataset.hashes[rows], shows, share)]
        return rows

    def may_be_wrong(self, run: Run) -> np.ndarray:
        return unverified_rows(self.pool, len(self.pool_of(run)))

    def curated_of(self, run: Run) -> tuple[Dataset, np.ndarray | None, int]:
        level, size = run.data.level, run.data.curated_size
        if level == VERIFIED:  # pairs as the pool has them: with one caption each
            return self.pool, verified_rows(self.pool, size), 1
        # The weakest level is a list of pool pairs, too, but of such as stay in the pool.
        inside = level in self.pool.level_names["levels"]
        dataset = self.pool if inside else self.curated
        return dataset, dataset.choose(level, size), 2

    def outside_curated(self) -> np.ndarray:
        return unverified_rows(self.pool)


def data_of(run: Run, workspace: Workspace, folder: Path | None = None) -> RunData:
    """What `run` reads. folder: of the run, where it is not the workspace's own."""
    loading = workspace.loading
    if not run.data.own:
        return IconsData(run.data, run.model, loading, workspace.data_root(run))
    loading = replace(loading, layout=run.data.layout)
    return RunData(run.data, run.model, loading, folder or workspace.folder(run))


def tokenizer_of(model: Model, data: Data) -> Any:
    """CLIP's byte pairs, cut to data.vocab_size (49,408 is CLIP's own tokenizer); for pretrained
    weights of a model with another tokenizer, that one."""
    if catalogue.own_tokenizer(model.name, model.pretrained or model.own_tokenizer):
        return named_tokenizer(model.name or "", data.context_length)
    return small_tokenizer(data.vocab_size, data.context_length)
