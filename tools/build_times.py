"""How long building the embedded data takes, stage by stage.

    python -m tools.build_times OUT [PACKAGES]     # OUT.json, OUT.md

PACKAGES: a folder of fetched packages (DATA/.cache/packages), which are then not fetched again.
A busy machine is refused unless `--busy` is given. The data are built in a temporary folder beside
OUT, and thrown away.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from jestcli.bench import save
from jestcli.data.decoded import build_decoded
from jestcli.data.tokens import small_tokenizer
from jestcli.icons.build import SIZE, build, shard_urls
from jestcli.runs.environment import environment
from jestcli.utils.tables import Table
from tools import words_of

DRAWING = ("unpack", "draw")  # the floor: nothing but a faster renderer would make it less


class Stages:
    """Wall seconds of the stages that report progress. What lies before a stage's first report,
    such as captions and the plan before icons are compared, is its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.at = time.perf_counter()

    def __call__(self, done: int, total: int, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.at
        self.at = now


def main(out: Path, packages: Path | None = None) -> None:
    """Build, decode as the first run does, write the record."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        root, tokenizer = Path(folder) / "icons", small_tokenizer(8192, 16)
        if packages is not None:
            shutil.copytree(packages, root / ".cache" / "packages")
        stages = Stages()
        counts = build(root, progress=stages)["counts"]
        stages(1, 1, "move in place")
        for split in ("pool", "curated"):
            build_decoded(shard_urls(root, split), root / "store", SIZE, tokenizer, progress=stages)
            stages(1, 1, "decode")
    about, cores = environment(), os.cpu_count()
    rest = sum(each for name, each in stages.seconds.items() if name not in (*DRAWING, "fetch"))
    result = {
        **{"seconds": stages.seconds, "neither_fetching_nor_drawing": rest},
        **{"counts": counts, "processor_seconds": sum(os.times()[:4])},
        **{"environment": about, "cores": cores, "load_average": os.getloadavg()[0]},
    }
    rows = [(name, f"{each:.1f}") for name, each in stages.seconds.items()]
    text = (
        "# Building the embedded data\n\n"
        f"{counts['pool']:,} icons of the pool, {counts['curated']:,} curated; {about['cpu']}, "
        f"{cores} cores, commit {about['commit']}; packages fetched "
        f"{'before' if packages else 'meanwhile'}. Drawing is the floor; what is neither drawing "
        f"nor fetching takes {rest:.0f} s. {result['processor_seconds']:.0f} processor seconds in "
        f"all.\n\n{Table('', ('stage', 'seconds'), rows).markdown()}\n"
    )
    save(result, text, out)


if __name__ == "__main__":
    words = words_of(sys.argv)
    main(*map(Path, words[:2]))
