"""The commit that results are recorded with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jestcli.runs.environment import git_commit


def make_repository(folder: Path) -> str:
    """A package under version control; returns its commit, as records name it."""
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text("")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    command = [*git, "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_the_packages_own_and_says_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JEST_COMMIT", raising=False)
    commit = make_repository(tmp_path)
    assert git_commit(tmp_path / "package") == commit
    (tmp_path / "package" / "__init__.py").write_text("x = 1")
    assert git_commit(tmp_path / "package") == f"{commit}+changes"


@pytest.mark.parametrize("place", ["copies/jest/package", "copy"])
def test_a_copy_does_not_pass_for_the_repository_around_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured from a copy inside another repository, an archive once named that one's commit."""
    monkeypatch.delenv("JEST_COMMIT", raising=False)
    make_repository(tmp_path)
    copy = tmp_path / place
    copy.mkdir(parents=True)
    (copy / "__init__.py").write_text("")
    assert git_commit(copy) is None
    monkeypatch.setenv("JEST_COMMIT", "5492a39")
    assert git_commit(copy) == "5492a39"
