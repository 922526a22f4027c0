"""Write the cells of the map that `jest forecast` shows a user's pool on, from its records.

python -m tools.forecast_map
"""

from __future__ import annotations

import json
from pathlib import Path

from jestcli.paper.map import saving, winners
from jestcli.paper.records import load_records
from jestcli.paper.saving import LESS, MORE

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    _, records = load_records(ROOT / "results" / "map" / "records.json")
    steps = sorted({r["steps"] for r in records if r["name"].startswith("jest@")})
    cells = []
    for (q, n), rows in sorted(winners(records, steps).items()):
        saved = saving(records, "jest", q, n, "examples", False)
        if saved is None:
            continue
        bound = {MORE: ">", LESS: "<"}.get(saved.status, "")
        examples = n * records[0]["batch_size"]
        cells.append(
            {
                "q": q,
                "examples": examples,
                "best": rows[0].method,
                "saving": round(saved.ratio, 2),
                "bound": bound,
            }
        )
    lines = ",\n".join(json.dumps(cell) for cell in cells)
    path = ROOT / "jestcli" / "forecast" / "map.json"
    path.write_text(f'{{"from": "results/map/records.json", "cells": [\n{lines}\n]}}\n')
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
