"""A user's own shards as one data set: where they are, how many samples each holds, any of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from jestcli.data.bad_samples import BadSample, BadSampleLog, BadSampleRecord
from jestcli.data.dataset import Dataset, Samples, TableKeys, Tokenizer, Transform
from jestcli.data.decode import unique
from jestcli.data.embeddings import ShardTable, TableFile
from jestcli.data.fetch import ask_servers, local
from jestcli.data.images import fit
from jestcli.data.order import Pick, Rows, WindowShuffle
from jestcli.data.remote import ShardError, is_remote
from jestcli.data.shards import Pair, decode, words_of
from jestcli.data.sizes import stated_counts
from jestcli.data.sources import Loading, list_shards, not_taken
from jestcli.data.tar import ShardIndex, TarFiles, forget_old_index, read_index
from jestcli.utils.errors import DataError
from jestcli.utils.hashing import hashes_of
from jestcli.utils.io import save_text
from jestcli.utils.parallel import usable_cores
from jestcli.utils.progress import Progress, silent
from jestcli.utils.reading import read_json, reading

logger = logging.getLogger(__name__)
RECORD = "shards.json"
FEW = 2_000  # captions of local shards that are read to look at a whole training


class ShardDataset(Dataset):
    """Image-text shards, read in place (`dataset.Dataset`).

    sources: the shards of each source. counts: samples of every shard, in the same order.
    weights: how often each source is read; without, all shards are one source. entries: what the
    user called each source. window: shards that are shuffled together.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[str]],
        counts: Sequence[Sequence[int]],
        loading: Loading,
        weights: tuple[float, ...] = (),
        window: int = 8,
        entries: tuple[str, ...] = (),
    ):
        self.sources = tuple(map(tuple, sources))
        self.counts = tuple(map(tuple, counts))
        self.weights, self.window, self.loading, self.entries = weights, window, loading, entries
        self.shards = [shard for source in self.sources for shard in source]
        flat = [count for source in self.counts for count in source]
        self.starts = np.concatenate([[0], np.cumsum(flat)]).astype(np.int64)
        self.files = TarFiles(loading)
        self.surplus: dict[str, str] = {}  # shards that hold more than was counted, in words
        self.n_files = len(self.shards)
        # Of one entry there is nothing to tell apart, and nothing else is known of a user's pairs.
        self.groups = ("source",) if len(entries) > 1 else ()
        # One caption of each of many remote shards would fetch them all.
        self.most_captions = 0 if any(map(is_remote, self.shards)) else FEW

    @property
    def notes(self) -> dict[str, str]:
        return self.surplus

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def identity(self) -> str:
        # By addresses and counts, not by content: remote shards would have to be fetched for it.
        return hashlib.sha256(json.dumps([self.shards, self.counts]).encode()).hexdigest()[:16]

    @cached_property
    def hashes(self) -> np.ndarray:
        """By the keys in every shard's index: a remote shard is fetched for it."""
        # Keys repeat in some public sets: told apart, or their pairs would share every choice.
        keys: list[str] = []
        for shard, count in enumerate(np.diff(self.starts).tolist()):
            url = self.shards[shard]
            found: list[str] = []
            with suppress(ShardError):  # it is skipped and named where it is read
                found = read_index(url, self.loading).keys[:count]
            keys += found + [f"{url} {i}" for i in range(len(found), count)]
        return hashes_of(unique(keys))

    def locate(self, row: int) -> tuple[int, int]:
        """Shard and sample of a row."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return shard, int(row - self.starts[shard])

    def raw(self, row: int, images: bool = True) -> dict[str, Any]:
        """Extension -> bytes; without `images` the words alone. Raises BadSample."""
        shard, sample = self.locate(row)
        url, count = self.shards[shard], int(self.starts[shard + 1] - self.starts[shard])
        found = self.files.sample(url, sample, images)
        # A count may be stated beside a remote shard before anyone has seen it.
        held = len(self.files.index(url))
        if held > count:
            self.surplus[url] = (
                f"{url} holds {held:,} samples, more than the {count:,} that were counted "
                "or stated: the rest is not used"
            )
        return found

    def pair(self, row: int, least: int | None = None) -> Pair:
        """The decoded pair; least: pixels that are enough. Raises BadSample."""
        pair = decode(self.raw(row), least, self.loading.layout)
        if not pair.captions:  # one with a class number alone is no pair to train on
            raise BadSample("no caption")
        return pair

    def read(self, rows: np.ndarray, transform: Transform, pick: Pick | None = None) -> Samples:
        size = transform.scoring_size or transform.size
        # A second view needs every pixel.
        least = None if transform.ahead else transform.scoring_size
        places, images, texts, seconds, bad = [], [], [], [], {}
        for place, row in enumerate(rows.tolist()):
            try:
                pair = self.pair(row, least)
            except BadSample as reason:
                bad[place] = reason
                continue
            places.append(place)
            images.append(fit(pair.image, size))
            texts.append(pair.captions[pick(place, len(pair.captions)) if pick else 0])
            if transform.ahead:
                seconds.append(transform.second.image(pair.image))
        read = rows[places]
        return Samples(
            place=np.array(places, np.int64),
            row=read,
            caption_row=read,
            images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
            if images
            else torch.empty(0),
            tokens=torch.as_tensor(transform.tokenizer(texts)).long() if texts else torch.empty(0),
            texts=texts,
            second=torch.stack(seconds) if seconds else None,
            bad=bad,
        )

    def image(self, row: int, least: int | None = None) -> Image.Image:
        return decode(self.raw(row), least, self.loading.layout).image

    def words(self, row: int) -> tuple[str, tuple[str, ...]]:
        """Key and captions, the image unread; none where they cannot be read."""
        try:
            key, captions, meta = words_of(self.raw(row, images=False), self.loading.layout)
        except BadSample:
            shard, sample = self.locate(row)
            return self.files.key(self.shards[shard], sample), ()
        uid = meta.get("uid")  # DataComp's name of a pair
        return uid if isinstance(uid, str) and uid else key, captions

    def captions_of(self, rows: np.ndarray) -> list[str]:
        return [next(iter(self.words(row)[1]), "") for row in rows.tolist()]

    def tokens_of(self, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
        texts = self.captions_of(rows)  # of remote shards this may fetch: see most_captions
        tokens = torch.as_tensor(tokenizer(texts)).long()
        tokens[torch.tensor([not text for text in texts], dtype=torch.bool)] = -1
        return tokens

    def caption_counts(self, rows: np.ndarray) -> np.ndarray:
        return np.array([len(self.words(row)[1]) for row in rows.tolist()], np.int64)

    def keys_of(self, rows: np.ndarray) -> list[str]:
        return [self.words(row)[0] for row in rows.tolist()]

    def name(self, row: int) -> str:
        shard, sample = self.locate(row)
        return f"{self.shards[shard]}:{self.files.key(self.shards[shard], sample)}"

    def places(self, rows: np.ndarray) -> list[str]:
        shards = np.searchsorted(self.starts, rows, side="right") - 1
        return [self.shards[shard] for shard in shards.tolist()]

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        return [self._entry[shard] for shard in self.places(rows)]

    @cached_property
    def _entry(self) -> dict[str, str]:
        return {shard: entry for entry in self.entries for shard in list_shards(entry)}

    def order(
        self, seed: int, name: str, rows: Rows = None, number: int = 0, weighted: bool = True
    ) -> WindowShuffle:
        first = tuple(source[0] for source in self.sources)  # what a source is called in an error
        counts, weights = self.counts, self.weights
        if not weighted:
            counts, weights = (tuple(np.diff(self.starts).tolist()),), ()
        return WindowShuffle(seed, name, counts, weights, self.window, rows, first)

    def prefetch(self, shards: Sequence[int]) -> dict[str, Callable[[], Any]]:
        # By address: what several sources or steps want is fetched once.
        urls = {self.shards[i] for i in shards if is_remote(self.shards[i])}
        return {url: partial(local, url, self.loading) for url in urls}

    def table_files(self, reference: TableKeys, root: Path) -> list[TableFile]:
        counts = np.diff(self.starts).tolist()
        files = [
            ShardTable(url, n, reference.key, self.loading)
            for url, n in zip(self.shards, counts, strict=True)
        ]
        # Several servers' answers at a time: one by one, a thousand shards would delay the start.
        ask_servers([file.url for file in files if file.to_ask], self.loading)
        return list(files)

    def close(self) -> None:
        self.files.close()


def open_shards(
    name: str,
    entries: tuple[str, ...],
    loading: Loading,
    weights: tuple[float, ...] = (),
    window: int = 8,
    record: Path | None = None,
    progress: Progress = silent,
) -> ShardDataset:
    """Find the shards of `entries` and count their samples.

    record: a file that keeps the counts of a run, so that a resumed one has the same order
    whatever its servers answer now. A shard that cannot be read counts as empty and is reported;
    DataError when there are more of them than `loading.max_faults`, or none that can be read.
    """
    listed = [list_shards(entry) for entry in entries]
    for entry, found in zip(entries, listed, strict=True):
        if more := not_taken(entry):
            logger.warning("%s: %s shards are read%s", entry, len(found), more)
    # Without weights all shards are one source: larger folders are read more often.
    sources = listed if weights else [[shard for source in listed for shard in source]]
    shards = [shard for source in sources for shard in source]
    counts = iter(_recorded_counts(name, shards, loading, record, progress))
    grouped = [[next(counts) for _ in source] for source in sources]
    for source, own in zip(sources, grouped, strict=True):
        if not sum(own):
            raise DataError(f"no image-text pair in {source[0]} and the shards with it")
    return ShardDataset(sources, grouped, loading, weights, window, entries)


def _recorded_counts(
    name: str, shards: list[str], loading: Loading, record: Path | None, progress: Progress
) -> list[int]:
    if record is None:
        return _count(name, shards, loading, progress)
    # All ranks of a run take the counts of the one that was first.
    with FileLock(record.with_suffix(".lock")):
        known = read_json(record) if record.exists() else {}
        with reading(record, ": delete it, and the shards are counted again"):
            own = {shard: int(count) for shard, count in known.get(name, {}).items()}
        if set(own) != set(shards):  # the settings name other shards now
            own = dict(zip(shards, _count(name, shards, loading, progress), strict=True))
            save_text(record, json.dumps(known | {name: own}, indent=1))
    return [own[shard] for shard in shards]


def _count(name: str, shards: list[str], loading: Loading, progress: Progress) -> list[int]:
    """Samples of each shard, as stated beside a remote one or from its index; 0 for one that
    cannot be read.

    What is stated comes before an index that an earlier visit left: the order of a new run does
    not depend on who was here before.
    """
    counts = dict.fromkeys(shards, 0)
    broken: dict[str, str] = {}
    log = BadSampleLog(limit=1.0)
    stated = stated_counts(shards, loading)

    def count(shard: str) -> tuple[str, int | ShardIndex | str]:
        forget_old_index(shard, loading)
        try:
            return shard, stated(shard) or read_index(shard, loading)
        except ShardError as error:
            return shard, str(error)

    # Threads: most of the time goes into waiting, for a server or for a disk.
    with ThreadPoolExecutor(min(8, usable_cores() + 2)) as pool:
        for done, (shard, found) in enumerate(pool.map(count, counts), 1):
            if isinstance(found, int):
                counts[shard] = found
            elif isinstance(found, str):
                broken[shard] = found
                log.add([BadSampleRecord(name, -1, 0, shard, "the whole shard", found, whole=True)])
            else:
                counts[shard] = len(found)
                log.add(
                    BadSampleRecord(name, -1, 0, shard, f"{n:,}", reason)
                    for reason, n in found.faults.items()
                )
            progress(done, len(counts), f"indexing the {name}")
    if len(broken) == len(counts) or len(broken) > loading.max_faults * len(counts):
        shard, reason = next(iter(broken.items()))
        raise DataError(
            f"{len(broken):,} of {len(counts):,} shards cannot be read, more than the "
            f"{100 * loading.max_faults:g} % that --max-faults allows; the first: {shard}: {reason}"
        )
    return [counts[shard] for shard in shards]
