"""`jest report`: every claim beside what was measured, from recorded results alone.

One self-contained HTML page (pictures are inside, nothing is fetched, no script runs) and the same
as Markdown, whose figures are linked.
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jestcli.paper.caption import caption
from jestcli.paper.claims import CLAIMS, gather
from jestcli.paper.diversity import MEASURED as DIVERSITY
from jestcli.paper.experiment import Experiment, jobs
from jestcli.paper.figure2 import MEASURED
from jestcli.paper.plot import DATA, PROFILE, RECORDS, outdated
from jestcli.paper.records import Header, Record, load_records
from jestcli.paper.verdicts import (
    CONTRADICTED,
    HOLDS,
    METRIC,
    MISSING,
    MIXED,
    UNDECIDED,
    Claim,
    Verdict,
    judge_all,
)
from jestcli.runs.workspace import Workspace
from jestcli.training.checkpoint import write_atomic
from jestcli.utils.reading import read_json

NAME = "report"
TITLE = "What of JEST holds, where"
OPENING = (
    "Joint example selection (JEST, arXiv 2406.17711) rebuilt at small scale: icons and emoji at "
    "32 pixels on a few cores instead of billions of web photographs, so directions and ratios "
    "can be compared, levels cannot. For each claim: what the paper says, what was measured here "
    "and a verdict, by rules fixed before the runs (docs/protocol.md). [P] seen in the paper, "
    "[S] second-hand, [U] remembered and unverified, [ours] not the paper's. q is the share of "
    "wrong captions in the pool."
)
# A mark, for colour alone is not enough, and a class of the style sheet.
MARKS = {HOLDS: "✓", MIXED: "◐", METRIC: "◑", CONTRADICTED: "✗", UNDECIDED: "?", MISSING: "–"}
CLASSES = {
    HOLDS: "good",
    MIXED: "part",
    METRIC: "part",
    CONTRADICTED: "bad",
    UNDECIDED: "open",
    MISSING: "open",
}


@dataclass(frozen=True)
class Section:
    """An experiment in the report.

    figures: paths without their endings (.svg, .png and -dark.png are read); runs: (name, seed,
    run directory) of its records; how: its caption; folder: where its records lie.
    """

    name: str
    title: str
    verdicts: tuple[tuple[Claim, Verdict], ...]
    figures: tuple[Path, ...]
    runs: tuple[tuple[str, int, str], ...]
    how: str
    folder: str = ""


def report(experiments: list[Experiment], results: Path, out: Path) -> list[Path]:
    """Write report.html and report.md from the records under `results`; returns both paths.

    Experiments without a claim are left out.
    """
    headers: dict[str, Header] = {}
    records: dict[str, list[Record]] = {}
    measured: dict[str, list[dict[str, Any]]] = {}
    for experiment in experiments:
        folder = results / experiment.name
        if (folder / RECORDS).exists():
            headers[experiment.name], records[experiment.name] = load_records(folder / RECORDS)
        for name in (MEASURED, DIVERSITY):
            if (folder / name).exists():
                measured[experiment.name] = list(read_json(folder / name).values())
    names = {experiment.name for experiment in experiments}
    claims = [claim for claim in CLAIMS if claim.experiment in names]
    verdicts = judge_all(claims, gather(records, measured))
    asked = {claim.experiment for claim in claims}
    sections = [
        _section(
            e,
            [(c, verdicts[c.key]) for c in claims if c.experiment == e.name],
            records.get(e.name, []),
            headers.get(e.name, Header(DATA, PROFILE)),
            results,
        )
        for e in experiments
        if e.name in asked
    ]
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{NAME}.html", out / f"{NAME}.md"]
    for path in paths:
        write_atomic(path, _rendered(f"{path.name}.j2", sections, out).encode())
    return paths


def _section(
    experiment: Experiment,
    verdicts: list[tuple[Claim, Verdict]],
    records: list[Record],
    header: Header,
    results: Path,
) -> Section:
    name, folder = experiment.name, results / experiment.name
    old = outdated(records, jobs(experiment, {}), Workspace())
    return Section(
        name,
        experiment.title,
        tuple(verdicts),
        tuple(sorted(path.with_suffix("") for path in folder.glob("*.svg"))),
        tuple((r["name"], r["seed"], r["digest"]) for r in records),
        " ".join(filter(None, (caption(header, records), old))),
        str(folder),
    )


def _rendered(template: str, sections: list[Section], out: Path) -> str:
    """The page by that template; links are relative to `out`."""
    import jinja2

    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("jestcli.paper", ""),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    pages.filters["data"] = _data_url
    pages.filters["anchor"] = _anchor
    pages.filters["beside"] = lambda path: Path(os.path.relpath(path, out)).as_posix()
    counts = Counter(verdict.word for section in sections for _, verdict in section.verdicts)
    return pages.get_template(template).render(
        title=TITLE,
        opening=OPENING,
        tally=", ".join(f"{counts[word]} {word}" for word in MARKS if counts[word]),
        sections=sections,
        marks=MARKS,
        classes=CLASSES,
    )


def _data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _anchor(title: str) -> str:
    """A heading's anchor as forges make it."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
