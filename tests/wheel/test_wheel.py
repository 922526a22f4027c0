"""What is installed works away from the repository: the wheel, its commands, and the sdist."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from own_shards import make_shards
from tiny import TINY

import jestcli
from jestcli.config import merge

ROOT = Path(__file__).parents[2]
WANTED = (
    *("jestcli", "experiments", "tests", "tools", "docs", "examples", "pyproject.toml", "setup.py"),
    *("MANIFEST.in", "README.md", "LICENSE", "NOTICE", "CITATION.cff", "Makefile"),
    *("constraints.txt", "CONTRIBUTING.md", "CHANGELOG.md"),
)
BUILT_FROM = [name for name in WANTED if name != "examples" or (ROOT / name).exists()]


def build(kind: str, folder: Path) -> Path:
    """A wheel or sdist, from a copy: setuptools writes beside what it builds. No network."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, source)
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the repository with the wheel; its dependencies are this interpreter's."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build("wheel", folder)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--disable-pip-version-check",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


def run(site: Path, cwd: Path, *words: str) -> str:
    """A command's output, with the wheel as the only jestcli that it can find."""
    env = {
        **os.environ,
        "PYTHONPATH": str(site),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "JEST_RUNS": str(cwd / "runs"),
        "JEST_DATA": str(cwd / "data"),
    }
    ran = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stderr == "", ran.stdout + ran.stderr
    return ran.stdout


def test_a_wheel_holds_the_experiments_and_says_its_version(site: Path, tmp_path: Path) -> None:
    code = "import jestcli.paper.experiment as e; print(e.FOLDER, len(e.list_experiments()))"
    folder, n = run(site, tmp_path, sys.executable, "-c", code).split()
    assert Path(folder) == site / "jestcli" / "experiments"
    shipped = {p.relative_to(folder) for p in Path(folder).rglob("*.yaml")}
    source = ROOT / "experiments"
    assert shipped == {p.relative_to(source) for p in source.rglob("*.yaml")}
    assert int(n) == len(list(source.glob("*.yaml")))
    modules = {p.relative_to(ROOT / "jestcli") for p in (ROOT / "jestcli").rglob("*.py")}
    assert {p.relative_to(site / "jestcli") for p in (site / "jestcli").rglob("*.py")} == modules
    assert (site / "jestcli" / "py.typed").exists() and not (site / "tests").exists()
    for name in ("jest", "jest-suite"):
        said = run(site, tmp_path, str(site / "bin" / name), "--version")
        assert said == f"jest {jestcli.__version__}\n"
    version = f"Version: {jestcli.__version__}\n"
    assert version in next(site.glob("jest_suite-*.dist-info/METADATA")).read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == jestcli.__version__


def test_a_wheel_trains_on_own_shards_and_lists_the_experiments(site: Path, tmp_path: Path) -> None:
    jest = str(site / "bin" / "jest")
    assert yaml.safe_load(run(site, tmp_path, jest, "config"))["reference"]
    assert "figure3" in run(site, tmp_path, jest, "reproduce", "--list")
    make_shards(tmp_path / "pool", 1, 16)
    make_shards(tmp_path / "curated", 1, 16, first=100)
    data = {"train": str(tmp_path / "pool"), "curated": str(tmp_path / "curated")}
    settings = merge(TINY, {"data": data, "optim": {"steps": 2}})
    settings["reference"] = {"optim": {**TINY["optim"], "steps": 2}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    words = (
        "train",
        "--method",
        "jest",
        "--config",
        "mine.yaml",
        "--data-workers",
        "0",
        "--cache",
        "cache",
        "--device",
        "cpu",
    )
    said = run(site, tmp_path, sys.executable, "-m", "jestcli", *words)
    assert "run directory: " in said
    assert len(list((tmp_path / "runs").glob("*/done.json"))) == 2, "the reference and the learner"


def test_an_sdist_can_be_tested_where_it_is_unpacked(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for name in BUILT_FROM:
        assert (unpacked / name).exists(), name
    tests = ("tests/selection/test_docs.py", "tests/paper/test_plan.py::test_cpu_is_the_default")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    env = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=unpacked, env=env, capture_output=True, text=True)
    assert ran.returncode == 0 and " passed" in ran.stdout, ran.stdout + ran.stderr
