"""`jest runs`: what is listed, found by the beginning of a name, compared, and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from tiny import tiny_reference, tiny_run

from jestcli.config import METHODS, ConfigError, make_run, merge
from jestcli.runs import compare, listing
from jestcli.utils.lock import hold

Command = Callable[..., tuple[int, str, str]]


def score(hits: list[bool]) -> dict[str, Any]:
    """A benchmark's score with every image's outcome, as evaluation records it."""
    share, n = sum(hits) / len(hits), len(hits)
    bits = "".join("01"[hit] for hit in hits).ljust(-(-n // 8) * 8, "0")
    packed = f"{int(bits, 2):0{len(bits) // 4}x}"
    return {"score": share, "n": n, "stderr": (share * (1 - share) / n) ** 0.5, "hits": packed}


RIGHT = [True] * 6 + [False] * 6
BETTER = [True] * 8 + [False] * 4


def make(
    runs: Path, name: str, label: str, hits: list[bool] | None = None, **settings: Any
) -> Path:
    """A run directory without weights; hits: of a finished run."""
    folder = runs / name
    folder.mkdir(parents=True)
    run = tiny_run().model_copy(update=settings)
    (folder / "config.json").write_text(json.dumps({"label": label, **run.model_dump(mode="json")}))
    (folder / ".lock").touch()
    lines: list[dict[str, Any]] = [{"step": 1, "loss": 3.0}, {"step": 3, "loss": 2.0}]
    for step, each in ((2, RIGHT), (4, hits)):
        if hits is not None and each is not None:
            lines.append({"step": step, "scores": {"birds": score(each)}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if hits is not None:
        done = {"steps": 4, "scores": {"birds": score(hits)}}
        (folder / "done.json").write_text(json.dumps(done))
        (folder / "model.safetensors").write_bytes(bytes(10))
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runs"
    make(folder, "aa11" + 8 * "0", "jest (seed 0)", BETTER)
    make(folder, "ab22" + 8 * "0", "uniform (seed 1)", RIGHT, seed=1)
    make(folder, "ab33" + 8 * "0", "uniform (seed 2)", seed=2)
    for age, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        for file in path.iterdir():
            os.utime(file, (time.time() - 100 * age,) * 2)
    (folder / "trunks").mkdir()
    monkeypatch.setenv("JEST_RUNS", str(folder))
    return folder


def test_the_list_fits_80_columns_and_says_state_and_score(runs: Path, command: Command) -> None:
    with hold(runs / ("ab33" + 8 * "0")):
        code, out, _ = command("runs")
    head, *lines = out.splitlines()
    assert code == 0 and tuple(head.split()) == listing.COLUMNS
    assert [line.split()[0] for line in lines] == ["jest-aa11", "uniform-ab22", "uniform-ab33"]
    assert "done" in lines[0] and "66.7" in lines[0] and " 4 " in lines[0]
    assert "running" in lines[2] and "3/" in lines[2] and "stopped" in command("runs")[1]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("terminal", [True, False])
def test_long_words_leave_80_columns(
    terminal: bool,
    runs: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if terminal:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", "80")
    pool = str(tmp_path / ("a-long-name-of-a-folder" * 3))
    for name, word in (("bb11", "first"), ("bb22", "other")):
        folder = make(runs, name + 8 * "0", "hard-learner (seed 0)", RIGHT)
        path = folder / "config.json"
        own = merge(json.loads(path.read_text()), {
            "data": {"train": [f"{pool}/{word}/{{00000..00002}}.tar", "b.tar"],
                     "uids": f"{pool}/{word}.npy", "uids_sha256": word * 13},
            "optim": {"steps": 24000}, "reference": tiny_reference().model_dump(mode="json"),
            "selection": {"sampler": "joint", "criterion": "hard_learner"},
            "source": {"noise_share": 0.8}, "init": f"{pool}/x.pt", "init_sha256": word * 13,
        })  # fmt: skip
        path.write_text(json.dumps(own))
    _, listed, _ = command("runs")
    assert "-bb11" in listed and " 80%" in listed
    _, compared, _ = command("runs", "bb11", "bb22")
    rows = {line.split()[0]: line.split()[1:] for line in compared.splitlines() if line.strip()}
    assert rows["data.uids"] == ["…/first.npy", "…/other.npy"]
    assert "data.uids_sha256" not in rows
    assert rows["init_sha256"] == ["firstfirstfi", "otherotherot"]
    assert "(bb1100000000)" in compared and max(map(len, compared.splitlines())) <= 80
    assert max(map(len, listed.splitlines())) <= 80


def test_filters_take_columns_and_settings(runs: Path, command: Command) -> None:
    def names(*filters: str) -> list[str]:
        words = [word for each in filters for word in ("--filter", each)]
        return [json.loads(x)["name"] for x in command("runs", "--json", *words)[1].splitlines()]

    assert names("state=done", "seed=1") == ["uniform-ab22"]
    assert names("name=jest*") == ["jest-aa11"] and len(names("optim.batch_size=*")) == 3
    assert command("runs", "--filter", "seed=9")[1].endswith("fit these filters\n")
    code, _, errors = command("runs", "--filter", "sede=9")
    assert code == 2 and "--filter sede=9: expected COLUMN=PATTERN" in errors


def test_a_run_is_found_by_the_beginning_of_either_name(runs: Path) -> None:
    first = runs / ("aa11" + 8 * "0")
    for word in ("aa", "jest", "jest-aa11", str(first)):
        assert listing.find(word, runs) == first
    with pytest.raises(ConfigError, match=r"2 runs .* called 'uni': uniform-ab22, uniform-ab33"):
        listing.find("uni", runs)
    with pytest.raises(ConfigError, match=r"no run .* called 'jest-aa12' \(did you mean jest-aa11"):
        listing.find("jest-aa12", runs)


def test_a_reference_trained_for_a_run_does_not_take_its_name(runs: Path) -> None:
    make(runs, "ac44" + 8 * "0", "jest (seed 0): reference", RIGHT)
    assert listing.find("jest", runs) == runs / ("aa11" + 8 * "0")
    assert listing.read(listing.find("reference", runs)).name == "reference-ac44"


def test_two_runs_side_by_side(runs: Path, command: Command) -> None:
    code, out, _ = command("runs", "jest", "ab22")
    assert code == 0 and "A  jest-aa11: uniform" in out
    assert any(line.split() == ["seed", "0", "1"] for line in out.splitlines())
    (birds,) = (line.split() for line in out.splitlines() if line.startswith("birds"))
    # Two of twelve images changed: paired, that is -1/6; of 14, .5 won and 2.5 lost ones.
    assert birds == ["birds", "66.7", "±27.6", "50.0", "±24.6", "-16.7", "±23.1"]
    assert "mean score, %" in out and "|" in out


def test_a_run_is_not_compared_with_itself(runs: Path, command: Command) -> None:
    for words in (("jest", "jest"), ("jest", "ab22", str(runs / ("aa11" + 8 * "0")))):
        code, out, errors = command("runs", *words)
        assert (code, out) == (2, "") and "jest-aa11 is named twice" in errors


def test_none_and_all_of_n_are_not_certain(runs: Path, command: Command) -> None:
    assert [compare.margin(x, 40) for x in (0, 1)] == pytest.approx([0.0876, 0.0876], abs=1e-4)
    for hits in (8, 20, 33):  # Wilson's interval
        low, high = binomtest(hits, 40).proportion_ci(method="wilson")
        farther = max(high - hits / 40, hits / 40 - low)
        assert compare.margin(hits / 40, 40) == pytest.approx(farther, abs=1e-4)
    for name in ("cc11", "cc22"):
        make(runs, name + 8 * "0", f"{name} (seed 0)", [False] * 40)
    (birds,) = (x for x in command("runs", "cc11", "cc22")[1].splitlines() if x[:5] == "birds")
    assert birds.split() == ["birds", "0.0", "±8.8", "0.0", "±8.8", "+0.0", "±4.7"]


def test_a_methods_name_is_told_from_its_settings() -> None:
    for name, settings in METHODS.items():
        base = {"reference": tiny_reference().model_dump()}
        run = make_run(merge(merge(tiny_run().model_dump(), base), settings))
        assert listing.method_of(run.model_dump(mode="json")) == name


def test_left_overs_go_and_what_is_needed_stays(runs: Path, command: Command) -> None:
    done, stopped = runs / ("aa11" + 8 * "0"), runs / ("ab33" + 8 * "0")
    (done / "checkpoint.safetensors").write_bytes(bytes(3000))
    os.link(done / "checkpoint.safetensors", done / "best.safetensors")
    (stopped / "checkpoint.safetensors").write_bytes(bytes(3000))
    empty = runs / ("cc44" + 8 * "0")
    empty.mkdir()
    (empty / ".lock").touch()
    os.utime(empty, (0, 0))
    (runs / "notes").mkdir()
    os.utime(runs / "notes", (0, 0))
    before = sorted(runs.rglob("*"))
    assert "3 kB could be freed" in command("runs", "--prune")[1]
    assert sorted(runs.rglob("*")) == before
    with hold(empty):
        assert "3 kB freed" in command("runs", "--prune", "--yes")[1] and empty.exists()
    command("runs", "--prune", "--yes")
    gone = {done / "checkpoint.safetensors", done / "best.safetensors", empty, empty / ".lock"}
    assert set(before) - set(runs.rglob("*")) == gone
    assert command("runs", "--prune")[1] == "nothing is left over\n"


def test_prune_keeps_to_the_runs_that_are_named(runs: Path, command: Command) -> None:
    kept = []
    for name in ("aa11", "ab22"):
        kept.append(runs / (name + 8 * "0") / "checkpoint.safetensors")
        kept[-1].write_bytes(bytes(3000))
    for words in (["jest-bb99"], ["--filter", "sede=1"], ["--filter", "seed=9"]):
        plain, pruned = command("runs", *words), command("runs", *words, "--prune", "--yes")
        assert pruned == plain and (plain[0] == 2 or "fit these filters" in plain[1])
    code, _, errors = command("runs", "--yes")
    assert code == 2 and "--yes removes what --prune lists" in errors
    assert "nothing is left over" in command("runs", "ab33", "--prune", "--yes")[1]
    assert all(path.exists() for path in kept)
    assert "3 kB freed" in command("runs", "--filter", "seed=1", "--prune", "--yes")[1]
    assert kept[0].exists() and not kept[1].exists()
    assert "3 kB freed" in command("runs", str(kept[0].parent), "--prune", "--yes")[1]
    assert not kept[0].exists()


def test_the_list_imports_nothing_heavy(runs: Path) -> None:
    words = ["-X", "importtime", "-m", "jestcli", "runs", "jest", "ab22"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "jestcli.runs.listing" in imported and done.returncode == 0
    assert not imported & {"torch", "numpy", "yaml", "jestcli.config", "scipy", "open_clip"}
