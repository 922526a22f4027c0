"""The runs in a folder: listed, found by the beginning of a name, compared, their left-overs.

Reads JSON alone and imports nothing heavy, so that it answers at once.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from jestcli.utils.lock import Held, held, hold
from jestcli.utils.reading import parse_json

TAIL = 1 << 20  # bytes at the end of metrics.jsonl in which the last step is looked for
ABANDONED = 3600.0  # seconds after which a half-written file is nobody's
MODEL = "model.safetensors"  # a finished run's weights
COLUMNS = ("name", "method", "data", "seed", "steps", "state", "score", "when", "size")
WIDE = (96, 12)  # characters and rows of a curve at most
UNIFORM = {"pool": "uniform", "curated": "curated", "mixed": "mixed", "filtered": "filtered"}


def default_runs() -> Path:
    """$JEST_RUNS, or ./runs."""
    return Path(os.environ.get("JEST_RUNS", "runs"))


@dataclass(frozen=True)
class Listed:
    """A run directory, as its JSON files say. settings: the resolved ones, as plain data."""

    folder: Path
    settings: dict[str, Any]
    running: bool

    @property
    def label(self) -> str:
        return str(self.settings.get("label", "?"))

    @property
    def name(self) -> str:
        """Readable: what the run is called, and four digits of its directory's name. A reference
        that was trained for a run is no second run of that name."""
        if self.label.endswith(": reference"):
            return f"reference-{self.folder.name[:4]}"
        word = re.sub(r"[^\w.@+-]+", "-", self.label.partition(" (seed")[0]).strip("-")
        return f"{word or 'run'}-{self.folder.name[:4]}"

    @cached_property
    def done(self) -> dict[str, Any]:
        return _sound(_json(self.folder / "done.json"))

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [_sound(_parsed(line)) for line in _lines(self.folder / "metrics.jsonl")]

    @cached_property
    def step(self) -> int:
        """Steps that were logged."""
        if self.done:
            return int(self.done.get("steps", 0))
        last = _lines(self.folder / "metrics.jsonl", TAIL)[-1:]
        return int(_sound(_parsed(last[0])).get("step", 0)) if last else 0

    @property
    def state(self) -> str:
        if self.done:
            return "done"
        return "running" if self.running else "stopped"

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Of the last evaluation, by benchmark."""
        if self.done:
            return self.done.get("scores") or {}
        tail = reversed(_lines(self.folder / "metrics.jsonl", TAIL))
        return next((x for line in tail if (x := _sound(_parsed(line)).get("scores"))), {})

    @property
    def mean(self) -> float | None:
        return _mean(self.scores)

    @property
    def when(self) -> float:
        """Seconds since 1970 at which it was last written."""
        files = (self.folder / x for x in ("done.json", "metrics.jsonl", "config.json"))
        return next(path for path in files if path.exists()).stat().st_mtime

    def row(self) -> dict[str, Any]:
        """Plain values by column; score in %, size in bytes, when in seconds since 1970."""
        steps = at(self.settings, "optim.steps")
        return {
            "name": self.name,
            "method": method_of(self.settings),
            "data": data_of(self.settings),
            "seed": self.settings.get("seed"),
            "steps": str(steps) if self.done else f"{self.step}/{steps}",
            "state": self.state,
            "score": None if self.mean is None else round(100 * self.mean, 2),
            "when": self.when,
            "size": size_of(self.folder),
        }


def list_all(runs: Path) -> list[Listed]:
    """The runs in a folder, the newest last; what is no run is passed over."""
    busy = held(runs)
    found = []
    for path in runs.glob("*/config.json"):
        settings = _json(path)
        if "label" in settings:
            found.append(Listed(path.parent, settings, path.parent.name in busy))
    return sorted(found, key=lambda each: (each.when, each.name))


def read(folder: Path) -> Listed:
    """A run directory."""
    return Listed(folder, _json(folder / "config.json"), folder.name in held(folder.parent))


def find(word: str, runs: Path) -> Path:
    """A run directory: by its path, or by the beginning of its name, readable or of digits.

    Raises ConfigError in one line where there is none, or several.
    """
    if (Path(word) / "config.json").exists():
        return Path(word)
    there = list_all(runs)
    found = [x for x in there if word in (x.name, x.folder.name)] or [
        x for x in there if x.folder.name.startswith(word) or x.name.startswith(word)
    ]
    if len(found) == 1:
        return found[0].folder
    from jestcli.config import ConfigError, did_you_mean

    if not found:
        near = did_you_mean(word, [x.name for x in there]) if len(there) else ""
        near = near if "did you mean" in near else " (`jest runs` lists them)"
        raise ConfigError(f"no run in {runs} is called {word!r}{near}")
    names = ", ".join(x.name for x in found[-8:])
    raise ConfigError(f"{len(found)} runs in {runs} are called {word!r}: {names}")


def matching(found: Sequence[Listed], filters: Sequence[str]) -> list[Listed]:
    """Those that fit every KEY=PATTERN; a key is a column or a setting such as optim.steps.

    Raises ConfigError for a key that no run has.
    """
    kept = list(found)
    for text in filters:
        key, equals, pattern = text.partition("=")
        rows = [(x, {**_flat(x.settings), **x.row()}) for x in kept]
        if not equals or (rows and not any(key in row for _, row in rows)):
            from jestcli.config import ConfigError

            raise ConfigError(
                f"--filter {text}: expected COLUMN=PATTERN ({', '.join(COLUMNS)}) or a setting's "
                "name, such as optim.steps=900"
            )
        kept = [x for x, row in rows if key in row and fnmatchcase(_said(row[key]), pattern)]
    return kept


# --- what a row says ----------------------------------------------------------------------------


def method_of(settings: dict[str, Any]) -> str:
    """What `jest train --method` calls these settings."""
    sampler, kind = at(settings, "selection.sampler"), at(settings, "source.kind")
    criterion = at(settings, "selection.criterion")
    if settings.get("init_from_reference"):
        return "finetune"
    if sampler == "uniform":
        two = kind == "pool" and at(settings, "selection.low_res_share")
        return "flexi-uniform" if two else UNIFORM.get(kind, "?")
    if sampler != "joint":
        return str(sampler or "?")
    if criterion in ("easy_reference", "hard_learner"):
        return str(criterion).replace("_", "-")
    if kind == "mixed":
        return "jest-curated"
    return "flexi" if at(settings, "selection.low_res_scoring") else "jest"


def data_of(settings: dict[str, Any]) -> str:
    """A user's shards by name, or the icons and their share of wrong captions."""
    own = [*(at(settings, "data.train") or ()), *(at(settings, "data.curated") or ())]
    if own:
        parts = [part for part in own[0].split("/") if part and "*" not in part]
        return (parts[-1] if parts else own[0]) + (f" +{len(own) - 1}" if len(own) > 1 else "")
    wrong = at(settings, "source.noise_share")
    return f"icons {wrong:.0%}" if wrong else "icons"


def size_of(folder: Path) -> int:
    """Bytes on the disk; a file of two names counts once."""
    return sum({about.st_ino: about.st_size for about in _files(folder)}.values())


def _files(path: Path) -> list[os.stat_result]:
    """Of every file in a folder, or of a file itself."""
    if not path.is_dir():
        return [path.lstat()]
    return [os.lstat(os.path.join(top, name)) for top, _, names in os.walk(path) for name in names]


def short(row: dict[str, Any], now: float) -> list[str]:
    """A row as words, narrow."""
    score = "–" if row["score"] is None else f"{row['score']:.1f}"
    words = row | {"score": score, "when": ago(now - row["when"]), "size": in_bytes(row["size"])}
    return [_said(words[name]) for name in COLUMNS]


def ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now"


def in_bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


# --- two and more side by side ------------------------------------------------------------------


def differing(found: Sequence[Listed]) -> list[list[str]]:
    """Settings in which the runs differ, a row for each: its name and every run's value."""
    flat, references = [], [x.settings.get("reference") for x in found]
    for each, reference in zip(found, references, strict=True):
        flat.append(_flat(each.settings))
        if reference and not all(references):  # one word for all of its settings
            word = f"{method_of(reference)}, {at(reference, 'optim.steps')} steps"
            flat[-1] = _flat(each.settings | {"reference": word})
    keys = [key for key in dict.fromkeys(k for each in flat for k in each) if key != "label"]
    rows = [[key, *(_said(each.get(key)) for each in flat)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def score_rows(found: Sequence[Listed]) -> list[list[str]]:
    """Every benchmark's score in % with a 95 % interval over its images; of two runs, their
    difference too, paired by image where the records hold each image's outcome."""
    scores = [x.scores for x in found]
    names = list(dict.fromkeys(name for each in scores for name in each))
    rows, spread = [], []
    for name in names:
        here = [each.get(name) for each in scores]
        cells = [_interval(x["score"], x["stderr"]) if x else "–" for x in here]
        if len(found) == 2 and here[0] and here[1]:
            gap = difference(here[0], here[1])
            spread.append(gap)
            cells.append(_interval(*gap, sign="+"))
        rows.append([name, *cells])
    if len(names) > 1 and all(set(each) == set(names) for each in scores):
        cells = [_interval(*_over([(s["score"], s["stderr"]) for s in x.values()])) for x in scores]
        rows.append(["mean", *cells, *([_interval(*_over(spread), sign="+")] if spread else [])])
    width = max((len(row) for row in rows), default=1)
    return [row + ["–"] * (width - len(row)) for row in rows]


def difference(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, float]:
    """second - first, and its standard error over test images."""
    n, gap = first["n"], second["score"] - first["score"]
    a, b = first.get("hits"), second.get("hits")
    if a is None or b is None or n != second["n"]:
        return gap, math.hypot(first["stderr"], second["stderr"])
    one, two = int(a or "0", 16), int(b or "0", 16)
    changed = (one ^ two).bit_count() / n
    return gap, math.sqrt(max(0.0, changed - gap**2) / n)


def _over(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The mean of scores, and its standard error."""
    k = len(pairs)
    return sum(x for x, _ in pairs) / k, math.sqrt(sum(se**2 for _, se in pairs)) / k


def _interval(score: float, stderr: float, sign: str = "") -> str:
    return f"{100 * score:{sign}.1f} ±{196 * stderr:.1f}"


def curves(found: Sequence[Listed], width: int) -> str:
    """The mean score over examples seen (the loss where nothing was evaluated twice), drawn with a
    letter for each run."""
    what, value = "mean score, %", lambda r: 100 * _mean(r["scores"]) if r.get("scores") else None
    lines = [_line(x, value) for x in found]
    if not any(len(each) > 1 for each in lines):
        lines, what = [_line(x, lambda r: r.get("loss")) for x in found], "training loss"
    points = [p for each in lines for p in each]
    if not points:
        return ""
    columns, rows = min(width, WIDE[0]) - 9, WIDE[1]
    right = max(x for x, _ in points) or 1
    low, high = min(y for _, y in points), max(y for _, y in points)
    high = high if high > low else low + 1
    grid = [[" "] * columns for _ in range(rows)]
    for letter, each in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", lines, strict=False):
        for x, y in _between(each, right / columns):
            row = round((high - y) / (high - low) * (rows - 1))
            grid[row][min(columns - 1, int(x / right * columns))] = letter
    labels = {0: f"{high:.4g}", rows - 1: f"{low:.4g}"}
    drawn = [f"{labels.get(i, ''):>7} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    foot = f"{'':>7} +{'-' * columns}"
    return "\n".join([what, *drawn, foot, f"{right:,.0f} examples".rjust(columns + 9)])


def _line(run: Listed, value: Callable[[dict[str, Any]], Any]) -> list[tuple[float, float]]:
    """A value of the records that have it, over examples seen."""
    b = at(run.settings, "optim.batch_size") or 1
    found = [(r.get("step", 0) * b, value(r)) for r in run.records]
    return [(x, y) for x, y in found if y is not None and math.isfinite(y)]


def _between(points: list[tuple[float, float]], step: float) -> Iterator[tuple[float, float]]:
    """The points, and the straight lines between them every `step`."""
    yield from points[:1]
    for (x, y), (x2, y2) in pairwise(points):
        for i in range(1, (n := max(1, round((x2 - x) / step))) + 1):
            yield x + (x2 - x) * i / n, y + (y2 - y) * i / n


# --- left-overs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """Something that nothing needs. paths: of the folder, to be removed."""

    folder: Path
    why: str
    paths: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """What is freed; names of a file that stays free nothing."""
        about = [each for path in self.paths for each in _files(path)]
        names = Counter(each.st_ino for each in about)
        return sum({x.st_ino: x.st_size for x in about if names[x.st_ino] >= x.st_nlink}.values())


def leftovers(runs: Path) -> list[Leftover]:
    """What may go: training checkpoints of finished runs (weights and records stay, and the best
    checkpoint where it is not the last), runs that saved nothing, and half-written files."""
    busy, found = held(runs), []
    for folder in sorted(path for path in runs.glob("*") if path.is_dir()):
        if folder.name in busy or not _ours(folder):
            continue
        done, last = (folder / "done.json").exists(), folder / "checkpoint.safetensors"
        if done and (folder / MODEL).exists():
            best, paths = folder / "best.safetensors", [last, folder / "checkpoints"]
            if best.exists() and last.exists() and best.samefile(last):
                paths.append(best)
            there = tuple(path for path in paths if path.exists())
            found += [Leftover(folder, "checkpoints of a finished run", there)] if there else []
        saved = done or last.exists() or (folder / "checkpoints").exists()
        if not saved and _age(folder) > ABANDONED:
            found.append(Leftover(folder, "a run that saved nothing", (folder,)))
            continue
        half = tuple(p for p in folder.glob(".*.*") if re.search(r"\.\d+(-\d+)?$", p.name))
        if half := tuple(path for path in half if _age(path) > ABANDONED):
            found.append(Leftover(folder, "half-written files", half))
    return found


def remove(left: Leftover) -> bool:
    """Remove it, unless another process holds the folder by now; whether it is gone."""
    try:
        with hold(left.folder):
            for path in left.paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except Held:
        return False
    return True


def _ours(folder: Path) -> bool:
    """Whether a folder was made for a run: nothing else is ever removed."""
    return (folder / ".lock").exists() and re.fullmatch("[0-9a-f]{12}", folder.name) is not None


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


# --- reading ------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text())
    except (OSError, UnicodeDecodeError):
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError:  # half a line
        return {}
    return found if isinstance(found, dict) else {}


def _sound(record: dict[str, Any]) -> dict[str, Any]:
    """Without what is not as a run writes it: one damaged file must not hide the other runs."""
    numbers = {"step", "steps", "loss"}
    kept = {k: v for k, v in record.items() if k not in numbers or _is_number(v)}
    if "scores" in record:
        scores = record["scores"] if isinstance(record["scores"], dict) else {}
        kept["scores"] = {
            name: score
            for name, score in scores.items()
            if isinstance(score, dict)
            and all(_is_number(score.get(key)) for key in ("score", "stderr", "n"))
        }
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _lines(path: Path, most: int | None = None) -> list[str]:
    """The whole lines of a file, or of its last `most` bytes."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - most) if most else 0
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if start else lines


def _mean(scores: dict[str, dict[str, Any]]) -> Any:
    return sum(s["score"] for s in scores.values()) / len(scores) if scores else None


def at(settings: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def _said(value: Any) -> str:
    return "–" if value is None else str(value)
