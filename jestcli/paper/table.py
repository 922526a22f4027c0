"""Tables of final scores, costs, speed-ups and differences: Markdown, CSV and the terminal."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jestcli.paper import numbers as paper
from jestcli.paper.caption import caption
from jestcli.paper.methods import in_order, is_reference, reference_of, style
from jestcli.paper.panels import MARK, value_of
from jestcli.paper.records import CONVENTIONS, Header, Record
from jestcli.paper.statistics import (
    AXES,
    BASELINE,
    Difference,
    Interval,
    best_of_curve,
    bootstrap_difference,
    by_name,
    finals,
    find_target,
    paired_difference,
    seed_curve,
    speed_up,
    t_interval,
    totals,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import Console

NOT_RUN = "not run"
HEADLINE = (
    "uniform",
    BASELINE,
    "flexi-uniform",
    "jest",
    "jest++",
    "flexi",
    "flexi-long",
    "flexi++",
    "curated",
    "mixed",
    "finetune",
    "filtered",
    "reference",
)
BEST = "curated, best"  # curated-only at the best point of its curve


@dataclass(frozen=True)
class Table:
    """Cells as text; a note below says how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What is printed: our tables, the paper's own, one caption and the raw rows for CSV."""

    caption: str
    ours: tuple[Table, ...]
    papers: tuple[Table, ...]
    raw: tuple[dict[str, Any], ...]


def build(
    header: Header,
    records: list[Record],
    names: tuple[str, ...] = HEADLINE,
    with_paper: bool = True,
) -> Report:
    """All tables of `records`; `names` are rows even where not run, other methods follow.

    with_paper: the paper's own Table 1 and Figure 1 behind ours.
    """
    groups = by_name(records)
    every = in_order([*names, *groups]) if with_paper else list(dict.fromkeys([*names, *groups]))
    raw = tuple(_raw_row(name, records, groups) for name in _with_best(every, groups))
    ours = [_costs(raw), _benchmarks(raw, records)]
    if BASELINE in every:
        ours.append(_speed_ups(records, every))
    ours.append(_differences(records, every))
    if not with_paper:
        ours.append(_nats(records, every))
    papers = (
        (
            Table(
                "The paper's Table 1, on web photographs",
                paper.TABLE1_COLUMNS,
                paper.TABLE1,
                paper.COST_NOTE,
            ),
            Table(
                "The paper's Figure 1, on web photographs",
                paper.FIGURE1_COLUMNS,
                paper.FIGURE1,
                "Factors against SigLIP trained on 40B examples; its eight tasks are others.",
            ),
        )
        if with_paper
        else ()
    )
    return Report(caption(header, records), tuple(ours), papers, raw)


def write(report: Report, path: Path) -> list[Path]:
    """Write `path`.md and `path`.csv; returns the paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    out = [path.with_name(path.name + ".md"), path.with_name(path.name + ".csv")]
    out[0].write_text(to_markdown(report))
    out[1].write_text(to_csv(report))
    return out


def to_markdown(report: Report) -> str:
    """Our tables with their caption, then the paper's under a heading of their own."""
    parts = ["## Measured here", *(_markdown(t, report.caption) for t in report.ours)]
    if not report.papers:
        return "\n\n".join(parts) + "\n"
    parts += [
        "## The paper's own numbers",
        "[P] seen in the paper, [D] derived from it by arithmetic. Photographs, other tasks "
        "and billions of examples: compare directions and ratios, not levels.",
        *(_markdown(t, "") for t in report.papers),
    ]
    return "\n\n".join(parts) + "\n"


def to_csv(report: Report) -> str:
    """One row a method with plain numbers: scores as fractions, FLOPs, seconds. Caption first."""
    out = io.StringIO()
    out.write(f"# {report.caption}\n")
    columns = list(dict.fromkeys(key for row in report.raw for key in row))
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in report.raw:
        writer.writerow({k: _plain(v) for k, v in row.items()})
    return out.getvalue()


def render(console: Console, report: Report) -> None:
    """Print every table to a rich console."""
    from rich.table import Table as RichTable
    from rich.text import Text

    for table in (*report.ours, *report.papers):
        shown = RichTable(
            title=table.title,
            title_justify="left",
            title_style="bold",
            caption=table.note or None,
            caption_justify="left",
            pad_edge=False,
        )
        for i, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(c, style="dim" if c == NOT_RUN else "") for c in row))
        console.print(shown)
        console.print()
    console.print(Text(report.caption, style="dim"))


# --- rows ----------------------------------------------------------------------------------------


def _with_best(names: list[str], groups: dict[str, list[Record]]) -> list[str]:
    if "curated" not in groups:
        return names
    i = names.index("curated")
    return [*names[:i], BEST, *names[i:]]


def _raw_row(name: str, records: list[Record], groups: dict[str, list[Record]]) -> dict[str, Any]:
    """A method as numbers: means over seeds, whole FLOPs, scores and costs as fractions."""
    source = "curated" if name == BEST else name
    if source not in groups:
        return {"method": name, "status": NOT_RUN}
    runs = groups[source]
    first, total = runs[0], totals(runs)
    row: dict[str, Any] = {
        "method": name,
        "status": "done",
        "seeds": len(runs),
        "steps": first["steps"],
        "batch_size": first["batch_size"],
        "super_batch_size": first["super_batch_size"],
        "examples": total["examples"],
        "seconds": total["seconds"],
    }
    scored: list[Interval]
    if name == BEST:
        i, _ = best_of_curve(runs)
        curve = seed_curve(runs)
        row["steps"] = round(curve.cost["examples"][i] / first["batch_size"])
        row |= {"examples": float(curve.cost["examples"][i])}
        row |= {"seconds": float(curve.cost["seconds"][i])}
        total = {axis: float(curve.cost[axis][i]) for axis in AXES}
        corrected = seed_curve(runs, metric="mean_chance_corrected").seeds[:, i]
        scored = [t_interval(list(curve.seeds[:, i])), t_interval(list(corrected))]
    else:
        scored = [t_interval(finals(runs, m)) for m in ("mean", "mean_chance_corrected")]
    unit = _iid_step(groups, runs)
    whole = groups.get(BASELINE) or groups.get(_uniform(source, list(groups)) or "")
    for c in CONVENTIONS:
        row[f"flops_{c}"] = total[c]
        # What is spent once has no place in the cost of an iteration.
        row[f"per_iteration_{c}"] = runs[0]["flops_per_iteration"][c] / unit
        row[f"total_{c}"] = total[c] / totals(whole)[c] if whole else None
    del row["per_iteration_charged"]
    for key, interval in zip(("mean", "chance_corrected"), scored, strict=True):
        row |= {key: interval.mean, f"{key}_low": interval.low, f"{key}_high": interval.high}
    for benchmark in first["benchmarks"]:
        if name == BEST:
            row[benchmark] = float(seed_curve(runs, benchmark).mean[i])
        else:
            values = [r["final"]["scores"][benchmark]["score"] for r in runs]
            row[benchmark] = sum(values) / len(values)
    found = speed_up(records, name)
    row |= {f"speed_up_{axis}": found.factor.get(axis) for axis in AXES}
    row["speed_up_status"] = found.status
    return row


def _iid_step(groups: dict[str, list[Record]], runs: list[Record]) -> float:
    """FLOPs of one uniform step at the same batch: the uniform runs', else 3 full forwards."""
    for name in (BASELINE, "uniform"):
        for record in groups.get(name, []):
            if record["batch_size"] == runs[0]["batch_size"]:
                return float(record["flops_per_iteration"]["cached"])
    return float(runs[0]["uniform_flops_per_iteration"] or math.nan)


# --- tables --------------------------------------------------------------------------------------


def _costs(raw: tuple[dict[str, Any], ...]) -> Table:
    columns = (
        "Method",
        "Seeds",
        "Steps",
        "Examples",
        "Cost per iteration %",
        "Total %",
        "Charged total %",
        "CPU s",
        "Mean %",
        "Chance-corrected %",
    )
    three = CONVENTIONS[:3]
    rows = []
    for row in raw:
        if row["status"] == NOT_RUN:
            rows.append((_label(row["method"]), *[NOT_RUN] * (len(columns) - 1)))
            continue
        rows.append(
            (
                _label(row["method"]),
                str(row["seeds"]),
                f"{row['steps']:,}",
                f"{row['examples']:,.0f}",
                _three([row[f"per_iteration_{c}"] for c in three]),
                _three([row[f"total_{c}"] for c in three]),
                _percent(row["total_charged"], 0),
                f"{row['seconds']:,.0f}",
                _with_error(row, "mean"),
                _with_error(row, "chance_corrected"),
            )
        )
    return Table(
        "Final scores and their cost",
        columns,
        tuple(rows),
        "Costs in FLOPs: uniform = 100 an iteration, the long uniform run (the uniform one of "
        "that setting, if there is no long one) = 100 in total; where three stand: reference "
        "cached and selected forwards re-used / cached, nothing re-used (what is executed) / not "
        "cached. Charged: cached, and the reference's training and its scoring of the pool. CPU s: "
        "seconds of drawing, choosing and updating on one core.",
    )


def _benchmarks(raw: tuple[dict[str, Any], ...], records: list[Record]) -> Table:
    about = {k: v for r in records for k, v in r["benchmarks"].items()}
    columns = ("Method", *about)
    rows = [("Chance", *(_percent(v["chance"]) for v in about.values()))] if about else []
    for row in raw:
        cells = (NOT_RUN if row["status"] == NOT_RUN else _percent(row.get(b)) for b in about)
        rows.append((_label(row["method"]), *cells))
    n = ", ".join(f"{k} {v['n']:,}" for k, v in about.items())
    return Table("Score by benchmark, %", columns, tuple(rows), f"Test items: {n}." if n else "")


def _speed_ups(records: list[Record], names: list[str]) -> Table:
    columns = (
        "Method",
        "Examples",
        "FLOPs, re-used",
        "FLOPs, cached",
        "FLOPs, not cached",
        "FLOPs, charged",
        "CPU s",
        "Examples by seed",
    )
    rows = []
    for name in names:
        if name == BASELINE or is_reference(name):
            continue
        found = speed_up(records, name)
        if found.crossed:
            bound = "≥ " if found.status == "at first evaluation" else ""
            cells = [f"{bound}×{found.factor[axis]:.2f}" for axis in AXES]
        else:
            cells = [found.status] * len(AXES)
        own = ", ".join(f"×{x:.2f}" if x else "censored" for x in found.per_seed)
        rows.append((_label(name), *cells, own or found.status))
    target = find_target(records)
    if target is None:
        note = "The long uniform run was not run: there is no target."
    else:
        note = (
            f"Target: the long uniform run's final, {100 * target.score:.2f} % "
            f"({target.standard_errors:.1f} standard errors above chance, "
            f"{100 * target.chance:.2f} %; "
            f"{'valid' if target.valid else 'not valid: 5 are needed'}). Crossing: where the mean "
            "over seeds stays above it, interpolated in log examples; censored: never. Factor: the "
            "long uniform run's total over the cost at the crossing."
        )
    return Table("Speed-up over the long uniform run", columns, tuple(rows), note)


def _differences(records: list[Record], names: list[str]) -> Table:
    uniform = any(_uniform(name, names) for name in names)
    others = [n for n in (BASELINE, "curated", "reference") if n in names]
    others = ["uniform", *others] if uniform else others
    columns = ("Method", *(style(name).label for name in others))
    rows = []
    for name in names:
        if is_reference(name) or name not in {r["name"] for r in records}:
            continue
        own = {"uniform": _uniform(name, names) or name, "reference": reference_of(name)}
        against = [own.get(other, other) for other in others]
        rows.append((_label(name), *(_difference(records, name, other) for other in against)))
    return Table(
        "Final score minus another's, points, paired over seeds",
        columns,
        tuple(rows),
        "95 % t-interval over the seeds that both ran (with one seed: bootstrap over test items "
        "only, which says nothing of other seeds). Uniform: of the same setting, where the setting "
        "is one of both. Not distinguishable: it contains 0. The ++ "
        "methods stand against the reference that they read, Reference++.",
    )


def _uniform(name: str, names: list[str]) -> str | None:
    """The uniform run that `name` stands against: "uniform", or the one of its own setting."""
    own = f"uniform{MARK}{value_of(name)}"
    return next((n for n in ("uniform", own) if n in names), None)


def _nats(records: list[Record], names: list[str]) -> Table:
    """The companion of the mean score in ablations, where few items are right."""
    groups = by_name(records)
    rows = []
    for name in names:
        values = [r["final"].get("nats") for r in groups.get(name, [])]
        if not values or None in values:
            rows.append((_label(name), NOT_RUN, NOT_RUN))
            continue
        own = t_interval(values)
        half = "" if math.isnan(own.half) else f" ± {own.half:.3f}"
        found = paired_difference(records, name, _uniform(name, names) or name, "nats")
        rows.append((_label(name), f"{own.mean:.3f}{half}", _nats_difference(found)))
    return Table(
        "Nats above guessing",
        ("Method", "Mean", "Minus uniform's"),
        tuple(rows),
        "Mean log-probability of the true class over the classification benchmarks, at the best "
        "temperature, plus the logarithm of the number of classes: 0 is guessing. Differences are "
        "paired over seeds.",
    )


def _nats_difference(found: Difference) -> str:
    if found.interval.n == 0 or found.a == found.b:
        return "–"
    text = f"{found.interval.mean:+.3f}"
    if found.interval.n == 1:
        return f"{text} (one seed)"
    text += f" [{found.interval.low:+.3f}, {found.interval.high:+.3f}]"
    return text + (f" {found.words}" if found.words == "not distinguishable" else "")


def _difference(records: list[Record], a: str, b: str) -> str:
    if a == b:
        return "–"
    found = paired_difference(records, a, b)
    if found.interval.n == 0:
        return NOT_RUN
    text = f"{100 * found.interval.mean:+.1f}"
    if found.interval.n == 1:
        items = bootstrap_difference(records, a, b)
        text += f" (one seed; items [{100 * items.low:+.1f}, {100 * items.high:+.1f}]"
        return text + (", not distinguishable)" if verdict(items) == "not distinguishable" else ")")
    text += f" [{100 * found.interval.low:+.1f}, {100 * found.interval.high:+.1f}]"
    return text + (f" {found.words}" if found.words == "not distinguishable" else "")


# --- cells ---------------------------------------------------------------------------------------


def _label(name: str) -> str:
    return "Curated only, best point" if name == BEST else style(name).label


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def _three(values: list[float | None]) -> str:
    """One number where all conventions agree, else all three."""
    cells = [_percent(v, 0) for v in values]
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


def _with_error(row: dict[str, Any], key: str) -> str:
    half = row[f"{key}_high"] - row[key]
    return _percent(row[key]) + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value


def _markdown(table: Table, words: str) -> str:
    head = "| " + " | ".join(table.columns) + " |"
    rule = "|" + "|".join(["---"] + ["---:"] * (len(table.columns) - 1)) + "|"
    rows = ["| " + " | ".join(row) + " |" for row in table.rows]
    notes = [" ".join(x for x in (table.note, words) if x)]
    return "\n".join([f"**{table.title}**", "", head, rule, *rows, "", *notes]).rstrip()
