"""Broken data: skipped, counted, written down with the shard's name, and the run goes on."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from own_shards import jpeg, make_shards, same, sample, served, shard_loader, write_tar

from jestcli.data.bad_samples import BadSampleLog, BadSampleRecord
from jestcli.data.fetch import local
from jestcli.data.loader import SuperBatch, bottleneck
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.data.tar import scan
from jestcli.utils.errors import DataError

B = 10


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    return Loading(
        workers=0, max_faults=0.6, cache=tmp_path / "cache", timeout=0.3, retries=1, pause=0.01
    )


def read(
    source: Any, loading: Loading, steps: Any = range(8), folder: Path | None = None
) -> tuple[list[SuperBatch], BadSampleLog]:
    """Candidates of some steps and what was met on the way."""
    record = folder / "shards.json" if folder else None
    dataset = open_shards("pool", (str(source),), loading, window=2, record=record)
    log = BadSampleLog(folder, limit=loading.max_faults)
    loader = shard_loader(dataset, B, log=log)
    try:
        return [loader(step) for step in steps], log
    finally:
        loader.close()


def png_bomb(side: int = 30_000) -> bytes:
    """A PNG that claims side x side pixels in a few hundred bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


BROKEN: dict[str, dict[str, Any]] = {
    "broken image": {"jpg": jpeg(1)[:300]},
    "no caption": {"txt": b"  \n", "json": b"{}"},
    "text too large": {"txt": b"x" * 10_000_000},
    "text is not utf-8": {"txt": b"\xff\xfe\xfa"},
    "image too large": {"jpg": None, "png": png_bomb()},
    "broken json": {"json": b"{"},
}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_broken_sample_is_replaced_and_named(
    workers: int, tmp_path: Path, loading: Loading
) -> None:
    good = [sample(n) for n in range(20)]
    bad = [sample(100 + i, **members) for i, members in enumerate(BROKEN.values())]
    write_tar(tmp_path / "a.tar", *good, *bad)
    folder = tmp_path / "run"
    folder.mkdir()
    more = Loading(workers=workers, max_faults=0.6, cache=loading.cache)
    found, _ = read(tmp_path / "a.tar", more, folder=folder)
    assert all(len(c) == B and c.row.max() < 20 for c in found), "every candidate is a good one"
    lines = [json.loads(x) for x in (folder / "faults.jsonl").read_text().splitlines()]
    assert {x["reason"] for x in lines} == set(BROKEN)
    assert all(x["shard"] == str(tmp_path / "a.tar") for x in lines)
    by_key = {x["key"]: x["reason"] for x in lines}
    assert by_key == {f"{100 + i:09d}": reason for i, reason in enumerate(BROKEN)}
    straight, _ = read(tmp_path / "a.tar", loading)
    assert same(found, straight), "what stands in does not depend on workers"


def test_what_an_index_leaves_out_is_counted(tmp_path: Path) -> None:
    twice = sample(1)
    path = write_tar(
        tmp_path / "a.tar",
        sample(0),
        sample(2, jpg=None),
        sample(3, txt=None, json=None),
        twice,
        sample(4),
        twice,
        sample(5, JPG=jpeg(6)),
    )
    index = scan(path)
    assert index.keys == [f"{n:09d}" for n in (0, 1, 4, 5)]
    assert index.faults == {
        "no image": 1,
        "no caption": 1,
        "duplicate key": 1,
        "duplicate member": 1,
    }


def test_a_shard_that_breaks_off_keeps_what_came_before(
    tmp_path: Path, loading: Loading, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_shards(tmp_path / "pool", 1, 20) / "00.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 700])
    assert 5 < len(scan(path)) < 15 and scan(path).faults == {"shard breaks off": 1}
    found, _ = read(tmp_path / "pool", loading)
    assert len({n for c in found for n in c.row}) == len(scan(path))
    assert "shard breaks off" in caplog.text and "00.tar" in caplog.text
    path.write_bytes(b"this is no tar" * 100)
    with pytest.raises(DataError, match=r"00\.tar: not a tar file"):
        read(tmp_path / "pool", loading)


@pytest.mark.parametrize("trouble", [[503] * 9, ["stall"] * 9, ["short"] * 9, [404]])
def test_a_server_in_trouble_costs_its_shard_not_the_run(
    trouble: list[Any], tmp_path: Path, loading: Loading, caplog: pytest.LogCaptureFixture
) -> None:
    pool, folder = make_shards(tmp_path / "pool", 3, 8), tmp_path / "run"
    folder.mkdir()
    with served(pool, **{"01_tar": trouble}) as address:
        found, _ = read(address + "/{00..02}.tar", loading, folder=folder)
        assert {int(n) for c in found for n in c.row} == set(range(16)), "two shards are read"
        assert "01.tar" in caplog.text
    # The server is well again, or gone: a resumed run reads what it read.
    with served(pool) as other:
        text = (folder / "shards.json").read_text()
        (folder / "shards.json").write_text(text.replace(address, other))
        (loading.cache / "shards").rename(loading.cache / "old")
        again, _ = read(other + "/{00..02}.tar", loading, folder=folder)
    assert same(found, again)


def test_too_many_broken_shards_stop_a_run_at_once(tmp_path: Path, loading: Loading) -> None:
    pool = make_shards(tmp_path / "pool", 4, 2)
    (pool / "02.tar").write_bytes(b"x")
    strict = Loading(workers=0, max_faults=0.1, cache=loading.cache)
    with pytest.raises(DataError, match=r"1 of 4 shards cannot be read, more than the 10 %"):
        read(pool, strict)
    read(pool, Loading(workers=0, max_faults=0.25, cache=loading.cache))


def test_too_many_broken_samples_stop_a_run(tmp_path: Path, loading: Loading) -> None:
    samples = [sample(n, **({"jpg": b"no"} if n % 4 == 0 else {})) for n in range(40)]
    write_tar(tmp_path / "a.tar", *samples)
    strict = Loading(workers=0, max_faults=0.1, cache=loading.cache)
    with pytest.raises(DataError, match="broken image") as caught:
        read(tmp_path / "a.tar", strict, range(30), folder=tmp_path)
    assert "of 200 samples could not be read, more than the 10 %" in str(caught.value)
    read(tmp_path / "a.tar", loading, range(30))
    nothing = write_tar(tmp_path / "b.tar", *[sample(n, jpg=b"no") for n in range(4)])
    with pytest.raises(DataError, match="21 samples in a row could not be read"):
        read(nothing, loading)


def test_a_fault_that_passes_is_replayed(tmp_path: Path, loading: Loading) -> None:
    """A shard vanishes for a while: the resumed run sees what the first one saw."""
    pool, folder = make_shards(tmp_path / "pool", 3, 8), tmp_path / "run"
    folder.mkdir()
    pattern = f"{pool}/{{00..02}}.tar"
    healthy, _ = read(pattern, loading, folder=folder)
    (pool / "01.tar").rename(tmp_path / "away")
    troubled, log = read(pattern, loading, folder=folder)
    assert not same(healthy, troubled) and log.known
    assert {f.reason for f in log.known.values()} == {"no such file"}
    (tmp_path / "away").rename(pool / "01.tar")
    content = (folder / "faults.jsonl").read_bytes()
    with (folder / "faults.jsonl").open("ab") as file:
        file.write(b'{"stream": "pool", "posi')  # killed while writing
    again, _ = read(pattern, loading, folder=folder)
    assert same(again, troubled) and (folder / "faults.jsonl").read_bytes() == content
    (folder / "faults.jsonl").unlink()
    assert same(read(pattern, loading, folder=folder)[0], healthy)


def test_every_rank_writes_its_own_log_and_reads_all(tmp_path: Path) -> None:
    faults = [BadSampleRecord("pool", i, 0, "a.tar", str(i), "broken image") for i in range(3)]
    for rank, fault in enumerate(faults):
        log = BadSampleLog(tmp_path, rank)
        log.add([fault, fault])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "faults-rank1.jsonl",
        "faults-rank2.jsonl",
        "faults.jsonl",
    ]
    assert sorted(BadSampleLog(tmp_path).known.values()) == faults


def test_what_breaks_between_scoring_and_training_is_enlarged(
    tmp_path: Path, loading: Loading
) -> None:
    write_tar(tmp_path / "a.tar", *[sample(n, jpg=jpeg(n, (200, 200))) for n in range(20)])
    dataset = open_shards("pool", (str(tmp_path / "a.tar"),), loading)
    log = BadSampleLog(tmp_path, limit=1.0)

    def chosen() -> tuple[torch.Tensor, torch.Tensor]:
        loader = shard_loader(dataset, B, size=64, scoring_size=32, log=log)
        candidates = loader(0)
        dataset.close()
        index = torch.tensor([4, 1])
        if broken:
            (tmp_path / "a.tar").rename(tmp_path / "away")
        try:
            return candidates.full(index)[0], candidates.images[index]
        finally:
            if broken:
                (tmp_path / "away").rename(tmp_path / "a.tar")
            loader.close()

    broken = False
    exact, _ = chosen()
    broken = True
    enlarged, small = chosen()
    assert not torch.equal(enlarged, exact) and enlarged.shape == exact.shape
    means = [x.float().mean((2, 3)) for x in (enlarged, small)]
    torch.testing.assert_close(*means, rtol=0, atol=1.5)
    assert {f.attempt for f in log.known.values()} == {-1}
    broken = False
    assert torch.equal(chosen()[0], enlarged), "and stays so when the run goes on"


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_shard_executes_and_writes_nothing(tmp_path: Path, loading: Loading) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    mark = inside / "executed"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists(), "the bomb works"
    mark.rmdir()
    evil = sample(7)
    for ending in ("pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "json.pyd"):
        evil[f"000000007.{ending}"] = bomb
    up = {f"../{name}": content for name, content in sample(8).items()}
    absolute = {f"{tmp_path}/{name}": content for name, content in sample(9).items()}
    write_tar(inside / "a.tar", evil, up, absolute)
    with tarfile.open(inside / "a.tar", "a") as tar:
        for name, kind in (("000000010.jpg", tarfile.SYMTYPE), ("000000010.txt", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        for name in ("000000011.jpg", "000000011.txt"):
            device = tarfile.TarInfo(name)
            device.type = tarfile.FIFOTYPE
            tar.addfile(device)
    before = sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts)
    found, log = read(inside, loading)
    assert {int(n) for c in found for n in c.row} == {0, 1, 2} and not log.met
    assert sorted(
        p for p in tmp_path.rglob("*") if "cache" not in p.relative_to(tmp_path).parts
    ) == (before)
    made = {p.suffix for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert made <= {".json"} and not mark.exists()


def test_an_index_that_lies_beside_the_shards_is_not_believed(
    tmp_path: Path, loading: Loading
) -> None:
    """Only the own cache is read, and what is broken there is made again."""
    pool = make_shards(tmp_path / "pool", 1, 12)
    straight, _ = read(pool, loading)
    (kept,) = (loading.cache / "index").iterdir()
    for content in ("", "[]", '{"format": 1}', kept.read_text().replace('"jpg"', '"../x"')[:500]):
        kept.write_text(content)
        assert same(read(pool, loading)[0], straight)


def test_a_pipe_that_fails_or_stalls_is_a_reason(tmp_path: Path, loading: Loading) -> None:
    from jestcli.data.remote import ShardError

    for command, why in (
        ("exit 3", "exit 3"),
        ("sleep 30", "stalls"),
        ("head -c 9; sleep 9", "stalls"),
    ):
        with pytest.raises(ShardError, match=why):
            local(f"pipe:{command}", loading)


def test_waiting_is_called_by_its_name() -> None:
    assert bottleneck(100.0, 5.0, 1000) == ""
    line = bottleneck(100.0, 50.0, 1000)
    assert "50 % of the time is waiting" in line
    assert "gives 10 pairs/s, training could take 20" in line
