"""Write the guard's JSON files again, on purpose: README.md says when one may.

python -m tests.golden.write [digests] [records] [surface]    (all three unless named)
python -m tests.golden.write --bits FILE                      everything with checksums, for bits.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]  # as pytest has it


def make_place(folder: Path) -> Any:
    """The two worlds in `folder`, as conftest.py and test_golden.py make them."""
    from drive import Place
    from miniature_world import make_miniature
    from own_shards import make_own
    from tiny import make_root

    (folder / "registry").mkdir()
    icons = make_root(make_miniature(folder / "registry"), folder / "icons")
    return Place(icons, make_own(folder / "shards"))


def read(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text())


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    print(f"wrote {path}")


def without_checksums(record: Any) -> Any:
    """What another processor computes, too, up to rounding."""
    if isinstance(record, dict):
        return {k: without_checksums(v) for k, v in record.items() if k != "sha256"}
    return record


def records() -> Any:
    import torch
    from drive import all_records

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        return all_records(make_place(Path(name)), Path(name) / "work")


def main(words: list[str]) -> int:
    import drive

    if words[:1] == ["--bits"] and len(words) == 2:
        content = {"digests": drive.digests(), "records": records(), "surface": drive.surface()}
        write(Path(words[1]), content)
        return 0
    makers = {
        "digests": drive.digests,
        "surface": drive.surface,
        "records": lambda: without_checksums(
            {name: found["one rank"] for name, found in records().items()}
        ),
    }
    if unknown := set(words) - set(makers):
        print(f"write.py: no {sorted(unknown)[0]!r}; there are {', '.join(makers)}")
        return 2
    for name in words or makers:
        write(HERE / f"{name}.json", makers[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
