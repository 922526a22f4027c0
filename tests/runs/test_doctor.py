"""The doctor finds what is broken, each thing broken once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from own_shards import jpeg, make_shards, sample, write_tar
from tiny import TINY, tiny_run

from jestcli import cli
from jestcli.config import METHODS, make_run, merge
from jestcli.data.sources import Loading
from jestcli.runs import doctor
from jestcli.runs.doctor import BAD, GOOD, WARNING, Finding, examine
from jestcli.runs.workspace import Workspace


def found(
    workspace: Workspace, device: str = "cpu", wandb: str = "off", **run: Any
) -> dict[str, Finding]:
    return {f.what: f for f in examine(tiny_run(**run), workspace, device, wandb)}


def test_a_healthy_machine(workspace: Workspace) -> None:
    states = {f.what: f.state for f in found(workspace).values()}
    assert BAD not in states.values() and len(states) == 16
    assert states["embedded data"] == states["imports"] == states["repeatable sums"] == GOOD


def test_what_will_break_is_said(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    real = metadata.version
    monkeypatch.setattr(doctor, "version", lambda n: "2.4.1" if n == "numpy" else real(n))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 2**20))
    nowhere = Workspace(tmp_path / "data", tmp_path / "runs")
    states = found(nowhere, wandb="online", engine={"compile": True})
    assert states["batches"] == Finding(
        "batches", BAD, "b = 8, B = 8, 3 processes: both must divide by the processes"
    )
    assert states["Weights & Biases"].state == states["compiler"].state == BAD
    assert states["packages"].state == BAD and "numpy 2.4" in states["packages"].text
    assert states["device"].state == states["run directories"].state == WARNING
    assert states["embedded data"].state == WARNING
    missing = found(nowhere, device="cuda")
    assert any("torch finds no GPU" in f.text for f in missing.values() if f.state == BAD)


def test_a_package_that_does_not_import(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert found(workspace)["imports"].state == BAD


# --- a run on own shards -------------------------------------------------------------------------


def own_settings(root: Path, **more: Any) -> dict[str, Any]:
    data = {
        "train": str(root / "pool"),
        "curated": str(root / "curated"),
        "benchmarks": str(root / "benchmarks"),
    }
    return merge(merge(TINY, {"data": data}), more)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A healthy pool, curated set and retrieval benchmark."""
    make_shards(tmp_path / "pool", 2, 3)
    make_shards(tmp_path / "curated", 1, 3)
    pairs = tmp_path / "benchmarks" / "wds_pairs"
    write_tar(pairs / "test" / "0.tar", *[sample(n, json=None) for n in range(3)])
    (pairs / "test" / "nshards.txt").write_text("1")
    (pairs / "dataset_type.txt").write_text("retrieval")
    return tmp_path


def own_states(root: Path, **more: Any) -> dict[str, Finding]:
    settings = merge(own_settings(root, **more), METHODS["jest"])
    if "reference_model" not in settings:
        settings["reference"] = merge(own_settings(root), METHODS["curated"])
        settings["reference"]["data"] |= more.get("data", {})
    loading = Loading(workers=0, cache=root / "cache", timeout=0.2, retries=0)
    place = Workspace(None, root / "runs", loading)
    return {f.what: f for f in examine(make_run(settings), place, "cpu", "off")}


def test_a_healthy_run_on_own_shards(root: Path) -> None:
    states = own_states(root)
    assert BAD not in {f.state for f in states.values()}, states
    mine = ("own shards", "benchmarks", "reference", "model", "other code")
    assert {states[name].state for name in mine} == {GOOD}
    assert states["own shards"].text == (
        "pool: 2 shards, they hold 6 pairs, 80 x 64 px; "
        "curated: 1 shards, they hold 3 pairs, 80 x 64 px"
    )
    assert states["benchmarks"].text == "pairs_i2t, pairs_t2i"
    assert "embedded data" not in states
    one_by_one = own_states(root, data={"train": sorted(map(str, (root / "pool").glob("*.tar")))})
    assert one_by_one["own shards"] == states["own shards"], "as a shell writes a pattern out"


BROKEN_SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda root: shutil.rmtree(root / "pool"), "no such file"),
    "no shard": (
        lambda root: [p.unlink() for p in (root / "pool").iterdir()],
        "no .tar shard in the folder",
    ),
    "no tar": (lambda root: (root / "pool" / "00.tar").write_bytes(b"x" * 2000), "not a tar file"),
    "no caption": (
        lambda root: write_tar(root / "curated" / "00.tar", sample(1, txt=None, json=None)),
        "curated: 1 of 1",
    ),
    "no image": (
        lambda root: write_tar(root / "pool" / "00.tar", sample(1, jpg=b"no")),
        "broken image",
    ),
}


@pytest.mark.parametrize("case", BROKEN_SHARDS)
def test_shards_that_cannot_be_read_will_break(case: str, root: Path) -> None:
    break_it, words = BROKEN_SHARDS[case]
    break_it(root)
    finding = own_states(root)["own shards"]
    assert finding.state == BAD and words in finding.text and "\n" not in finding.text


def test_what_is_lost_of_shards_is_said_before_training(root: Path) -> None:
    write_tar(root / "pool" / "00.tar", sample(0), sample(1, txt=None, json=None), sample(2))
    whole = (root / "pool" / "01.tar").read_bytes()
    (root / "pool" / "01.tar").write_bytes(whole.rstrip(b"\0")[:-3000] + whole)
    write_tar(root / "pool" / "deeper" / "00.tar", sample(9))
    (root / "pool" / "02.tar.gz").write_bytes(b"\x1f\x8b")
    write_tar(root / "pool" / "02.TAR", sample(10, png=jpeg(1)))
    finding = own_states(root)["own shards"]
    assert finding.state == WARNING and "pool: 3 shards, they hold" in finding.text
    for words in (
        "not read: 1 compressed tars (unpack them) and 1 sub-folders of tars",
        "1 x no caption (",
        "1 x damaged place (",
        "1 x further image (read is the first of jpg, ",
    ):
        assert words in finding.text, finding.text


def test_a_missing_reference_or_benchmark_will_break(root: Path) -> None:
    word = own_states(root, reference_model="ViT-B-23:laion2b")["reference"]
    assert word.state == BAD and "did you mean ViT-B-32" in word.text
    file = own_states(root, reference_model="ViT-B-32:/nowhere/mine.pt")["reference"]
    assert file.state == BAD and "no file and no tag '/nowhere/mine.pt'" in file.text
    weights = own_states(root, init="/nowhere/start.pt")["weights"]
    assert (weights.state, weights.text) == (BAD, "init: no file /nowhere/start.pt")
    shots = own_states(root, data={"shots": 10})["benchmarks"]
    assert shots.state == BAD and "no labelled benchmark" in shots.text
    (root / "benchmarks" / "wds_pairs").rename(root / "away")
    gone = own_states(root)["benchmarks"]
    assert gone.state == BAD and "expected folders with test/0.tar in them" in gone.text


def test_too_little_memory_or_disk_will_break(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_available", lambda: 1e-6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 2**10))
    states = own_states(root)
    assert states["model"].state == BAD and "set engine.micro_batch" in states["model"].text
    assert states["memory"].state == WARNING
    disk = states["run directories"]
    assert disk.state == BAD and "checkpoints take" in disk.text


def test_a_folder_that_cannot_be_written_will_break(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refused)
    finding = own_states(root)["run directories"]
    assert finding.state == BAD and "Read-only file system" in finding.text


def test_a_check_that_fails_is_a_finding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Any) -> Any:
        raise RuntimeError("the towers\ndo not fit")

    monkeypatch.setattr("jestcli.runs.trained.on_meta", broken)
    bad = [f for f in own_states(root).values() if f.state == BAD]
    assert {f.text for f in bad} == {"RuntimeError: the towers do not fit"}


# --- as the user sees it -------------------------------------------------------------------------


@pytest.fixture
def jest(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`jest WORDS --config` of the healthy run: its exit code, output and errors."""
    monkeypatch.setenv("JEST_RUNS", str(root / "runs"))
    monkeypatch.setenv("JEST_CACHE", str(root / "cache"))
    monkeypatch.setenv("COLUMNS", "250")
    (root / "mine.yaml").write_text(yaml.safe_dump(own_settings(root)))

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jest", *words, "--config", str(root / "mine.yaml")])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        return code if isinstance(code, int) else 0, *capsys.readouterr()

    return call


def test_the_command_ends_with_one_if_something_will_break(
    root: Path, jest: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, errors = jest("doctor", "--device", "cpu")
    assert (code, errors) == (0, "") and "will break" not in out and "own shards" in out
    (root / "pool" / "00.tar").write_bytes(b"x" * 2000)
    code, out, errors = jest("doctor", "--device", "cpu")
    assert (code, errors) == (1, "")
    (line,) = [line for line in out.splitlines() if "will break" in line]
    assert "own shards" in line and "not a tar file" in line and "Traceback" not in out


def test_a_wrong_patch_is_one_line(jest: Callable[..., tuple[int, str, str]]) -> None:
    code, out, errors = jest("doctor", "--set", "model.patch_sizes=[5, 10]")
    assert (code, out) == (2, "")
    assert "model.patch_sizes must divide data.image_size" in errors and errors.count("\n") == 1


def test_commands_in_a_configuration_are_named(
    root: Path, jest: Callable[..., tuple[int, str, str]]
) -> None:
    source = f"pipe:touch {root}/ran; cat {root}/pool/{{00..01}}.tar"
    code, out, _ = jest("config", "--set", f"data.train={source}")
    assert code == 0 and out.startswith(f"# runs in a shell: {source}\n")
    assert yaml.safe_load(out)["data"]["train"] == [source], "and it is still a configuration"
    states = own_states(root, data={"train": source})
    assert states["other code"].state == WARNING and source in states["other code"].text
    assert "pool: 2 shell commands, not tried" in states["own shards"].text
    assert not (root / "ran").exists(), "neither of them runs anything"
    hidden = f"{{pi,pi}}pe:cat {root}/pool/00.tar"
    _, out, _ = jest("config", "--set", f"data.train='{hidden}'")
    assert hidden in out.splitlines()[0], "however it is written"
