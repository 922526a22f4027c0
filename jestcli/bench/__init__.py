"""What `jest bench` measures on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jestcli.utils.io import save_text


def other_work() -> str | None:
    """Why no record should be written now: the machine does other work. None where it does not."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores:
        return None
    return (
        f"the machine is busy (load {load:.1f} on {cores} cores): stop what else runs, or give "
        "--busy and trust the processor seconds alone"
    )


def save(result: dict[str, Any], text: str, out: Path | None) -> list[Path]:
    """Write the numbers as JSON and the page as Markdown beside it; returns both paths."""
    if out is None:
        return []
    made = [out.with_suffix(".json"), out.with_suffix(".md")]
    save_text(made[0], json.dumps(result, indent=1) + "\n")
    save_text(made[1], text)
    return made
