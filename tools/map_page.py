"""What README and the map's page say of the map's records; `python -m tools.map_page` writes it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jestcli.paper.experiment import find_experiment, read_experiment
from jestcli.paper.map_words import short_answer
from jestcli.paper.records import Record, load_records
from jestcli.paper.saving import core_hours
from jestcli.utils.io import save_text

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "results/map/README.md", ROOT / "README.md"


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
    return "\n".join(short_answer(records))


BLOCKS = {(PAGE, "machines"): machines, (PAGE, "not run"): not_run, (README, "answer"): answer}


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind a block of a page."""
    return f"<!-- {name}: written by tools/map_page.py -->", f"<!-- /{name} -->"


def main() -> None:
    """Write the blocks between their marks."""
    records = load_records(PAGE.parent / "records.json")[1]
    for (path, name), block in BLOCKS.items():
        start, end = marks(name)
        before, _, rest = path.read_text().partition(start)
        after = rest.partition(end)[2]
        save_text(path, f"{before}{start}\n\n{block(records)}\n\n{end}{after}")


if __name__ == "__main__":
    main()
