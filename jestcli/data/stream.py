"""Candidates straight from shards that are too many to decode up front.

A sample's place in the order, what stands in for a broken one and what it is turned into are pure
functions of (seed, position): a run's state is its step, and the number of workers or ranks
changes nothing but the speed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jestcli.data.errors import DataError
from jestcli.data.faults import FULL, Fault, FaultLog
from jestcli.data.files import save_text
from jestcli.data.loader import Candidates, slice_of
from jestcli.data.order import Order, weighted
from jestcli.data.parallel import Progress, silent, usable_cores
from jestcli.data.shards import IMAGES, LARGEST_TEXT, Pair, Skip, decode
from jestcli.data.sizes import stated_counts
from jestcli.data.sources import Loading, ShardError, is_remote, list_shards, local
from jestcli.data.store import fit
from jestcli.data.tarindex import ShardIndex, read_index
from jestcli.training.randomness import generator

CHUNK = 64  # most samples that a worker reads at a time
AHEAD = 2  # steps that workers are ahead
SUBSTITUTES = 20  # tries before a position is given up
LARGEST_FILE = 100_000_000  # bytes of one image file
RECORD = "shards.json"
WATCHED = 20  # seconds over which waiting is measured
NOTICED = 0.1  # share of the time spent waiting above which data are called the bottleneck
Tokenizer = Callable[[list[str]], Tensor]
logger = logging.getLogger(__name__)


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


# --- one sample ----------------------------------------------------------------------------------


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


class _NoShard(Skip):
    """The whole shard cannot be had."""


class Reader:
    """Samples by (shard, number), from open files and indexes that are kept for a while."""

    def __init__(self, stream: Stream, loading: Loading, keep: int = 32):
        self.stream, self.loading, self.keep = stream, loading, keep
        self.open: OrderedDict[int, tuple[ShardIndex, int]] = OrderedDict()
        self.surplus: dict[str, str] = {}  # shards that hold more than was counted, in words

    def key(self, shard: int, sample: int) -> str:
        """The sample's name in logs, without the shard."""
        try:
            return self._shard(shard)[0].keys[sample]
        except (ShardError, IndexError):
            return f"sample {sample}"

    def raw(self, shard: int, sample: int) -> dict[str, Any]:
        """Extension -> bytes, as webdataset names them. Raises Skip."""
        try:
            index, file = self._shard(shard)
        except ShardError as error:
            raise _NoShard(str(error)) from None
        if sample >= len(index):
            raise Skip(f"the shard holds only {len(index):,} samples, fewer than were counted")
        url = self.stream.shards[shard]
        found: dict[str, Any] = {"__key__": index.keys[sample], "__url__": url}
        for extension, (offset, size) in index.members[sample].items():
            image = extension in IMAGES
            if size > (LARGEST_FILE if image else LARGEST_TEXT):
                raise Skip("image file too large" if image else "text too large")
            try:
                found[extension] = os.pread(file, size, offset)
            except OSError as error:
                raise Skip(f"cannot be read ({error.strerror})") from None
            if len(found[extension]) != size:
                raise Skip("shard breaks off")
        return found

    def pair(self, shard: int, sample: int, least: int | None = None) -> Pair:
        """The decoded pair; least: pixels that are enough. Raises Skip."""
        pair = decode(self.raw(shard, sample), least)
        if not pair.captions:
            raise Skip("no caption")
        return pair

    def _shard(self, shard: int) -> tuple[ShardIndex, int]:
        if shard in self.open:
            self.open.move_to_end(shard)
            return self.open[shard]
        url = self.stream.shards[shard]
        index = read_index(url, self.loading)
        try:
            file = os.open(local(url, self.loading), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ShardError(f"cannot be read ({error.strerror})") from None
        if os.fstat(file).st_size != index.size:
            os.close(file)
            raise ShardError("the shard has changed")
        count = int(self.stream.starts[shard + 1] - self.stream.starts[shard])
        if len(index) > count:
            self.surplus[url] = (
                f"{url} holds {len(index):,} samples, more than the {count:,} that were counted "
                "or stated: the rest is not used"
            )
        self.open[shard] = index, file
        if len(self.open) > self.keep:
            os.close(self.open.popitem(last=False)[1][1])
        return self.open[shard]

    def close(self) -> None:
        for _, file in self.open.values():
            os.close(file)
        self.open.clear()


class Reading:
    """The endless reading of a stream: positions to places."""

    def __init__(self, stream: Stream, seed: int):
        self.stream, self.seed = stream, seed
        self.orders = [
            Order(seed, f"{stream.name} {i}", counts, stream.window)
            for i, counts in enumerate(stream.counts)
        ]
        lengths = [len(source) for source in stream.sources]
        self.first = [sum(lengths[:i]) for i in range(len(lengths))]

    def place(self, position: int, attempt: int = 0) -> tuple[int, int]:
        """Shard and sample; attempt k > 0: the k-th substitute."""
        source, inner = self._source(position)
        order = self.orders[source]
        shard, sample = order.substitute(inner, attempt) if attempt else order.place(inner)
        return self.first[source] + shard, sample

    def near(self, position: int) -> list[int]:
        """Shards that are read about there, and next."""
        source, inner = self._source(position)
        return [self.first[source] + shard for shard in self.orders[source].near(inner)]

    def caption(self, pair: Pair, position: int) -> str:
        n = min(len(pair.captions), self.stream.captions)
        if n == 1:
            return pair.captions[0]
        dice = generator(self.seed, f"{self.stream.name} caption", position)
        return pair.captions[int(dice.integers(n))]

    def _source(self, position: int) -> tuple[int, int]:
        if not self.stream.weights:
            return 0, position
        return weighted(self.seed, self.stream.name, self.stream.weights, position)


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
    step), where that changes along the run.
    """

    stream: Stream
    count: int
    before: Callable[[int], int] | None = None

    def positions(self, step: int) -> range:
        """Where in the stream's endless reading the pairs of `step` stand."""
        if self.before is None:
            return range(step * self.count, (step + 1) * self.count)
        return range(self.before(step), self.before(step + 1))


class _Chunks(Dataset[Chunk]):
    """(step, start, stop) of this rank's slice -> its candidates. What workers run."""

    def __init__(
        self, portions: list[Portion], view: View, seed: int, loading: Loading,
        known: dict[tuple[str, int, int], Fault], rank: int, world: int,
    ):  # fmt: skip
        self.portions, self.view, self.known = portions, view, known
        self.readings = [Reading(p.stream, seed) for p in portions]
        self.readers = [Reader(p.stream, loading) for p in portions]
        self.rank, self.world = rank, world

    def mine(self, step: int) -> slice:
        """This rank's part of the super-batch of `step`."""
        return slice_of(sum(len(p.positions(step)) for p in self.portions), self.rank, self.world)

    def size(self, step: int) -> int:
        """How many candidates that is."""
        mine = self.mine(step)
        return mine.stop - mine.start

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 each: the portion and the position in it of this rank's candidates."""
        drawn, mine = [p.positions(step) for p in self.portions], self.mine(step)
        which = np.repeat(np.arange(len(drawn)), [len(each) for each in drawn])[mine]
        at = np.concatenate([np.asarray(each, np.int64) for each in drawn])[mine]
        return which, at

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
                gone = isinstance(reason, _NoShard)
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

    waited: seconds that draws waited for data, the first one (which fills the queue) apart.
    """

    def __init__(
        self, portions: list[Portion], view: View, seed: int, loading: Loading,
        log: FaultLog | None = None, rank: int = 0, world: int = 1,
    ):  # fmt: skip
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
                       self.rank, self.world)  # fmt: skip

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
