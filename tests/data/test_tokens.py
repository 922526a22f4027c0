"""The small tokenizer: ids, lengths, and agreement with the table it is cut from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jestcli.data.tokens import NO_WORD, small_tokenizer, word_ids

WORDS = ["a red cat", "face with tears of joy", "flag: Chile", "q", "ünïcödé ★", "x" * 300, ""]


TEXTS = st.one_of(
    st.text(max_size=60), st.text("aBz19 ,.:'&;-", max_size=40), st.sampled_from(WORDS)
)


@given(st.lists(TEXTS, min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_every_text_has_a_valid_row(texts: list[str]) -> None:
    tokenizer = small_tokenizer()
    tokens = tokenizer(texts)
    assert tokens.shape == (len(texts), 16) and tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0 and int(tokens.max()) < tokenizer.vocab_size
    assert (tokens[:, 0] == tokenizer.sot_token_id).all()
    # The end token is the row's highest id (open_clip pools there), once; then zeros only.
    end = tokens.argmax(dim=1)
    for row, at in zip(tokens, end, strict=True):
        assert row[at] == tokenizer.eot_token_id
        assert (row == tokenizer.eot_token_id).sum() == 1
        assert (row[at + 1 :] == 0).all()
    assert torch.equal(tokens, tokenizer.inner(texts, 16)), "the short cut changes no id"


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ", max_size=40))
@settings(max_examples=100, deadline=None)
def test_decoding_gives_the_text_back(text: str) -> None:
    tokenizer = small_tokenizer()
    back = tokenizer.inner.decode(tokenizer.encode(text))
    assert back.split() == text.split()


def test_words_of_the_cut_table_split_as_in_the_full_one() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    full, small = SimpleTokenizer(), small_tokenizer()
    for text in ("a red cat", "black house", "musical notes"):
        whole = [full.decoder[each] for each in full.encode(text)]
        assert [small.inner.decoder[each] for each in small.encode(text)] == whole


def test_size_length_and_identity(tmp_path: Path) -> None:
    tiny = small_tokenizer(1_024, 8, tmp_path)
    assert tiny(["one two three four five six seven eight nine"]).shape == (1, 8)
    assert tiny.eot_token_id == 1_023 and [p.suffix for p in tmp_path.iterdir()] == [".gz"]
    assert tiny.identity == small_tokenizer(1_024, 8).identity
    others = small_tokenizer(1_024, 16), small_tokenizer()
    assert len({each.identity for each in (tiny, *others)}) == 3
    for size in (100, 60_000):
        with pytest.raises(ValueError, match="between"):
            small_tokenizer(size)


def test_word_ids_keep_what_the_picture_shows() -> None:
    tokenizer = small_tokenizer()
    tokens = tokenizer(["Home outline", "arrow left circle", "12"])
    words = word_ids(tokens, tokenizer.vocab_size)
    kept = [[int(word) for word in row if word != NO_WORD] for row in words]
    assert kept == [tokenizer.encode("home"), tokenizer.encode("arrow left"), []]
    assert (words[tokens == 0] == NO_WORD).all()
