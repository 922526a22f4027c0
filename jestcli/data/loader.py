"""Super-batches: the candidates of a step, as a pure function of (seed, step).

Data in memory are read where the run is; shards, which have to be decoded, by worker processes that
are a few steps ahead. A sample's place in the order, what stands in for a broken one and what it is
turned into are pure functions of (seed, position): a run's state is its step, and the number of
workers or ranks changes nothing but the speed.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from jestcli.data.bad_samples import FULL, BadSample, BadSampleLog, BadSampleRecord
from jestcli.data.dataset import Dataset, Samples, Transform, in_sequence, merged, picked
from jestcli.data.images import fit
from jestcli.data.order import Order
from jestcli.data.sources import Loading
from jestcli.utils.errors import DataError
from jestcli.utils.parallel import end_with, usable_cores

CHUNK = 64  # most samples that a worker reads at a time
AHEAD = 2  # steps that workers are ahead
SUBSTITUTES = 20  # tries before a position is given up
WATCHED = 20  # seconds over which waiting is measured
NOTICED = 0.1  # share of the time spent waiting above which data are called the bottleneck
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """So many pairs of one data set in every super-batch.

    captions: one of a pair's first so many captions is shown, at random. before: step -> pairs that
    the steps before it draw; in place of per_step (then the most in a step), where that changes
    along the run.
    """

    dataset: Dataset
    order: Order
    per_step: int
    captions: int = 1
    before: Callable[[int], int] | None = None

    @property
    def name(self) -> str:
        return self.order.name

    @property
    def rows(self) -> np.ndarray:
        """The rows that are drawn from, int64, ascending."""
        return np.arange(len(self.dataset)) if self.order.kept is None else self.order.kept

    def positions(self, step: int) -> range:
        """Where in the endless reading of the data set the pairs of `step` stand."""
        if self.before is None:
            return range(step * self.per_step, (step + 1) * self.per_step)
        return range(self.before(step), self.before(step + 1))


@dataclass(frozen=True)
class SuperBatch:
    """The candidates of a step, or this rank's slice of them.

    part, row, caption_row: int64 [B], which source, which row of its data set, and whose caption is
    shown; images: uint8 [B, 3, s, s], the deterministic view at scoring size; tokens: int64 [B, L].
    name: i -> what candidate i is called in logs.
    reload: int64 [b] -> uint8 [b, 3, S, S], where scoring saw smaller images than training will.
    wrong: bool [B], whose caption is known to be another's (source.noise_share); None: not known.
    texts, second: the captions, and int64 [b] -> uint8 [b, 3, s', s'] as another model's own
    preprocessing makes them, where a reference needs them.
    """

    part: np.ndarray
    row: np.ndarray
    caption_row: np.ndarray
    images: Tensor
    tokens: Tensor
    name: Callable[[int], str]
    reload: Callable[[np.ndarray], Tensor] | None = None
    texts: Sequence[str] = ()
    second: Callable[[np.ndarray], Tensor] | None = None
    wrong: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def keys(self) -> list[str]:
        """What every candidate is called."""
        return [self.name(i) for i in range(len(self))]

    def first(self, n: int) -> SuperBatch:
        """The first n of them."""
        return replace(
            self,
            part=self.part[:n],
            row=self.row[:n],
            caption_row=self.caption_row[:n],
            images=self.images[:n],
            tokens=self.tokens[:n],
            texts=self.texts[:n],
            wrong=None if self.wrong is None else self.wrong[:n],
        )

    def full(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates `index`, int64 [b], to train on: uint8 [b, 3, S, S] and int64 [b, L]."""
        there = index.to(self.tokens.device)  # once, not at either look-up
        images = self.images[there] if self.reload is None else self.reload(index.numpy())
        return images, self.tokens[there]


def slice_of(n: int, rank: int, world: int) -> slice:
    """The part of n positions that rank `rank` of `world` takes."""
    return slice(n * rank // world, n * (rank + 1) // world)


def slices_of(counts: Sequence[int], rank: int, world: int, apart: bool) -> list[slice]:
    """Of every source, with so many pairs in a step, what this rank takes.

    A slice of all of them, one source after the other; with `apart` a slice of each: a sampler
    chooses from one of them, of which every rank must then hold as many.
    """
    if apart:
        return [slice_of(n, rank, world) for n in counts]
    # One slice of all, so that every rank holds as many pairs even where a source has only a few.
    mine, starts = slice_of(sum(counts), rank, world), accumulate(counts, initial=0)
    return [
        slice(min(max(mine.start - at, 0), n), min(max(mine.stop - at, 0), n))
        for at, n in zip(starts, counts, strict=False)
    ]


@dataclass
class Chunk:
    """Some consecutive candidates as they were read. error: why it could not go on."""

    samples: Samples | None = None
    bad: list[BadSampleRecord] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # shard -> what is odd about it
    error: str = ""


class _Chunks(TorchDataset[Chunk]):
    """(step, start, stop) of this rank's slice -> its candidates. What workers run.

    known: what could not be read before; it is not tried again.
    """

    def __init__(
        self,
        sources: list[Source],
        transform: Transform,
        known: dict[tuple[str, int, int], BadSampleRecord],
        rank: int,
        world: int,
        apart: bool,
    ):
        self.sources, self.transform, self.known = sources, transform, known
        self.rank, self.world, self.apart = rank, world, apart

    def slices(self, step: int) -> tuple[list[range], list[slice]]:
        """The positions of the whole super-batch in every source, and this rank's part of them."""
        whole = [source.positions(step) for source in self.sources]
        return whole, slices_of([len(each) for each in whole], self.rank, self.world, self.apart)

    def size(self, step: int) -> int:
        """How many candidates this rank has."""
        return sum(part.stop - part.start for part in self.slices(step)[1])

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 each: the source and the position in it of this rank's candidates."""
        mine = [each[part] for each, part in zip(*self.slices(step), strict=True)]
        which = np.repeat(np.arange(len(mine)), [len(each) for each in mine])
        return which, np.concatenate([np.asarray(each, np.int64) for each in mine])

    def __getitem__(self, task: tuple[int, int, int]) -> Chunk:
        step, start, stop = task
        chunk, read, before = Chunk(), [], 0
        try:
            for source, whole, part in zip(self.sources, *self.slices(step), strict=True):
                n = part.stop - part.start
                first, last = max(start - before, 0), min(stop - before, n)
                before += n
                if first < last:
                    mine = slice(part.start + first, part.start + last)
                    read.append(self._read(source, step, whole, mine, chunk.bad))
        except (DataError, OSError) as error:
            # What a worker raises comes out of torch with its traceback: one line is handed over.
            return Chunk(error=str(error))
        for source in self.sources:
            chunk.notes |= source.dataset.notes
        chunk.samples = in_sequence(read)
        return chunk

    def _read(
        self, source: Source, step: int, whole: range, part: slice, bad: list[BadSampleRecord]
    ) -> Samples:
        """The pairs at these positions, or the first substitutes that can be read."""
        positions, dataset = whole[part], source.dataset
        counts = dataset.caption_counts
        pick = source.order.captions(source.captions, counts, step, whole, part)
        rows = source.order.rows(positions.start, len(positions))
        left, done = np.arange(len(rows)), []
        for attempt in range(SUBSTITUTES + 1):
            # What the log names is not tried again, though a server may be up by now: a resumed
            # run must see what the first one saw.
            old = {}  # place -> what the log says of it
            if self.known:
                keys = {i: (source.name, positions[i], attempt) for i in left.tolist()}
                old = {i: self.known[key] for i, key in keys.items() if key in self.known}
            fresh = left[~np.isin(left, list(old))] if old else left
            samples = dataset.read(rows[fresh], self.transform, picked(pick, fresh))
            for at, reason in samples.bad.items():
                i = int(fresh[at])
                old[i] = record(source, positions[i], attempt, int(rows[i]), reason)
            samples.place, samples.bad = fresh[samples.place], {}
            done.append(samples)
            left = np.array(sorted(old), np.int64)
            bad += [old[i] for i in left.tolist()]
            if not len(left):
                return merged(done)
            # A step has as many pairs as it should, whatever is broken: another of the window.
            for i in left.tolist():
                rows[i] = source.order.substitute(positions[i], attempt + 1)
        raise DataError(
            f"{SUBSTITUTES + 1} samples in a row could not be read, the last from "
            f"{bad[-1].shard}: {bad[-1].reason}"
        )


def record(
    source: Source, position: int, attempt: int, row: int, reason: BadSample
) -> BadSampleRecord:
    """What the log says of one sample that could not be read."""
    shard = source.dataset.places(np.array([row]))[0]
    key = source.dataset.name(row).removeprefix(f"{shard}:")
    return BadSampleRecord(source.name, position, attempt, shard, key, str(reason), reason.whole)


def bottleneck(seconds: float, waited: float, read: int) -> str:
    """One line when more than a tenth of `seconds` went on waiting for `read` pairs; else empty."""
    if waited <= NOTICED * seconds:
        return ""
    gives, takes = read / seconds, read / max(1e-9, seconds - waited)
    return (
        f"data are the bottleneck: {100 * waited / seconds:.0f} % of the time is waiting; the "
        f"loader gives {gives:,.0f} pairs/s, training could take {takes:,.0f}"
    )


def _start_worker(parent: int, _: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process saves, then ends us
    # So with the first SIGTERM, which Slurm and `kill` may send to the whole group; a worker that
    # hangs is ended by the next.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    end_with(parent)


class SuperBatchLoader:
    """loader(step) -> the step's super-batch, of which this rank gets a contiguous slice.

    Its whole state is the step that is asked for; any may be the next.

    transform: what pairs are turned into; data in memory are already. log: what cannot be read.
    apart: see slices_of.
    waited: seconds that steps waited for data, the first one (which fills the queue) left out.
    bottleneck: one line when training waits for data, and by how much; else empty.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        transform: Transform,
        loading: Loading,
        log: BadSampleLog | None = None,
        rank: int = 0,
        world: int = 1,
        apart: bool = False,
    ):
        self.sources = list(sources)
        self.transform, self.loading = transform, loading
        self.log = log or BadSampleLog(limit=loading.max_faults)
        self.in_memory = all(source.dataset.in_memory for source in self.sources)
        self.workers = max(0, usable_cores() - 1) if loading.workers is None else loading.workers
        self.waited, self.read, self.bottleneck = 0.0, 0, ""
        self.watch = (time.perf_counter(), 0.0, 0)
        self.noted: set[str] = set()
        self.data = _Chunks(self.sources, transform, self.log.known, rank, world, apart)
        self.next, self.chunk = -1, CHUNK
        self.chunks: Iterator[Chunk] | None = None
        self.threads: ThreadPoolExecutor | None = None
        self.fetching: dict[Any, Future[Any]] = {}

    def __call__(self, step: int) -> SuperBatch:
        if self.in_memory:  # nothing to decode: no queue is faster
            return self._super_batch(step, [self.data[step, 0, self.data.size(step)]])
        fresh = self.chunks is None or step != self.next
        if fresh:
            self._start(step)
        assert self.chunks is not None
        self._fetch_ahead(step)
        before = time.perf_counter()
        try:
            chunks = [next(self.chunks) for _ in self._tasks(step)]
        except RuntimeError as error:  # how torch says that a worker died
            self.close()
            why = " ".join(str(error).split())[:200]
            raise DataError(
                f"a data worker died (often: out of memory, or a small /dev/shm): {why}"
            ) from None
        if not fresh:  # the first step fills the queue: that is no bottleneck
            self.waited += time.perf_counter() - before
        self.next = step + 1
        return self._super_batch(step, chunks, fresh)

    def _super_batch(self, step: int, chunks: list[Chunk], fresh: bool = False) -> SuperBatch:
        for chunk in chunks:
            if chunk.error:
                raise DataError(chunk.error)
            self.log.add(chunk.bad)
            for shard in chunk.notes.keys() - self.noted:
                logger.warning(chunk.notes[shard])
            self.noted |= chunk.notes.keys()
        read = [chunk.samples for chunk in chunks if chunk.samples is not None]
        self.read += sum(len(samples.row) for samples in read)
        if not self.in_memory:  # of what was decoded before, faults were counted then
            self.log.check(self.read, sum(s.dataset.n_files for s in self.sources))
            self._notice(fresh)
        whole, (which, at) = in_sequence(read), self.data.positions(step)
        scoring_size = self.transform.scoring_size
        reduced = not self.in_memory and scoring_size not in (None, self.transform.size)
        noisy = any(source.dataset.mismatched for source in self.sources)

        def reload(index: np.ndarray) -> Tensor:
            return self._full(which[index], at[index], whole, index)

        def second(index: np.ndarray) -> Tensor:
            if whole.second is not None:
                return whole.second[torch.from_numpy(index)]
            return torch.stack([self._second(which[i], whole, i) for i in index.tolist()])

        return SuperBatch(
            part=which,
            row=whole.row,
            caption_row=whole.caption_row,
            images=whole.images,
            tokens=whole.tokens,
            name=lambda i: self.sources[which[i]].dataset.name(int(whole.row[i])),
            reload=reload if reduced else None,
            texts=whole.texts,
            second=second if self.transform.second is not None else None,
            wrong=whole.caption_row != whole.row if noisy else None,
        )

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

    def _start(self, step: int) -> None:
        self.close()
        size = self.data.size(step)
        # Small enough that all workers have a part of the first step.
        self.chunk = max(1, min(CHUNK, math.ceil(size / max(1, self.workers))))
        # Without end: closing it ends the workers, and how long the run is need not be known.
        tasks = (task for later in count(step) for task in self._tasks(later))
        if not self.workers:
            self.chunks = map(self.data.__getitem__, tasks)
            return
        # torch counts chunks a worker, we count steps: a small step is few chunks.
        several = math.ceil(AHEAD * len(self._tasks(step)) / self.workers)
        self.chunks = iter(
            DataLoader(
                self.data,
                sampler=tasks,
                batch_size=None,
                num_workers=self.workers,
                prefetch_factor=max(2, several),
                # Forked, workers share the orders and indexes, which would be pickled otherwise.
                multiprocessing_context="fork",
                worker_init_fn=partial(_start_worker, os.getpid()),
                generator=torch.Generator(),  # else it draws a seed from torch's own, the run's
            )
        )

    def _tasks(self, step: int) -> list[tuple[int, int, int]]:
        """(step, start, stop) of the chunks that its candidates are read in."""
        size = self.data.size(step)
        return [(step, at, min(at + self.chunk, size)) for at in range(0, size, self.chunk)]

    def _fetch_ahead(self, step: int) -> None:
        """Fetch the remote shards that are needed next, beside the training."""
        wanted: dict[Any, Callable[[], Any]] = {}
        for source in self.sources:
            # What workers read lies between these two: both ends' shards are all of it.
            here, ahead = source.positions(step), source.positions(step + AHEAD)
            for position in (here.start, ahead.stop - 1):
                wanted |= source.dataset.prefetch(source.order.near(position))
        self.fetching = {url: at for url, at in self.fetching.items() if url in wanted}
        for url in sorted(wanted.keys() - self.fetching.keys()):
            # Threads only once the workers have been forked: they hold locks.
            self.threads = self.threads or ThreadPoolExecutor(2)
            self.fetching[url] = self.threads.submit(wanted[url])

    def _second(self, which: int, samples: Samples, i: int) -> Tensor:
        """The second view of one candidate, from what was scored if its shard has gone."""
        try:
            image = self.sources[which].dataset.image(int(samples.row[i]))
        except BadSample:
            image = Image.fromarray(samples.images[i].permute(1, 2, 0).numpy())
        view: Tensor = self.transform.second.image(image)
        return view

    def _full(
        self, which: np.ndarray, at: np.ndarray, samples: Samples, index: np.ndarray
    ) -> Tensor:
        """uint8 [b, 3, S, S]: the chosen pairs decoded at full size, by threads.

        One that breaks only now (its shard has gone, say) is enlarged from what was scored.
        """
        size, rows = self.transform.size, samples.row[index]

        def one(i: int) -> tuple[np.ndarray | None, BadSampleRecord | None]:
            source = self.sources[which[i]]
            known = self.log.known.get((source.name, int(at[i]), FULL))
            if known is not None:  # a resumed run sees what the first one saw
                return None, known
            try:
                return fit(source.dataset.image(int(rows[i])), size), None
            except BadSample as reason:
                return None, record(source, int(at[i]), FULL, int(rows[i]), reason)

        # By threads: Pillow decodes without Python's lock, and the workers are steps ahead.
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            read = list(pool.map(one, range(len(rows))))
        self.log.add(bad for _, bad in read if bad is not None)
        out = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
        for i, (pixels, _) in enumerate(read):
            if pixels is not None:
                out[i] = torch.from_numpy(pixels).permute(2, 0, 1)
            else:
                small = samples.images[int(index[i])][None].float()
                large = F.interpolate(small, (size, size), mode="bilinear", antialias=True)
                out[i] = large[0].round().clamp(0, 255).byte()
        return out

    def close(self) -> None:
        """End worker processes. Closing twice is fine."""
        self.chunks = None  # ends the workers
        if self.threads is not None:
            self.threads.shutdown(wait=True, cancel_futures=True)
        self.threads, self.fetching, self.next = None, {}, -1
        for source in self.sources:
            source.dataset.close()


def on_device(sources: list[Source], device: torch.device, most_bytes: float) -> list[Source]:
    """The same sources, all their data in the memory of `device`; unchanged where those take more
    than `most_bytes`.

    A GPU that waits for pixels from the host is idle most of a small model's step.
    """
    datasets = {id(source.dataset): source.dataset for source in sources}
    if sum(each.nbytes for each in datasets.values()) > most_bytes:
        return sources  # all or none: candidates of several sources make one tensor
    there = {key: each.on_device(device) for key, each in datasets.items()}
    return [replace(source, dataset=there[id(source.dataset)]) for source in sources]
