"""Tables of final scores, costs and differences: Markdown, CSV and the terminal; and the sentence
under every table and figure that says on what its numbers were measured."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from jestcli.paper import statistics as stats
from jestcli.paper.contrasts import difference
from jestcli.paper.effects import Fit, fit
from jestcli.paper.methods import MARK, in_order, is_reference, style, value_of
from jestcli.paper.records import CONVENTIONS, Header, Record
from jestcli.utils.io import save_text
from jestcli.utils.tables import Table

NOT_RUN = "not run"
# key in CSV: (metric of `records.value`, words, factor, decimals)
SCORES = {
    "mean": ("mean", "Mean %", 100, 1),
    "icons": ("icons", "Icons %", 100, 1),
    "emoji": ("emoji", "Emoji %", 100, 1),
    "nats": ("nats", "Nats above guessing", 1, 3),
    "chance_corrected": ("mean_chance_corrected", "Chance-corrected %", 100, 1),
}
POOLED = (
    "95 % interval by the variance left after method and seed (least squares), pooled over the "
    "experiment's runs, as in the report; none for one seed."
)
HEADLINE = (
    *("uniform", stats.BASELINE, "flexi-uniform", "jest", "jest++", "flexi", "flexi-long"),
    *("flexi++", "curated", "mixed", "finetune", "filtered", "reference"),
)
# The paper's own numbers, as printed or read off its figures: photographs from the web at 10^9 to
# 10^10 examples. [P] seen in the paper's figures, tables or listings; [D] derived by arithmetic.
TABLE1 = Table(
    "The paper's Table 1, on web photographs",
    (
        *("Method", "Examples", "Cost per iteration %", "Total %", "ImageNet 10-shot"),
        *("ImageNet zero-shot", "COCO I→T", "COCO T→I", "Source"),
    ),
    [
        ("SigLIP B", "40B", "100", "100", "70.3", "76.7", "65.2", "47.4", "Table 1 [P]"),
        ("JEST++ B", "4B", "233", "23", "70.3", "76.9", "70.3", "53.3", "Table 1 [P]"),
        ("Flexi-JEST++ B", "4B", "110", "11", "68.2", "75.8", "68.0", "51.2", "Table 1 [P]"),
        ("SigLIP L", "40B", "100", "100", "77.1", "80.5", "69.5", "51.2", "Table 1 [P]; cost [D]"),
        ("JEST++ L", "4B", "233", "23", "75.5", "80.5", "71.1", "54.8", "Table 1 [P]"),
    ],
    "The paper's cost per iteration at f = .8: 233 % with the reference cached and the selected "
    "forwards re-used (Table 1 [P]); 267 % without re-use, which its Fig. 1 plots [D]; 400 % with "
    "the reference not cached [D]; the reference's training is charged in none of them [D].",
)
FIGURE1 = Table(
    "The paper's Figure 1, on web photographs",
    ("Method", "Final mean of 8 tasks", "× fewer examples", "× fewer FLOPs", "Source"),
    [
        ("SigLIP 40B", "≈ 76.1", "1", "1", "Fig. 1, digitised [P]"),
        ("JEST", "76.9", "11.6", "4.3", "Fig. 1, digitised [P]"),
        ("JEST++", "77.9", "13.1", "4.9", "Fig. 1, digitised [P]"),
        ("Flexi-JEST++", "76.5", "10.9", "9.9", "Fig. 1, digitised [P]"),
    ],
    "Factors against SigLIP trained on 40B examples; its eight tasks are others.",
)


class Report(NamedTuple):
    """What is printed: our tables, the paper's own, one caption and the raw rows for CSV."""

    caption: str
    ours: list[Table]
    papers: list[Table]
    raw: list[dict[str, Any]]


def caption(header: Header, records: list[Record], brief: bool = False, paired: bool = True) -> str:
    """Data, profile, seeds, n, error bar, hardware, commit and references' AUC, in plain words.
    brief: commits are counted, where there are more than three. paired: intervals compare methods
    on the same seeds; else they are of the scatter within cells."""
    if not records:
        return f"{header.data}; profile {header.profile}; nothing run yet."
    sets = {k: v["n"] for r in records for k, v in r["benchmarks"].items()}
    counts = [len(runs) for runs in stats.by_name(records).values()]
    commits = sorted({str(r["environment"].get("commit")) for r in records})
    some = brief and len(commits) > 3
    few, most, seeds = min(counts), max(counts), sorted({record["seed"] for record in records})
    n = f"n = {few}" if few == most else f"n = {few} to {most}"
    parts = [
        f"Data: {header.data}; profile {header.profile}",
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} ({n} a method)",
        f"{len(sets)} benchmarks with {sum(sets.values()):,} answers in all (pictures that several "
        "of them ask about count several times)",
        "one seed, so no error bar"
        if most < 2
        else "intervals: 95 %, over seeds, for comparing methods on the same ones"
        if paired
        else "intervals: 95 %, by the scatter of seeds within cells, pooled over cells",
        hardware(records),
        f"{len(commits)} commits, named in records.json"
        if some
        else f"commit {', '.join(commits)}",
    ]
    if any(r["retrieval_rescaled"] for r in records):
        parts.append(
            "retrieval along the curves is converted from fewer candidates to the full set's number"
        )
    return "; ".join(parts) + "." + strength(records)


def strength(records: Sequence[Record]) -> str:
    """The references' AUC, which stands under every figure; "" where none was measured."""
    found: dict[str, list[float]] = {}
    for record in records:
        if is_reference(record["name"]) and record["final"].get("auc") is not None:
            found.setdefault(record["name"], []).append(record["final"]["auc"])
    parts = [f"{n.removeprefix('reference ')} {np.mean(x):.3f}" for n, x in sorted(found.items())]
    words = " AUC of right against wrong captions of unseen pool pairs, by reference: "
    return f"{words}{', '.join(parts)}." if parts else ""


def hardware(records: list[Record]) -> str:
    """Processors that ran the records; every run's threads are named, as seconds depend on them."""
    found = []
    for about in (record["environment"] for record in records):
        device = about.get("gpu") or about.get("cpu") or "unknown processor"
        device, n = device.replace("(R)", "").replace("(TM)", ""), about.get("threads")
        threads = f"{n} thread{'' if n == 1 else 's'} a run"
        found.append(f"{device}, {about.get('cores')} cores, {threads}, torch {about.get('torch')}")
    return " and ".join(dict.fromkeys(found))


def build(
    header: Header, records: list[Record], names: Sequence[str] = HEADLINE, with_paper: bool = True
) -> Report:
    """All tables of `records`; `names` are rows even where not run, other methods follow.
    with_paper: the paper's own Table 1 and Figure 1 behind ours."""
    groups = stats.by_name(records)
    every = in_order([*names, *groups]) if with_paper else list(dict.fromkeys([*names, *groups]))
    models = {key: fit(records, metric) for key, (metric, *_) in SCORES.items()}
    raw = [_raw_row(name, groups, models) for name in every]
    ours = [_scores(raw), _costs(raw), _benchmarks(raw, records)]
    minus = {"mean": "Final score minus another's, points", "nats": "Nats minus another's"}
    ours += [_differences(title, models[key], key, every) for key, title in minus.items()]
    return Report(caption(header, records), ours, [TABLE1, FIGURE1] if with_paper else [], raw)


def write(report: Report, path: Path) -> list[Path]:
    """Write `path`.md and `path`.csv; returns the paths."""
    out = [path.with_name(path.name + ending) for ending in (".md", ".csv")]
    for each, text in zip(out, (to_markdown(report), to_csv(report)), strict=True):
        save_text(each, text)
    return out


def to_markdown(report: Report) -> str:
    """Our tables under their caption, then the paper's under a heading of their own."""
    parts = ["## Measured here", report.caption, *map(_section, report.ours)]
    if report.papers:
        parts += [
            "## The paper's own numbers",
            "[P] seen in the paper, [D] derived from it by arithmetic. Photographs, other tasks "
            "and billions of examples: compare directions and ratios, not levels.",
            *map(_section, report.papers),
        ]
    return "\n\n".join(parts) + "\n"


def _section(table: Table) -> str:
    return f"**{table.title}**\n\n{table.markdown()}\n\n{table.note}".rstrip()


def to_csv(report: Report) -> str:
    """One row a method with plain numbers: scores as fractions, FLOPs, seconds. Caption first."""
    out = io.StringIO()
    columns = list(dict.fromkeys(key for row in report.raw for key in row))
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in report.raw:
        plain = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        writer.writerow({k: "" if v == "nan" else v for k, v in plain.items()})
    return f"# {report.caption}\n{out.getvalue()}"


def render(console: Console, report: Report) -> None:
    """Print every table to a rich console."""
    for table in (*report.ours, *report.papers):
        console.print(table)
        console.print()
    console.print(report.caption, style="dim", markup=False, highlight=False)


def _raw_row(name: str, groups: dict[str, list[Record]], models: dict[str, Fit]) -> dict[str, Any]:
    """A method as numbers: means over seeds, whole FLOPs, scores and costs as fractions."""
    if name not in groups:
        return {"method": name, "status": NOT_RUN}
    runs = groups[name]
    first, total = runs[0], stats.totals(runs)
    row: dict[str, Any] = {"method": name, "status": "done", "seeds": len(runs)}
    row |= {key: first[key] for key in ("steps", "batch_size", "super_batch_size")}
    row["looked_at"] = sum(run["curve"][-1]["seen"] for run in runs) / len(runs)
    row |= {key: total[key] for key in ("examples", "seconds")}
    unit = _iid_step(groups, runs)
    whole = groups.get(stats.BASELINE) or groups.get(_uniform(name, list(groups)) or "")
    for c in CONVENTIONS:
        row[f"flops_{c}"] = total[c]
        if c != "charged":  # what is spent once has no place in the cost of an iteration
            row[f"per_iteration_{c}"] = first["flops_per_iteration"][c] / unit
        row[f"total_{c}"] = total[c] / stats.totals(whole)[c] if whole else None
    for key, (metric, *_) in SCORES.items():
        if scores := stats.finals(runs, metric):
            found = stats.pooled_interval(models[key], scores)
            row |= {key: found.mean, f"{key}_low": found.low, f"{key}_high": found.high}
    for benchmark in first["benchmarks"]:
        row[benchmark] = sum(r["final"]["scores"][benchmark]["score"] for r in runs) / len(runs)
    return row


def _iid_step(groups: dict[str, list[Record]], runs: list[Record]) -> float:
    """FLOPs of one uniform step at the same batch: the uniform runs', else 3 full forwards."""
    for name in (stats.BASELINE, "uniform"):
        for record in groups.get(name, []):
            if record["batch_size"] == runs[0]["batch_size"]:
                return float(record["flops_per_iteration"]["cached"])
    return float(runs[0]["uniform_flops_per_iteration"] or math.nan)


def _uniform(name: str, names: list[str]) -> str | None:
    """The uniform run that `name` stands against: "uniform", or the one of its own setting."""
    own = f"uniform{MARK}{value_of(name)}"
    return next((n for n in ("uniform", own) if n in names), None)


def _scores(raw: list[dict[str, Any]]) -> Table:
    """Of every metric that any run has."""
    shown, rows = [key for key in SCORES if any(key in row for row in raw)], []
    for row in raw:
        cells = [NOT_RUN if row["status"] == NOT_RUN else str(row["seeds"])]
        for key in shown:
            *_, factor, digits = SCORES[key]
            half = factor * (row.get(f"{key}_high", math.nan) - row.get(key, math.nan))
            own = f"{factor * row[key]:.{digits}f}" if key in row else "–"
            cells.append(own + ("" if math.isnan(half) else f" ± {half:.{digits}f}"))
        if row["status"] == NOT_RUN:
            cells = [NOT_RUN] * len(cells)
        rows.append((style(row["method"]).label, *cells))
    heads = (SCORES[key][1] for key in shown)
    kinds = "; icons, emoji: over those of that kind" if "icons" in shown else ""
    return Table(
        "Final scores",
        ("Method", "Seeds", *heads),
        rows,
        f"Mean: over the benchmarks, each of equal weight{kinds}. "
        "Nats above guessing: mean log-probability of the true class over the classification "
        "benchmarks, at the best temperature, plus the logarithm of the number of classes. "
        f"±: {POOLED}",
    )


def _costs(raw: list[dict[str, Any]]) -> Table:
    columns = (
        *("Method", "Steps", "Examples", "Looked at", "Cost per iteration %", "Total %"),
        *("Charged total %", "CPU s"),
    )
    rows = []
    for row in raw:
        cells = [NOT_RUN] * (len(columns) - 1)
        if row["status"] != NOT_RUN:
            cells = [f"{row[key]:,.0f}" for key in ("steps", "examples", "looked_at")]
            for key in ("per_iteration", "total"):  # one number where all conventions agree
                three = [_percent(row[f"{key}_{c}"], 0) for c in CONVENTIONS[:3]]
                cells.append(" / ".join(three if len(set(three)) > 1 else three[:1]))
            timed = "–" if math.isnan(row["seconds"]) else f"{row['seconds']:,.0f}"
            cells += [_percent(row["total_charged"], 0), timed]
        rows.append((style(row["method"]).label, *cells))
    return Table(
        "What they cost",
        columns,
        rows,
        "Examples: pairs trained on; looked at: those of the super-batches they are chosen from. "
        "Costs in FLOPs: uniform = 100 an iteration, the long uniform run (the uniform one of "
        "that setting, if there is no long one) = 100 in total; where three stand: reference "
        "cached and selected forwards re-used / cached, nothing re-used (what is executed) / not "
        "cached. Charged: cached, and the reference's training and its scoring of the pool. CPU s: "
        "seconds of drawing, choosing and updating on one core.",
    )


def _benchmarks(raw: list[dict[str, Any]], records: list[Record]) -> Table:
    sets = {k: v for r in records for k, v in r["benchmarks"].items()}
    rows = [("Chance", *(_percent(v["chance"]) for v in sets.values()))] if sets else []
    for row in raw:
        cells = (NOT_RUN if row["status"] == NOT_RUN else _percent(row.get(b)) for b in sets)
        rows.append((style(row["method"]).label, *cells))
    n = ", ".join(f"{k} {v['n']:,}" for k, v in sets.items())
    return Table("Score by benchmark, %", ("Method", *sets), rows, f"Answers: {n}." if n else "")


def _differences(title: str, model: Fit, key: str, names: list[str]) -> Table:
    """By the metric `key` of SCORES, of which `model` is the fit."""
    others = ["uniform"] if any(_uniform(name, names) for name in names) else []
    others += [n for n in (stats.BASELINE, "curated", "reference") if n in names]
    rows = []
    for name in (n for n in names if n in model.alias and not is_reference(n)):
        reference = "reference++" if name.endswith("++") else "reference"  # the one that it reads
        own = {"uniform": _uniform(name, names) or name, "reference": reference}
        cells = (_difference(model, key, name, own.get(other, other)) for other in others)
        rows.append((style(name).label, *cells))
    return Table(
        title,
        ("Method", *(style(name).label for name in others)),
        rows,
        f"[ ]: {POOLED} Not corrected for the number of differences: the report's verdicts are. "
        "Not distinguishable: the interval contains 0. Uniform: of the same setting, where the "
        "setting is one of both. The ++ methods stand against the reference that they read, "
        "Reference++."
        if key == "mean"
        else "As the table before.",
    )


def _difference(model: Fit, key: str, a: str, b: str) -> str:
    """a minus b in the units of SCORES; "–" where they are the same runs."""
    *_, scale, digits = SCORES[key]
    if a != b and b not in model.alias:
        return NOT_RUN
    found = model.effect(difference(a, b))
    if found is None:
        return "–"
    text = f"{scale * found.estimate:+.{digits}f}"
    if math.isnan(found.se):
        return f"{text} (one seed)" if found.n == 1 else text
    text += f" [{scale * found.low:+.{digits}f}, {scale * found.high:+.{digits}f}]"
    return f"{text} not distinguishable" if found.low <= 0 <= found.high else text


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"
