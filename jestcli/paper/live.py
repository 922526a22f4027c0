"""What an experiment's finished runs say while the others still train: a list and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jestcli.paper import theme
from jestcli.paper.experiment import Job
from jestcli.paper.map import at_quality
from jestcli.paper.methods import style
from jestcli.paper.records import Record, collect
from jestcli.paper.saving import cells
from jestcli.runs.workspace import Workspace, is_done

ROWS, BAR = 12, 28  # lines of a list; characters of its longest bar


def follower(
    title: str, jobs: list[Job], workspace: Workspace, picture: Path, console: Any
) -> Callable[[Path], None]:
    """What to call with the folder of each run that has ended: if it is one of `jobs`, the list
    goes to the console, and `picture` is drawn again."""
    folders = {workspace.folder(job.run): job for job in jobs}

    def follow(ended: Path) -> None:
        if ended not in folders or not is_done(ended):
            return
        done = {f: collect(f, j.name, j.seed) for f, j in folders.items() if is_done(f)}
        record, others = done.pop(ended), list(done.values())
        for line in listed([*others, record]):
            console.print(line, markup=False, highlight=False)
        draw(title, [*others, record], picture)
        console.print(f"{len(others) + 1} of {len(folders)} runs so far: {picture}", markup=False)

    return follow


def listed(records: list[Record]) -> list[str]:
    """A line for each of the last ROWS records: name, seed, examples, score and a bar."""
    most = max(r["final"]["mean"] for r in records) or 1.0
    return [
        f"  {r['name']:<20} seed {r['seed']:<3} {r['steps'] * r['batch_size']:>9,} "
        f"{100 * r['final']['mean']:5.1f} % {'▆' * round(BAR * r['final']['mean'] / most)}"
        for r in sorted(records[-ROWS:], key=lambda r: (r["name"].split("@")[:2], r["steps"]))
    ]


def draw(title: str, records: list[Record], path: Path) -> None:
    """Scores against examples, a line for each method and pool, single runs as points."""
    path.parent.mkdir(parents=True, exist_ok=True)
    curves, ends = at_quality(records) or records, []
    with theme.themed(theme.LIGHT):
        figure, top = theme.frame(f"So far: {title}", "", "", 3.2, theme.LIGHT)
        axes = theme.place(figure, 0.75, top, 5.8, 2.7)
        for name in dict.fromkeys(r["name"] for r in curves):
            how, found = style(name.split("@")[0]), cells(curves, name)
            x, y = [c.examples for c in found], [100 * c.mean for c in found]
            colour = theme.LIGHT.colour(how.colour)
            axes.plot(x, y, ls=how.dash, marker=how.marker, color=colour)
            ends.append((x[-1], y[-1], name.replace(name.split("@")[0], how.label), colour))
        axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
        theme.log_ticks(axes)
        theme.label_ends(axes, ends)
        axes.set_xlabel("examples trained on")
        axes.set_ylabel("mean of the benchmarks, %")
        figure.savefig(path, dpi=theme.DPI // 2, metadata={"Software": None})
