"""A small tokenizer for the embedded scale: CLIP's byte-pair table, cut after its first merges.

open_clip's full table has 49,408 entries, which dominates a tiny model. Its merges are ordered by
how frequent they were, so the first few thousand cover common English words whole.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jestcli.utils import catalogue
from jestcli.utils.io import save_bytes
from jestcli.utils.spelling import STYLE_WORDS

VOCAB_SIZE = 8_192
CONTEXT_LENGTH = 16
_BYTES, _SPECIAL = 512, 2
NO_WORD = -1  # what concept-aware sampling does not count
_PLAIN = re.compile(r"[a-z0-9 ,.:]*")


@dataclass(frozen=True)
class SmallTokenizer:
    """Texts to token ids: [start, ..., end, 0, 0, ...], cut to `context_length`."""

    vocab_size: int
    context_length: int
    identity: str  # names the vocabulary and length: part of a cache's key
    inner: Any  # open_clip.SimpleTokenizer
    known: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sot_token_id(self) -> int:
        return int(self.inner.sot_token_id)

    @property
    def eot_token_id(self) -> int:
        return int(self.inner.eot_token_id)

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without start and end and uncut.

        Plain lower-case words, as nearly every caption is, skip open_clip's repair of broken
        Unicode and HTML, which would leave them as they are: the same ids, ten times as fast.
        """
        lower = text.lower()
        if _PLAIN.fullmatch(lower) is None:
            return list(self.inner.encode(text))
        ids: list[int] = []
        for word in lower.split():
            if word not in self.known:  # captions share most of their words
                self.known[word] = tuple(self.inner.encode(word))
            ids += self.known[word]
        return ids

    def __call__(self, texts: str | Sequence[str]) -> torch.Tensor:
        """n texts -> int64 [n, context_length]; the end token is the highest id of its row."""
        listed = [texts] if isinstance(texts, str) else texts
        start, end, length = self.sot_token_id, self.eot_token_id, self.context_length
        tokens = np.zeros((len(listed), length), np.int64)
        for row, text in zip(tokens, listed, strict=True):
            ids = [start, *self.encode(text)[: length - 2], end]
            row[: len(ids)] = ids
        return torch.from_numpy(tokens)


@functools.cache
def small_tokenizer(
    vocab_size: int = VOCAB_SIZE, context_length: int = CONTEXT_LENGTH, folder: Path | None = None
) -> SmallTokenizer:
    """The tokenizer with the first merges of open_clip's table; ids are below `vocab_size`.

    The cut table is kept as a small .gz in `folder` (default: a temporary folder). Raises
    ValueError when `vocab_size` is not between 514 and 49,408.
    """
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    merges = vocab_size - _BYTES - _SPECIAL
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    if not 0 <= merges <= 49152 - 256 - 2:
        raise ValueError(f"vocab_size {vocab_size} is not between 514 and 49,408")
    content = "\n".join(lines[: merges + 1]).encode("utf-8")
    digest = hashlib.blake2b(content, digest_size=6).hexdigest()
    packed = gzip.compress(content, mtime=0)  # the same bytes at any time
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"bpe-{vocab_size}-{digest}.txt.gz"
        if not path.exists():
            save_bytes(path, packed)
        inner = SimpleTokenizer(bpe_path=str(path), context_length=context_length)
    if inner.vocab_size != vocab_size:
        raise ValueError(f"the cut table has {inner.vocab_size} entries, not {vocab_size}")
    # The table's digest, for another open_clip may come with other merges.
    identity = f"clip-bpe-{vocab_size}x{context_length}-{digest}"
    return SmallTokenizer(vocab_size, context_length, identity, inner)


def named_tokenizer(name: str, context_length: int | None = None) -> Any:
    """The tokenizer that comes with the open_clip model `name`. The config of one in a folder or on
    a hub may ask for code beside it to be run: it is not."""
    import open_clip

    place = catalogue.is_place(name)
    config = catalogue.read(name) if place else open_clip.get_model_config(name)
    if config and config["text_cfg"].get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(name, context_length=context_length, trust_remote_code=False)
    return open_clip.get_tokenizer(name, context_length=context_length)


def word_ids(tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Labels for `select`: the tokens of a caption without start, end, padding and STYLE_WORDS.

    tokens: int64 [B, L] by the tokenizer of `vocab_size`. Returns int64 [B, L]; NO_WORD (-1)
    where a token says nothing of what the picture shows.
    """
    # Words of style would make concepts of how an icon is drawn, and balance those.
    silent = torch.isin(tokens, torch.tensor(_silent(vocab_size), device=tokens.device))
    return tokens.masked_fill(silent, NO_WORD)


@functools.cache
def _silent(vocab_size: int) -> tuple[int, ...]:
    tokenizer = small_tokenizer(vocab_size)
    style = (token for word in STYLE_WORDS for token in tokenizer.encode(word))
    return tuple({0, tokenizer.sot_token_id, tokenizer.eot_token_id, *style})
