"""`torchrun -m jestcli train`: its environment, the command in each rank, one run directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from own_shards import make_shards
from test_ranks import finish, free_port
from tiny import TINY, tiny_reference

import jestcli
from jestcli import cli
from jestcli.config import merge
from jestcli.runs.workspace import read_done
from jestcli.training.checkpoint import read


def as_torchrun(rank: int, port: int, words: list[str], env: dict[str, str]) -> None:
    """A rank as torchrun starts it."""
    torch.set_num_threads(1)
    os.environ.update(
        env,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        COLUMNS="300",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
        TORCHELASTIC_RUN_ID="test",
    )
    sys.argv = ["jest", *words]
    with Path(env["OUT"], f"rank-{rank}").open("w") as sys.stdout:
        sys.stderr = sys.stdout
        try:
            cli.main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(int(end.code or 0))


def torchrun(words: list[str], data_root: Path, folder: Path) -> tuple[list[int | None], list[str]]:
    env = {"JEST_DATA": str(data_root), "JEST_RUNS": str(folder / "runs"), "OUT": str(folder)}
    port = free_port()
    ranks = [forked.start(as_torchrun, rank, port, words, env) for rank in range(2)]
    return finish(ranks), [(folder / f"rank-{rank}").read_text() for rank in range(2)]


def test_two_processes_train_one_run(data_root: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = merge(TINY, {"reference": tiny_reference().model_dump(mode="json")})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    words = [
        "train",
        "--method",
        "jest",
        "--config",
        str(tmp_path / "tiny.yaml"),
        "--device",
        "cpu",
    ]
    codes, said = torchrun(words, data_root, tmp_path)
    assert codes == [0, 0], said
    assert "mean of all" in said[0] and said[1] == "", "one voice"
    folder = Path(said[0].rpartition("run directory: ")[2].strip())
    assert len(list((tmp_path / "runs").glob("*/done.json"))) == 2, "the reference, then the run"
    assert read_done(folder)["steps"] == 4
    assert read(folder / "checkpoint.safetensors")[1]["ranks"] == 2
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "scores" in x][-1] == 4
    assert len(list((folder / "selected").iterdir())) == 2


def test_a_shell_command_trains_on_own_shards(tmp_path: Path) -> None:
    """torchrun itself, as a user types it: from shards to done.json, decoded by workers."""
    make_shards(tmp_path / "pool", 2, 8)
    make_shards(tmp_path / "curated", 1, 8, first=100)
    data = {"train": str(tmp_path / "pool"), "curated": str(tmp_path / "curated"), "window": 2}
    settings: dict[str, Any] = merge(TINY, {"data": data, "optim": {"steps": 2}})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    words = [
        "torchrun",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
        "-m",
        "jestcli",
        "train",
        "--method",
        "jest",
        "--config",
        "tiny.yaml",
        "--set",
        "reference.optim={steps: 1, warmup: 0}",
        "--data-workers",
        "1",
        "--cache",
        "cache",
        "--device",
        "cpu",
    ]
    # The module that `torchrun` names, in this interpreter.
    command = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    env = os.environ | {
        "JEST_RUNS": str(tmp_path / "runs"),
        "COLUMNS": "300",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(jestcli.__file__).parents[1]),
    }
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    folder = Path(ran.stdout.rpartition("run directory: ")[2].strip())
    assert ran.stdout.count("run directory: ") == 1 and read_done(folder)["steps"] == 2
    assert read(folder / "checkpoint.safetensors")[1]["ranks"] == 2
    assert len(list((tmp_path / "runs").glob("*/done.json"))) == 2


@pytest.mark.parametrize(
    "words,code,message",
    [
        (["--set", "optim.batch_size=9"], 1, "jest: the batch_size of 9 does not divide by 2"),
        (["--set", "optim.stesp=9"], 2, "jest: unknown setting optim.stesp (did you mean steps?)"),
    ],
)
def test_a_mistake_is_one_line_in_every_rank(
    words: list[str], code: int, message: str, data_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = ["train", "--method", "uniform", "--config", str(tmp_path / "tiny.yaml"), *words]
    codes, said = torchrun(command, data_root, tmp_path)
    assert codes == [code, code]
    assert all(message in text and "Traceback" not in text for text in said)
