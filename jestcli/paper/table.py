"""Tables of final scores, costs, speed-ups and differences: Markdown, CSV and the terminal; and the
sentence under every table and figure that says on what its numbers were measured."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from jestcli.paper import statistics as stats
from jestcli.paper.methods import MARK, in_order, is_reference, style, value_of
from jestcli.paper.records import CONVENTIONS, Header, Record
from jestcli.utils.io import save_text
from jestcli.utils.tables import Table

NOT_RUN = "not run"
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


def caption(header: Header, records: list[Record]) -> str:
    """Data, profile, seeds, n, error bar, hardware and commit, in plain words."""
    if not records:
        return f"{header.data}; profile {header.profile}; nothing run yet."
    sets = {k: v["n"] for r in records for k, v in r["benchmarks"].items()}
    counts = [len(runs) for runs in stats.by_name(records).values()]
    few, most, seeds = min(counts), max(counts), sorted({record["seed"] for record in records})
    n = f"n = {few}" if few == most else f"n = {few} to {most}"
    parts = [
        f"Data: {header.data}; profile {header.profile}",
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} ({n} a method)",
        f"{len(sets)} benchmarks with {sum(sets.values()):,} test items in all",
        "± and bands: 95 % t-interval over seeds" if most > 1 else "one seed, so no error bar",
        hardware(records),
        "commit " + ", ".join(sorted({str(r["environment"].get("commit")) for r in records})),
    ]
    if any(r["retrieval_rescaled"] for r in records):
        parts.append(
            "retrieval along the curves is converted from fewer candidates to the full set's number"
        )
    return "; ".join(parts) + "."


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
    raw = [_raw_row(name, records, groups) for name in every]
    ours = [_costs(raw), _benchmarks(raw, records)]
    ours += [_speed_ups(records, every)] if stats.BASELINE in every else []
    ours.append(_differences(records, every))
    ours += [] if with_paper else [_nats(records, every)]
    return Report(caption(header, records), ours, [TABLE1, FIGURE1] if with_paper else [], raw)


def write(report: Report, path: Path) -> list[Path]:
    """Write `path`.md and `path`.csv; returns the paths."""
    out = [path.with_name(path.name + ending) for ending in (".md", ".csv")]
    for each, text in zip(out, (to_markdown(report), to_csv(report)), strict=True):
        save_text(each, text)
    return out


def to_markdown(report: Report) -> str:
    """Our tables with their caption, then the paper's under a heading of their own."""
    parts = ["## Measured here", *(_section(t, report.caption) for t in report.ours)]
    if report.papers:
        parts += [
            "## The paper's own numbers",
            "[P] seen in the paper, [D] derived from it by arithmetic. Photographs, other tasks "
            "and billions of examples: compare directions and ratios, not levels.",
            *(_section(t, "") for t in report.papers),
        ]
    return "\n\n".join(parts) + "\n"


def _section(table: Table, words: str) -> str:
    note = " ".join(x for x in (table.note, words) if x)
    return f"**{table.title}**\n\n{table.markdown()}\n\n{note}".rstrip()


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


def _raw_row(name: str, records: list[Record], groups: dict[str, list[Record]]) -> dict[str, Any]:
    """A method as numbers: means over seeds, whole FLOPs, scores and costs as fractions."""
    if name not in groups:
        return {"method": name, "status": NOT_RUN}
    runs = groups[name]
    first, total = runs[0], stats.totals(runs)
    row: dict[str, Any] = {"method": name, "status": "done", "seeds": len(runs)}
    row |= {key: first[key] for key in ("steps", "batch_size", "super_batch_size")}
    row |= {key: total[key] for key in ("examples", "seconds")}
    unit = _iid_step(groups, runs)
    whole = groups.get(stats.BASELINE) or groups.get(_uniform(name, list(groups)) or "")
    for c in CONVENTIONS:
        row[f"flops_{c}"] = total[c]
        if c != "charged":  # what is spent once has no place in the cost of an iteration
            row[f"per_iteration_{c}"] = first["flops_per_iteration"][c] / unit
        row[f"total_{c}"] = total[c] / stats.totals(whole)[c] if whole else None
    for key, metric in (("mean", "mean"), ("chance_corrected", "mean_chance_corrected")):
        found = stats.t_interval(stats.finals(runs, metric))
        row |= {key: found.mean, f"{key}_low": found.low, f"{key}_high": found.high}
    for benchmark in first["benchmarks"]:
        row[benchmark] = sum(r["final"]["scores"][benchmark]["score"] for r in runs) / len(runs)
    speed = stats.speed_up(records, name)
    row |= {f"speed_up_{axis}": speed.factor.get(axis) for axis in stats.AXES}
    return row | {"speed_up_status": speed.status}


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


def _costs(raw: list[dict[str, Any]]) -> Table:
    columns = (
        *("Method", "Seeds", "Steps", "Examples", "Cost per iteration %", "Total %"),
        *("Charged total %", "CPU s", "Mean %", "Chance-corrected %"),
    )
    rows = []
    for row in raw:
        cells = [NOT_RUN] * (len(columns) - 1)
        if row["status"] != NOT_RUN:
            cells = [str(row["seeds"]), f"{row['steps']:,}", f"{row['examples']:,.0f}"]
            for key in ("per_iteration", "total"):  # one number where all conventions agree
                three = [_percent(row[f"{key}_{c}"], 0) for c in CONVENTIONS[:3]]
                cells.append(" / ".join(three if len(set(three)) > 1 else three[:1]))
            timed = "–" if math.isnan(row["seconds"]) else f"{row['seconds']:,.0f}"
            cells += [_percent(row["total_charged"], 0), timed]
            for key in ("mean", "chance_corrected"):
                half = 100 * (row[f"{key}_high"] - row[key])
                cells.append(_percent(row[key]) + ("" if math.isnan(half) else f" ± {half:.1f}"))
        rows.append((style(row["method"]).label, *cells))
    return Table(
        "Final scores and their cost",
        columns,
        rows,
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
    return Table("Score by benchmark, %", ("Method", *sets), rows, f"Test items: {n}." if n else "")


def _speed_ups(records: list[Record], names: list[str]) -> Table:
    columns = (
        *("Method", "Examples", "FLOPs, re-used", "FLOPs, cached", "FLOPs, not cached"),
        *("FLOPs, charged", "CPU s", "Examples by seed"),
    )
    rows = []
    for name in (n for n in names if n != stats.BASELINE and not is_reference(n)):
        status, factor, per_seed = stats.speed_up(records, name)
        own = ", ".join(f"≥ ×{x:.2f}" if x else "censored" for x in per_seed)
        cells = (f"≥ ×{factor[axis]:.2f}" if factor else status for axis in stats.AXES)
        rows.append((style(name).label, *cells, own or status))
    target = stats.find_target(records)
    note = "The long uniform run was not run: there is no target."
    if target:
        valid = "valid" if target.valid else "not valid: 5 are needed"
        note = (
            f"Target: the long uniform run's final, {100 * target.score:.2f} % "
            f"({target.standard_errors:.1f} standard errors above chance, "
            f"{100 * target.chance:.2f} %; {valid}). Factor: the long uniform run's total over the "
            "run's, where the mean over seeds ends at least there: a bound, for a shorter run may "
            "do so, too. Censored: it ends below."
        )
    return Table("Speed-up over the long uniform run", columns, rows, note)


def _differences(records: list[Record], names: list[str]) -> Table:
    others = ["uniform"] if any(_uniform(name, names) for name in names) else []
    others += [n for n in (stats.BASELINE, "curated", "reference") if n in names]
    rows, run = [], {r["name"] for r in records}
    for name in (n for n in names if n in run and not is_reference(n)):
        reference = "reference++" if name.endswith("++") else "reference"  # the one that it reads
        own = {"uniform": _uniform(name, names) or name, "reference": reference}
        cells = (_difference(records, name, own.get(other, other)) for other in others)
        rows.append((style(name).label, *cells))
    return Table(
        "Final score minus another's, points, paired over seeds",
        ("Method", *(style(name).label for name in others)),
        rows,
        "95 % t-interval over the seeds that both ran (with one seed: bootstrap over test items "
        "only, which says nothing of other seeds). Uniform: of the same setting, where the setting "
        "is one of both. Not distinguishable: it contains 0. The ++ "
        "methods stand against the reference that they read, Reference++.",
    )


def _nats(records: list[Record], names: list[str]) -> Table:
    """The companion of the mean score in ablations, where few items are right."""
    groups, rows = stats.by_name(records), []
    for name in names:
        cells = [NOT_RUN, NOT_RUN]
        if values := stats.finals(groups.get(name, []), "nats"):
            own = stats.t_interval(values)
            half = "" if math.isnan(own.half) else f" ± {own.half:.3f}"
            minus = _difference(records, name, _uniform(name, names) or name, "nats")
            cells = [f"{own.mean:.3f}{half}", minus]
        rows.append((style(name).label, *cells))
    return Table(
        "Nats above guessing",
        ("Method", "Mean", "Minus uniform's"),
        rows,
        "Mean log-probability of the true class over the classification benchmarks, at the best "
        "temperature, plus the logarithm of the number of classes: 0 is guessing. Differences are "
        "paired over seeds.",
    )


def _difference(records: list[Record], a: str, b: str, metric: str = "mean") -> str:
    """a minus b in points, or in nats; "–" for itself."""
    scale, digits = (100, 1) if metric == "mean" else (1, 3)
    found = stats.paired_difference(records, a, b, metric)
    if a == b or (not found.n and metric != "mean"):
        return "–"
    if not found.n:
        return NOT_RUN
    text, alone = f"{scale * found.mean:+.{digits}f}", found.n == 1
    if alone and metric != "mean":
        return f"{text} (one seed)"
    over = stats.bootstrap_difference(records, a, b) if alone else found
    ends = f"[{scale * over.low:+.{digits}f}, {scale * over.high:+.{digits}f}]"
    unsure = "not distinguishable" if stats.verdict(over) == "not distinguishable" else ""
    if alone:
        return f"{text} (one seed; items {', '.join(filter(None, (ends, unsure)))})"
    return f"{text} {ends} {unsure}".rstrip()


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"
