"""Folders in clip-benchmark's local wds layout: found, and checked before anything is trained.

One function, `check_all`, is what a run calls at its start and `jest doctor` before it. It reads
texts, headers, labels and captions, and decodes one image of each; torch is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestcli.data.bad_samples import BadSample
from jestcli.data.images import decode_image
from jestcli.data.remote import ShardError
from jestcli.data.shards import words_of
from jestcli.data.tar import ShardIndex, kinds_in, read_members, scan
from jestcli.utils.errors import DataError
from jestcli.utils.layout import BY_LINE, IMAGES
from jestcli.utils.reading import parse_json

LISTED = "benchmarks.json"
KINDS = ("zero-shot", "few-shot", "retrieval")
CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
KIND = "dataset_type.txt"
TRIED = 8  # images of a split, to find one that can be decoded


@dataclass(frozen=True)
class Labelled:
    """One sample of a split and its class number (or -1: it has captions)."""

    shard: Path
    index: ShardIndex
    number: int
    label: int

    @property
    def name(self) -> str:
        return f"{self.shard}: {self.index.keys[self.number]}"

    def image(self) -> bytes:
        """Raises BadSample."""
        with self.shard.open("rb") as file:
            found = read_members(file.fileno(), self.index, self.number, str(self.shard))
        content: bytes = next(found[kind] for kind in IMAGES if kind in found)
        return content


@dataclass(frozen=True)
class Checked:
    """A folder that can be scored. n: images of the test split; n_classes: 0 for retrieval; notes:
    what is odd, but scored as it is."""

    folder: Path
    retrieval: bool
    n: int
    n_classes: int
    notes: tuple[str, ...]


def inside(folder: Path) -> list[Path]:
    """The benchmarks that are `folder` or lie in it. Raises DataError for none, and for one that
    lacks its test split."""
    found = []
    for each in [folder, *sorted(folder.iterdir())] if folder.is_dir() else []:
        if (each / "test").is_dir():
            found.append(each)
        elif each != folder and any((each / x).exists() for x in (CLASSES, KIND, "train")):
            raise DataError(f"{each} has no test split: expected test/0.tar in it")
    if not found:
        raise DataError(f"no benchmark in {folder}: expected folders with test/0.tar in them")
    return found


def listed(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's benchmarks.json. Raises DataError."""
    try:
        rows = parse_json((folder / LISTED).read_bytes())
    except (OSError, ValueError):
        raise DataError(f"no benchmarks in {folder}: run `jest data build` first") from None
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise DataError(f"{folder / LISTED} is not a list of benchmarks")
    return rows


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in ("name", "metric", "folder"))
        and row.get("kind") in KINDS
        and type(row.get("chance")) in (int, float)
    )


def scored(folder: Path) -> list[dict[str, Any]] | None:
    """The rows of benchmarks.json that a run is scored by, without those kept to confirm; None
    where there is no such file. Raises DataError."""
    if not (folder / LISTED).exists():
        return None
    rows = [row for row in listed(folder) if not row.get("confirmation", False)]
    if not rows:
        raise DataError(f"{folder / LISTED} names no benchmark")
    return rows


def check_all(folder: Path, shots: int | None = None) -> list[Checked]:
    """`check` all that a run with this folder is scored by. Raises DataError, also where shots are
    asked for and there is no train split."""
    rows = scored(folder)
    if rows is not None:
        few = {row["folder"] for row in rows if row["kind"] == "few-shot"}
        for name in few:
            if not (folder / name / "train").is_dir():
                raise DataError(f"{folder / name} has no train split: expected train/0.tar in it")
        names = dict.fromkeys(row["folder"] for row in rows)
        return [check(folder / name, 1 if name in few else None) for name in names]
    found = [check(each, shots) for each in inside(folder)]
    trainable = [each for each in found if each.n_classes and (each.folder / "train").is_dir()]
    if shots is not None and not trainable:
        raise DataError(
            f"data.shots={shots}, but no labelled benchmark in {folder} has a train split: "
            "expected train/0.tar beside its test/0.tar"
        )
    return found


def check(folder: Path, shots: int | None = None) -> Checked:
    """Whether the benchmark in `folder` can be scored, and trained on where it has a train split
    and `shots` are asked for. Raises DataError in one line that names the file."""
    notes: list[str] = []
    retrieval = is_retrieval(folder)
    classes = [] if retrieval else class_names(folder)
    if not retrieval:
        templates(folder)
    samples = list(labelled(folder, "test", len(classes), notes))
    _check_images(folder / "test", samples)
    if retrieval and len(samples) < 2:
        raise DataError(f"{folder / 'test'} holds one image: nothing to retrieve it from")
    without = len(set(range(len(classes))) - {each.label for each in samples})
    if without:
        notes.append(f"{without:,} of {len(classes):,} classes have no test image")
    if shots is not None and classes and (folder / "train").is_dir():
        train = list(labelled(folder, "train", len(classes), notes))
        _check_images(folder / "train", train)
        missing = set(range(len(classes))) - {each.label for each in train}
        if missing:
            raise DataError(
                f"{folder / 'train'} has no image of class {min(missing)}; {CLASSES} names "
                f"{len(classes):,}"
            )
    return Checked(folder, retrieval, len(samples), len(classes), tuple(notes))


def is_retrieval(folder: Path) -> bool:
    """Whether a benchmark's folder says that it is for retrieval."""
    kind = folder / KIND
    return kind.exists() and _text(kind).strip().lower() == "retrieval"


def class_names(folder: Path) -> list[str]:
    """By class number. Raises DataError."""
    names = _text(folder / CLASSES).rstrip("\r\n").split("\n")
    blank = next((i for i, name in enumerate(names, 1) if not name.strip()), None)
    if blank is not None:
        raise DataError(f"{folder / CLASSES}: line {blank} is empty, but a line is a class")
    return names


def templates(folder: Path) -> list[str]:
    """Prompts with {c} for a class. Raises DataError."""
    found = [line for line in _text(folder / TEMPLATES).split("\n") if line.strip()]
    if not found:
        raise DataError(f"{folder / TEMPLATES} is empty: expected lines such as a photo of a {{c}}")
    for line in found:
        if "{c}" not in line or re.search("[{}]", line.replace("{c}", "")):
            raise DataError(f"{folder / TEMPLATES}: {line[:80]!r} needs {{c}}, and no other brace")
    return found


def shards_of(folder: Path, split: str) -> list[Path]:
    """A split's shards: so many as nshards.txt says, where there is one. Raises DataError."""
    counted = folder / split / "nshards.txt"
    if counted.exists():
        if not re.fullmatch(r"[1-9]\d{0,5}", _text(counted).strip()):
            raise DataError(f"{counted} does not hold a number of shards")
        shards = [folder / split / f"{i}.tar" for i in range(int(_text(counted)))]
    else:
        shards = sorted((folder / split).glob("[!.]*.tar"))
    if not shards:
        raise DataError(f"{folder / split} holds no shard: expected 0.tar")
    return shards


def labelled(
    folder: Path, split: str, n_classes: int, notes: list[str] | None = None
) -> Iterator[Labelled]:
    """The samples of a split, with labels below `n_classes` (0: with captions), images unread.

    notes: gets what shards lost. Raises DataError for a sample that has no such label.
    """
    texts, what = (("cls",), ".cls") if n_classes else (("txt", "json"), "caption")
    for shard in shards_of(folder, split):
        try:
            index = scan(shard, BY_LINE, texts)
            if not len(index):
                raise DataError(
                    f"{shard} holds no image ({', '.join(IMAGES)}) with a {what}: its members are "
                    f"{kinds_in(shard)}"
                )
            if lacking := index.faults.get("no caption"):
                raise DataError(f"{shard}: {lacking:,} images have no {what}")
            if notes is not None:
                notes += [f"{shard}: {n:,} {why}" for why, n in index.faults.items()]
            with shard.open("rb") as file:
                for number, key in enumerate(index.keys):
                    raw = read_members(file.fileno(), index, number, str(shard), images=False)
                    try:
                        _, captions, meta = words_of(raw, BY_LINE)
                    except BadSample as why:
                        raise DataError(f"{shard}: {key}: {why}") from None
                    if not n_classes and not captions:
                        raise DataError(f"{shard}: {key} has an empty caption")
                    label = meta.get("cls", -1) if n_classes else -1
                    if label >= n_classes > 0:
                        raise DataError(
                            f"{shard}: {key} is of class {label}, but {CLASSES} names {n_classes:,}"
                        )
                    yield Labelled(shard, index, number, label)
        except (ShardError, BadSample) as reason:
            raise DataError(f"{shard}: {reason}") from None


def _check_images(split: Path, samples: list[Labelled]) -> None:
    why = ""
    for each in samples[:TRIED]:
        try:
            decode_image(each.image())
            return
        except BadSample as reason:
            why = why or f"{each.name}: {reason}"
    raise DataError(f"no image of {split} can be read; the first: {why}")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
