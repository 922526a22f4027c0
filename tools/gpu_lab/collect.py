"""Archives of the lab into tables, records and figures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jestcli.paper import theme as look
from jestcli.paper.experiment import jobs, read_experiment
from jestcli.paper.plot import plot
from jestcli.paper.theme import Theme, frame
from jestcli.runs.workspace import StageError, Workspace
from jestcli.utils.errors import DataError
from tools.gpu_lab.archive import load_archive, read_measurements, save_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"


def collect(
    archives: list[Path], out: Path, console: Any, experiments: dict[str, Path]
) -> list[Path]:
    """Merge the archives and write measurements, tables, records and figures into `out`.

    Later archives win where two hold the same. experiments: YAML files by name. Raises DataError.
    """
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        for archive in reversed(archives):  # what is there already stays
            load_archive(archive, state)
        found = read_measurements(state)
        if not found:
            raise DataError("these archives hold no measurement")
        written = [out / "measurements.json", out / "summary.md"]
        save_json(written[0], found)
        written[1].write_text(markdown(found))
        if "selection.paper" in _results(found) and "train.eager" in _results(found):
            written += look.both(lambda theme: make_speed(found, theme), out / "speed")
        for each in found:
            if each["part"] != "experiment":
                continue
            if each["name"] not in experiments:
                console.print(f"no experiment {each['name']} here: its runs are not drawn")
                continue
            experiment = read_experiment(experiments[each["name"]])
            workspace = Workspace(None, state / "runs")
            try:
                written += plot(
                    experiment, jobs(experiment, {}), workspace, out, console, collect=True
                )
            except StageError as problem:
                console.print(str(problem))
    return written


def _results(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{each['part']}.{each['name']}": each["result"] for each in found if "result" in each}


def _machines(found: list[dict[str, Any]]) -> list[str]:
    """What was measured on, in words, and when, where that is recorded."""
    lines: dict[str, set[str]] = {}
    for each in found:
        if about := each.get("machine"):
            packages = about.get("packages", {})
            text = (
                f"{about.get('gpu') or about.get('cpu')}; torch {packages.get('torch')}, Python "
                f"{about.get('python')}, commit {about.get('commit')}"
                + (" (a trial at a tiny size: no results)" if about.get("tiny") else "")
            )
            lines.setdefault(text, set()).update([each.get("measured", "no date recorded")])
    return [f"{text}; {', '.join(sorted(days))}" for text, days in sorted(lines.items())]


def markdown(found: list[dict[str, Any]]) -> str:
    """All measurements for people: what was measured, on what, and what failed."""
    lines = ["# Measured on one GPU", "", *(f"- {line}" for line in _machines(found))]
    lines += ["", "| part | measurement | state | seconds |", "|---|---|---|---:|"]
    for each in found:
        spent = each.get("seconds") or sum(s["seconds"] for s in each.get("sittings", []))
        state = each["state"] + (f": {each['error']}" if each.get("error") else "")
        lines.append(f"| {each['part']} | {each['name']} | {state} | {spent:.1f} |")
    for name, result in _results(found).items():
        lines += ["", f"## {name}", "", *_table(result)]
    return "\n".join(lines) + "\n"


def _table(result: dict[str, Any]) -> list[str]:
    if not (rows := result.get("rows")):
        return ["| | |", "|---|---|", *(f"| {k} | {_cell(v)} |" for k, v in result.items())]
    table = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    table += ["| " + " | ".join(_cell(row.get(key)) for key in rows[0]) + " |" for row in rows]
    return [*table, "", *_table({k: v for k, v in result.items() if k != "rows"})]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(each)}" for key, each in value.items())
    return "" if value is None else str(value)


def make_speed(found: list[dict[str, Any]], theme: Theme) -> Figure:
    """Selection's time at its size beside its matrix products, and steps beside their FLOPs."""
    results = _results(found)
    whole, step = results["selection.paper"], results["train.eager"]
    side = f"{step['image_size']} px, b = {step['batch_size']} of {step['super_batch_size']:,}"
    figure, top = frame(
        "What a GPU spends on choosing, and on a step",
        f"Left: one selection, B = {whole['batch']:,}, b = {whole['size']:,}, d = {whole['dim']}, "
        f"{whole['chunks']} chunks, {whole['dtype']}; dashed: the target.\n"
        f"Right: a training step, {side}, {step['engine']['precision']}, not compiled; bars: "
        "time, diamonds: counted FLOPs, both of uniform's.",
        f"{'; '.join(_machines(found))}. Random embeddings; random pixels and tokens that lie on "
        f"the device, the reference's embeddings cached. Medians ({step['rounds']} rounds of steps "
        "in turn). MFU: counted FLOPs of what is executed, over the maker's "
        f"{step['peak_flops'] / 1e12:,.0f} TFLOP/s.",
        1.6,
        theme,
    )
    left = look.place(figure, 1.55, top + 0.15, 2.35, 0.95)
    times = {"its matrix products": whole["gemm_seconds"], "fused kernel": whole["seconds"]}
    if "selection.unfused" in results:
        times["torch's operations"] = results["selection.unfused"]["seconds"]
    values = {name: 1000 * seconds for name, seconds in times.items()}
    texts = {name: f"{value:,.0f} ms" for name, value in values.items()}
    _bars(left, values, texts, {"fused kernel": BLUE}, theme)
    left.axvline(1000 * whole["targets"]["seconds"], color=theme.text, lw=0.9, ls=(0, (5, 3)))
    left.set_xlabel("ms, one selection")
    right = look.place(figure, 5.35, top + 0.15, 2.0, 0.95)
    rows = {row["name"]: row for row in step["rows"]}
    texts = {
        name: f"{row['over_counted']:.2f} × counted, MFU {100 * row['mfu']:.0f} %"
        for name, row in rows.items()
    }
    ratios = {name: row["ratio"] for name, row in rows.items()}
    _bars(right, ratios, texts, {"jest": ORANGE, "flexi": GREEN}, theme)
    counted = [row["counted_ratio"] for row in rows.values()]
    right.plot(counted, range(len(rows)), "D", ms=4, mfc=theme.background, mec=theme.text, zorder=4)
    right.set_xlabel("of a uniform step")
    return figure


def _bars(
    axes: Axes,
    values: dict[str, float],
    texts: dict[str, str],
    colours: dict[str, str],
    theme: Theme,
) -> None:
    """Horizontal bars from the top, with a text right of the axes."""
    for row, (name, value) in enumerate(values.items()):
        colour = theme.colour(colours.get(name, "grey"))
        axes.barh(row, value, height=0.62, color=colour, zorder=2)
        axes.text(
            1.03, row, texts[name], transform=axes.get_yaxis_transform(), va="center", size=7.4
        )
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
