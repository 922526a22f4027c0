"""Curated sources left in the pool: two data sets read as one, scored as each by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import fake_dataset, tiny_run
from toy import train_run

from jestcli.config import ConfigError, make_run, merge
from jestcli.data.caption_noise import CaptionNoise
from jestcli.data.concat import ConcatDataset
from jestcli.data.dataset import Transform
from jestcli.paper.inspection import inspect
from jestcli.runs import trained
from jestcli.runs.inputs import open_inputs
from jestcli.runs.run_data import data_of
from jestcli.runs.workspace import Workspace, read_done
from jestcli.training.metrics import chosen_in_training
from jestcli.training.step import encode_pairs

LEFT_IN = {"curated_in_pool": True}


def test_every_row_is_a_row_of_one_of_the_data_sets() -> None:
    """Pixels, captions and labels, whose names and numbers differ between the two."""
    parts = fake_dataset(10), fake_dataset(6, "other", seed=1)
    for part, first in zip(parts, "ab", strict=True):
        part.codes["source"] = np.arange(len(part), dtype=np.int32) % 3 - 1
        part.level_names["source"] = (f"{first}-set", "shared")
        part.__dict__["captions"] = [f"{first}{i}" for i in range(len(part.tokens))]
        part.__dict__["keys"] = [f"{first}-{i}" for i in range(len(part))]
    both = ConcatDataset(parts)
    assert len(both) == 16 and both.identity not in {part.identity for part in parts}
    rows = np.random.default_rng(0).permutation(16)
    read = both.read(rows, Transform(32, lambda texts: texts), lambda i, n: i % n)
    assert np.array_equal(read.row, rows) and np.array_equal(read.caption_row, rows)
    for at, row in enumerate(rows.tolist()):
        part, own = (parts[0], row) if row < 10 else (parts[1], row - 10)
        one = np.array([own])
        expected = part.read(one, None, lambda _, n, at=at: at % n)
        assert torch.equal(read.images[at], expected.images[0])
        assert torch.equal(read.tokens[at], expected.tokens[0])
        assert both.name(row) == part.keys[own] and both.hashes[row] == part.hashes[own]
        mine = np.array([row])
        assert both.keys_of(mine) == part.keys_of(one)
        assert both.captions_of(mine) == part.captions_of(one)
        assert both.labels("source", mine) == part.labels("source", one)
        assert torch.equal(both.tokens_of(mine, len), part.tokens_of(one))
    moved = CaptionNoise(both, 0.9, len)
    assert moved.wrong(rows).any() and not both.wrong(rows).any()
    given = moved.caption_rows(rows)
    assert moved.captions_of(rows) == both.captions_of(given)
    assert ((given < 10) != (rows < 10)).any(), "captions move from one to the other"


def test_left_in_the_pool_curated_pairs_are_drawn_scored_and_counted(workspace: Workspace) -> None:
    run = tiny_run("jest", source=LEFT_IN, optim={"steps": 8})
    folder = train_run(run, workspace, "left", lambda *_: None)
    inputs = open_inputs(run, workspace, folder)
    n_pool, n_curated = len(inputs.data.pool), len(inputs.data.curated)
    done = read_done(folder)
    assert done["rows_drawn_from"] == {"pool": n_pool - n_pool // 8 + n_curated}, "but the verified"
    assert inputs.reference.call is not None and run.reference is not None
    drawn = [inputs.loader(step) for step in range(8)]
    rows = np.concatenate([d.row for d in drawn])
    assert (rows >= n_pool).any() and (rows < n_pool).any() and rows.max() < n_pool + n_curated
    model = trained.load_run(run.reference, workspace)
    for one in drawn[:3]:
        live = encode_pairs(model, one.images, one.tokens, None)
        torch.testing.assert_close(inputs.reference.call(one).image, live.image, rtol=0, atol=1e-5)
        torch.testing.assert_close(inputs.reference.call(one).text, live.text, rtol=0, atol=1e-5)
    chosen = np.concatenate([rows for _, rows in chosen_in_training(folder)])
    assert done["curated_trained_on"] == pytest.approx((chosen >= n_pool).mean())
    written = inspect(folder, workspace, workspace.runs.parent / "out", super_batches=2)
    assert all(path.exists() for path in written)


def test_uniform_training_counts_what_lies_there_and_other_pools_nothing(
    workspace: Workspace,
) -> None:
    plain, left = tiny_run(), tiny_run(source=LEFT_IN)
    assert plain.digest() == tiny_run(source={"curated_in_pool": False}).digest() != left.digest()
    inputs = data_of(left, workspace)
    share = len(inputs.curated) / (74 + len(inputs.curated))
    for run, expected in ((plain, None), (left, pytest.approx(share))):
        folder = train_run(run, workspace, "uniform", lambda *_: None)
        assert read_done(folder)["curated_trained_on"] == expected


@pytest.mark.parametrize(
    "change,message",
    [
        ({"source": {**LEFT_IN, "kind": "mixed"}}, "needs source.kind pool or filtered"),
        ({"source": LEFT_IN, "data": {"train": ["a.tar"]}}, "is for the embedded data"),
    ],
)
def test_where_nothing_can_be_left_in_it_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_run(merge(tiny_run().model_dump(), change))
