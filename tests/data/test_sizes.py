"""Remote shards counted by what lies beside them: fetched when drawn from, and not before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from own_shards import make_shards, same, sample, served, shard_loader, write_tar

from jestcli.data.bad_samples import BadSampleLog
from jestcli.data.loader import SuperBatch
from jestcli.data.shard_dataset import ShardDataset, open_shards
from jestcli.data.sizes import MOST, stated_counts
from jestcli.data.sources import Loading
from jestcli.utils.errors import DataError

B, SHARDS, EACH = 10, 12, 6


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    return Loading(workers=0, cache=tmp_path / "cache", timeout=0.5, retries=1, pause=0.01)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "pool", SHARDS, EACH)


def state(pool: Path, **counts: int) -> None:
    """Write sizes.json: the truth, and what is given as _00=7 instead."""
    sizes = {f"{i:02d}.tar": counts.get(f"_{i:02d}", EACH) for i in range(SHARDS)}
    (pool / "sizes.json").write_text(json.dumps(sizes))


def opened(address: str, loading: Loading, record: Path | None = None) -> ShardDataset:
    pattern = f"{address}/{{00..{SHARDS - 1:02d}}}.tar"
    return open_shards("pool", (pattern,), loading, window=2, record=record)


def draw(dataset: ShardDataset, steps: Any, log: BadSampleLog | None = None) -> list[SuperBatch]:
    loader = shard_loader(dataset, B, log=log)
    try:
        return [loader(step) for step in steps]
    finally:
        loader.close()


def tars(asked: list[str]) -> set[str]:
    return {name for name in asked if name.endswith(".tar")}


def test_only_what_is_drawn_from_is_fetched(pool: Path, loading: Loading, tmp_path: Path) -> None:
    asked: list[str] = []
    with served(pool, asked) as address:
        every = Loading(workers=0, cache=tmp_path / "every")
        expected = draw(opened(address, every), [0])
        assert len(tars(asked)) == SHARDS, "nothing states a count, so each is fetched"
        state(pool)
        asked.clear()
        stream = opened(address, loading)
        assert asked == ["sizes.json"] and len(stream) == SHARDS * EACH
        found = draw(stream, [0])
        # 10 of the 12 samples of the first window, two shards; fetched ahead: the next three.
        first = {stream.shards[stream.locate(int(row))[0]] for row in found[0].row}
        assert len(first) == 2 and {f"{address}/{name}" for name in tars(asked)} >= first
        assert len(tars(asked)) <= 8 < SHARDS
        assert same(found, expected)
        asked.clear()
        assert len(opened(address, loading)) == len(stream) and not asked, "counts are kept"


def test_img2datasets_statistics_count_and_the_rest_is_fetched(
    pool: Path, loading: Loading
) -> None:
    for shard in range(SHARDS - 1):
        text = json.dumps({"count": 99, "successes": EACH, "failed_to_download": 99 - EACH})
        (pool / f"{shard:02d}_stats.json").write_text(text)
    asked: list[str] = []
    with served(pool, asked) as address:
        assert opened(address, loading).counts == ((EACH,) * SHARDS,)
        assert tars(asked) == {f"{SHARDS - 1:02d}.tar"}, "the one without statistics"
        asked.clear()
        opened(address, loading)
        assert tars(asked) == set() and not [a for a in asked if a.startswith("00")]


@pytest.mark.parametrize("claim", [0, -1, True, "6", 6.0, None, MOST + 1, 10**30])
def test_what_cannot_be_a_count_is_not_believed(claim: Any, pool: Path, loading: Loading) -> None:
    (pool / "sizes.json").write_text(json.dumps({"00.tar": claim, "01.tar": 3}))
    with served(pool) as address:
        stated = stated_counts([f"{address}/0{i}.tar" for i in range(2)], loading)
        assert (stated(f"{address}/00.tar"), stated(f"{address}/01.tar")) == (None, 3)


@pytest.mark.parametrize("content", [b"", b"[6]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_file_states_nothing(content: bytes, pool: Path, loading: Loading) -> None:
    (pool / "sizes.json").write_bytes(content)
    with served(pool) as address:
        assert stated_counts([f"{address}/00.tar"], loading)(f"{address}/00.tar") is None


def test_a_token_in_the_address_goes_along(pool: Path, loading: Loading) -> None:
    (pool / "a b.tar").write_bytes((pool / "00.tar").read_bytes())
    (pool / "sizes.json").write_text(json.dumps({"a b.tar": 6}))
    asked: list[str] = []
    with served(pool, asked) as address:
        shard = f"{address}/a%20b.tar?key=1"
        assert stated_counts([shard], loading)(shard) == 6
    assert asked == ["sizes.json?key=1"]


def test_fewer_samples_than_stated_are_replaced_and_named(
    pool: Path, loading: Loading, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state(pool, _03=2 * EACH)
    folder = tmp_path / "run"
    folder.mkdir()
    lenient = Loading(**{**vars(loading), "max_faults": 0.5})
    with served(pool) as address:
        stream = opened(address, lenient, folder / "shards.json")
        epoch = range(-(-len(stream) // B))
        found = draw(stream, epoch, BadSampleLog(folder, limit=0.5))
        again = draw(stream, epoch, BadSampleLog(folder, limit=0.5))
    faults = [json.loads(line) for line in (folder / "faults.jsonl").read_text().splitlines()]
    assert {(f["shard"], f["reason"]) for f in faults} == {
        (f"{address}/03.tar", "the shard holds only 6 samples, fewer than were counted")
    }
    assert len({f["position"] for f in faults}) >= EACH, "in an epoch each is asked for"
    assert all(len(c) == B for c in found) and same(found, again)
    assert caplog.text.count("fewer than were counted") == 2, "once a sitting"


def test_more_samples_than_stated_are_not_used(
    pool: Path, loading: Loading, caplog: pytest.LogCaptureFixture
) -> None:
    state(pool, _03=2)
    with served(pool) as address:
        stream = opened(address, loading)
        found = draw(stream, range(14))  # two epochs
    keys = {key for candidates in found for key in candidates.keys}
    assert len(keys) == len(stream) == SHARDS * EACH - 4
    assert sum("03.tar" in key for key in keys) == 2
    assert caplog.text.count("the rest is not used") == 1


def test_a_shard_that_is_not_there_costs_itself_alone(
    pool: Path, loading: Loading, tmp_path: Path
) -> None:
    """Found out only when it is drawn from: half of what its window reads is then missing."""
    state(pool)
    (pool / "07.tar").unlink()
    with served(pool) as address:
        stream = opened(address, loading)
        found = draw(stream, range(30), BadSampleLog(limit=0.1))
        assert {k.rpartition("/")[2][:2] for c in found for k in c.keys} == {
            f"{i:02d}" for i in range(SHARDS) if i != 7
        }
        with pytest.raises(DataError, match=r"more than the 5 %.*the server answers 404 \(http"):
            draw(stream, range(30), BadSampleLog(limit=0.05))


def test_local_shards_are_counted_themselves(pool: Path, loading: Loading) -> None:
    state(pool, _00=99)
    assert len(open_shards("pool", (str(pool),), loading)) == SHARDS * EACH
    write_tar(pool / "00.tar", sample(1))
    assert len(open_shards("pool", (str(pool),), loading)) == SHARDS * EACH - EACH + 1
