"""The words of captions as integers: what concept-aware sampling balances.

Of CLIP's byte pairs (jestcli.data.tokens), the tokenizer that runs train with unless pretrained
weights bring another. A rare word is several byte pairs, each of which counts as a concept.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Words that say how an icon is drawn or in which size, not what it shows.
STYLE_WORDS = (
    "fill", "filled", "solid", "outline", "outlined", "line", "linear", "bold", "thin", "light",
    "regular", "duotone", "twotone", "simple", "straight", "alt", "mini", "micro", "small",
    "circle", "circled", "square", "squared", "12", "16", "20", "24", "28", "32", "48",
)  # fmt: skip
NO_WORD = -1


def word_ids(tokens: Tensor, vocab_size: int) -> Tensor:
    """Labels for `select`: the tokens of a caption without start, end, padding and STYLE_WORDS.

    tokens: int64 [B, L] by the tokenizer of `vocab_size`. Returns int64 [B, L]; NO_WORD (-1)
    where a token says nothing of what the picture shows.
    """
    import torch  # here: the processes that draw icons read STYLE_WORDS and do without torch

    silent = torch.isin(tokens, torch.tensor(_silent(vocab_size), device=tokens.device))
    return tokens.masked_fill(silent, NO_WORD)


@functools.cache
def _silent(vocab_size: int) -> tuple[int, ...]:
    from jestcli.data.tokens import small_tokenizer  # imports torch

    tokenizer = small_tokenizer(vocab_size)
    style = (token for word in STYLE_WORDS for token in tokenizer.encode(word))
    return tuple({0, tokenizer.sot_token_id, tokenizer.eot_token_id, *style})
