"""What is missing is said before torch is imported or a process started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jestcli.config import make_run
from jestcli.data.sources import runs_beside

HERE = ("data.train=pool", "data.curated=curated")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("pool", "curated", "empty"):
        (tmp_path / name).mkdir()
    for name in ("pool", "curated"):
        (tmp_path / name / "0.tar").write_bytes(bytes(10240))
    row = {"name": "x", "kind": "few-shot", "metric": "acc1", "chance": 0.5, "folder": "wds_x"}
    for name, rows in {"listed": [row], "none-listed": [], "odd-list": [row | {"kind": 3}]}.items():
        (tmp_path / name / "wds_x" / "test").mkdir(parents=True)
        (tmp_path / name / "benchmarks.json").write_text(json.dumps(rows))
    whole = safetensors.numpy.save({"weight": np.zeros(100, np.float32)})
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEST_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    "settings,words,message",
    [
        (("data.train=nowhere", "data.curated=curated"), (), "data.train: no such file: nowhere"),
        (("data.train=empty", "data.curated=curated"), (), "no .tar shard in the folder empty"),
        (("data.train=pool", "data.curated=./{0..3}.tar"), (), "data.curated: no such file: 0.tar"),
        ((*HERE, "data.benchmarks=none"), (), "no benchmark in none: expected folders"),
        ((*HERE, "data.benchmarks=empty"), (), "no benchmark in empty: expected folders"),
        ((*HERE, "data.benchmarks=listed"), (), "wds_x has no train split: expected train/0.tar"),
        ((*HERE, "data.benchmarks=none-listed"), (), "benchmarks.json names no benchmark"),
        ((*HERE, "data.benchmarks=odd-list"), (), "benchmarks.json is not a list of benchmarks"),
        ((*HERE, "init=none.pt"), (), "init: no file none.pt"),
        ((*HERE, "init=cut.safetensors"), (), "init: cut.safetensors is damaged ("),
        (HERE, ("--reference", "empty"), "empty is neither a run nor an exported model"),
        (HERE, ("--reference", "jest-1"), "no run in runs is called 'jest-1'"),
        (HERE, ("--reference", "local-dir:empty"), "local-dir:empty holds no open_clip model"),
        (HERE, ("--init", "none.pt"), "--init none.pt: no such file"),
        (HERE, ("--init", "jest-1"), "no run in runs is called 'jest-1'"),
        (HERE, ("--lock-image",), "model.lock_image is not for model.tower=cnn"),
        (HERE, ("--reference", "ViT-B-16:none.pt"), "no file and no tag 'none.pt'"),
        (HERE, ("--reference", "ViT-B16:none.pt"), "no model 'ViT-B16' (did you mean ViT-B-16"),
    ],
)
def test_what_is_missing_is_said_at_once(
    settings: tuple[str, ...], words: tuple[str, ...], message: str, place: Path
) -> None:
    start = (
        "import sys\n"
        "from jestcli import cli\n"
        f"sys.argv = ['jest', 'train', *{[*words, *(w for s in settings for w in ('--set', s))]}]\n"
        "try:\n"
        "    cli.main()\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    assert done.returncode in (1, 2) and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "runs").exists()
    assert not (place / "cache").exists(), "no shard was indexed"


def test_what_a_configuration_runs_is_named() -> None:
    reference = {"data": {"curated": "pipe:cat b\n.tar"}, "source": {"kind": "curated"}}
    run = make_run(
        {
            "data": {"train": ["a.tar", "pipe:cat a.tar", "file:pipe:x"], "curated": "c.tar"},
            "selection": {"sampler": "their.module:function"},
            "reference": reference,
        }
    )
    assert runs_beside(run) == [
        "runs in a shell: pipe:cat a.tar",
        "imports and calls: their.module:function",
        "runs in a shell: pipe:cat b .tar",
    ]
    assert runs_beside(make_run({})) == []
