"""References over own shards: cached equals live, a cache that does not fit is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from own_shards import caption, jpeg, make_shards, sample, served, shard_loader, write_tar
from tiny import TINY, tiny_model, tiny_reference, tiny_run
from toy import train_run

from jestcli.config import METHODS, ConfigError, Run, make_run, merge
from jestcli.data import fetch
from jestcli.data.embeddings import FOLDER
from jestcli.data.fetch import local
from jestcli.data.images import decode_image
from jestcli.data.loader import SuperBatchLoader
from jestcli.data.shard_dataset import ShardDataset, open_shards
from jestcli.data.sources import Loading
from jestcli.data.tokens import small_tokenizer
from jestcli.paper.inspection import replay
from jestcli.runs import reference as run_references
from jestcli.runs import trained
from jestcli.runs.inputs import open_inputs
from jestcli.runs.opened import open_run
from jestcli.runs.reference import embed_all, open_reference
from jestcli.runs.run_data import data_of
from jestcli.runs.verify import verify
from jestcli.runs.workspace import Workspace
from jestcli.training.distributed import DistEnv
from jestcli.training.reference import (
    EmbeddingTable,
    OpenClipReference,
    RunReference,
    check_word,
    fill,
    open_clip_reference,
)
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


def opened(pool: Path, loading: Loading) -> ShardDataset:
    return open_shards("pool", (str(pool),), loading, window=2)


def own_reference(seed: int = 5) -> RunReference:
    return RunReference(tiny_model(tiny_reference(), (8,), seed), small_tokenizer(600, 8), 32)


def table(shards: ShardDataset, reference: Any) -> EmbeddingTable:
    return EmbeddingTable(shards.table_files(reference, Path("/nowhere")), reference)


def make(reference: Any, shards: ShardDataset) -> int:
    """Fill what is missing; returns how many shards that was."""
    return fill(reference, shards, shards.table_files(reference, Path("/nowhere")), nothing)


def loader(shards: ShardDataset, second: Any = None, **more: Any) -> SuperBatchLoader:
    return shard_loader(shards, B, second=second, **more)


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
    shards, reference = opened(pool, loading), own_reference()
    live = table(shards, reference)
    assert not live.complete
    drawn = loader(shards)
    batches = [drawn(step) for step in range(4)]
    expected = [live(candidates) for candidates in batches]
    assert make(reference, shards) == 3
    for name in ("02.json", "02.npy"):  # as if one shard had not been embedded
        (pool / FOLDER / reference.key / name).unlink()
    for there in (2, 3):
        cached = table(shards, reference)
        assert sum(each is not None for each in cached.maps) == there
        assert cached.complete == (there == 3)
        for candidates, want in zip(batches, expected, strict=True):
            found = cached(candidates)
            torch.testing.assert_close(found.image, want.image, rtol=0, atol=1e-6)
            torch.testing.assert_close(found.text, want.text, rtol=0, atol=1e-6)
            assert (float(found.scale), float(found.bias)) == (float(want.scale), float(want.bias))
        assert make(reference, shards) == (1 if there == 2 else 0)
    _, _, known = cached.lookup(np.arange(24))
    assert known.tolist() == [row != 5 for row in range(24)]


def test_a_cache_is_memory_mapped_and_beside_the_shards(pool: Path, loading: Loading) -> None:
    shards, reference = opened(pool, loading), own_reference()
    make(reference, shards)
    folder = pool / FOLDER / reference.key
    assert sorted(p.name for p in folder.iterdir()) == [
        f"0{i}.{kind}" for i in range(3) for kind in ("json", "npy")
    ]
    maps = table(shards, reference).maps
    assert all(isinstance(each[0], np.memmap) for each in maps if each is not None) and maps
    assert sorted(opened(pool, loading).shards) == sorted(shards.shards), "no shard by its look"


def test_a_stale_or_foreign_cache_is_refused(pool: Path, loading: Loading) -> None:
    shards, reference = opened(pool, loading), own_reference()
    make(reference, shards)
    other = own_reference(6)
    assert other.key != reference.key
    assert not any(table(shards, other).maps), "another model reads nothing of it"
    (pool / FOLDER / reference.key).rename(pool / FOLDER / other.key)
    with pytest.raises(DataError, match="are another model's: delete"):
        table(shards, other)
    (pool / FOLDER / other.key).rename(pool / FOLDER / reference.key)
    write_tar(pool / "01.tar", *[sample(n) for n in range(50, 58)])
    changed = table(opened(pool, loading), reference)
    assert [each is not None for each in changed.maps] == [True, False, True], "embedded live"
    assert make(reference, opened(pool, loading)) == 1, "that shard alone again"
    path = pool / FOLDER / reference.key / "00.npy"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"00\.npy is damaged"):
        table(opened(pool, loading), reference).pairs(np.array([1]))
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="are damaged"):
        table(opened(pool, loading), reference)


def test_a_caption_edited_in_place_is_embedded_again(pool: Path, loading: Loading) -> None:
    """The same size and the same keys; touched alone, the shard is hashed once and is the same."""
    shards, reference = opened(pool, loading), own_reference()
    make(reference, shards)
    path = pool / "00.tar"
    described = (pool / FOLDER / reference.key / "00.json").read_text()
    os.utime(path, (1, 1))
    assert table(opened(pool, loading), reference).complete
    assert (pool / FOLDER / reference.key / "00.json").read_text() != described
    content = path.read_bytes()
    at = content.index(caption(1).encode())
    path.write_bytes(content[:at] + b"X" + content[at + 1 :])
    changed = table(opened(pool, loading), reference)
    assert [each is not None for each in changed.maps] == [False, True, True]
    assert make(reference, opened(pool, loading)) == 1
    assert table(opened(pool, loading), reference).complete


def test_a_remote_shard_that_changed_is_embedded_again(pool: Path, loading: Loading) -> None:
    """As it was fetched last: one that is fetched anew while a run reads its table ends the run."""
    reference, rows = own_reference(), np.array([9])

    def evicted() -> None:
        for path in (loading.cache / "shards").glob("*.tar"):
            path.unlink()

    with served(pool) as address:
        shards = open_shards("pool", (f"{address}/01.tar", f"{address}/02.tar"), loading, window=2)
        assert make(reference, shards) == 2
        before = table(shards, reference)
        evicted()
        assert table(shards, reference).complete, "of what is not here nothing is said"
        changed = [sample(n, txt=b"quite another thing") for n in range(16, 24)]
        write_tar(pool / "02.tar", *changed)
        local(f"{address}/02.tar", loading)  # as a reader of its pixels does
        with pytest.raises(DataError, match=r"02.tar has changed since it was embedded"):
            before.pairs(rows)
        run = tiny_run("uniform", data={"train": [f"{address}/{n}.tar" for n in ("01", "02")]})
        _, wrong = verify(run, Workspace(None, pool / "runs", loading))
        assert len(wrong) == 1 and "02.tar has changed" in wrong[0]
        again = open_shards("pool", (f"{address}/01.tar", f"{address}/02.tar"), loading, window=2)
        assert not table(again, reference).complete
        assert make(reference, again) == 1
        assert table(again, reference).complete
        table(again, reference).pairs(rows)


def another_process(monkeypatch: pytest.MonkeyPatch, loading: Loading) -> None:
    """Which asks servers anew, and has no fetched shard here any more."""
    monkeypatch.setattr(fetch, "_said", {})
    monkeypatch.setattr(fetch, "_silent", set())
    for path in (loading.cache / "shards").glob("*.tar"):
        path.unlink()


def test_what_a_server_says_of_a_shard_makes_its_table_stale(
    pool: Path, loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fetching it, and without embedding again what is the same still."""
    reference, asked = own_reference(), list[str]()
    with served(pool, asked) as address:
        urls = f"{address}/01.tar", f"{address}/02.tar"

        def there() -> list[bool]:
            shards = open_shards("pool", urls, loading, window=2)
            return [each is not None for each in table(shards, reference).maps]

        assert make(reference, open_shards("pool", urls, loading, window=2)) == 2
        another_process(monkeypatch, loading)
        del asked[:]
        assert there() == [True, True]
        write_tar(pool / "02.tar", *[sample(n, txt=b"another thing") for n in range(16, 24)])
        os.utime(pool / "02.tar", (1, 1))  # of the same size
        another_process(monkeypatch, loading)
        assert there() == [True, False]
        assert not [name for name in asked if name.endswith(".tar")], "nothing was fetched"
        run = tiny_run("uniform", data={"train": list(urls)})
        _, wrong = verify(run, Workspace(None, pool / "runs", loading))
        assert len(wrong) == 1 and "02.tar has changed" in wrong[0]
        shards = open_shards("pool", urls, loading, window=2)
        assert make(reference, shards) == 1 and there() == [True, True]
        assert set(shards.captions_of(np.arange(8, 16))) == {"another thing"}

        os.utime(pool / "01.tar", (1, 1))  # touched alone
        another_process(monkeypatch, loading)
        assert there() == [False, True]
        monkeypatch.setattr(RunReference, "embed", lambda *_: pytest.fail("embedded again"))
        assert make(reference, open_shards("pool", urls, loading, window=2)) == 1
        assert there() == [True, True]


@pytest.mark.parametrize("answer", [405, "drop"])
def test_a_server_that_says_nothing_of_its_versions_is_believed(
    answer: int | str, pool: Path, loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, heads = own_reference(), list[str]()

    def silent(handler: Any) -> None:
        heads.append(handler.path)
        if isinstance(answer, int):
            handler.send_error(answer)

    with served(pool) as address:
        urls = f"{address}/01.tar", f"{address}/02.tar"
        assert make(reference, open_shards("pool", urls, loading, window=2)) == 2
        another_process(monkeypatch, loading)
        monkeypatch.setattr("own_shards._Handler.do_HEAD", silent)
        write_tar(pool / "02.tar", sample(16))
        assert table(open_shards("pool", urls, loading, window=2), reference).complete
        assert heads


def test_verify_reads_every_table_and_shard_again(pool: Path, loading: Loading) -> None:
    shards, reference = opened(pool, loading), own_reference()
    make(reference, shards)
    place = Workspace(None, pool / "runs", loading)
    run = tiny_run("uniform", data={"train": [str(pool)]})
    assert verify(run, place) == (3, [])
    about = os.stat(pool / "00.tar")
    content = bytearray((pool / "00.tar").read_bytes())
    content[600] ^= 1
    (pool / "00.tar").write_bytes(content)
    os.utime(pool / "00.tar", ns=(about.st_atime_ns, about.st_mtime_ns))
    table_1 = pool / FOLDER / reference.key / "01.npy"
    content = bytearray(table_1.read_bytes())
    content[-3] ^= 1
    table_1.write_bytes(content)
    (pool / "runs").mkdir()
    (pool / "runs" / "model.safetensors").write_bytes(b"no")
    count, wrong = verify(run, place)
    assert count == 4 and len(wrong) == 3
    for words, line in zip(
        ("00.tar has changed", "01.npy is damaged", "model"), wrong, strict=True
    ):
        assert words in line and "\n" not in line


def test_the_key_names_all_that_an_embedding_depends_on() -> None:
    base = own_reference()
    longer = RunReference(base.model, small_tokenizer(600, 9), 32)
    larger = RunReference(base.model, base.tokenizer, 64)
    assert len({x.key for x in (base, longer, larger, own_reference(6))}) == 4
    assert own_reference().key == base.key


# --- an open_clip model as the reference ---------------------------------------------------------


def test_an_open_clip_reference_sees_its_own_preprocessing(
    pool: Path, loading: Loading, checkpoint: str
) -> None:
    name, _, path = checkpoint.partition(":")
    model, _, preprocess = open_clip.create_model_and_transforms(name, path)
    tokenizer = open_clip.get_tokenizer(name)
    shards, reference = opened(pool, loading), open_clip_reference(checkpoint)
    candidates = loader(shards, reference)(0)
    found = table(shards, reference)(candidates)
    numbers = [int(key.rpartition(":")[2]) for key in candidates.keys]
    with torch.no_grad():
        pixels = torch.stack([preprocess(decode_image(jpeg(n))) for n in numbers])
        image = model.eval().encode_image(pixels, normalize=True)
        text = model.encode_text(tokenizer([caption(n) for n in numbers]), normalize=True)
    torch.testing.assert_close(found.image, image, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text, text, rtol=0, atol=1e-5)
    assert float(found.scale) == pytest.approx(float(model.logit_scale.exp()))
    make(reference, shards)
    later = loader(shards, reference, seldom=True)(0)
    torch.testing.assert_close(table(shards, reference)(later).image, image, rtol=0, atol=1e-5)
    assert torch.equal(later.second(np.arange(3)), candidates.second(np.arange(3)))


@pytest.mark.parametrize(
    "word,message",
    [
        ("ViT-B-61:openai", "no model 'ViT-B-61' (did you mean ViT-B-16"),
        ("ViT-B-16:opnai", "no file and no tag 'opnai' (did you mean openai?)"),
        ("ViT-B-16", "say ViT-B-16:TAG or ViT-B-16:FILE"),
    ],
)
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
        data = data_of(run, cached)
        found = open_reference(run, cached, data)
        assert found.live is not None and embed_all(found.live, data.pool, data, nothing) == 3
        again = open_reference(run, cached, data).table
        assert again is not None and again.complete
        train_run(run, cached, "jest", nothing)
        one, other = (losses(place.folder(run)) for place in (live, cached))
        np.testing.assert_allclose(one, other, rtol=1e-5)
        spent = [
            json.loads((p.folder(run) / "done.json").read_text())["flops"] for p in (live, cached)
        ]
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
    data = data_of(run, place)
    embed_all(open_clip_reference(checkpoint), data.pool, data, nothing)
    folder = train_run(run, place, "filtered", nothing)
    done = json.loads((folder / "done.json").read_text())
    assert done["rows_drawn_from"] == {"pool": 12}, "half of 23 that can be read, rounded"
    assert done["flops"]["charged"] > done["flops"]["cached"], "all of the pool was scored"
    kept, readable = open_reference(run, place, data).table, [*range(5), *range(6, 24)]
    assert kept is not None
    pairs = kept.pairs(np.array(readable))
    if score == "cosine":
        worth = (pairs.image * pairs.text).sum(1)
    else:
        z = pairs.scale * pairs.image @ pairs.text.T
        worth = z.diag() - (z.logsumexp(0) + z.logsumexp(1)) / 2
    best = np.array(readable)[worth.argsort(descending=True)[:12].numpy()]
    drawn = open_inputs(run, place, folder).loader
    epochs = [drawn(step).row for step in range(3)]
    assert len(epochs[0]) == 8 and set(np.concatenate(epochs)) == set(best)
    assert sorted(np.concatenate(epochs)[:12]) == sorted(best), "each once an epoch"


def test_a_source_of_which_nothing_is_kept_is_named(pool: Path, loading: Loading) -> None:
    shards = opened(pool, loading)
    several = ShardDataset(
        [(shard,) for shard in shards.shards], [(8,)] * 3, loading, weights=(1, 1, 1)
    )
    with pytest.raises(DataError, match=r"nothing is kept of .*02.tar"):
        several.order(0, "pool", np.array([3, 9]))


# --- where it computes ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["own", "open_clip"])
def test_a_live_reference_computes_where_the_learner_does(
    kind: str,
    pool: Path,
    loading: Loading,
    tmp_path: Path,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On "meta", which every machine has, and where nothing that lies on the CPU can be mixed in.

    Torch refuses an operation between the two devices, so weights, pixels, tokens, mean and
    scale must all have moved.
    """
    for each in (RunReference, OpenClipReference):
        monkeypatch.setattr(each, "key", "no weights to hash on meta")
    if kind == "own":
        reference = merge(settings(pool), merge(METHODS["curated"], {"optim": {"steps": 2}}))
        run = make_run(settings(pool, reference=reference))
        monkeypatch.setattr(run_references, "load_run", lambda run, _: trained.new_learner(run))
        monkeypatch.setattr(run_references, "read_done", lambda _: {"flops": {"charged": 0.0}})
    else:
        run = make_run(settings(pool, reference_model=checkpoint))
    place = Workspace(None, tmp_path / "runs", loading)
    data, world = data_of(run, place), DistEnv(device=torch.device("meta"))
    found = open_reference(run, place, data, world)
    assert found.call is not None and found.flops is not None and found.flops.full > 0
    drawn = shard_loader(data.pool, run.super_batch_size, second=found.live.second)  # type: ignore
    pairs = found.call(drawn(0))
    assert {t.device.type for t in (pairs.image, pairs.text, pairs.scale, pairs.bias)} == {"meta"}
    assert pairs.image.shape[0] == run.super_batch_size
    alone = open_reference(run, place, data).call
    assert alone is not None and alone(drawn(0)).image.device.type == "cpu"
    drawn.close()
