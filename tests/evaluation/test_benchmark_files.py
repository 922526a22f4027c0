"""A benchmark's folder is a stranger's: only images, class numbers and captions of it are read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from own_shards import caption, jpeg, sample, write_tar

from jestcli.data.images import decode_image, fit
from jestcli.evaluation.benchmarks import find_benchmarks
from jestcli.utils.errors import DataError


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def bombs(key: str, mark: Path) -> dict[str, bytes]:
    """Members that webdataset's default decoders would unpickle."""
    return {f"{key}.{kind}": pickle.dumps(Bomb(mark)) for kind in ("pyd", "pickle", "pkl", "pth")}


def labelled(folder: Path, mark: Path) -> Path:
    flowers = folder / "wds_flowers"
    for split in ("test", "train"):
        write_tar(
            flowers / split / "0.tar",
            *[
                {f"{n}.jpg": jpeg(n), f"{n}.cls": str(n % 2).encode(), **bombs(str(n), mark)}
                for n in range(6)
            ],
        )
    (flowers / "classnames.txt").write_text("rose\ntulip\n")
    (flowers / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    return flowers


def test_nothing_in_a_benchmark_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb works"
    mark.rmdir()
    labelled(tmp_path, mark)
    pairs = tmp_path / "wds_pairs"
    write_tar(pairs / "test" / "0.tar", *[sample(n) | bombs(f"{n:09d}", mark) for n in range(4)])
    (pairs / "dataset_type.txt").write_text("retrieval")
    zero, few, i2t, _ = find_benchmarks(tmp_path, 32, shots=2)
    test, train = zero.split(), few.split("train")
    assert test.labels is not None and test.labels.tolist() == [n % 2 for n in range(6)]
    for n in range(6):
        expected = torch.from_numpy(fit(decode_image(jpeg(n)), 32).copy()).permute(2, 0, 1)
        assert torch.equal(test.images[n], expected)
    assert train.labels is not None and len(train) == 4
    assert i2t.split().captions == [[caption(n)] for n in range(4)]
    assert not mark.exists()


def test_shards_are_counted_by_the_file_that_says_so(tmp_path: Path) -> None:
    flowers = labelled(tmp_path, tmp_path / "executed")
    write_tar(flowers / "test" / "1.tar", {"9.jpg": jpeg(9), "9.cls": b"0"})
    assert len(find_benchmarks(tmp_path, 32)[0].split()) == 7, "all of them where none says"
    other = flowers.rename(tmp_path / "wds_counted")
    (other / "test" / "nshards.txt").write_text("1\n")
    assert len(find_benchmarks(tmp_path, 32)[0].split()) == 6
    (other / "test" / "nshards.txt").write_text("3\n")
    moved = other.rename(tmp_path / "wds_more")
    with pytest.raises(DataError, match=r"2\.tar: no such file"):
        find_benchmarks(moved, 32)[0].split()
