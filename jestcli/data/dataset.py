"""What a data set is, whatever it is made of: pairs of image and captions, read by row.

A decoded set (data/decoded.py) and a user's shards (data/shard_dataset.py) are read through the
same few methods; two wrappers here join sets, and show some pairs under another's caption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jestcli.data.bad_samples import BadSample
from jestcli.data.embeddings import TableFile
from jestcli.data.order import GlobalShuffle, Order, Pick
from jestcli.utils.hashing import below, salted

Tokenizer = Callable[[list[str]], Any]
"""n texts -> integers [n, L] (a tensor or an array)."""


@dataclass(frozen=True)
class Transform:
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
class Samples:
    """Pairs as read; what could not be is in `bad` alone.

    place: int64 [n], which of the rows asked for each is; row, caption_row: int64 [n], of its image
    and of its caption (another's, where captions are mismatched); images: uint8 [n, 3, s, s];
    tokens: int64 [n, L]; texts: the captions, where the data set has them at hand; second: uint8
    [n, 3, s', s']. bad: place -> why.
    """

    place: np.ndarray
    row: np.ndarray
    caption_row: np.ndarray
    images: Tensor
    tokens: Tensor
    texts: list[str] = field(default_factory=list)
    second: Tensor | None = None
    bad: dict[int, BadSample] = field(default_factory=dict)


class TableKeys(Protocol):
    """What names a reference's embeddings (training/reference.py)."""

    @property
    def key(self) -> str: ...

    def key_over(self, identity: str) -> str: ...


class Dataset:
    """Pairs by row, int64 [n]; len() is their number. With what most of them share.

    identity: names the content. in_memory: reading costs no decoding, so no worker process helps.
    n_files: shards that may turn out broken. notes: file -> what is odd about it, in words.
    mismatched: some pairs show another's caption, and it is known which. nbytes: of what a device
    would have to hold. groups: the ways in which pairs are sorted besides their captions.
    most_captions: captions that may be read where a few are as good as all; None: any number.
    """

    in_memory = False
    mismatched = False
    n_files = 0
    groups: tuple[str, ...] = ()
    most_captions: int | None = None

    @property
    def identity(self) -> str:
        raise NotImplementedError

    @property
    def notes(self) -> dict[str, str]:
        return {}

    @property
    def nbytes(self) -> float:
        return math.inf

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def hashes(self) -> np.ndarray:
        """uint64 [N]: a hash of each pair's key (utils/hashing.py)."""
        raise NotImplementedError

    def read(self, rows: np.ndarray, transform: Transform, pick: Pick | None = None) -> Samples:
        """Pairs to score and to train on; pick: which of its captions each shows (the first)."""
        raise NotImplementedError

    def image(self, row: int, least: int | None = None) -> Image.Image:
        """The picture, RGB; least: pixels of the shorter side that are enough. Raises BadSample."""
        raise NotImplementedError

    def tokens_of(self, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
        """First captions, int64 [n, L]; rows of -1 for captions that cannot be read."""
        raise NotImplementedError

    def captions_of(self, rows: np.ndarray) -> list[str]:
        """First captions; "" for those that cannot be read."""
        raise NotImplementedError

    def caption_counts(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: how many captions each has."""
        raise NotImplementedError

    def keys_of(self, rows: np.ndarray) -> list[str]:
        """What each pair is called where it comes from."""
        raise NotImplementedError

    def name(self, row: int) -> str:
        """What it is called in logs, with the file that holds it, without reading it."""
        raise NotImplementedError

    def places(self, rows: np.ndarray) -> list[str]:
        """Where each comes from: its source set or shard."""
        raise NotImplementedError

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        """The one of `group` that each belongs to."""
        raise NotImplementedError

    def table_files(self, reference: TableKeys, root: Path) -> list[TableFile]:
        """Where a reference's embeddings of these pairs lie: under `root`, or beside shards."""
        raise NotImplementedError

    def caption_rows(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: the rows whose captions these show."""
        return rows

    def wrong(self, rows: np.ndarray) -> np.ndarray:
        """bool [n]: which of these are known to show another's caption."""
        return np.zeros(len(rows), bool)

    def order(
        self,
        seed: int,
        name: str,
        rows: np.ndarray | None = None,
        number: int = 0,
        weighted: bool = True,
    ) -> Order:
        """An endless reading of `rows` (None: of all), as suits where they lie; without `weighted`
        each pair comes once an epoch, whatever the weights of several sources."""
        return GlobalShuffle(seed, name, np.arange(len(self)) if rows is None else rows, number)

    def prefetch(self, shards: Sequence[int]) -> dict[str, Callable[[], Any]]:
        """By file, what to call in other threads so that these shards are here when read."""
        return {}

    def on_device(self, device: torch.device) -> Dataset:
        """The same, read from the device's memory where it is `in_memory`."""
        return self

    def close(self) -> None:
        """Close files. Closing twice is fine."""


class ConcatDataset(Dataset):
    """The rows of several data sets, one after the other, as torch's of the same name."""

    def __init__(self, datasets: Sequence[Dataset]):
        self.datasets = tuple(datasets)
        self.starts = np.cumsum([0, *map(len, datasets)])
        self.in_memory = all(each.in_memory for each in datasets)
        self.n_files = sum(each.n_files for each in datasets)
        self.groups = tuple(dict.fromkeys(group for each in datasets for group in each.groups))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def identity(self) -> str:
        return "+".join(each.identity for each in self.datasets)

    @property
    def nbytes(self) -> float:
        return sum(each.nbytes for each in self.datasets)

    @cached_property
    def hashes(self) -> np.ndarray:  # type: ignore[override] # kept: all pairs are asked for often
        return np.concatenate([each.hashes for each in self.datasets])

    def _parts(self, rows: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """For every data set with some of these: its number, their places, and its own rows."""
        which = np.searchsorted(self.starts, rows, side="right") - 1
        return [
            (i, np.flatnonzero(which == i), rows[which == i] - self.starts[i])
            for i in np.unique(which).tolist()
        ]

    def read(self, rows: np.ndarray, transform: Transform, pick: Pick | None = None) -> Samples:
        read = []
        for i, places, own in self._parts(rows):
            # Each reads its own rows at once: a memory map is fastest in one gather.
            mine = self.datasets[i].read(
                own, transform, None if pick is None else _picked(pick, places)
            )
            mine.bad = {int(places[at]): why for at, why in mine.bad.items()}
            mine.place = places[mine.place]
            mine.row, mine.caption_row = (x + self.starts[i] for x in (mine.row, mine.caption_row))
            read.append(mine)
        return merged(read)

    def _lists(self, method: str, rows: np.ndarray, *more: Any) -> list[Any]:
        out: list[Any] = [None] * len(rows)
        for i, places, own in self._parts(rows):
            for place, value in zip(
                places.tolist(), getattr(self.datasets[i], method)(*more, own), strict=True
            ):
                out[place] = value
        return out

    def captions_of(self, rows: np.ndarray) -> list[str]:
        return self._lists("captions_of", rows)

    def keys_of(self, rows: np.ndarray) -> list[str]:
        return self._lists("keys_of", rows)

    def places(self, rows: np.ndarray) -> list[str]:
        return self._lists("places", rows)

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        return self._lists("labels", rows, group)

    def caption_counts(self, rows: np.ndarray) -> np.ndarray:
        return np.array(self._lists("caption_counts", rows), np.int64)

    def tokens_of(self, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
        parts = [
            (places, self.datasets[i].tokens_of(own, tokenizer))
            for i, places, own in self._parts(rows)
        ]
        order = np.concatenate([places for places, _ in parts]).argsort()
        return torch.cat([tokens for _, tokens in parts])[torch.from_numpy(order)]

    def image(self, row: int, least: int | None = None) -> Image.Image:
        ((i, _, own),) = self._parts(np.array([row]))
        return self.datasets[i].image(int(own[0]), least)

    def name(self, row: int) -> str:
        ((i, _, own),) = self._parts(np.array([row]))
        return self.datasets[i].name(int(own[0]))

    def table_files(self, reference: TableKeys, root: Path) -> list[TableFile]:
        return [file for each in self.datasets for file in each.table_files(reference, root)]

    def on_device(self, device: torch.device) -> ConcatDataset:
        return ConcatDataset([each.on_device(device) for each in self.datasets])

    def close(self) -> None:
        for each in self.datasets:
            each.close()


def _picked(pick: Pick, places: np.ndarray) -> Pick:
    return lambda i, n: pick(int(places[i]), n)


def merged(read: Sequence[Samples]) -> Samples:
    """Parts of one reading, as one: by place."""
    bad = {at: why for each in read for at, why in each.bad.items()}
    read = [each for each in read if len(each.place)] or list(read[:1])  # no shape if empty
    read[0].bad = bad
    if len(read) == 1 and not (np.diff(read[0].place) < 0).any():
        return read[0]
    place = np.concatenate([each.place for each in read])
    # Substitutes were read last, and a super-batch stands in the order of its positions.
    order = place.argsort(kind="stable")
    at = torch.from_numpy(order)
    texts = [text for each in read for text in each.texts]
    seconds = [each.second for each in read if each.second is not None]
    return Samples(
        place=place[order],
        row=np.concatenate([each.row for each in read])[order],
        caption_row=np.concatenate([each.caption_row for each in read])[order],
        images=torch.cat([each.images for each in read])[at],
        tokens=torch.cat([each.tokens for each in read])[at],
        texts=[texts[i] for i in order.tolist()] if texts else [],
        second=torch.cat(seconds)[at] if seconds else None,
        bad=bad,
    )


def in_sequence(read: Sequence[Samples]) -> Samples:
    """Complete readings, one after the other."""
    if len(read) == 1:
        return read[0]
    seconds = [each.second for each in read if each.second is not None]
    row, caption_row = (
        np.concatenate([getattr(each, x) for each in read]) for x in ("row", "caption_row")
    )
    images, tokens = (torch.cat([getattr(each, x) for each in read]) for x in ("images", "tokens"))
    texts = [text for each in read for text in each.texts]
    second = torch.cat(seconds) if seconds else None
    return Samples(np.arange(len(row)), row, caption_row, images, tokens, texts, second)


class CaptionNoise(Dataset):
    """A data set in which a share of the pairs, known which, shows another pair's first caption.

    Every choice is made pair by pair, by a hash of its key (utils/hashing.py). Taking pairs out of
    what a run draws from (a smaller pool, a filter) therefore leaves every other pair's caption as
    it is, and the pairs that are wrong at a share of .2 are wrong at .5, too.

    A pair is wrong when its key's hash is below `share`. The wrong ones stand in a ring, by another
    hash of the key; each gets the caption of the next one, or of the first after that whose caption
    reads differently (compared as token rows: by what the model sees). So no wrong pair shows a
    caption like its own, and where captions repeat one may be shown twice and another not at all:
    nearly, not strictly, a permutation.

    share: in [0, 1), of the rows that may be wrong; so many are wrong up to binomial noise.
    rows: int64 [n] ascending, those that may be wrong; None: all.
    """

    mismatched = True

    def __init__(
        self, dataset: Dataset, share: float, tokenizer: Tokenizer, rows: np.ndarray | None = None
    ):
        self.dataset, self.share, self.tokenizer = dataset, share, tokenizer
        self.in_memory = dataset.in_memory
        self.groups, self.most_captions = dataset.groups, dataset.most_captions
        self.n_files = dataset.n_files
        hashes = dataset.hashes if rows is None else dataset.hashes[rows]
        chosen = np.flatnonzero(below(salted(hashes, "wrong caption"), share))
        order = chosen[np.argsort(salted(hashes[chosen], "ring of captions"), kind="stable")]
        self.ring = order if rows is None else rows[order]
        self.at = np.full(len(dataset), -1, np.int64)  # a row's place in the ring; -1: right
        self.at[self.ring] = np.arange(len(self.ring))

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def identity(self) -> str:
        return f"{self.dataset.identity} noise {self.share}"

    @property
    def notes(self) -> dict[str, str]:
        return self.dataset.notes

    @property
    def nbytes(self) -> float:
        return self.dataset.nbytes

    @property
    def hashes(self) -> np.ndarray:
        return self.dataset.hashes

    def caption_rows(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: the rows whose captions these show. Of shards it reads captions to compare."""
        out = rows.copy()
        wrong = np.flatnonzero(self.at[rows] >= 0)
        at, n = self.at[rows[wrong]], len(self.ring)
        giver = (at + 1) % max(1, n)
        same = np.arange(len(at))
        for _ in range(n):
            same = same[self._alike(self.ring[at[same]], self.ring[giver[same]])]
            if not len(same):
                break
            giver[same] = (giver[same] + 1) % n
        giver[same] = at[same]  # all captions of the ring read alike: none can be wrong
        out[wrong] = self.ring[giver]
        return out

    def _alike(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """bool [n]: whether two captions read alike, or the other's cannot be read."""
        if not len(rows):
            return np.empty(0, bool)
        mine, theirs = (self.dataset.tokens_of(each, self.tokenizer) for each in (rows, others))
        return ((mine == theirs).all(dim=1) | (theirs[:, 0] < 0)).numpy()

    def wrong(self, rows: np.ndarray) -> np.ndarray:
        """bool [n]: which of these show another's caption. Of shards by the ring alone: to compare
        captions would read them all."""
        return self.caption_rows(rows) != rows if self.in_memory else self.at[rows] >= 0

    def read(self, rows: np.ndarray, transform: Transform, pick: Pick | None = None) -> Samples:
        # An image stays where it is and only its caption is read elsewhere: one more read a pair.
        samples = self.dataset.read(rows, transform, None)
        samples.caption_row = self.caption_rows(samples.row)
        moved = np.flatnonzero(samples.caption_row != samples.row)
        if len(moved):
            given = samples.caption_row[moved]
            tokens = self.dataset.tokens_of(given, transform.tokenizer)
            samples.tokens[torch.from_numpy(moved)] = tokens.to(samples.tokens.device)
            if samples.texts:
                for i, text in zip(moved.tolist(), self.dataset.captions_of(given), strict=True):
                    samples.texts[i] = text
        return samples

    def image(self, row: int, least: int | None = None) -> Image.Image:
        return self.dataset.image(row, least)

    def tokens_of(self, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
        return self.dataset.tokens_of(self.caption_rows(rows), tokenizer)

    def captions_of(self, rows: np.ndarray) -> list[str]:
        return self.dataset.captions_of(self.caption_rows(rows))

    def caption_counts(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), np.int64)

    def keys_of(self, rows: np.ndarray) -> list[str]:
        return self.dataset.keys_of(rows)

    def name(self, row: int) -> str:
        return self.dataset.name(row)

    def places(self, rows: np.ndarray) -> list[str]:
        return self.dataset.places(rows)

    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        return self.dataset.labels(group, rows)

    def order(
        self,
        seed: int,
        name: str,
        rows: np.ndarray | None = None,
        number: int = 0,
        weighted: bool = True,
    ) -> Order:
        return self.dataset.order(seed, name, rows, number, weighted)

    def prefetch(self, shards: Sequence[int]) -> dict[str, Callable[[], Any]]:
        return self.dataset.prefetch(shards)

    def table_files(self, reference: TableKeys, root: Path) -> list[TableFile]:
        # One table serves every share of noise: a caption's embedding lies beside its own image's.
        return self.dataset.table_files(reference, root)

    def on_device(self, device: torch.device) -> CaptionNoise:
        out = CaptionNoise.__new__(CaptionNoise)
        out.__dict__ = self.__dict__ | {"dataset": self.dataset.on_device(device)}
        return out

    def close(self) -> None:
        self.dataset.close()
