"""Small JSON records of finished runs: all that tables and figures need, and nothing else.

Protocol of the scores. Evaluations along a run use at most `evaluation.max_images` images a set (a
fixed random subset, the same for every run); the evaluation at the last step uses all of them. For
classification the subset estimates the same quantity, without bias. Retrieval among fewer
candidates is a different, easier task: such a score p, measured among m candidates, is put on the
full set's footing of n candidates as p^(ln c_n / ln c_m), c being the chance among as many (exact
at p = 1 and at chance; for R@1 it is ln n / ln m; accuracy against gallery size is close to a
power law between). Records say so (`retrieval_rescaled`); with `max_images` at least the retrieval
set's size nothing is rescaled.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from jestcli.config import ConfigError, make_run
from jestcli.training.metrics import passed_reference
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_text
from jestcli.utils.reading import parse_json, read_json, reading

FORMAT = 1
FIELDS: dict[str, type] = {  # what every record has, and figures and tables read
    **dict.fromkeys(("name", "digest"), str),
    **dict.fromkeys(("seed", "steps", "batch_size", "super_batch_size"), int),
    **dict.fromkeys(("benchmarks", "final", "flops_per_iteration", "seconds"), dict),
    **dict.fromkeys(("training", "environment"), dict),
    "curve": list,
}
TYPICAL = 3.2e-11  # seconds a training FLOP of one core, for estimates: 31 GFLOP/s
CONVENTIONS = ("cached_reuse", "cached", "uncached", "charged")
TRAINING_POINTS, COMPACT_POINTS = 50, 8
Record = dict[str, Any]
SETTINGS = {"selection", "source", "model", "optim", "evaluation", "init_from_reference"}
# Icons and emoji are two questions: the emoji benchmarks hold most of the variance between methods
# and few of the images, so each group has its own mean.
GROUPS = {
    "icons": ("objects", "objects_filled", "objects_fewshot", "tagged_i2t", "tagged_t2i"),
    "emoji": ("emoji_3d", "animals", "food"),
}


class Header(NamedTuple):
    """What a record file was measured on: the data set in words, the scale profile's name."""

    data: str
    profile: str


def collect(folder: Path, name: str, seed: int) -> Record:
    """The record of the finished run in `folder`, filed under method `name`. Fields: name, seed,
    digest (the folder's name), label, settings (those that are not the defaults), steps, batch_size
    and super_batch_size in pairs, benchmarks {name: chance, n, n_curve, retrieval}, curve (see
    `_point`), final {mean, mean_chance_corrected, logprob, nats, scores} on all images of the run's
    part, flops_per_iteration by convention (charged: what is spent once is spread over the steps),
    uniform_flops_per_iteration (3 full forwards a pair), seconds (training only, by part), training
    (see `_training`), passed_reference (see `metrics`), environment. Raises DataError."""
    if not (folder / "done.json").exists():
        raise DataError(f"{folder / 'done.json'}: the run is not finished")
    files = ("config", "done", "environment")
    config, done, about = (read_json(folder / f"{what}.json") for what in files)
    label = config.pop("label", name)
    try:
        run = make_run(config)
    except ConfigError as error:
        raise DataError(f"{folder / 'config.json'}: {error}") from None
    with reading(folder / "metrics.jsonl"):
        logged = (folder / "metrics.jsonl").read_bytes().splitlines()
        lines = [parse_json(line) for line in logged if line]
    evaluations = {line["step"]: line for line in lines if "scores" in line}
    if not evaluations:
        raise DataError(f"{folder} holds no evaluation")
    full, points = done["scores"], [evaluations[step] for step in sorted(evaluations)]
    steps, b, each = done["steps"], run.optim.batch_size, done.get("flops_per_example")
    numbers = ("score", "chance", "stderr", "logprob", "nats")
    return {
        **{"name": name, "seed": seed, "digest": folder.name, "label": label},
        "settings": run.model_dump(mode="json", exclude_defaults=True, include=SETTINGS),
        **{"steps": steps, "batch_size": b, "super_batch_size": run.super_batch_size},
        "benchmarks": {
            benchmark: {
                **{"chance": _round(row["chance"]), "n": row["n"]},
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
            **_means({k: v["score"] for k, v in full.items()}, full, full),
            "auc": done.get("auc"),
            "noise": done.get("noise_trained_on"),
            "curated": done.get("curated_trained_on"),
            "scores": {
                benchmark: {k: _round(row[k]) for k in numbers if k in row}
                | {k: row[k] for k in ("n", "hits") if k in row}
                for benchmark, row in full.items()
            },
        },
        "flops_per_iteration": {c: _round(done["flops"][c] / steps) for c in CONVENTIONS},
        "uniform_flops_per_iteration": each and _round(3 * b * (each["image_full"] + each["text"])),
        "seconds": {k: _round(v) for k, v in points[-1]["seconds"].items()},
        "training": _training([line for line in lines if "loss" in line]),
        # Reckoned again: runs of before say it by the mean of the whole super-batch.
        "passed_reference": passed_reference(line for line in lines if "loss" in line),
        "environment": {key: about.get(key) for key in ("cpu", "cores", "threads", "commit")}
        | {"torch": about.get("packages", {}).get("torch")}
        | {key: about[key] for key in ("gpu", "no_energy") if about.get(key)},
    }


def compact(record: Record) -> Record:
    """What a table of many runs needs of one, in about a third of the bytes: the end point alone,
    at most COMPACT_POINTS spans of training, no items (hits) and no binomial errors, which follow
    from score and n. The same fields otherwise."""
    final, training = record["final"], record["training"]
    lean = {
        name: {key: value for key, value in row.items() if key not in ("hits", "stderr")}
        for name, row in final["scores"].items()
    }
    spans = {
        key: [span[-1] if key == "step" else _average(span) for span in _spans(x, COMPACT_POINTS)]
        for key, x in training.items()
    }
    less = {"curve": record["curve"][-1:], "final": {**final, "scores": lean}, "training": spans}
    return record | less


def save_records(
    path: Path, records: list[Record], data: str, profile: str, small: bool = False
) -> None:
    """Write records and their header to `path`, atomically, in a fixed order, one a line; what the
    first says of the benchmarks stands in the header, for those that say the same. small: each as
    `compact` leaves it, where there are hundreds."""
    records = list(map(compact, records)) if small else records
    ordered = sorted(records, key=lambda r: (r["name"], r["seed"], r["digest"]))
    about: Record = {"data": data, "profile": profile, "format": FORMAT}
    if ordered:
        about |= {"benchmarks": ordered[0]["benchmarks"]}
    told = [dict(x for x in r.items() if x not in about.items()) for r in ordered]
    lines = ",\n".join(json.dumps(r, sort_keys=True, separators=(",", ":")) for r in told)
    head = json.dumps(about, ensure_ascii=False)
    save_text(path, f'{head[:-1]}, "records": [\n{lines}\n]}}\n')


def load_records(path: Path) -> tuple[Header, list[Record]]:
    """The header and the records of a file of `save_records`. Raises DataError."""
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise DataError(f"{path} has record format {content.get('format')}, not {FORMAT}")
    with reading(path):
        for record in content["records"]:
            record.setdefault("benchmarks", content.get("benchmarks"))
            for key, kind in FIELDS.items():
                if not isinstance(record[key], kind):
                    raise ValueError(f"{key} of {record.get('name')} is no {kind.__name__}")
        return Header(content["data"], content["profile"]), timed_alike(content["records"])


def timed_alike(records: list[Record]) -> list[Record]:
    """Where some ran on a GPU that they shared, and others on a CPU, the times of the CPU's alone
    compare: the others' are left out."""
    if len({"gpu" in record["environment"] for record in records}) < 2:
        return records
    return [{**r, "seconds": {}} if "gpu" in r["environment"] else r for r in records]


def total_seconds(record: Record) -> float:
    """Seconds of drawing, choosing and updating; evaluation is not training and is left out. NaN
    where they do not compare with the others' (`timed_alike`)."""
    return sum(record["seconds"].values()) if record["seconds"] else math.nan


def value(record: Record, metric: str) -> float | None:
    """A finished run's number: None where the record does not hold it. metric: a field of `final`
    ("mean", "nats", "logprob", ...); a group of GROUPS: the mean score of its benchmarks, each of
    equal weight, a fraction (None where one is missing); or both ("icons:nats": over those of the
    group that have it, retrieval has not)."""
    group, _, quantity = metric.partition(":")
    if group not in GROUPS:
        return record["final"].get(metric)
    rows = record["final"]["scores"]
    if any(benchmark not in rows for benchmark in GROUPS[group]):
        return None
    found = [rows[b].get(quantity or "score") for b in GROUPS[group]]
    known = [x for x in found if x is not None]
    return sum(known) / len(known) if known else None


def _point(line: dict[str, Any], full: dict[str, Any], b: int, seen: int) -> dict[str, Any]:
    """One evaluation: step, examples trained on, examples `seen` (super-batches), seconds, FLOPs
    and (where counted, of the whole machine) joules so far, scores as fractions (retrieval on the
    full set's footing) and their means."""
    scores = {name: _full_gallery(row, full[name]) for name, row in line["scores"].items()}
    return {
        "step": line["step"],
        "examples": line["step"] * b,
        "seen": seen,
        "seconds": _round(sum(line["seconds"].values())),
        "flops": {c: _round(line["flops"][c]) for c in CONVENTIONS},
        **({"joules": _round(sum(line["joules"].values()))} if line.get("joules") else {}),
        **_means(scores, full, line["scores"]),
        "scores": {k: _round(v) for k, v in scores.items()},
    }


def _full_gallery(row: dict[str, Any], full: dict[str, Any]) -> float:
    """A score; a recall among all candidates, from that among fewer (see the module)."""
    score, measured, every = row["score"], _gallery(row), _gallery(full)
    if not _is_retrieval(row) or measured >= every or score <= 0:
        return score
    chance = full["chance"]
    among_fewer = chance * every / measured
    return score ** (math.log(chance) / math.log(among_fewer)) if among_fewer < 1 else score


def _gallery(row: dict[str, Any]) -> int:
    """Candidates of a retrieval query: the queries themselves, unless those are but a part."""
    return int(row.get("gallery", row["n"]))


def _is_retrieval(row: dict[str, Any]) -> bool:
    return any("retrieval" in key for key in row)


def _means(
    scores: dict[str, float], full: dict[str, Any], rows: dict[str, Any]
) -> dict[str, float | None]:
    """Means over the benchmarks: of scores, and of nats over the classification ones."""
    chances = {name: full[name]["chance"] for name in scores}
    corrected = [(s - chances[name]) / (1 - chances[name]) for name, s in scores.items()]
    means = {"mean": _average(list(scores.values())), "mean_chance_corrected": _average(corrected)}
    found = {key: [row.get(key) for row in rows.values()] for key in ("logprob", "nats")}
    return means | {key: _average(values) for key, values in found.items()}


def _training(lines: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """{step, loss, super, sub}: loss and learnability over training, averaged within at most
    TRAINING_POINTS spans. Where a run knew which captions are wrong, in half as many also: their
    share among candidates and among the chosen (wrong_super, wrong_sub), and mean learnability of
    right and of wrong candidates (learnability_right, learnability_wrong)."""
    known = any("wrong" in line for line in lines)
    spans = _spans(lines, TRAINING_POINTS // 2 if known else TRAINING_POINTS)
    found = {"step": [span[-1]["step"] for span in spans]}
    found["loss"] = [_average([x["loss"] for x in span]) for span in spans]
    for part, key in enumerate(("super", "sub")):
        found[key] = [_average([x["learnability"][part] for x in span]) for span in spans]
        if known:
            wrong = [[(x.get("wrong") or (None, None))[part] for x in span] for span in spans]
            found[f"wrong_{key}"] = [_average(span) for span in wrong]
    for key in ("learnability_right", "learnability_wrong") if known else ():
        found[key] = [_average([x.get(key) for x in span]) for span in spans]
    return found


def _spans(values: list[Any], most: int) -> list[list[Any]]:
    """At most so many, as long as one another but for the last."""
    size = max(1, math.ceil(len(values) / most))
    return [values[i : i + size] for i in range(0, len(values), size)]


def _average(values: list[Any]) -> float | None:
    there = [v for v in values if v is not None]
    return _round(sum(there) / len(there)) if there else None


def _round(value: float) -> float:
    """Five significant digits."""
    return value if isinstance(value, int) else float(f"{value:.5g}")
