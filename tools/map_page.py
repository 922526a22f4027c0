"""Which runs of the map have no record: `python -m tools.map_page` writes them into its page."""

from __future__ import annotations

from pathlib import Path

from jestcli.paper.experiment import find_experiment, read_experiment
from jestcli.paper.records import load_records
from jestcli.utils.io import save_text

PAGE = Path(__file__).parents[1] / "results/map/README.md"
START, END = "<!-- not run: written by tools/map_page.py -->", "<!-- /not run -->"


def not_run(folder: Path = PAGE.parent) -> str:
    """A line for each method, of its qualities (and other settings) and lengths without a run."""
    done = {record["name"] for record in load_records(folder / "records.json")[1]}
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
        for cell, steps in cells.items():
            whole = steps == every["@".join(filter(None, [method, cell]))]
            said.append(f"{cell or 'alone'} ({'any length' if whole else ', '.join(steps)})")
        lines.append(f"- `{method}`: {'; '.join(said)}.")
    return "\n".join(lines)


def main() -> None:
    """Write the block between the marks of the page."""
    text = PAGE.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    save_text(PAGE, f"{before}{START}\n\n{not_run()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
