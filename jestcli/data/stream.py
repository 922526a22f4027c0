"""A user's own shards as one stream: where they are, and how many samples each holds."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jestcli.data.faults import Fault, FaultLog
from jestcli.data.sizes import stated_counts
from jestcli.data.sources import Loading, ShardError, list_shards
from jestcli.data.tarindex import ShardIndex, read_index
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_text
from jestcli.utils.parallel import Progress, silent, usable_cores

RECORD = "shards.json"


@dataclass(frozen=True)
class Stream:
    """Image-text shards, read in place. len() is the number of samples.

    sources: the shards of each source. counts: samples of every shard, in the same order.
    weights: how often each source is read; without, all shards are one source.
    """

    name: str
    sources: tuple[tuple[str, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] = ()
    window: int = 8
    captions: int = 1  # one of a pair's first so many captions is drawn

    @cached_property
    def shards(self) -> list[str]:
        return [shard for source in self.sources for shard in source]

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [shards + 1]: the number of each shard's first sample in the pool."""
        flat = [count for source in self.counts for count in source]
        return np.concatenate([[0], np.cumsum(flat)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, row: int) -> tuple[int, int]:
        """Shard and sample of a row of the pool."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return shard, int(row - self.starts[shard])


def open_stream(
    name: str,
    entries: tuple[str, ...],
    loading: Loading,
    weights: tuple[float, ...] = (),
    window: int = 8,
    captions: int = 1,
    record: Path | None = None,
    progress: Progress = silent,
) -> Stream:
    """Find the shards of `entries` and count their samples.

    record: a file that keeps the counts of a run, so that a resumed one has the same order
    whatever its servers answer now. A shard that cannot be read counts as empty and is reported;
    DataError when there are more of them than `loading.max_faults`, or none that can be read.
    """
    listed = [list_shards(entry) for entry in entries]
    sources = listed if weights else [[shard for source in listed for shard in source]]
    shards = [shard for source in sources for shard in source]
    counts = _recorded_counts(name, shards, loading, record, progress)
    each = iter(counts)
    grouped = tuple(tuple(next(each) for _ in source) for source in sources)
    for source, own in zip(sources, grouped, strict=True):
        if not sum(own):
            raise DataError(f"no image-text pair in {source[0]} and the shards with it")
    return Stream(name, tuple(map(tuple, sources)), grouped, weights, window, captions)


def _recorded_counts(
    name: str, shards: list[str], loading: Loading, record: Path | None, progress: Progress
) -> list[int]:
    if record is None:
        return _count(name, shards, loading, progress)
    with _locked(record):
        known = json.loads(record.read_text()) if record.exists() else {}
        own = known.get(name, {})
        if set(own) != set(shards):
            own = dict(zip(shards, _count(name, shards, loading, progress), strict=True))
            save_text(record, json.dumps(known | {name: own}, indent=1))
    return [own[shard] for shard in shards]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """All ranks of a run take the counts of the one that was first."""
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _count(name: str, shards: list[str], loading: Loading, progress: Progress) -> list[int]:
    """Samples of each shard, as stated beside a remote one or from its index; 0 for one that
    cannot be read.

    What is stated comes before an index that an earlier visit left: the order of a new run does
    not depend on who was here before.
    """
    counts = dict.fromkeys(shards, 0)
    broken: dict[str, str] = {}
    log = FaultLog(limit=1.0)
    stated = stated_counts(shards, loading)

    def count(shard: str) -> tuple[str, int | ShardIndex | str]:
        try:
            return shard, stated(shard) or read_index(shard, loading)
        except ShardError as error:
            return shard, str(error)

    with ThreadPoolExecutor(min(8, usable_cores() + 2)) as pool:
        for done, (shard, found) in enumerate(pool.map(count, counts), 1):
            if isinstance(found, int):
                counts[shard] = found
            elif isinstance(found, str):
                broken[shard] = found
                log.add([Fault(name, -1, 0, shard, "the whole shard", found, whole=True)])
            else:
                counts[shard] = len(found)
                log.add(Fault(name, -1, 0, shard, f"{n} samples", reason)
                        for reason, n in found.faults.items())  # fmt: skip
            progress(f"indexing the {name}", done, len(counts))
    if len(broken) == len(counts) or len(broken) > loading.max_faults * len(counts):
        shard, reason = next(iter(broken.items()))
        raise DataError(
            f"{len(broken):,} of {len(counts):,} shards cannot be read, more than the "
            f"{100 * loading.max_faults:g} % that --max-faults allows; the first: {shard}: {reason}"
        )
    return [counts[shard] for shard in shards]
