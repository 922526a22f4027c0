"""results/bench/README.md from the records beside it: every hot path beside its bound.

python -m tools.bench_page [FOLDER]
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from jestcli.utils.io import save_text
from jestcli.utils.tables import Table

FOLDER = Path(__file__).parents[1] / "results" / "bench"
SHAPES = ("1280", "2560", "12288", "65536")
TARGETS = {"jest": 1.05, "flexi": 1.15}
REST_TARGET = 60  # seconds of two cores, of a data build without fetching and drawing
ABOUT = """# Speed on two cores

Each path beside its bound, as measured by `jest bench`, `tools/readers.py`, `tools/build_times.py`
and `tools/growth.py`; the records lie here. What is compared took turns in one process; processor
seconds of one thread unless said otherwise. GPU: [results/gpu](../gpu/summary.md).
"""
# What the profiles showed where a target is missed.
NOTES = {
    "Selection": "At small B the products are half of it, their softplus a sixth; the rest is "
    "some forty small operations for each of the sixteen chunks.",
    "A step": "JEST's step is to spend at most 5 % on choosing at B = 1,280. Flexi-JEST on the "
    "default tower, a cheap one, misses its ratio: what does not shrink with the image "
    "(resizing it, choosing, the text tower and the dense gradient of its embedding, the "
    "optimiser) is a larger part of a cheaper step, and convolutions of 2 x 2 and 1 x 1 "
    "pixels do less a second. On the ViT, whose step is its matrix products, it is within. "
    "On a GPU this small tower's steps take the time that a CPU needs to launch them (peak "
    "used: under 1 %): JEST's costs less than its FLOPs, because scoring and the recorded "
    "selection (selection/graphs.py) are few launches, Flexi-JEST's twice as much, because "
    "it takes two small batches instead of one; open_clip's own loop, which neither "
    "normalises nor augments, is faster.",
    "Growth": "With b = B/5 selection's products grow as the square of B; nothing grows faster. "
    "Ranks: the seconds of all of them together, on fewer cores than ranks, exchanging and waiting "
    "for each other included. Measured beside other work.",
}


def read(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.json").read_text()))


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def selection(folder: Path) -> Table:
    """Selection beside the matrix products that it needs and nothing else."""
    rows = []
    for shape in SHAPES:
        row = read(folder, f"selection-{shape}")["selection"]
        listing = row.get("cpu_speedup_over_listing")
        rows.append(
            (
                f"B = {row['batch']:,}, b = {row['size']:,}, d = {row['dim']}",
                _time(row["cpu_seconds"]),
                _time(row["gemm_cpu_seconds"]),
                f"{row['cpu_ratio_to_gemm_bound']:.2f}",
                f"{row['extra_memory_bytes'] / 2**20:,.0f} MiB",
                "" if listing is None else f"{listing:.1f} times",
            )
        )
    head = ("selection", "takes", "its matrix products alone", "ratio", "holds beside its inputs")
    return Table("", (*head, "faster than the paper's listing"), rows)


def steps(folder: Path) -> Table:
    """Steps beside the FLOPs that they execute, and open_clip's own loop."""
    rows = []
    named = {"train-cpu": "default tower", "train-vit": "ViT", "train-cuda": "default tower"}
    for name, tower in named.items():
        result = read(folder, name)
        about = result["environment"]
        if gpu := about.get("gpu"):
            tower += f", one {gpu} (torch {about['packages']['torch']}, {about['commit'][:12]})"
        for row in result["rows"]:
            target, share = TARGETS.get(row["name"]), row["select_share"]
            rows.append(
                (
                    f"{tower}, b = {result['batch_size']}: {row['name']}",
                    f"{row['examples_per_second']:,.0f}",
                    f"{row['ratio']:.2f}",
                    f"{row['counted_ratio']:.2f}",
                    f"{row['over_counted']:.2f}",
                    f"{target:.2f}" if target else "",
                    f"{100 * share:.1f} %" if share else "",
                )
            )
    head = ("step", "examples a second (and core)", "time, of uniform", "FLOPs, of uniform")
    return Table("", (*head, "time / FLOPs", "at most", "of it choosing"), rows)


def reading(folder: Path) -> Table:
    """The loader beside other readers of the same files."""
    rows = [
        (row["reader"], f"{row['pairs_per_core_second']:,.0f}", f"{row['of_the_loader']:.2f}")
        for row in read(folder, "readers-cpu")["rows"]
    ]
    return Table(
        "", ("JPEG, 512 x 384 to 224 px", "pairs a second and core", "of the loader's"), rows
    )


def waiting(folder: Path) -> str:
    """What the map's runs on a CPU waited for their data."""
    records = json.loads((folder.parent / "map" / "records.json").read_text())["records"]
    parts = []
    for method in ("uniform", "jest"):
        shares = [
            record["seconds"]["draw"] / sum(record["seconds"].values())
            for record in records
            if record["name"].startswith(f"{method}@") and not record["environment"].get("gpu")
        ]
        parts.append(f"{100 * statistics.median(shares):.1f} % ({method}, {len(shares)} runs)")
    return f"Of a run's time on icons of 32 px waiting for data takes {', '.join(parts)}, medians."


def building(folder: Path) -> str:
    """The data build in one paragraph."""
    record = read(folder, "build-cpu")
    stages = ", ".join(
        f"{name} {each:.0f}" for name, each in record["seconds"].items() if each >= 1
    )
    rest = record["neither_fetching_nor_drawing"]
    met = "within" if rest <= REST_TARGET else "not within"
    return (
        f"Building the embedded data takes {sum(record['seconds'].values()):.0f} s of "
        f"{record['cores']} cores after the packages are fetched, "
        f"{record['processor_seconds']:.0f} processor seconds ({stages}). What is neither fetching "
        f"nor drawing takes {rest:.0f} s: {met} the {REST_TARGET} s that were aimed at."
    )


def scoring(folder: Path) -> Table:
    """What cheaper scoring costs, and how far it agrees."""
    rows = [
        (
            row["name"],
            f"{row['percent_flops']:.0f} %",
            f"{row['milliseconds']:.3f}",
            f"{row['spearman']:.2f}",
            f"{row['overlap']:.2f}",
        )
        for row in read(folder, "scoring-cpu")["rows"]
    ]
    head = ("scoring", "FLOPs", "ms a pair", "rank correlation", "overlap of what is chosen")
    return Table("", head, rows)


def growth(folder: Path) -> Table:
    """Measured exponents."""
    rows = []
    for row in read(folder, "growth-cpu")["rows"]:
        span = f"{row['x'][0]:,} … {row['x'][-1]:,}"
        ends = f"{row['seconds'][0]:.3g} … {row['seconds'][-1]:.3g}"
        rows.append((row["what"], span, ends, f"{row['exponent']:.2f}"))
    return Table("", ("what grows", "from … to", "seconds", "exponent (last three)"), rows)


def page(folder: Path) -> str:
    """The whole page."""
    about = read(folder, "train-cpu")["environment"]
    machine = f"{about['cpu']}, torch {about['packages']['torch']}; each record names its commit."
    parts = [ABOUT, machine, ""]
    for title, body in (
        ("Selection", selection(folder).markdown()),
        ("A step", steps(folder).markdown()),
        ("The loader", f"{reading(folder).markdown()}\n\n{waiting(folder)}"),
        ("Cheaper scoring", scoring(folder).markdown()),
        ("The data build", building(folder)),
        ("Growth", f"{growth(folder).markdown()}\n\n![How time grows](growth-cpu.png)"),
    ):
        said = f"\n\n{NOTES[title]}" if title in NOTES else ""
        parts += [f"## {title}", "", body + said, ""]
    return "\n".join(parts)


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    save_text(where / "README.md", page(where))
