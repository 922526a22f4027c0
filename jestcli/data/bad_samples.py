"""What could not be read: skipped, counted, written down, and replayed when a run goes on.

A fault that passes (a server that was down) must not change what a resumed run sees: what the log
names is not tried again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jestcli.utils.errors import DataError
from jestcli.utils.reading import parse_json, reading

LEAST_READ = 200  # samples before a share of faults means anything
FULL = -1  # the attempt of a sample that was scored, but broke when decoded at full size

logger = logging.getLogger(__name__)


class BadSample(Exception):
    """A sample cannot be used; the message is the reason it is counted under.

    whole: the shard cannot be had, not only this sample.
    """

    def __init__(self, reason: str, whole: bool = False):
        super().__init__(reason)
        self.whole = whole


class BadSampleRecord(NamedTuple):
    """One sample that could not be used, at one place of the order."""

    stream: str
    position: int
    attempt: int  # 0: the sample itself; k: its k-th substitute
    shard: str
    key: str
    reason: str
    whole: bool = False  # the shard cannot be had, not only this sample


class BadSampleLog:
    """Faults in a JSON-lines file a rank; all ranks' files are read, each writes its own."""

    def __init__(self, folder: Path | None = None, rank: int = 0, limit: float = 0.05):
        self.limit = limit
        self.known: dict[tuple[str, int, int], BadSampleRecord] = {}
        self.met: Counter[tuple[str, str]] = Counter()
        self.lost: set[str] = set()  # shards that could not be had
        name = f"faults-rank{rank}.jsonl" if rank else "faults.jsonl"
        self.path = folder / name if folder else None
        # All ranks': a resumed run may have another number of them, and other slices.
        for path in sorted(folder.glob("faults*.jsonl")) if folder else []:
            for fault in _read(path):
                self.known[fault[:3]] = fault

    def add(self, faults: Iterable[BadSampleRecord]) -> None:
        """Count these and write down the new ones."""
        new = []
        for fault in faults:
            if not self.met[fault.shard, fault.reason]:
                what = "skipped %s of %s: %s (more of the same are counted only)"
                logger.warning(what, fault.key, fault.shard, fault.reason)
            self.met[fault.shard, fault.reason] += 1
            if fault.whole:
                self.lost.add(fault.shard)
            if fault[:3] not in self.known:
                self.known[fault[:3]] = fault
                new.append(fault)
        if new and self.path:
            with self.path.open("a") as file:
                file.write("".join(json.dumps(fault._asdict()) + "\n" for fault in new))

    def check(self, read: int, shards: int) -> None:
        """Raises DataError when too large a share of `read` samples was faulty.

        Samples of shards that cannot be had do not count while these are few of all `shards`:
        where such a shard was to be read, many samples in a row are missing, and the rest is well.
        """
        few = len(self.lost) <= self.limit * shards
        left = {k: n for k, n in self.met.items() if not (few and k[0] in self.lost)}
        counted = Counter(left)
        faults = counted.total()
        if read >= LEAST_READ and faults > self.limit * read:
            (shard, reason), _ = counted.most_common(1)[0]
            log = f"; all are in {self.path}" if self.path else ""
            raise DataError(
                f"{faults:,} of {read:,} samples could not be read, more than the "
                f"{100 * self.limit:g} % that --max-faults allows; most often: {reason} "
                f"({shard}){log}"
            )


def _read(path: Path) -> Iterable[BadSampleRecord]:
    """The faults of a file; a line that a killed process left unfinished is cut off."""
    content = path.read_bytes()
    whole = content.rpartition(b"\n")[0]
    if len(whole) + 1 < len(content):
        path.write_bytes(whole + b"\n" if whole else b"")
    with reading(path, ": without it a resumed run may see other samples"):
        return [BadSampleRecord(**parse_json(line)) for line in whole.splitlines()]
