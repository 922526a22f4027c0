"""Two checkouts side by side on this machine: do they compute the same bits?

python tests/golden/bits.py BEFORE AFTER

Each runs the guard's whole set with its own tests/golden/; every digest, record and weight of
BEFORE must be in AFTER to the last bit (what AFTER has beyond is fine). Exits with 1 if not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compare import differences


def bits(checkout: Path, out: Path) -> Any:
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "tests/golden/write.py", "--bits", str(out)]
    subprocess.run(command, cwd=checkout, env=env, check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def main(words: list[str]) -> int:
    if len(words) != 2:
        print(__doc__)
        return 2
    checkouts = [Path(word).resolve() for word in words]
    for checkout in checkouts:
        if not (checkout / "tests" / "golden" / "write.py").exists():
            print(f"bits.py: {checkout} is not a checkout with tests/golden/")
            return 2
    with tempfile.TemporaryDirectory() as name:
        before, after = (bits(c, Path(name, f"{i}.json")) for i, c in enumerate(checkouts))
    lines = list(differences(before, after))
    groups: dict[str, list[str]] = {}
    for line in lines:  # by experiment, or by run and how it was made
        parts = line.split(" > ")
        groups.setdefault(" > ".join(parts[: 3 if parts[0] == "records" else 2]), []).append(line)
    for name, each in groups.items():
        print(f"{name}: {len(each)} differ, the first: {each[0]}")
    count = sum(len(each) for each in before["records"].values())
    print(f"{len(lines)} differences in {count} runs, every digest and the surface")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
