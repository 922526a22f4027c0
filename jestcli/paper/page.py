"""The report as one self-contained HTML page and as Markdown."""

from __future__ import annotations

import base64
import os
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from jestcli.paper.claims import VERDICTS, Claim, Finding

CSS = """
:root { --text: #1f2328; --muted: #656d76; --line: #d8dee4; --back: #ffffff; --soft: #f6f8fa;
  --good: #00795a; --part: #8a6100; --bad: #b04a00; --open: #57606a; --link: #0a58ca;
  color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --muted: #9198a1; --line: #30363d;
  --back: #0d1117; --soft: #161b22; --good: #3fc79a; --part: #e3b341; --bad: #ff9350;
  --open: #9198a1; --link: #79b8ff; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
a { color: var(--link); } h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: left;
  vertical-align: top; }
.wide { overflow-x: auto; } .muted { color: var(--muted); font-size: .85rem; }
blockquote { margin: .5rem 0; padding: .1rem 1rem; border-left: 3px solid var(--line);
  color: var(--muted); }
figure { margin: 1.5rem 0; overflow-x: auto; } img { max-width: 100%; height: auto; }
.verdict { font-weight: 600; white-space: nowrap; }
.reproduced { color: var(--good); } .partly { color: var(--part); } .not { color: var(--bad); }
.open { color: var(--open); font-weight: 400; }
@media (max-width: 40rem) { .claims td:nth-child(2), .claims th:nth-child(2) { display: none; }
  .verdict { white-space: normal; } figure img { max-width: none; width: 46rem; } }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--muted); }
code { background: var(--soft); padding: 0 .2em; }
"""
CLASSES = dict(zip(VERDICTS, ("reproduced", "partly", "not", *["open"] * 3), strict=True))
MARKS = dict(zip(VERDICTS, ("✓", "◐", "✗", "?", "∅", "–"), strict=True))  # not by colour alone


@dataclass(frozen=True)
class Section:
    """An experiment in the report.

    figures: paths without their endings (`.svg` and `-dark.png` are read); runs: (name, seed, run
    directory) of its records; how: its caption; folder: where its records lie.
    """

    name: str
    title: str
    refuted_if: str
    findings: tuple[tuple[Claim, Finding], ...]
    figures: tuple[Path, ...]
    runs: tuple[tuple[str, int, str], ...]
    how: str
    folder: str = ""


@dataclass(frozen=True)
class Page:
    """title, an opening paragraph and the sections in order of worth."""

    title: str
    opening: str
    sections: tuple[Section, ...] = field(default_factory=tuple)

    @property
    def findings(self) -> list[tuple[Section, Claim, Finding]]:
        return [(s, c, f) for s in self.sections for c, f in s.findings]


def tally(page: Page) -> str:
    """How many claims have each verdict, in words."""
    counts = Counter(f.verdict for _, _, f in page.findings)
    return ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])


# --- HTML ----------------------------------------------------------------------------------------


def to_html(page: Page) -> str:
    """One file: pictures are inside, nothing is fetched, no script runs."""
    rows = "".join(
        f'<tr><td><a href="#{_id(claim.key)}">{escape(claim.key)}</a></td>'
        f"<td>{escape(claim.says)}</td><td>{_badge(found)}</td></tr>"
        for _, claim, found in page.findings
    )
    body = "".join(_section(section) for section in page.sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{CSS}</style></head><body>"
        f"<h1>{escape(page.title)}</h1><p>{escape(page.opening)}</p>"
        f"<p>Claims: {escape(tally(page))}.</p>"
        '<div class="wide"><table class="claims"><thead><tr><th>claim</th>'
        "<th>what the paper says</th><th>verdict</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{body}</body></html>\n"
    )


def _section(section: Section) -> str:
    claims = "".join(_claim(claim, found) for claim, found in section.findings)
    pictures = "".join(_picture(path, section.title) for path in section.figures)
    if not pictures:
        pictures = '<p class="muted">No figure: not run.</p>'
    return (
        f'<section id="{_id(section.name)}"><h2>{escape(section.title)}</h2>{claims}{pictures}'
        f'<p class="muted">Would refute it: {escape(section.refuted_if)}</p>'
        f'<p class="muted">{escape(section.how)}</p>{_runs(section)}</section>'
    )


def _claim(claim: Claim, found: Finding) -> str:
    measured = "".join(f"<p>{escape(s)}</p>" for s in found.sentences)
    return (
        f'<article id="{_id(claim.key)}"><h3>{escape(claim.key)}: {_badge(found)}</h3>'
        f"<blockquote>{escape(claim.says)}</blockquote>{measured}</article>"
    )


def _badge(found: Finding) -> str:
    kind = CLASSES[found.verdict]
    return f'<span class="verdict {kind}">{MARKS[found.verdict]} {escape(found.verdict)}</span>'


def _picture(path: Path, title: str) -> str:
    light, dark = path.with_name(path.name + ".svg"), path.with_name(path.name + "-dark.png")
    if not light.exists():
        return ""
    source = ""
    if dark.exists():
        night = _data(dark, "image/png")
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{night}">'
    image = f'<img src="{_data(light, "image/svg+xml")}" alt="{escape(title)} ({path.name})">'
    return f"<figure><picture>{source}{image}</picture></figure>"


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _runs(section: Section) -> str:
    if not section.runs:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{seed}</td><td><code>{escape(digest)}</code></td></tr>"
        for name, seed, digest in section.runs
    )
    where = escape(f"{section.folder}/records.json")
    return (
        f"<details><summary>{len(section.runs)} runs behind these numbers (all of their curves: "
        f"<code>{where}</code>)</summary><table><thead><tr><th>run</th><th>seed</th>"
        f"<th>run directory</th></tr></thead><tbody>{rows}</tbody></table></details>"
    )


def _id(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


# --- Markdown ------------------------------------------------------------------------------------


def to_markdown(page: Page, folder: Path) -> str:
    """The same for the repository; figures are linked, relative to `folder`."""
    rows = [f"| {c.key} | {MARKS[f.verdict]} {f.verdict} |" for _, c, f in page.findings]
    parts = [f"# {page.title}", page.opening, f"Claims: {tally(page)}."]
    parts.append("\n".join(["| claim | verdict |", "|---|---|", *rows]))
    for section in page.sections:
        parts.append(f"## {section.title}")
        for claim, found in section.findings:
            verdict = f"**{claim.key}: {found.verdict}.** The paper: {claim.says}"
            parts.append(" ".join([verdict, "Here:", *found.sentences]))
        for path in section.figures:
            name = Path(os.path.relpath(path, folder)).as_posix()
            if path.with_name(path.name + ".png").exists():
                parts.append(
                    f'<picture><source media="(prefers-color-scheme: dark)" '
                    f'srcset="{name}-dark.png"><img src="{name}.png" alt="{section.title}">'
                    "</picture>"
                )
        parts.append(f"Would refute it: {' '.join(section.refuted_if.split())}")
        parts.append(section.how)
        if section.folder and section.runs:
            parts.append(f"Runs: [{section.name}/records.json]({section.name}/records.json), "
                         f"table: [{section.name}/table.md]({section.name}/table.md).")  # fmt: skip
    return "\n\n".join(parts) + "\n"
