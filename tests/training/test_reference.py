"""The reference: equal live and from tables, keyed by weights and data, resumable, refused where
damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import draw, fake_dataset, fake_pool, table_of, tiny_model, tiny_run

from jestcli.data.embeddings import DecodedTable
from jestcli.models.towers import Clip
from jestcli.runs.filters import matching_scores, negclip_scores
from jestcli.training import reference as references
from jestcli.training.reference import EmbeddingTable, RunReference, fill
from jestcli.utils.errors import DataError

RUN = tiny_run("jest")


def nothing(*_: Any) -> None:
    pass


def live(seed: int = 5) -> RunReference:
    return of(tiny_model(RUN, (8,), seed=seed))


def of(model: Clip) -> RunReference:
    return RunReference(model, None, 32)


def made(
    folder: Path, reference: RunReference, progress: Any = nothing, identity: str = "fake"
) -> EmbeddingTable:
    dataset = fake_dataset(identity=identity)
    files = dataset.table_files(reference, folder)
    fill(reference, dataset, files, progress)
    return EmbeddingTable(files, reference)


def equal(a: EmbeddingTable, b: EmbeddingTable) -> bool:
    every = np.arange(40)
    one, other = a.pairs(every), b.pairs(every)
    return torch.equal(one.image, other.image) and torch.equal(one.text, other.text)


def test_a_table_gives_what_the_reference_gives_live(tmp_path: Path) -> None:
    reference = live()
    table, drawn = made(tmp_path, reference), draw([fake_pool()], [16], 3, 7)
    for found in (table(drawn), table.on_device(torch.device("cpu"))(drawn)):
        torch.testing.assert_close(found.image, reference(drawn).image, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.text, reference(drawn).text, rtol=0, atol=1e-6)
        assert (found.scale, found.bias) == reference.scale
    assert table.complete and table.readable().tolist() == list(range(40))


def test_what_no_table_holds_is_embedded_live(tmp_path: Path) -> None:
    reference, drawn = live(), draw([fake_pool()], [16], 3, 7)
    files = fake_dataset().table_files(reference, tmp_path)
    table = EmbeddingTable(files, reference)
    assert not table.complete and torch.equal(table(drawn).image, reference(drawn).image)


def test_weights_and_data_key_a_table(tmp_path: Path) -> None:
    reference = live()
    key = reference.key_over("fake")
    assert key == live().key_over("fake") != live(6).key_over("fake")
    assert reference.key_over("other shards") != key
    first = made(tmp_path, reference)
    model = tiny_model(RUN, (8,), seed=5)
    with torch.no_grad():
        model.clip.visual.visual.proj[0, 0] += 1e-3
    changed = made(tmp_path, of(model))
    assert not equal(first, changed)
    assert len(list((tmp_path / "reference-embeddings").iterdir())) == 2


def test_a_complete_table_is_not_made_again(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    first = made(tmp_path, live(), lambda *at: seen.append(at))
    assert seen == [(40, 40, "")]
    assert equal(first, made(tmp_path, live(), lambda *at: seen.append(at))) and len(seen) == 1


class Killed(BaseException):
    """Stands for the process dying."""


@pytest.mark.parametrize("died_at,goes_on_at", [(10, 1), (32, 33), (33, 33), (39, 33)])
def test_a_killed_one_goes_on_and_is_the_same(
    died_at: int, goes_on_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "BLOCK", 1)
    whole = made(tmp_path / "whole", live())

    def die(done: int, *_: Any) -> None:
        if done == died_at:
            raise Killed

    with pytest.raises(Killed):
        made(tmp_path / "killed", live(), die)
    assert not list(tmp_path.glob("killed/*/*/cache.json")), "half a table is none"
    seen: list[int] = []
    resumed = made(tmp_path / "killed", live(), lambda done, *_: seen.append(done))
    assert seen == list(range(goes_on_at, 41)) and equal(whole, resumed)


def test_a_table_with_another_byte_is_refused(tmp_path: Path) -> None:
    table = made(tmp_path, live())
    (file,) = table.files
    assert isinstance(file, DecodedTable)
    path = file.folder / "text.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)
    again = EmbeddingTable(fake_dataset().table_files(live(), tmp_path), live())
    with pytest.raises(DataError, match=r"text\.npy is damaged .*delete the folder"):
        again.pairs(np.arange(3))


def test_matching_scores_are_the_cosines_of_pairs(tmp_path: Path) -> None:
    table = made(tmp_path, live())
    pairs = table.pairs(np.arange(40))
    expected = (pairs.image * pairs.text).sum(1).tolist()
    assert matching_scores(table.pairs, 40) == pytest.approx(expected, abs=1e-6)
    assert np.ptp(matching_scores(table.pairs, 40)) > 0.01


def test_negclip_takes_off_what_fits_everything() -> None:
    """A caption that matches every image wins by cosine, not by negCLIPLoss."""
    image = np.eye(6, 7, dtype=np.float32)
    text = image.copy()
    text[0] = image.sum(0) / np.sqrt(6) * 1.0
    image[0] = text[0]  # its cosine is 1, as that of all others
    table = table_of(image, text)
    scores = negclip_scores(table.pairs, 6)
    assert scores.argmin() == 0 and np.allclose(scores[1:], scores[1])
    in_batches = negclip_scores(table.pairs, 6, batch=4, seed=3)
    assert in_batches.shape == (6,) and np.isfinite(in_batches).all()
