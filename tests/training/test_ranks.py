"""Two and four gloo ranks train what one process trains, and none outlives a dead one."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from narrow import narrow_names
from safetensors.torch import load_file, save_file
from tiny import fake_pool, loader, tiny_model, tiny_run
from toy import train as toy_train

import jestcli.train as loop
from jestcli.config import Run
from jestcli.models.flops import Cost
from jestcli.runs.environment import code_version
from jestcli.training.checkpoint import CHECKPOINT, read
from jestcli.training.distributed import SINGLE_PROCESS, DistEnv, RanksError, join, owners
from jestcli.training.engine import unsharded, whole
from jestcli.training.step import SubBatch, encode_pairs

DOUBLE = {"precision": "float64"}
RUNS: dict[str, Run] = {
    "sigmoid": tiny_run("jest", engine=DOUBLE),
    "odd split": tiny_run(
        "flexi", engine=DOUBLE, selection={"low_res_share": 0.375}, optim={"steps": 3}
    ),
    "softmax": tiny_run("flexi", engine=DOUBLE, optim={"loss": "softmax"}),
    "uniform": tiny_run("uniform", engine=DOUBLE),
    "balanced": tiny_run(
        "jest", engine=DOUBLE | {"selection_mode": "balanced"}, selection={"n_chunks": 2}
    ),
    "small memory": tiny_run(
        "flexi",
        engine=DOUBLE | {"micro_batch": 3, "loss_chunk": 2, "activation_checkpointing": True},
    ),
    "fsdp": tiny_run("flexi", engine=DOUBLE | {"shard": "fsdp"}),
    "batch norm": tiny_run(
        "flexi",
        engine=DOUBLE,
        selection={"low_res_share": 0.375},
        model={"tower": "cnn", "channels": [4, 8]},
    ),
    "native": tiny_run("flexi", engine=DOUBLE, model={"name": "ViT-B-32"}),
    "ResNet": tiny_run("jest", engine=DOUBLE, model={"name": "RN50", "patch_sizes": [32]}),
    "MobileCLIP": tiny_run(
        "jest", engine=DOUBLE, model={"name": "MobileCLIP-S1", "patch_sizes": [16]}
    ),
    "timm": tiny_run(
        "flexi", engine=DOUBLE, model={"name": "ViT-B-16-SigLIP", "patch_sizes": [16, 32]}
    ),
}


def train(
    run: Run,
    folder: Path,
    world: DistEnv,
    choices: list[torch.Tensor] | None = None,
    report: Callable[[int, int, str], None] = lambda *_: None,
    **more: Any,
) -> dict[str, torch.Tensor]:
    """Losses, selections, last gradients and weights; `choices` are taken instead if given."""
    folder.mkdir(exist_ok=True)
    learner, model = tiny_model(run, seed=1), tiny_model(run, seed=99).double()
    chosen, select_sub_batch, log_every = [], loop.select_sub_batch, loop.LOG_EVERY

    def spy(*args: Any) -> SubBatch:
        choice = SubBatch(choices[args[4]]) if choices else select_sub_batch(*args)
        chosen.append(choice.index)
        return choice

    loop.select_sub_batch, loop.LOG_EVERY, records = spy, 1, []
    try:
        toy_train(
            run,
            folder,
            learner,
            loader([fake_pool()], [run.super_batch_size], run.seed, world.rank, world.size),
            (lambda c: encode_pairs(model, c.images, c.tokens, None)) if run.reference else None,
            lambda final: {} if not world.main else {"toy": {"score": float(learner.scale)}},
            lambda steps: Cost(steps, steps, steps, steps),
            report,
            records.append,
            world,
            **more,
        )
    finally:
        loop.select_sub_batch, loop.LOG_EVERY = select_sub_batch, log_every
    gradients = {
        f"gradient.{k}": whole(p.grad).contiguous()
        for k, p in learner.named_parameters()
        if p.grad is not None
    }
    weights = unsharded(learner, lambda: tiny_model(run)).state_dict()
    losses = [r["loss"] for r in records if "loss" in r] or [0.0]
    return {
        "loss": torch.tensor(losses, dtype=torch.float64),
        "chosen": torch.stack(chosen),
        **gradients,
        **{f"weight.{k}": v.contiguous() for k, v in weights.items()},
    }


def as_rank(rank: int, size: int, port: int, job: Callable[..., None], *args: Any) -> None:
    """Run `job(world, *args)` as a rank; a lost rank is one line and exit code 1, as in the CLI."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    try:
        with join(torch.device("cpu"), timedelta(seconds=60)) as world:
            job(world, *args)
    except RanksError as error:
        Path(args[0], f"error-{rank}").write_text(str(error))
        os._exit(1)
    os._exit(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(size: int, job: Callable[..., None], *args: Any) -> list[Any]:
    port = free_port()
    return [forked.start(as_rank, rank, size, port, job, *args) for rank in range(size)]


def finish(ranks: list[Any]) -> list[int | None]:
    try:
        for process in ranks:
            process.join(120)
        return [process.exitcode for process in ranks]
    finally:
        for process in ranks:
            process.kill()


def train_all(world: DistEnv, folder: Path, names: list[str]) -> None:
    for name in names:
        with narrow_names():
            found = train(RUNS[name], folder / f"{name}-{world.size}", world)
        save_file(found, folder / f"{name}-{world.size}-{world.rank}.safetensors")


@pytest.mark.parametrize(
    "size,names",
    [
        (
            2,
            [
                *("sigmoid", "softmax", "balanced", "small memory", "uniform", "fsdp", "native"),
                *("timm", "batch norm", "ResNet", "MobileCLIP"),
            ],
        ),
        (4, ["odd split", "softmax"]),
    ],
)
def test_ranks_train_what_one_process_trains(size: int, names: list[str], tmp_path: Path) -> None:
    assert finish(start(size, train_all, tmp_path, names)) == [0] * size
    for name in names:
        ranks = [load_file(tmp_path / f"{name}-{size}-{r}.safetensors") for r in range(size)]
        told = ranks[0]["chosen"] if name == "balanced" else None
        with narrow_names():
            alone = train(
                RUNS[name],
                tmp_path / f"{name}-alone",
                SINGLE_PROCESS,
                None if told is None else list(told),
            )
        assert len(alone["loss"]) == RUNS[name].optim.steps
        for mine in ranks:
            assert torch.equal(mine["chosen"], alone["chosen"]), name
            for key, value in alone.items():
                if key != "loss":
                    torch.testing.assert_close(mine[key], value, rtol=1e-9, atol=1e-11, msg=name)
        torch.testing.assert_close(ranks[0]["loss"], alone["loss"], rtol=1e-12, atol=0, msg=name)
        if name == "balanced":
            each = RUNS[name].super_batch_size // size
            assert all((row // each).bincount().tolist() == [4, 4] for row in told)


def stop_at_two(world: DistEnv, folder: Path) -> None:
    def report(done: int, total: int, line: str) -> None:
        if done == 2:  # on rank 0 only: the other must hear of it
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(loop.Interrupted, match="stopped at step 2"):
        train(RUNS["softmax"], folder / "run", world, report=report)


def test_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    run = RUNS["softmax"]
    assert finish(start(2, stop_at_two, tmp_path)) == [0, 0]
    assert read(tmp_path / "run" / CHECKPOINT)[1]["ranks"] == 2
    resumed, alone = (
        train(run, tmp_path / "run", SINGLE_PROCESS),
        train(run, tmp_path / "alone", SINGLE_PROCESS),
    )
    assert torch.equal(resumed["chosen"], alone["chosen"][2:])
    for key in (k for k in alone if k.startswith("weight.")):
        torch.testing.assert_close(resumed[key], alone[key], rtol=1e-9, atol=1e-11)
    lines = [json.loads(x) for x in (tmp_path / "run" / loop.METRICS).read_text().splitlines()]
    assert [x["step"] for x in lines if "loss" in x] == [1, 2, 3, 4]


def lose_rank_one(world: DistEnv, folder: Path, how: str) -> None:
    def draw(step: int) -> Any:
        if world.rank == 1 and step == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)
        return loader([fake_pool()], [16], 0, world.rank, 2)(step)

    run = RUNS["sigmoid"]
    learner, model = tiny_model(run), tiny_model(run, (8,)).double()
    toy_train(
        run,
        folder,
        learner,
        draw,
        lambda c: encode_pairs(model, c.images, c.tokens, None),  # type: ignore[arg-type]
        lambda final: {"toy": {"score": 0.0}},
        lambda steps: Cost(1, 1, 1, 1),
        lambda *_: None,
        lambda _: None,
        world,
    )


@pytest.mark.parametrize("how", ["killed", "left"])
def test_a_dead_rank_ends_the_others_with_one_line(how: str, tmp_path: Path) -> None:
    codes = finish(start(2, lose_rank_one, tmp_path, how))
    assert codes == [1, -signal.SIGKILL if how == "killed" else 3]
    text = (tmp_path / "error-0").read_text()
    assert text.startswith("rank 0: another rank ended or stopped answering (")
    assert "\n" not in text


def test_pairs_move_only_where_a_rank_has_too_many() -> None:
    dice = torch.Generator().manual_seed(0)
    for size in (1, 2, 4):
        for n_low in (0, 5, 16):
            home = torch.randint(0, size, (16,), generator=dice)
            owner = owners(home, n_low, size)
            assert owner.bincount(minlength=size).tolist() == [16 // size] * size
            low = owner[:n_low].bincount(minlength=size)
            assert low.max() - low.min() <= 1
            for part in (slice(0, n_low), slice(n_low, None)):  # every place at home is used
                stays = (owner == home)[part]
                for rank in range(size):
                    quota = int((owner[part] == rank).sum())
                    held = int((home[part] == rank).sum())
                    assert int((stays & (home[part] == rank)).sum()) == min(quota, held)


class Told(DistEnv):
    """Rank 0 of two; the other says the same, with one word replaced."""

    def texts(self, mine: str) -> list[str]:
        return [mine, mine.replace(*self.patient)]


@pytest.mark.parametrize("what", ["settings", "data", "code", ""])
def test_ranks_with_different_runs_are_told_so_before_the_first_step(
    what: str, tmp_path: Path
) -> None:
    run = tiny_run("uniform", optim={"weight_decay": 0.5})
    said = {"settings": run.digest(), "data": tmp_path.name, "code": code_version(), "": "none"}
    world = Told(size=2, patient=(said[what], "another"))
    if not what:
        return loop.check_ranks(run, tmp_path, world)
    with pytest.raises(RanksError, match=f"rank 1 has other {what} than rank 0"):
        loop.check_ranks(run, tmp_path, world)
