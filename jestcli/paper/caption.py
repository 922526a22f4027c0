"""The sentence under every table and figure: on what its numbers were measured."""

from __future__ import annotations

from jestcli.paper.records import Header, Record
from jestcli.paper.statistics import by_name


def caption(header: Header, records: list[Record]) -> str:
    """Data, profile, seeds, n, error bar, hardware and commit, in plain words."""
    if not records:
        return f"{header.data}; profile {header.profile}; nothing run yet."
    sets = {k: v["n"] for r in records for k, v in r["benchmarks"].items()}
    counts = [len(runs) for runs in by_name(records).values()]
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
