"""The sentence under every table and figure: on what its numbers were measured."""

from __future__ import annotations

from typing import Any

from jestcli.paper.records import Header, Record
from jestcli.paper.statistics import by_name


def caption(header: Header, records: list[Record]) -> str:
    """Data, profile, seeds, n, error bar, hardware and commit, in plain words."""
    if not records:
        return f"{header.data}; profile {header.profile}; nothing run yet."
    sets = {k: v["n"] for r in records for k, v in r["benchmarks"].items()}
    parts = [
        f"Data: {header.data}; profile {header.profile}",
        _seeds(records),
        f"{len(sets)} benchmarks with {sum(sets.values()):,} test items in all",
        _error(records),
        hardware(records),
        f"commit {commits(records)}",
    ]
    if any(r["retrieval_rescaled"] for r in records):
        parts.append(
            "retrieval along the curves is converted from fewer candidates to the full set's number"
        )
    return "; ".join(parts) + "."


def hardware(records: list[Record]) -> str:
    """Processors that ran the records; every run's threads are named, as seconds depend on them."""
    found = []
    for record in records:
        e = record["environment"]
        device = e.get("gpu") or e.get("cpu") or "unknown processor"
        device = device.replace("(R)", "").replace("(TM)", "")
        text = f"{device}, {e.get('cores')} cores, {_threads(e)}"
        found.append(f"{text}, torch {e.get('torch')}")
    return " and ".join(dict.fromkeys(found))


def commits(records: list[Record]) -> str:
    return ", ".join(sorted({str(r["environment"].get("commit")) for r in records}))


def _threads(environment: dict[str, Any]) -> str:
    n = environment.get("threads")
    return f"{n} thread{'' if n == 1 else 's'} a run"


def _error(records: list[Record]) -> str:
    if all(len(runs) == 1 for runs in by_name(records).values()):
        return "one seed, so no error bar"
    return "± and bands: 95 % t-interval over seeds"


def _seeds(records: list[Record]) -> str:
    counts = {name: len(runs) for name, runs in by_name(records).items()}
    seeds = sorted({record["seed"] for record in records})
    listed = ", ".join(map(str, seeds))
    few = min(counts.values())
    n = f"n = {few}" if few == max(counts.values()) else f"n = {few} to {max(counts.values())}"
    return f"seed{'s' if len(seeds) > 1 else ''} {listed} ({n} a method)"
