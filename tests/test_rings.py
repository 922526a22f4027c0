"""The house has three rings: no module imports one above its own (imports in functions count)."""

from __future__ import annotations

import ast
from pathlib import Path

import jestcli

# Lower first. The method (utils to runs and train), around it the icons, the paper and
# what is measured with its means (bench, forecast), the commands.
ORDER = [
    "utils",
    "config",
    "selection",
    "models",
    "data",
    "icons",
    "training",
    "evaluation",
    "runs",
    "train",
    "paper",
    "bench",
    "forecast",
    "commands",
    "cli",
]
ICONS_FROM = {"icons", "runs", "paper", "bench", "commands"}  # where the embedded data are known
ROOT = Path(jestcli.__file__).parent


def imported(path: Path) -> set[str]:
    """First parts, below jestcli, of all that a file imports from the package."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("jestcli.")} & set(ORDER)


def test_no_arrow_points_up() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        for other in imported(path) - {own}:
            assert own in ("__main__", "__init__") or ORDER.index(other) < ORDER.index(own), path
            assert own != "selection", f"{path} imports {other}: the selection stands alone"
            assert other != "icons" or own in ICONS_FROM, f"{path} knows the embedded data"
