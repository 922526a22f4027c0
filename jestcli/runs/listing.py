"""The runs in a folder: listed, and found by the beginning of a name.

Reads JSON alone and imports nothing heavy, so that it answers at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from jestcli.utils.lock import held
from jestcli.utils.reading import parse_json

TAIL = 1 << 20  # bytes at the end of metrics.jsonl in which the last step is looked for
MODEL = "model.safetensors"  # a finished run's weights
COLUMNS = ("name", "method", "data", "seed", "steps", "state", "score", "when", "size")
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
        return mean_of(self.scores)

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
        rows = [(x, {**flat(x.settings), **x.row()}) for x in kept]
        if not equals or (rows and not any(key in row for _, row in rows)):
            from jestcli.config import ConfigError

            raise ConfigError(
                f"--filter {text}: expected COLUMN=PATTERN ({', '.join(COLUMNS)}) or a setting's "
                "name, such as optim.steps=900"
            )
        kept = [x for x, row in rows if key in row and fnmatchcase(said(row[key]), pattern)]
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
    """A user's shards by name, or the icons; and their share of wrong captions."""
    name = "icons"
    own = [*(at(settings, "data.train") or ()), *(at(settings, "data.curated") or ())]
    if own:
        parts = [part for part in own[0].split("/") if part and "*" not in part]
        name = (parts[-1] if parts else own[0]) + (f" +{len(own) - 1}" if len(own) > 1 else "")
    wrong = at(settings, "source.noise_share")
    return f"{name} {wrong:.0%}" if wrong else name


def size_of(folder: Path) -> int:
    """Bytes on the disk; a file of two names counts once."""
    return sum({about.st_ino: about.st_size for about in files_of(folder)}.values())


def files_of(path: Path) -> list[os.stat_result]:
    """Of every file in a folder, or of a file itself."""
    if not path.is_dir():
        return [path.lstat()]
    return [os.lstat(os.path.join(top, name)) for top, _, names in os.walk(path) for name in names]


def short(row: dict[str, Any], now: float) -> list[str]:
    """A row as words, narrow."""
    score = "–" if row["score"] is None else f"{row['score']:.1f}"
    words = row | {"score": score, "when": ago(now - row["when"]), "size": in_bytes(row["size"])}
    return [said(words[name]) for name in COLUMNS]


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


def mean_of(scores: dict[str, dict[str, Any]]) -> Any:
    return sum(s["score"] for s in scores.values()) / len(scores) if scores else None


def at(settings: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def said(value: Any) -> str:
    return "–" if value is None else str(value)
