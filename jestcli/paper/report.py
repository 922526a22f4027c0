"""`jest report`: every claim beside what was measured, from recorded results alone.

One self-contained HTML page (pictures are inside, nothing is fetched, no script runs) and the same
as Markdown, whose figures are linked.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from jestcli.paper.diversity import MEASURED as DIVERSITY
from jestcli.paper.evidence import claims_of, gather
from jestcli.paper.experiment import Experiment, jobs
from jestcli.paper.figure2 import MEASURED
from jestcli.paper.plot import RECORDS, UNKNOWN, outdated
from jestcli.paper.records import Record, load_records
from jestcli.paper.saving import core_hours
from jestcli.paper.table import caption
from jestcli.paper.theme import data_url
from jestcli.paper.verdicts import WORDS, Claim, Verdict, judge_all
from jestcli.runs.workspace import Workspace
from jestcli.utils.errors import DataError
from jestcli.utils.io import save_text
from jestcli.utils.reading import read_json

NAME = "report"
WIDTH, QUALITY = 1_200, 65  # pixels and quality of a figure within the page
TITLE = "What of JEST holds, where"
OPENING = (
    "Joint example selection (JEST, arXiv 2406.17711) rebuilt at small scale: icons and emoji at "
    "32 pixels on cores and single GPUs, not billions of web photographs, so directions and ratios "
    "can be compared, levels cannot. Beside a verdict stands where it was tested: mostly at 80 % "
    "wrong captions after 192k examples, where uniform training is hardly above chance."
)
READ_IT = (
    "For each claim: what it says, what was measured and a verdict, by rules fixed before the runs "
    "(docs/protocol.md, which dates and gives reasons for what was changed since). "
    "[P] seen in the paper, "
    "[S] second-hand, [U] remembered and unverified, [ours] not the paper's. q is the share of "
    "wrong captions in the pool, f that of the candidates which are not chosen; “JEST at 0.8@750”: "
    "at q = .8, after 750 steps of 256 examples. verified: checked pairs of the pool, strong++: "
    "well captioned emoji and icons. Holm: p for all tests of a claim; detectable: the least "
    "difference that these seeds would show; by their own scatter: with these runs' variance alone."
)
# By verdict a mark, for colour alone is not enough, and a class of the style sheet.
MARKS = dict(zip(WORDS, "✓◐◑✗?○–", strict=True))
CLASSES = dict(zip(WORDS, ("good", "part", "part", "bad", "open", "open", "open"), strict=True))

WHOSE = {  # by the tag of a claim
    "Seen in the paper": ("P",),
    "Second-hand or remembered": ("S", "U"),
    "Ours": ("ours",),
}


class Section(NamedTuple):
    """An experiment in the report. figures: paths without their endings (.png and -dark.png are
    read); runs: (name, seed, run directory) of its records; how: its caption; folder: where its
    records lie."""

    name: str
    title: str
    verdicts: list[tuple[Claim, Verdict]]
    figures: list[Path]
    runs: list[tuple[str, int, str]]
    how: str
    folder: Path = Path()


def report(
    experiments: list[Experiment], results: Path, out: Path, whole: bool = True
) -> list[Path]:
    """Write report.html and report.md from the records under `results` and what the experiments
    claim, those without a claim left out; returns both paths. whole: it is about the paper."""
    found: dict[str, Any] = {}
    measured: dict[str, list[dict[str, Any]]] = {}
    for experiment in experiments:
        folder = results / experiment.name
        there = (folder / RECORDS).exists()
        found[experiment.name] = load_records(folder / RECORDS) if there else (UNKNOWN, [])
        for name in (MEASURED, DIVERSITY):
            if (folder / name).exists():
                measured[experiment.name] = list(read_json(folder / name).values())
    claims = claims_of(experiments)
    known = {name: records for name, (_, records) in found.items()}
    verdicts, sections = judge_all(claims, gather(experiments, known, measured)), []
    for experiment in experiments:
        (header, records), folder = found[experiment.name], results / experiment.name
        both = zip(claims, verdicts, strict=True)
        own = [(claim, verdict) for claim, verdict in both if claim.experiment == experiment.name]
        if not own:
            continue
        figures = sorted(path.with_suffix("") for path in folder.glob("*.svg"))
        runs = [(r["name"], r["seed"], r["digest"]) for r in records]
        old = outdated(records, jobs(experiment, {}), Workspace())
        how, names = (
            f"{caption(header, records)} {old}".rstrip(),
            (experiment.name, experiment.title),
        )
        sections.append(Section(*names, own, figures, runs, how, folder))
    paths = [out / f"{NAME}.html", out / f"{NAME}.md"]
    spent = _spent([record for _, records in found.values() for record in records])
    titles = [experiment.title for experiment in experiments]
    about = {"title": TITLE if whole else " · ".join(titles)}
    about["opening"] = f"{OPENING} {READ_IT}" if whole else READ_IT
    for path in paths:
        save_text(path, _rendered(f"{path.name}.j2", about, sections, spent, out))
    return paths


def _spent(records: list[Record]) -> str:
    """How many runs stand behind the report, each once, and what those on CPUs took."""
    runs = {record["digest"]: record for record in records}
    on_cpu = [run for run in runs.values() if not run["environment"].get("gpu")]
    hours = sum(core_hours(run) for run in on_cpu)
    words = f"{len(runs)} runs; {len(on_cpu)} of them on CPUs, {hours:.1f} core-hours of training"
    return words + (f"; {len(runs) - len(on_cpu)} on a GPU" if len(on_cpu) < len(runs) else "")


def _rendered(
    template: str, about: dict[str, str], sections: list[Section], spent: str, out: Path
) -> str:
    """The page by that template; links are relative to `out`."""
    import jinja2

    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("jestcli.paper", ""),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    pages.filters["data"] = lambda path, kind: data_url(_smaller(path), kind)
    pages.filters["anchor"] = _anchor
    pages.filters["beside"] = lambda path: Path(os.path.relpath(path, out)).as_posix()
    counts = Counter(verdict.word for section in sections for _, verdict in section.verdicts)
    tally = _counted(counts)
    of: dict[str, Counter[str]] = {}
    for section in sections:
        for claim, verdict in section.verdicts:
            of.setdefault(_whose(claim.says), Counter())[verdict.word] += 1
    if len(of) > 1:
        tally += "".join(f". {whose}: {_counted(of[whose])}" for whose in WHOSE if whose in of)
    tally += f". {spent}"
    page = pages.get_template(template)
    return page.render(**about, tally=tally, sections=sections, marks=MARKS, classes=CLASSES)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[word]} {word}" for word in MARKS if counts[word])


def _whose(says: str) -> str:
    """Where a claim comes from, by the first of its tags."""
    tag = re.search(r"\[(P|S|U|ours)\]", says)
    return next(whose for whose, tags in WHOSE.items() if (tag[1] if tag else "ours") in tags)


def _smaller(path: Path) -> bytes:
    """A figure as WebP, half of its PNG's bytes: all of them are within the page. Raises DataError
    where it is none."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            size = (WIDTH, round(image.height * WIDTH / image.width))
            image.convert("RGB").resize(size).save(out := io.BytesIO(), "WEBP", quality=QUALITY)
    except (OSError, SyntaxError, ValueError):  # Pillow's, of a damaged PNG
        name = path.parent.name
        raise DataError(f"{path} is damaged: draw it again with `jest plot {name}`") from None
    return out.getvalue()


def _anchor(title: str) -> str:
    """A heading's anchor as forges make it."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
