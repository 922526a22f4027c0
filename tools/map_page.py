"""What README, the page of the map and that of the trials say of records.

python -m tools.map_page     # writes it
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jestcli.paper.experiment import find_experiment, read_experiment
from jestcli.paper.map_words import SINGLE, headline
from jestcli.paper.methods import style
from jestcli.paper.records import Record, load_records
from jestcli.paper.saving import core_hours
from jestcli.utils.io import save_text
from jestcli.utils.tables import Table

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "results/map/README.md", ROOT / "README.md"
TRIALS = ROOT / "results/tune/README.md"
# Runs of experiments/tune.yaml that differ in the learning rate alone.
TRIED = (
    *("uniform", "jest", "flexi", "independent", "easy", "jest-curated", "cabs"),
    *("filtered", "negclip", "curated", "mixed", "finetune"),
)

# Of the other dials: its runs, what they are compared with (at the same rate) and its value there.
DIALS = {
    "uniform, batch": ("uniform-batch", "uniform", "0.002", 256.0),
    "JEST, filter ratio": ("jest-ratio", "jest", "0.004", 0.8),
    "JEST with curated pairs, their share": ("jest-curated-share", "jest-curated", "0.004", 0.25),
    "curated + pool, the curated share": ("mixed-share", "mixed", "0.004", 0.5),
    "filtered, share kept": ("filtered-keep", "filtered", "0.002", 0.2),
    "curated only, weight decay": ("curated-decay", "curated", "0.004", 1e-4),
    "the reference, steps": ("reference", "", "0.004", 3000.0),
}


def machines(records: list[Record]) -> str:
    """How many runs each kind of machine made."""
    cards = Counter(r["environment"]["gpu"] for r in records if r["environment"].get("gpu"))
    cpu = [record for record in records if not record["environment"].get("gpu")]
    shared = [f"{n} runs were made on one {card}" for card, n in sorted(cards.items())]
    return (
        f"{'; '.join(shared)}, each shared by sixteen at a time. The other {len(cpu)} are of CPUs, "
        f"{sum(map(core_hours, cpu)):.1f} core-hours of training, references included and "
        "evaluation not."
    )


def not_run(records: list[Record]) -> str:
    """A line for each method, of its qualities (and other settings) and lengths without a run."""
    done = {record["name"] for record in records}
    missing: dict[str, dict[str, list[str]]] = {}
    every: dict[str, list[str]] = {}
    for name in read_experiment(find_experiment("map")).runs:
        method, *settings, steps = name.split("@")
        every.setdefault("@".join([method, *settings]), []).append(steps)
        if name not in done:
            missing.setdefault(method, {}).setdefault("@".join(settings), []).append(steps)
    lines = []
    for method, cells in missing.items():
        said = []
        for cell, left in cells.items():
            whole = left == every["@".join(filter(None, [method, cell]))]
            said.append(f"{cell or 'alone'} ({'any length' if whole else ', '.join(left)})")
        lines.append(f"- `{method}`: {'; '.join(said)}.")
    return "\n".join(lines)


def answer(records: list[Record]) -> str:
    """What the map says, in short."""
    lines = headline(records)
    if any(SINGLE in line for line in lines):
        lines += ["", f"{SINGLE} One seed."]
    return "\n".join(lines)


def trials(records: list[Record]) -> str:
    """Scores by learning rate at q = 0 and .8, and the rate that docs/protocol.md's rule takes: the
    best mean over both pools of the score relative to the best trial of that pool."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for record in records:
        method, _, dials = record["name"].partition("@")
        if method not in TRIED:
            continue  # another dial than the rate
        *quality, last = dials.split("@")
        at = found.setdefault(method, {}).setdefault(quality[0] if quality else "", {})
        at[float(last)] = 100 * record["final"]["mean"]
    rows, rates = (
        [],
        sorted({rate for each in found.values() for at in each.values() for rate in at}),
    )
    for method in (method for method in TRIED if method in found):
        pools = [each for _, each in sorted(found[method].items())]
        both = [rate for rate in rates if all(rate in each for each in pools)]
        worth = {rate: sum(each[rate] / max(each.values()) for each in pools) for rate in both}
        said = (" / ".join(f"{each[r]:.1f}" for each in pools) if r in both else "" for r in rates)
        name = style("filtered-20" if method == "filtered" else method).label
        rows.append((name, *said, f"{max(worth, key=worth.__getitem__):g}"))
    return Table("", ("method", *(f"{rate:g}" for rate in rates), "best"), rows).markdown()


def dials(records: list[Record]) -> str:
    """Scores by every dial but the rate, at q = 0 / q = .8; the usual value in bold."""
    scores = {r["name"]: f"{100 * r['final']['mean']:.1f}" for r in records}
    rows = []
    for words, (runs, usual, rate, value) in DIALS.items():
        found: dict[float, dict[str, str]] = {}
        for name, score in scores.items():
            method, *at = name.removesuffix(f"@{rate}").split("@")
            if method == runs and at:
                found.setdefault(float(at[-1]), {})[at[0] if at[1:] else ""] = score
            elif method == usual and name.endswith(f"@{rate}"):
                found.setdefault(value, {})[at[0] if at else ""] = score
        told = []
        for at_value, by_pool in sorted(found.items()):
            text = f"{at_value:g}: {' / '.join(score for _, score in sorted(by_pool.items()))}"
            told.append(f"**{text}**" if at_value == value else text)
        rows += [(words, "; ".join(told))] if told else []
    return Table("", ("dial", "value: score"), rows).markdown()


BLOCKS = {
    (PAGE, "machines"): machines,
    (PAGE, "not run"): not_run,
    (README, "answer"): answer,
    (TRIALS, "trials"): trials,
    (TRIALS, "dials"): dials,
}


def records_of(page: Path) -> list[Record]:
    """The records that a page speaks of: those beside it, README's the map's."""
    folder = PAGE.parent if page == README else page.parent
    return load_records(folder / "records.json")[1]


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind a block of a page."""
    return f"<!-- {name}: written by tools/map_page.py -->", f"<!-- /{name} -->"


def main() -> None:
    """Write the blocks between their marks."""
    for (path, name), block in BLOCKS.items():
        start, end = marks(name)
        before, _, rest = path.read_text().partition(start)
        after = rest.partition(end)[2]
        save_text(path, f"{before}{start}\n\n{block(records_of(path))}\n\n{end}{after}")


if __name__ == "__main__":
    main()
