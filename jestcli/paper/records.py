"""Small JSON records of finished runs: all that tables and figures need, and nothing else.

Protocol of the scores. Evaluations along a run use at most `evaluation.max_images` images a set (a
fixed random subset, the same for every run); the evaluation at the last step uses all of them. For
classification the subset estimates the same quantity, without bias. Retrieval among fewer
candidates is a different, easier task: such a score p, measured among m candidates, is put on the
full set's footing of n candidates as p^(ln n / ln m) (exact at p = 1 and at chance, 1/m -> 1/n;
accuracy against gallery size is close to a power law between). Records say so
(`retrieval_rescaled`); with `max_images` at least the retrieval set's size nothing is rescaled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jestcli.config import ConfigError, Run, make_run
from jestcli.utils.reading import parse_json, reading

FORMAT = 1
CONVENTIONS = ("cached_reuse", "cached", "uncached", "charged")
TRAINING_POINTS = 50
COMPACT_POINTS = 8
Record = dict[str, Any]
WHY: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "wrong_super": lambda line: (line.get("wrong") or (None, None))[0],
    "wrong_sub": lambda line: (line.get("wrong") or (None, None))[1],
    "learnability_right": lambda line: line.get("learnability_right"),
    "learnability_wrong": lambda line: line.get("learnability_wrong"),
}


class RecordError(Exception):
    """A run directory or record file that cannot be read; the message is one line."""


@dataclass(frozen=True)
class Header:
    """What a record file was measured on.

    data: the data set in words, such as "icons and emoji"; profile: the scale profile's name.
    """

    data: str
    profile: str
    format: int = FORMAT


def collect(folder: Path, name: str, seed: int) -> Record:
    """The record of the finished run in `folder`, filed under method `name`.

    Fields: name, seed, digest (the folder's name), label, settings, steps, batch_size and
    super_batch_size in pairs, benchmarks {name: chance, n, n_curve, retrieval}, curve (see
    `_point`), final {mean, mean_chance_corrected, logprob, nats, scores} on all images of the part
    that settings.part names,
    flops_per_iteration by convention (charged: what is spent once is spread over the steps),
    uniform_flops_per_iteration (3 full forwards a pair), seconds (training only, by part),
    training {step, loss, super, sub: means over equal spans of steps; with wrong captions also
    wrong_super, wrong_sub, learnability_right, learnability_wrong}, passed_reference (the step
    after which the mean learnability stayed below zero, if it did), environment.
    Raises RecordError.
    """
    config, done = _read(folder / "config.json"), _read(folder / "done.json")
    label = config.pop("label", name)
    try:
        run = make_run(config)
    except ConfigError as error:
        raise RecordError(f"{folder / 'config.json'}: {error}") from None
    lines = _read_lines(folder / "metrics.jsonl")
    evaluations = {line["step"]: line for line in lines if "scores" in line}
    if not evaluations:
        raise RecordError(f"{folder} holds no evaluation")
    full = done["scores"]
    points = [evaluations[step] for step in sorted(evaluations)]
    steps, b, each = done["steps"], run.optim.batch_size, done.get("flops_per_example")
    return {
        "name": name,
        "seed": seed,
        "digest": folder.name,
        "label": label,
        "settings": _settings(run),
        "steps": steps,
        "batch_size": b,
        "super_batch_size": run.super_batch_size,
        "benchmarks": {
            benchmark: {
                "chance": _round(row["chance"]),
                "n": row["n"],
                "n_curve": min(p["scores"][benchmark]["n"] for p in points),
                "retrieval": _is_retrieval(row),
            }
            for benchmark, row in full.items()
        },
        "retrieval_rescaled": any(
            _is_retrieval(row) and _gallery(p["scores"][benchmark]) < _gallery(row)
            for p in points
            for benchmark, row in full.items()
        ),
        "curve": [_point(p, full, b, run.candidates_before(p["step"])) for p in points],
        "final": {
            **_means({k: v["score"] for k, v in full.items()}, full),
            "logprob": _mean_over(full, "logprob"),
            "nats": _mean_over(full, "nats"),
            "auc": done.get("auc"),
            "noise": done.get("noise_trained_on"),
            "curated": done.get("curated_trained_on"),
            "scores": {
                benchmark: {k: _round(row[k]) for k in ("score", "chance", "stderr")}
                | {"n": row["n"]}
                | {k: _round(row[k]) for k in ("logprob", "nats") if k in row}
                | ({"hits": row["hits"]} if "hits" in row else {})
                for benchmark, row in full.items()
            },
        },
        "flops_per_iteration": {c: _round(done["flops"][c] / steps) for c in CONVENTIONS},
        "uniform_flops_per_iteration": (
            _round(3 * b * (each["image_full"] + each["text"])) if each else None
        ),
        "seconds": {k: _round(v) for k, v in points[-1]["seconds"].items()},
        "training": _training([line for line in lines if "loss" in line]),
        "passed_reference": next((x["step"] for x in lines if x.get("passed_reference")), None),
        "environment": _environment(folder),
    }


def compact(record: Record) -> Record:
    """What a table of many runs needs of one, in about a third of the bytes: the end point alone,
    at most COMPACT_POINTS spans of training, no items (hits) and no binomial errors, which follow
    from score and n. The same fields otherwise."""
    final = record["final"]
    lean = {
        name: {key: value for key, value in row.items() if key not in ("hits", "stderr")}
        for name, row in final["scores"].items()
    }
    return {
        **record,
        "curve": record["curve"][-1:],
        "final": {**final, "scores": lean},
        "training": _fewer(record["training"], COMPACT_POINTS),
    }


def _fewer(training: dict[str, list[float | None]], most: int) -> dict[str, list[float | None]]:
    """Spans of training put together until there are at most `most`; "step" is each one's last."""
    size = max(1, math.ceil(len(training["step"]) / most))

    def joined(values: list[float | None], last: bool) -> list[float | None]:
        groups = [values[i : i + size] for i in range(0, len(values), size)]
        return [group[-1] if last else _average(group) for group in groups]

    return {key: joined(values, key == "step") for key, values in training.items()}


def save_records(
    path: Path, records: list[Record], data: str, profile: str, small: bool = False
) -> None:
    """Write records and their header to `path`, atomically, in a fixed order, one a line.

    small: each as `compact` leaves it, where there are hundreds.
    """
    from jestcli.training.checkpoint import write_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    records = [compact(record) for record in records] if small else records
    ordered = sorted(records, key=lambda r: (r["name"], r["seed"], r["digest"]))
    head = json.dumps(asdict(Header(data, profile)), ensure_ascii=False)
    lines = ",\n".join(json.dumps(r, sort_keys=True, separators=(",", ":")) for r in ordered)
    write_atomic(path, f'{head[:-1]}, "records": [\n{lines}\n]}}\n'.encode())


def load_records(path: Path) -> tuple[Header, list[Record]]:
    """The header and the records of a file of `save_records`. Raises RecordError."""
    content = _read(path)
    if content.get("format") != FORMAT:
        raise RecordError(f"{path} has record format {content.get('format')}, not {FORMAT}")
    with reading(path):
        for record in content["records"]:
            str(record["name"]), int(record["seed"])
        return Header(content["data"], content["profile"]), content["records"]


def total_seconds(record: Record) -> float:
    """Seconds of drawing, choosing and updating; evaluation is not training and is left out."""
    return sum(record["seconds"].values())


def _point(line: dict[str, Any], full: dict[str, Any], b: int, seen: int) -> dict[str, Any]:
    """One evaluation: step, examples trained on, examples `seen` (super-batches), seconds, FLOPs
    and (where counted, of the whole machine) joules so far, scores as fractions (retrieval on the
    full set's footing) and their means."""
    scores = {
        benchmark: _full_gallery(row["score"], _gallery(row), _gallery(full[benchmark]))
        if _is_retrieval(row)
        else row["score"]
        for benchmark, row in line["scores"].items()
    }
    return {
        "step": line["step"],
        "examples": line["step"] * b,
        "seen": seen,
        "seconds": _round(sum(line["seconds"].values())),
        "flops": {c: _round(line["flops"][c]) for c in CONVENTIONS},
        **({"joules": _round(sum(line["joules"].values()))} if line.get("joules") else {}),
        **_means(scores, full),
        "logprob": _mean_over(line["scores"], "logprob"),
        "nats": _mean_over(line["scores"], "nats"),
        "scores": {k: _round(v) for k, v in scores.items()},
    }


def _full_gallery(score: float, measured: int, full: int) -> float:
    """Retrieval R@1 among `full` candidates, from its value among `measured` (see the module)."""
    if measured >= full or measured < 2 or score <= 0:
        return score
    return score ** (math.log(full) / math.log(measured))


def _gallery(row: dict[str, Any]) -> int:
    """Candidates of a retrieval query: the queries themselves, unless those are but a part."""
    return int(row.get("gallery", row["n"]))


def _is_retrieval(row: dict[str, Any]) -> bool:
    return any("retrieval" in key for key in row)


def _means(scores: dict[str, float], rows: dict[str, Any]) -> dict[str, float]:
    corrected = [(v - rows[k]["chance"]) / (1 - rows[k]["chance"]) for k, v in scores.items()]
    return {
        "mean": _round(sum(scores.values()) / len(scores)),
        "mean_chance_corrected": _round(sum(corrected) / len(corrected)),
    }


def _mean_over(rows: dict[str, Any], key: str) -> float | None:
    """Mean of a quantity over the benchmarks that have it, in nats: the classification ones."""
    values = [row[key] for row in rows.values() if row.get(key) is not None]
    return _round(sum(values) / len(values)) if values else None


def _training(lines: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Loss and learnability over training, averaged within at most TRAINING_POINTS spans.

    Where a run knew which captions are wrong, in half as many also: their share among candidates
    and among the chosen, and mean learnability of right and of wrong candidates.
    """
    known = any("wrong" in line for line in lines)
    size = max(1, math.ceil(len(lines) / (TRAINING_POINTS // 2 if known else TRAINING_POINTS)))
    why = WHY if known else {}
    spans = [lines[i : i + size] for i in range(0, len(lines), size)]

    return {
        "step": [span[-1]["step"] for span in spans],
        "loss": [_average([x["loss"] for x in span]) for span in spans],
        "super": [_average([x["learnability"][0] for x in span]) for span in spans],
        "sub": [_average([x["learnability"][1] for x in span]) for span in spans],
        **{name: [_average([of(x) for x in span]) for span in spans] for name, of in why.items()},
    }


def _average(values: list[Any]) -> float | None:
    there = [v for v in values if v is not None]
    return _round(sum(there) / len(there)) if there else None


def _settings(run: Run) -> dict[str, Any]:
    selection, source = run.selection, run.source
    return {
        **selection.model_dump(mode="json"),
        "source": source.model_dump(mode="json"),
        "init_from_reference": run.init_from_reference,
        "level": run.data.level,
        "curated_size": run.data.curated_size,
        "image_size": run.data.image_size,
        "patch_sizes": list(run.model.patch_sizes),
        "model": run.model.name or f"{run.model.layers} layers of {run.model.width}",
        "tower": run.model.tower,
        "loss": run.optim.loss,
        "lr": run.optim.lr,
        "lr_schedule": run.optim.schedule,
        "max_images": run.evaluation.max_images,
        "part": run.evaluation.part,
        "reference_steps": run.reference.optim.steps if run.reference else None,
        "reference_level": run.reference.data.level if run.reference else None,
        "reference_size": run.reference.data.curated_size if run.reference else None,
    }


def _environment(folder: Path) -> dict[str, Any]:
    about = _read(folder / "environment.json")
    return {
        "cpu": about.get("cpu"),
        "cores": about.get("cores"),
        "threads": about.get("threads"),
        "torch": about.get("packages", {}).get("torch"),
        "commit": about.get("commit"),
    } | {key: about[key] for key in ("gpu", "no_energy") if about.get(key)}


def _round(value: float) -> float:
    """Five significant digits."""
    if isinstance(value, int):
        return value
    return float(f"{value:.5g}")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        what = "the run is not finished" if path.name == "done.json" else "no such file"
        raise RecordError(f"{path}: {what}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise RecordError(f"{path} is not a JSON object")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [parse_json(line) for line in path.read_bytes().splitlines() if line]
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {' '.join(str(error).split())}") from None
