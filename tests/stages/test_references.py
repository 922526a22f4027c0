"""References over own shards: cached equals live, a cache that does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from own_shards import caption, jpeg, make_shards, sample, write_tar
from tiny import TINY, tiny_model, tiny_reference
from toy import train_run

from jestcli.config import METHODS, ConfigError, Run, make_run, merge
from jestcli.data.drawing import Portion, StreamDrawing, View
from jestcli.data.embeddings import FOLDER, ShardEmbeddings
from jestcli.data.reading import Reading
from jestcli.data.shards import decode_image
from jestcli.data.sources import Loading
from jestcli.data.stream import Stream, open_stream
from jestcli.data.tokens import small_tokenizer
from jestcli.paper.inspection import replay
from jestcli.runs import drawn_from, own, scored_with, trained
from jestcli.runs.opened import open_run
from jestcli.runs.references import (
    ForeignReference,
    OwnReference,
    ShardReference,
    check_word,
    fill,
    open_clip_reference,
)
from jestcli.runs.workspace import Workspace
from jestcli.training.distributed import World
from jestcli.utils.errors import DataError

pytestmark = pytest.mark.numeric
B = 12
SMALL: dict[str, Any] = {  # an open_clip config that builds and runs within milliseconds
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


def nothing(*_: Any) -> None:
    pass


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Three shards; sample 5 cannot be read."""
    root = make_shards(tmp_path / "pool", 3, 8)
    write_tar(root / "00.tar", *[sample(n, **({"jpg": b"x"} if n == 5 else {})) for n in range(8)])
    return root


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    return Loading(workers=0, max_faults=0.5, cache=tmp_path / "cache")


def opened(pool: Path, loading: Loading) -> Stream:
    return open_stream("pool", (str(pool),), loading, window=2)


def own_reference(seed: int = 5) -> OwnReference:
    return OwnReference(tiny_model(tiny_reference(), (8,), seed), small_tokenizer(600, 8), 32)


def drawing(stream: Stream, loading: Loading, second: Any = None, **more: Any) -> StreamDrawing:
    view = View(32, small_tokenizer(600, 8), second=second, **more)
    return StreamDrawing([Portion(stream, B)], view, 3, loading)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small open_clip model under a name of its own, and its weights in a file."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "jest-test-small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder)
    torch.manual_seed(1)
    model = open_clip.create_model("jest-test-small")
    torch.save(model.state_dict(), folder / "small.pt")
    return f"jest-test-small:{folder / 'small.pt'}"


def test_cached_equals_live_and_what_is_missing_is_live(pool: Path, loading: Loading) -> None:
    stream, reference = opened(pool, loading), own_reference()
    live = ShardReference(reference, ShardEmbeddings(stream, reference.key, loading))
    assert not live.embeddings.complete
    drawn = drawing(stream, loading)
    batches = [drawn(step) for step in range(4)]
    expected = [live(candidates) for candidates in batches]
    assert fill(reference, stream, loading, nothing) == 3
    for name in ("02.json", "02.npy"):  # as if one shard had not been embedded
        (pool / FOLDER / reference.key / name).unlink()
    for there in (2, 3):
        cached = ShardReference(reference, ShardEmbeddings(stream, reference.key, loading))
        assert len(cached.embeddings.maps) == there and cached.embeddings.complete == (there == 3)
        for candidates, want in zip(batches, expected, strict=True):
            found = cached(candidates)
            torch.testing.assert_close(found.image, want.image, rtol=0, atol=1e-6)
            torch.testing.assert_close(found.text, want.text, rtol=0, atol=1e-6)
            assert (float(found.scale), float(found.bias)) == (float(want.scale), float(want.bias))
        assert fill(reference, stream, loading, nothing) == (1 if there == 2 else 0)
    _, _, known = cached.embeddings.lookup(np.arange(24))
    assert known.tolist() == [row != 5 for row in range(24)]


def test_a_cache_is_memory_mapped_and_beside_the_shards(pool: Path, loading: Loading) -> None:
    stream, reference = opened(pool, loading), own_reference()
    fill(reference, stream, loading, nothing)
    folder = pool / FOLDER / reference.key
    assert sorted(p.name for p in folder.iterdir()) == [
        f"0{i}.{kind}" for i in range(3) for kind in ("json", "npy")
    ]
    kept = ShardEmbeddings(stream, reference.key, loading)
    assert all(isinstance(each, np.memmap) for each in kept.maps.values())
    assert sorted(opened(pool, loading).shards) == sorted(stream.shards), "no shard by its look"


def test_a_stale_or_foreign_cache_is_refused(pool: Path, loading: Loading) -> None:
    stream, reference = opened(pool, loading), own_reference()
    fill(reference, stream, loading, nothing)
    other = own_reference(6)
    assert other.key != reference.key
    assert not ShardEmbeddings(stream, other.key, loading).maps, "another model reads nothing of it"
    (pool / FOLDER / reference.key).rename(pool / FOLDER / other.key)
    with pytest.raises(DataError, match="are another model's: delete"):
        ShardEmbeddings(stream, other.key, loading)
    (pool / FOLDER / other.key).rename(pool / FOLDER / reference.key)
    write_tar(pool / "01.tar", *[sample(n) for n in range(50, 58)])
    with pytest.raises(DataError, match=r"01\.tar are of another version of it: delete"):
        ShardEmbeddings(opened(pool, loading), reference.key, loading)
    assert fill(reference, opened(pool, loading), loading, nothing) == 1, "that shard alone again"
    kept = ShardEmbeddings(opened(pool, loading), reference.key, loading)
    path = pool / FOLDER / reference.key / "00.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="are damaged"):
        ShardEmbeddings(opened(pool, loading), reference.key, loading)
    assert kept.complete


def test_the_key_names_all_that_an_embedding_depends_on() -> None:
    base = own_reference()
    longer = OwnReference(base.model, small_tokenizer(600, 9), 32)
    larger = OwnReference(base.model, base.tokenizer, 64)
    assert len({x.key for x in (base, longer, larger, own_reference(6))}) == 4
    assert own_reference().key == base.key


# --- an open_clip model as the reference ---------------------------------------------------------


def test_an_open_clip_reference_sees_its_own_preprocessing(
    pool: Path, loading: Loading, checkpoint: str
) -> None:
    name, _, path = checkpoint.partition(":")
    model, _, preprocess = open_clip.create_model_and_transforms(name, path)
    tokenizer = open_clip.get_tokenizer(name)
    stream, reference = opened(pool, loading), open_clip_reference(checkpoint)
    assert isinstance(reference, ForeignReference) and reference.key
    candidates = drawing(stream, loading, reference)(0)
    live = ShardReference(reference, ShardEmbeddings(stream, reference.key, loading))
    found = live(candidates)
    numbers = [int(key.rpartition(":")[2]) for key in candidates.keys]
    with torch.no_grad():
        pixels = torch.stack([preprocess(decode_image(jpeg(n))) for n in numbers])
        image = model.eval().encode_image(pixels, normalize=True)
        text = model.encode_text(tokenizer([caption(n) for n in numbers]), normalize=True)
    torch.testing.assert_close(found.image, image, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text, text, rtol=0, atol=1e-5)
    assert float(found.scale) == pytest.approx(float(model.logit_scale.exp()))
    fill(reference, stream, loading, nothing)
    cached = ShardReference(reference, ShardEmbeddings(stream, reference.key, loading))
    later = drawing(stream, loading, reference, seldom=True)(0)
    torch.testing.assert_close(cached(later).image, image, rtol=0, atol=1e-5)
    assert torch.equal(later.second(np.arange(3)), candidates.second(np.arange(3)))


@pytest.mark.parametrize("word,message", [
    ("ViT-B-61:openai", "no model 'ViT-B-61' (did you mean ViT-B-16"),
    ("ViT-B-16:opnai", "no file and no tag 'opnai' (did you mean openai?)"),
    ("ViT-B-16", "no file and no tag ''"),
])  # fmt: skip
def test_a_wrong_word_is_one_line(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_word(word)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_malicious_checkpoint_executes_nothing(tmp_path: Path, checkpoint: str) -> None:
    import os
    import pickle

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump({"state_dict": Bomb()}, file)
    with pytest.raises(ConfigError, match="cannot be used"):
        open_clip_reference(f"jest-test-small:{tmp_path / 'evil.pt'}")
    assert not (tmp_path / "executed").exists()


# --- training with and without the cache ---------------------------------------------------------


def settings(pool: Path, **more: Any) -> dict[str, Any]:
    data = {"train": str(pool), "curated": str(pool / "02.tar"), "window": 2}
    return merge(merge(TINY, {"data": data}), merge(METHODS["jest"], more))


def losses(folder: Path) -> list[float]:
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [x["loss"] for x in lines if "loss" in x]


def test_training_with_a_cache_equals_training_without(
    pool: Path, loading: Loading, tmp_path: Path, checkpoint: str
) -> None:
    reference = merge(settings(pool), merge(METHODS["curated"], {"optim": {"steps": 2}}))
    reference["data"] = {k: v for k, v in reference["data"].items() if k != "train"}
    runs: list[Run] = [
        make_run(settings(pool, reference=reference)),
        make_run(settings(pool, reference_model=checkpoint)),
    ]
    for run in runs:
        live, cached = (Workspace(None, tmp_path / name, loading) for name in ("live", "cached"))
        train_run(run, live, "jest", nothing)
        if run.reference is not None:
            train_run(run.reference, cached, "reference", nothing)
        inputs = cached.inputs(run)
        assert isinstance(inputs, own.OwnInputs)
        inputs.folder.mkdir(parents=True)
        model: Any = run.reference_model or trained.load_run(run.reference or run, cached)
        assert fill(own.open_model(inputs, model), inputs.pool, loading, nothing) == 3
        assert own.open_reference(inputs, model).embeddings.complete
        train_run(run, cached, "jest", nothing)
        one, other = (losses(place.folder(run)) for place in (live, cached))
        np.testing.assert_allclose(one, other, rtol=1e-5)
        spent = [json.loads((p.folder(run) / "done.json").read_text())["flops"]
                 for p in (live, cached)]  # fmt: skip
        assert spent[0] == spent[1] and spent[0]["charged"] > spent[0]["cached"]


def test_a_hard_learner_run_is_inspected_with_the_reference_it_never_read(
    pool: Path, loading: Loading, tmp_path: Path, checkpoint: str
) -> None:
    hard = METHODS["hard-learner"] | {"reference_model": checkpoint}
    run = make_run(merge(settings(pool), hard))
    place = Workspace(None, tmp_path / "runs", loading)
    (one,) = replay(open_run(train_run(run, place, "hard", nothing), place), 1)
    assert len(one.index) == run.optim.batch_size and np.isfinite(one.score).all()


# --- a filter by it ------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["cosine", "negclip"])
def test_own_shards_are_filtered_once_by_the_reference(
    score: str, pool: Path, loading: Loading, tmp_path: Path, checkpoint: str
) -> None:
    kind = {"source": {"keep": 0.5, "score": score}, "reference_model": checkpoint}
    run = make_run(merge(settings(pool), merge(METHODS["filtered"], kind)))
    place = Workspace(None, tmp_path / "runs", loading)
    with pytest.raises(DataError, match="embed it with the reference first"):
        train_run(run, place, "filtered", nothing)
    inputs = place.inputs(run)
    assert isinstance(inputs, own.OwnInputs)
    fill(own.open_model(inputs, checkpoint), inputs.pool, loading, nothing)
    folder = train_run(run, place, "filtered", nothing)
    done = json.loads((folder / "done.json").read_text())
    assert done["rows_drawn_from"] == {"pool": 12}, "half of 23 that can be read, rounded"
    assert done["flops"]["charged"] > done["flops"]["cached"], "all of the pool was scored"
    reference, readable = own.open_reference(inputs, checkpoint), [*range(5), *range(6, 24)]
    pairs = reference.cached(np.array(readable))
    if score == "cosine":
        worth = (pairs.image * pairs.text).sum(1)
    else:
        z = pairs.scale * pairs.image @ pairs.text.T
        worth = z.diag() - (z.logsumexp(0) + z.logsumexp(1)) / 2
    best = np.array(readable)[worth.argsort(descending=True)[:12].numpy()]
    drawn = own.open_drawing(run, inputs, reference, folder)
    epochs = [drawn(step).row for step in range(3)]
    assert len(epochs[0]) == 8 and set(np.concatenate(epochs)) == set(best)
    assert sorted(np.concatenate(epochs)[:12]) == sorted(best), "each once an epoch"


def test_a_source_of_which_nothing_is_kept_is_named(pool: Path, loading: Loading) -> None:
    stream = opened(pool, loading)
    split = replace(stream, sources=tuple((shard,) for shard in stream.shards), weights=(1, 1, 1),
                    counts=tuple((n,) for n in stream.counts[0]))  # fmt: skip
    with pytest.raises(DataError, match=r"nothing is kept of .*02.tar"):
        Reading(split, 0, np.array([3, 9]))


# --- where it computes ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["own", "open_clip"])
def test_a_live_reference_computes_where_the_learner_does(
    kind: str, pool: Path, loading: Loading, tmp_path: Path, checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On "meta", which every machine has, and where nothing that lies on the CPU can be mixed in.

    Torch refuses an operation between the two devices, so weights, pixels, tokens, mean and
    scale must all have moved.
    """
    for each in (OwnReference, ForeignReference):
        monkeypatch.setattr(each, "key", "no weights to hash on meta")
    if kind == "own":
        reference = merge(settings(pool), merge(METHODS["curated"], {"optim": {"steps": 2}}))
        run = make_run(settings(pool, reference=reference))
        monkeypatch.setattr(scored_with, "load_run", lambda run, _: trained.new_learner(run))
        monkeypatch.setattr(scored_with, "read_done", lambda _: {"flops": {"charged": 0.0}})
    else:
        run = make_run(settings(pool, reference_model=checkpoint))
    place = Workspace(None, tmp_path / "runs", loading)
    inputs = place.inputs(run)
    assert isinstance(inputs, own.OwnInputs)
    inputs.folder.mkdir(parents=True)
    world = World(device=torch.device("meta"))
    reference_, flops, _ = scored_with.own_reference(run, place, inputs, world)
    assert reference_ is not None and flops is not None and flops.full > 0
    drawn = drawn_from.open_drawing(run, inputs, reference_, inputs.folder)[0]
    found = reference_(drawn(0))
    assert {t.device.type for t in (found.image, found.text, found.scale, found.bias)} == {"meta"}
    assert found.image.shape[0] == run.super_batch_size
    alone, _, _ = scored_with.own_reference(run, place, inputs)
    assert alone is not None and alone(drawn(0)).image.device.type == "cpu"
    drawn.close()
