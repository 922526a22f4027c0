"""A benchmark's folder is a stranger's: only images, class numbers and captions of it are read."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from own_shards import caption, jpeg, sample, write_tar

from jestcli.config import make_run
from jestcli.data.images import decode_image, fit
from jestcli.evaluation.benchmarks import find_benchmarks
from jestcli.evaluation.folders import check
from jestcli.runs.doctor import _benchmarks
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
    with pytest.raises(DataError, match=r"2\.tar: cannot be read \(No such file"):
        find_benchmarks(moved, 32)


def written(path: Path, content: str | bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def members(folder: Path, split: str, *samples: dict[str, bytes]) -> None:
    write_tar(folder / split / "0.tar", *samples)


def flowers(n: int, label: str = "0", image: bytes | None = None) -> dict[str, bytes]:
    return {f"{n}.jpg": image or jpeg(n), f"{n}.cls": label.encode()}


CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
BMP = {"1.bmp": b"BM", "1.cls": b"0", "2.bmp": b"BM", "2.cls": b"0"}
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no class names": (lambda f: written(f / CLASSES, None), "classnames.txt: No such file"),
    "a class without a name": (
        lambda f: written(f / CLASSES, "rose\n\ntulip\n"),
        "line 2 is empty",
    ),
    "class names in another coding": (
        lambda f: written(f / CLASSES, b"ros\xe9\ntulip"),
        "not UTF-8",
    ),
    "no templates": (lambda f: written(f / TEMPLATES, None), "templates.txt: No such file"),
    "a template without a class": (lambda f: written(f / TEMPLATES, "a photo\n"), "needs {c}"),
    "a template that formats": (
        lambda f: written(f / TEMPLATES, "a {c} {c:>999999999}"),
        "needs {c}",
    ),
    "no test split": (lambda f: shutil.rmtree(f / "test"), "no test split: expected test/0.tar"),
    "no shard": (lambda f: (f / "test" / "0.tar").unlink(), "test holds no shard: expected 0.tar"),
    "shards not counted": (
        lambda f: written(f / "test" / "nshards.txt", "many"),
        "nshards.txt does",
    ),
    "no tar": (lambda f: written(f / "test" / "0.tar", "<html>" * 200), "0.tar: not a tar file"),
    "another image type": (lambda f: members(f, "test", BMP), "its members are .bmp, .cls"),
    "images without labels": (
        lambda f: members(f, "test", flowers(1), {"2.jpg": jpeg(2)}),
        "1 images have no .cls",
    ),
    "a label out of range": (
        lambda f: members(f, "test", flowers(1), flowers(2, "2")),
        "2 is of class 2, but classnames",
    ),
    "a label of words": (
        lambda f: members(f, "test", flowers(1, "rose")),
        "1: broken class number",
    ),
    "images that are none": (
        lambda f: members(f, "test", flowers(1, image=b"no"), flowers(2, image=b"no")),
        "no image of .*test can be read; the first: .*0.tar: 1: broken image",
    ),
    "a class without a training image": (
        lambda f: members(f, "train", flowers(1)),
        "train has no image of class 1",
    ),
    "empty captions": (
        lambda f: (
            written(f / "dataset_type.txt", "retrieval"),
            members(f, "test", sample(1), sample(2, txt=b" \n", json=None)),
        ),
        "000000002 has an empty caption",
    ),
    "one image to retrieve": (
        lambda f: (written(f / "dataset_type.txt", "retrieval"), members(f, "test", sample(1))),
        "holds one image",
    ),
    "a list of something": (
        lambda f: written(f.parent / "benchmarks.json", '[{"name": "x"}]'),
        "is not a list of",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_scored_is_said_before_training(fault: str, tmp_path: Path) -> None:
    folder = labelled(tmp_path, tmp_path / "executed")
    assert len(find_benchmarks(tmp_path, 32, shots=2)) == 2
    break_it, words = FAULTS[fault]
    break_it(folder)
    with pytest.raises(DataError, match=words) as said:
        find_benchmarks(tmp_path, 32, shots=2)
    assert "\n" not in str(said.value) and str(tmp_path) in str(said.value)
    run = make_run({"data": {"train": "x.tar", "benchmarks": str(tmp_path), "shots": 2}})
    with pytest.raises(DataError, match=re.escape(str(said.value))):
        _benchmarks(run)


def test_what_is_odd_but_can_be_scored_is_noted(tmp_path: Path) -> None:
    folder = labelled(tmp_path, tmp_path / "executed")
    (folder / CLASSES).write_text("rose\ntulip\naster\n")
    members(folder, "test", flowers(1), {"2.cls": b"1"}, flowers(3))
    (found,) = find_benchmarks(tmp_path, 32)
    assert found.chance == 1 / 3 and len(found.split()) == 2
    notes = check(folder).notes
    assert notes == (f"{folder}/test/0.tar: 1 no image", "2 of 3 classes have no test image")


def test_a_list_that_names_no_benchmark_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.json").write_text("[]")
    with pytest.raises(DataError, match=r"benchmarks\.json names no benchmark"):
        find_benchmarks(tmp_path, 32)
