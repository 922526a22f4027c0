"""`jest report`: every claim beside what was measured, from recorded results alone."""

from __future__ import annotations

import json
from pathlib import Path

from jestcli.paper.caption import caption
from jestcli.paper.claims import CLAIMS, SEEDS, Claim, Evidence
from jestcli.paper.diversity import MEASURED as DIVERSITY
from jestcli.paper.experiment import Experiment, jobs
from jestcli.paper.figure2 import MEASURED
from jestcli.paper.page import Page, Section, to_html, to_markdown
from jestcli.paper.plot import DATA, PROFILE, RECORDS, outdated
from jestcli.paper.records import Header, Record, load_records
from jestcli.runs.workspace import Workspace
from jestcli.training.checkpoint import write_atomic

NAME = "report"
OPENING = (
    "Joint example selection (JEST, arXiv 2406.17711) rebuilt at small scale: icons and emoji at "
    "32 pixels on a few cores instead of billions of web photographs, so directions and ratios "
    "can be compared, levels cannot. For each claim: what the paper says, what was measured here "
    f"and a verdict, which needs {SEEDS} seeds and a 95 % interval that leaves out zero; “not "
    "distinguishable” and “not run” are said where it is so. Provenance: [P] seen in the paper, "
    "[D] derived from it, [S] second-hand, [U] remembered and unverified, [ours] not the paper's."
)


def report(experiments: list[Experiment], results: Path, out: Path) -> list[Path]:
    """Write report.html and report.md from the records under `results`; returns both paths."""
    headers: dict[str, Header] = {}
    records: dict[str, list[Record]] = {}
    measured = {}
    for experiment in experiments:
        folder = results / experiment.name
        if (folder / RECORDS).exists():
            headers[experiment.name], records[experiment.name] = load_records(folder / RECORDS)
        for name in (MEASURED, DIVERSITY):
            if (folder / name).exists():
                measured[experiment.name] = list(json.loads((folder / name).read_text()).values())
    evidence = Evidence(records, measured)
    sections = tuple(
        _section(e, evidence, headers.get(e.name, Header(DATA, PROFILE)), results)
        for e in experiments
    )
    page = Page("What of JEST holds at small scale", OPENING, sections)
    out.mkdir(parents=True, exist_ok=True)
    html, markdown = out / f"{NAME}.html", out / f"{NAME}.md"
    write_atomic(html, to_html(page).encode())
    write_atomic(markdown, to_markdown(page, out).encode())
    return [html, markdown]


def _section(experiment: Experiment, evidence: Evidence, header: Header, results: Path) -> Section:
    name, folder = experiment.name, results / experiment.name
    records = evidence.records.get(name, [])
    mine: list[Claim] = [c for c in CLAIMS if c.experiment == name]
    curves = experiment.figure.kind == "curves"
    stems = ["figure1", "finals", "energy", "learnability"] if curves else [name]
    old = outdated(records, jobs(experiment, {}), Workspace())
    return Section(
        name,
        experiment.title,
        " ".join(experiment.refuted_if.split()),
        tuple((claim, claim.find(evidence)) for claim in mine),
        tuple(folder / stem for stem in stems if (folder / f"{stem}.svg").exists()),
        tuple((r["name"], r["seed"], r["digest"]) for r in records),
        " ".join(filter(None, (caption(header, records), old))),
        str(folder),
    )
