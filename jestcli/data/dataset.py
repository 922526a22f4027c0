"""What a data set is, whatever it is made of: pairs of image and captions, read by row.

A decoded set (data/decoded.py) and a user's shards (data/shard_dataset.py) are read through the
same few methods; wrappers join sets (data/concat.py) and show some pairs under another's caption
(data/caption_noise.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jestcli.data.bad_samples import BadSample
from jestcli.data.embeddings import TableFile
from jestcli.data.order import GlobalShuffle, Order, Pick, Rows

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


class Dataset(ABC):
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
    @abstractmethod
    def identity(self) -> str: ...

    @property
    def notes(self) -> dict[str, str]:
        return {}

    @property
    def nbytes(self) -> float:
        return math.inf  # what is not in memory fits on no device

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def hashes(self) -> np.ndarray:
        """uint64 [N]: a hash of each pair's key (utils/hashing.py)."""

    @abstractmethod
    def read(self, rows: np.ndarray, transform: Transform, pick: Pick | None = None) -> Samples:
        """Pairs to score and to train on; pick: which of its captions each shows (the first)."""

    @abstractmethod
    def image(self, row: int, least: int | None = None) -> Image.Image:
        """The picture, RGB; least: pixels of the shorter side that are enough. Raises BadSample."""

    @abstractmethod
    def tokens_of(self, rows: np.ndarray, tokenizer: Tokenizer) -> Tensor:
        """First captions, int64 [n, L]; rows of -1 for captions that cannot be read."""

    @abstractmethod
    def captions_of(self, rows: np.ndarray) -> list[str]:
        """First captions; "" for those that cannot be read."""

    @abstractmethod
    def caption_counts(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: how many captions each has."""

    @abstractmethod
    def keys_of(self, rows: np.ndarray) -> list[str]:
        """What each pair is called where it comes from."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What it is called in logs, with the file that holds it, without reading it."""

    @abstractmethod
    def places(self, rows: np.ndarray) -> list[str]:
        """Where each comes from: its source set or shard."""

    @abstractmethod
    def labels(self, group: str, rows: np.ndarray) -> list[str]:
        """The one of `group` that each belongs to."""

    @abstractmethod
    def table_files(self, reference: TableKeys, root: Path) -> list[TableFile]:
        """Where a reference's embeddings of these pairs lie: under `root`, or beside shards."""

    def caption_rows(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: the rows whose captions these show."""
        return rows

    def wrong(self, rows: np.ndarray) -> np.ndarray:
        """bool [n]: which of these are known to show another's caption."""
        return np.zeros(len(rows), bool)

    def order(
        self, seed: int, name: str, rows: Rows = None, number: int = 0, weighted: bool = True
    ) -> Order:
        """An endless reading of `rows` (None: of all), as suits where they lie; without `weighted`
        each pair comes once an epoch, whatever the weights of several sources."""
        # In memory any order costs the same; where reading has to stay local, sets have their own.
        return GlobalShuffle(seed, name, np.arange(len(self)) if rows is None else rows, number)

    def prefetch(self, shards: Sequence[int]) -> dict[str, Callable[[], Any]]:
        """By file, what to call in other threads so that these shards are here when read."""
        return {}  # most sets have nothing to fetch

    def on_device(self, device: torch.device) -> Dataset:
        """The same, read from the device's memory where it is `in_memory`."""
        return self

    def close(self) -> None:  # noqa: B027  what lies in memory has nothing open
        """Close files. Closing twice is fine."""


def picked(pick: Pick | None, places: np.ndarray) -> Pick | None:
    """The same choice where only these places are read."""
    # A pick knows pairs by their number among those asked for, and so draws the same for each.
    return None if pick is None else lambda i, n: pick(int(places[i]), n)


def merged(read: Sequence[Samples]) -> Samples:
    """Parts of one reading, as one: by place."""
    bad = {at: why for each in read for at, why in each.bad.items()}
    # A part of which nothing could be read has no image to take the shape from.
    read = [each for each in read if len(each.place)] or list(read[:1])
    place = np.concatenate([each.place for each in read])
    whole = in_sequence(read)
    whole.place, whole.bad = place, bad
    if not (np.diff(place) < 0).any():
        return whole  # as it is: to gather its pixels once more would copy them
    # Substitutes were read last, and a super-batch stands in the order of its positions.
    order = place.argsort(kind="stable")
    at = torch.from_numpy(order)
    return Samples(
        place=place[order],
        row=whole.row[order],
        caption_row=whole.caption_row[order],
        images=whole.images[at],
        tokens=whole.tokens[at],
        texts=[whole.texts[i] for i in order.tolist()] if whole.texts else [],
        second=None if whole.second is None else whole.second[at],
        bad=bad,
    )


def in_sequence(read: Sequence[Samples]) -> Samples:
    """Complete readings, one after the other."""
    if len(read) == 1:
        return read[0]
    row, caption_row = (
        np.concatenate([getattr(each, x) for each in read]) for x in ("row", "caption_row")
    )
    images, tokens = (torch.cat([getattr(each, x) for each in read]) for x in ("images", "tokens"))
    texts = [text for each in read for text in each.texts]
    seconds = [each.second for each in read if each.second is not None]
    second = torch.cat(seconds) if seconds else None
    return Samples(np.arange(len(row)), row, caption_row, images, tokens, texts, second)
