"""Super-batches straight from shards that are too many to decode up front, read by workers.

A sample's place in the order, what stands in for a broken one and what it is turned into are pure
functions of (seed, position): a run's state is its step, and the number of workers or ranks
changes nothing but the speed.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jestcli.data.faults import FULL, Fault, FaultLog
from jestcli.data.loader import Candidates, slices_of
from jestcli.data.reading import NoShard, Reader, Reading
from jestcli.data.shards import Pair, Skip, decode
from jestcli.data.sources import Loading, is_remote, local
from jestcli.data.store import fit
from jestcli.data.stream import Stream
from jestcli.utils.errors import DataError
from jestcli.utils.parallel import usable_cores

CHUNK = 64  # most samples that a worker reads at a time
AHEAD = 2  # steps that workers are ahead
SUBSTITUTES = 20  # tries before a position is given up
WATCHED = 20  # seconds over which waiting is measured
NOTICED = 0.1  # share of the time spent waiting above which data are called the bottleneck
Tokenizer = Callable[[list[str]], Tensor]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """What a pair is turned into.

    size: pixels that are trained on; scoring_size: pixels that are scored, decoded reduced where
    they are fewer. second: `second.image(image)` is it as another model's own preprocessing makes
    it, uint8 [3, s', s']; workers make it for every sample unless `seldom`.
    """

    size: int
    tokenizer: Tokenizer
    scoring_size: int | None = None
    second: Any = None
    seldom: bool = False

    @property
    def ahead(self) -> bool:
        """Whether workers make the second view."""
        return self.second is not None and not self.seldom


@dataclass
class Chunk:
    """A few consecutive candidates as a worker read them. error: why it could not go on."""

    images: Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: Tensor = field(default_factory=lambda: torch.empty(0))
    keys: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    second: Tensor | None = None
    faults: list[Fault] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # shard -> what is odd about it
    error: str = ""


@dataclass(frozen=True)
class Portion:
    """So many pairs of a stream in every super-batch.

    before: step -> pairs that the steps before it draw; in place of count (then the most in a
    step), where that changes along the run. rows: those of the stream that are drawn from, int64,
    ascending; None is all.
    """

    stream: Stream
    count: int
    before: Callable[[int], int] | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        """Different pairs that are drawn from."""
        return len(self.stream if self.rows is None else self.rows)

    def positions(self, step: int) -> range:
        """Where in the stream's endless reading the pairs of `step` stand."""
        if self.before is None:
            return range(step * self.count, (step + 1) * self.count)
        return range(self.before(step), self.before(step + 1))


class _Chunks(Dataset[Chunk]):
    """(step, start, stop) of this rank's slice -> its candidates. What workers run."""

    def __init__(
        self, portions: list[Portion], view: View, seed: int, loading: Loading,
        known: dict[tuple[str, int, int], Fault], rank: int, world: int, apart: bool = False,
    ):  # fmt: skip
        self.portions, self.view, self.known, self.apart = portions, view, known, apart
        self.readings = [Reading(p.stream, seed, p.rows) for p in portions]
        self.readers = [Reader(p.stream, loading) for p in portions]
        self.rank, self.world = rank, world

    def mine(self, step: int) -> list[range]:
        """This rank's part of the super-batch of `step`: positions in every portion."""
        drawn = [p.positions(step) for p in self.portions]
        slices = slices_of([len(each) for each in drawn], self.rank, self.world, self.apart)
        return [each[part] for each, part in zip(drawn, slices, strict=True)]

    def size(self, step: int) -> int:
        """How many candidates that is."""
        return sum(map(len, self.mine(step)))

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 each: the portion and the position in it of this rank's candidates."""
        mine = self.mine(step)
        which = np.repeat(np.arange(len(mine)), [len(each) for each in mine])
        return which, np.concatenate([np.asarray(each, np.int64) for each in mine])

    def __getitem__(self, task: tuple[int, int, int]) -> Chunk:
        step, start, stop = task
        which, at = (x[start:stop] for x in self.positions(step))
        chunk, images, rows, seconds = Chunk(), [], [], []
        try:
            for w, position in zip(which.tolist(), at.tolist(), strict=True):
                pair, row, key = self._read(w, position, chunk.faults)
                size = self.view.scoring_size or self.view.size
                images.append(fit(pair.image, size))
                chunk.texts.append(self.readings[w].caption(pair, position))
                chunk.keys.append(key)
                rows.append(row)
                if self.view.ahead:
                    seconds.append(self.view.second.image(pair.image))
        except (DataError, OSError) as error:
            return Chunk(error=str(error))
        for reader in self.readers:
            chunk.notes |= reader.surplus
            reader.surplus = {}
        chunk.images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        chunk.tokens = torch.as_tensor(self.view.tokenizer(chunk.texts)).long()
        chunk.rows = torch.tensor(rows)
        chunk.second = torch.stack(seconds) if seconds else None
        return chunk

    def _read(self, which: int, position: int, faults: list[Fault]) -> tuple[Pair, int, str]:
        """The pair at a position, or the first substitute that can be read; its row and key."""
        reading, reader = self.readings[which], self.readers[which]
        stream = reading.stream
        # A second view needs every pixel.
        least = None if self.view.ahead else self.view.scoring_size
        for attempt in range(SUBSTITUTES + 1):
            shard, sample = reading.place(position, attempt)
            old = self.known.get((stream.name, position, attempt))
            if old is not None:
                faults.append(old)
                continue
            try:
                pair = reader.pair(shard, sample, least)
            except Skip as reason:
                key, url = reader.key(shard, sample), stream.shards[shard]
                gone = isinstance(reason, NoShard)
                faults.append(Fault(stream.name, position, attempt, url, key, str(reason), gone))
                continue
            row = int(stream.starts[shard]) + sample
            return pair, row, f"{stream.shards[shard]}:{pair.key}"
        raise DataError(
            f"{SUBSTITUTES + 1} samples in a row could not be read, the last from "
            f"{faults[-1].shard}: {faults[-1].reason}"
        )


class _Tasks:
    """(step, start, stop) without end, from one step on. size: step -> candidates."""

    def __init__(self, start: int, size: Callable[[int], int], chunk: int):
        self.start, self.size, self.chunk = start, size, chunk

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        step = self.start
        while True:
            yield from self.of(step)
            step += 1

    def of(self, step: int) -> list[tuple[int, int, int]]:
        size = self.size(step)
        return [(step, at, min(at + self.chunk, size)) for at in range(0, size, self.chunk)]


def bottleneck(seconds: float, waited: float, read: int) -> str:
    """One line when more than a tenth of `seconds` went on waiting for `read` pairs; else empty."""
    if waited <= NOTICED * seconds:
        return ""
    gives, takes = read / seconds, read / max(1e-9, seconds - waited)
    return (
        f"data are the bottleneck: {100 * waited / seconds:.0f} % of the time is waiting; the "
        f"loader gives {gives:,.0f} pairs/s, training could take {takes:,.0f}"
    )


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process saves, then ends us


class StreamDrawing:
    """Drawing from streams, read ahead by worker processes (see `loader.Drawing`).

    apart: see loader.slices_of.
    waited: seconds that draws waited for data, the first one (which fills the queue) left out.
    """

    def __init__(
        self, portions: list[Portion], view: View, seed: int, loading: Loading,
        log: FaultLog | None = None, rank: int = 0, world: int = 1, apart: bool = False,
    ):  # fmt: skip
        self.apart = apart
        self.portions = [p for p in portions if p.count]
        self.view, self.seed, self.loading = view, seed, loading
        self.log = log or FaultLog(limit=loading.max_faults)
        self.rank, self.world = rank, world
        self.workers = max(0, usable_cores() - 1) if loading.workers is None else loading.workers
        self.waited, self.read, self.bottleneck = 0.0, 0, ""
        self.watch = (time.perf_counter(), 0.0, 0)
        self.noted: set[str] = set()
        self.data = self._data()
        self.next = -1
        self.chunks: Iterator[Chunk] | None = None
        self.threads: ThreadPoolExecutor | None = None
        self.fetching: dict[str, Future[Any]] = {}

    def __call__(self, step: int) -> Candidates:
        fresh = self.chunks is None or step != self.next
        if fresh:
            self._start(step)
        assert self.chunks is not None
        self._fetch_ahead(step)
        before = time.perf_counter()
        try:
            chunks = [next(self.chunks) for _ in self.tasks.of(step)]
        except RuntimeError as error:  # how torch says that a worker died
            self.close()
            why = " ".join(str(error).split())[:200]
            raise DataError(
                f"a data worker died (often: out of memory, or a small /dev/shm): {why}"
            ) from None
        if not fresh:
            self.waited += time.perf_counter() - before
        self.next = step + 1
        for chunk in chunks:
            if chunk.error:
                raise DataError(chunk.error)
            self.log.add(chunk.faults)
            for shard in chunk.notes.keys() - self.noted:
                logger.warning(chunk.notes[shard])
            self.noted |= chunk.notes.keys()
        self.read += sum(len(chunk.keys) for chunk in chunks)
        self.log.check(self.read, sum(len(p.stream.shards) for p in self.portions))
        self._notice(fresh)
        return self._candidates(step, chunks)

    def _notice(self, fresh: bool) -> None:
        """Every so often, say whether the loader is the bottleneck, and by how much."""
        now = time.perf_counter()
        since, waited, read = self.watch
        if fresh:
            self.watch = (now, self.waited, self.read)
        elif now - since >= WATCHED:
            self.watch = (now, self.waited, self.read)
            self.bottleneck = bottleneck(now - since, self.waited - waited, self.read - read)
            if self.bottleneck:
                logger.warning(self.bottleneck)

    def _data(self) -> _Chunks:
        return _Chunks(self.portions, self.view, self.seed, self.loading, self.log.known,
                       self.rank, self.world, self.apart)  # fmt: skip

    def _start(self, step: int) -> None:
        self.close()
        size = self.data.size(step)
        chunk = max(1, min(CHUNK, math.ceil(size / max(1, self.workers))))
        self.tasks = _Tasks(step, self.data.size, chunk)
        several = math.ceil(AHEAD * math.ceil(size / chunk) / max(1, self.workers))
        self.chunks = iter(
            DataLoader(
                self._data(), sampler=self.tasks, batch_size=None, num_workers=self.workers,
                prefetch_factor=max(2, several) if self.workers else None,
                multiprocessing_context="fork" if self.workers else None,
                worker_init_fn=_start_worker, generator=torch.Generator(),
            )  # type: ignore[arg-type]
        )  # fmt: skip

    def _fetch_ahead(self, step: int) -> None:
        """Fetch the remote shards that are needed next, beside the training."""
        wanted: set[str] = set()
        for portion, reading in zip(self.portions, self.data.readings, strict=True):
            shards = portion.stream.shards
            if any(map(is_remote, shards)):
                ends = portion.positions(step).start, portion.positions(step + AHEAD).stop - 1
                for position in ends:
                    wanted |= {shards[i] for i in reading.near(position) if is_remote(shards[i])}
        self.fetching = {url: at for url, at in self.fetching.items() if url in wanted}
        for url in sorted(wanted - self.fetching.keys()):
            # Threads only once the workers have been forked: they hold locks.
            self.threads = self.threads or ThreadPoolExecutor(2)
            self.fetching[url] = self.threads.submit(local, url, self.loading)

    def _candidates(self, step: int, chunks: list[Chunk]) -> Candidates:
        which, at = self.data.positions(step)
        rows = torch.cat([chunk.rows for chunk in chunks]).numpy()
        keys = [key for chunk in chunks for key in chunk.keys]
        images = torch.cat([chunk.images for chunk in chunks])
        reduced = self.view.scoring_size not in (None, self.view.size)

        def reload(index: np.ndarray) -> Tensor:
            return self._full(which[index], at[index], rows[index], images, index)

        def second(index: np.ndarray) -> Tensor:
            if self.view.ahead:
                views = torch.cat([chunk.second for chunk in chunks if chunk.second is not None])
                return views[torch.from_numpy(index)]
            return torch.stack([self._second(which[i], rows[i], images[i]) for i in index])

        return Candidates(
            which, rows, images, torch.cat([chunk.tokens for chunk in chunks]),
            keys.__getitem__, reload if reduced else None,
            [text for chunk in chunks for text in chunk.texts],
            second if self.view.second is not None else None,
        )  # fmt: skip

    def _second(self, which: int, row: int, seen: Tensor) -> Tensor:
        """The second view of one candidate, from what was scored if its shard has gone."""
        try:
            image = decode(self._raw(which, row)).image
        except Skip:
            image = Image.fromarray(seen.permute(1, 2, 0).numpy())
        view: Tensor = self.view.second.image(image)
        return view

    def _full(
        self, which: np.ndarray, at: np.ndarray, rows: np.ndarray, seen: Tensor, index: np.ndarray
    ) -> Tensor:
        """uint8 [b, 3, S, S]: the chosen pairs decoded at full size, by threads.

        One that breaks only now (its shard has gone, say) is enlarged from what was scored.
        """
        size = self.view.size

        def one(i: int) -> tuple[np.ndarray | None, Fault | None]:
            stream, reader = self.portions[which[i]].stream, self.data.readers[which[i]]
            shard, sample = stream.locate(int(rows[i]))
            place = (stream.name, int(at[i]), FULL)
            if place in self.log.known:
                return None, self.log.known[place]
            try:
                return fit(decode(raw[i]).image, size), None
            except Skip as reason:
                key = reader.key(shard, sample)
                return None, Fault(*place, stream.shards[shard], key, str(reason))

        raw: list[Any] = [self._raw(w, r) for w, r in zip(which, rows, strict=True)]
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            read = list(pool.map(one, range(len(rows))))
        self.log.add(fault for _, fault in read if fault is not None)
        out = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
        for i, (pixels, _) in enumerate(read):
            if pixels is not None:
                out[i] = torch.from_numpy(pixels).permute(2, 0, 1)
            else:
                small = seen[int(index[i])][None].float()
                large = F.interpolate(small, (size, size), mode="bilinear", antialias=True)
                out[i] = large[0].round().clamp(0, 255).byte()
        return out

    def _raw(self, which: int, row: int) -> dict[str, Any]:
        """A sample's bytes; {} (which cannot be decoded) when they are gone."""
        try:
            return self.data.readers[which].raw(*self.portions[which].stream.locate(int(row)))
        except Skip:
            return {}

    def close(self) -> None:
        self.chunks = None  # ends the workers
        if self.threads is not None:
            self.threads.shutdown(wait=True, cancel_futures=True)
        self.threads, self.fetching, self.next = None, {}, -1
        for reader in self.data.readers:
            reader.close()
