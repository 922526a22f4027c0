"""Image towers of open_clip's that are no plain ViTs: as they are, at one resolution.

Real configs are built on the meta device; what is computed is computed on narrow copies (a ResNet,
a ConvNeXt, a MobileCLIP)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow import narrow_names
from safetensors.torch import save_file
from test_loop import same_weights, tiny_train
from tiny import draw, fake_dataset, fake_pool, tiny_model, tiny_run
from torch import nn

from jestcli.config import ConfigError, Run, make_run
from jestcli.data.tokens import small_tokenizer
from jestcli.models.flexi import OneView, Resolution
from jestcli.models.towers import build_model
from jestcli.runs.export import export, init_from
from jestcli.runs.trained import MODEL, new_learner
from jestcli.runs.workspace import Workspace, start_folder
from jestcli.training.augment import normalise
from jestcli.training.checkpoint import save_model
from jestcli.training.distributed import SINGLE_PROCESS
from jestcli.training.engine import make_trainee, running_statistics
from jestcli.training.optimiser import make_optimiser
from jestcli.training.signals import Interrupted
from jestcli.training.step import train_step
from jestcli.utils import catalogue

NAMES = {"RN50": 32, "convnext_tiny": 16, "MobileCLIP-S1": 16}


@pytest.fixture
def narrow() -> Iterator[None]:
    with narrow_names():
        yield


def run_of(name: str, method: str = "jest", **more: Any) -> Run:
    return tiny_run(method, model={"name": name, "patch_sizes": [NAMES[name]]}, **more)


@pytest.mark.parametrize(
    "name,norms",
    [("RN50", True), ("convnext_tiny", False), ("EVA02-L-14-336", False), ("MobileCLIP-B", True)],
)
def test_a_real_config_builds_and_says_whether_it_has_batch_norms(name: str, norms: bool) -> None:
    side = catalogue.read(name)["vision_cfg"]["image_size"]
    data = {"image_size": side, "context_length": 16, "vocab_size": 32000}
    run = make_run({"model": {"name": name}, "data": data})
    assert not run.model.flexible and len(run.model.patch_sizes) == 1
    with torch.device("meta"):
        model = build_model(run.model, run.data, run.model.patch_sizes, 0)
        image, text, _, _ = model(
            torch.zeros(2, 3, side, side), torch.zeros(2, 16, dtype=torch.long)
        )
    assert isinstance(model.clip.visual, OneView) and image.shape == text.shape
    assert bool(model.norms) == catalogue.has_batch_norm(catalogue.read(name)) == norms
    found = any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())
    assert found == norms


@pytest.mark.parametrize(
    "name,changes,words",
    [
        ("RN50", {"model": {"patch_sizes": [32, 64]}}, "RN50's image tower sees images at one"),
        ("convnext_tiny", {"selection": {"low_res_share": 0.5}}, "at one resolution, so it has no"),
        ("convnext_tiny", {"selection": {"keep_tokens": 0.5}}, "JEST, not Flexi-JEST"),
        ("RN50", {"engine": {"micro_batch": 4}}, "engine.micro_batch is not for model.name=RN50"),
        ("RN50", {"engine": {"activation_checkpointing": True}}, "engine.activation_checkpointing"),
        ("MobileCLIP-S1", {"engine": {"shard": "fsdp"}}, "engine.shard=fsdp is not for model.name"),
    ],
)
def test_what_it_cannot_do_is_one_line(name: str, changes: dict[str, Any], words: str) -> None:
    settings = {"data": {"image_size": 64}, **changes}
    settings["model"] = {"name": name, **changes.get("model", {})}
    with pytest.raises(ConfigError) as caught:
        make_run(settings)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_image_size_are_one_line(narrow: None, tmp_path: Path) -> None:
    run = run_of("RN50", "uniform")
    weights = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in new_learner(run).clip.state_dict().items()}, weights)
    model = run.model.model_copy(update={"pretrained": str(weights)})
    data = run.data.model_copy(update={"image_size": 64})
    with pytest.raises(ConfigError, match=r"weights need data\.image_size=32"):
        build_model(model, data, (32,), 0)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["open_clip", "hf"])
def test_it_computes_what_open_clip_computes_and_comes_back(
    narrow: None, name: str, form: str, tmp_path: Path
) -> None:
    run, workspace = run_of(name, "uniform"), Workspace(tmp_path / "data", tmp_path / "runs")
    folder, model = workspace.folder(run), new_learner(run)
    for norm in model.norms:  # as if it were trained
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    folder.mkdir(parents=True)
    start_folder(folder, run, "x")
    save_model(folder / MODEL, model.eval(), {})
    space: dict[str, Any] = {}
    exec(export(folder, tmp_path / "out", None, form, workspace), space)
    theirs, texts = space["model"].eval(), ["a red car", "two cats"]
    tokens, images = (
        small_tokenizer(600, 8)(texts),
        normalise(fake_dataset().read(np.arange(4)).images),
    )
    for mine, expected in (
        (theirs.encode_image(images, normalize=True), model.encode_image(images)),
        (theirs.encode_text(tokens, normalize=True), model.encode_text(tokens)),
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    fresh = new_learner(run.model_copy(update={"seed": 5}))
    init_from(folder / MODEL, fresh)
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in model.state_dict().items())
    init_from(next((tmp_path / "out").glob("*.safetensors")), fresh)
    with pytest.raises(ValueError, match="sees images at 32 px alone"):
        fresh.set_low(Resolution(NAMES[name], 16))


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_is_the_run_alone(narrow: None, name: str, tmp_path: Path) -> None:
    """Batch statistics go on where they were; the ConvNeXt drops paths by chance, the same."""
    run = run_of(name, optim={"steps": 12})
    assert tiny_model(run).mode_matters
    whole, _ = tiny_train(run, tmp_path / "whole")

    def interrupt(done: int, total: int, line: str) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        tiny_train(run, tmp_path / "stopped", interrupt)
    torch.manual_seed(99)  # as another process would find it
    resumed, _ = tiny_train(run, tmp_path / "stopped")
    assert same_weights(whole, resumed)
    moved = zip(running_statistics(whole), running_statistics(resumed), strict=True)
    assert all(torch.equal(a, b) for a, b in moved)


@pytest.mark.parametrize("engine", [{"micro_batch": 4}, {"activation_checkpointing": True}])
def test_what_a_name_does_not_tell_is_said_when_the_tower_is_there(
    narrow: None, engine: dict[str, Any]
) -> None:
    run = run_of("RN50", "uniform")
    change = {"engine": run.engine.model_copy(update=engine)}
    with pytest.raises(ConfigError, match="batch norms take no micro_batch"):
        make_trainee(tiny_model(run, (32,)), run.model_copy(update=change), SINGLE_PROCESS)
    with pytest.raises(ConfigError, match="sees images at one resolution alone"):
        build_model(run.model, run.data, (32,), 0, low=Resolution(32, 16))


def test_what_is_dropped_in_micro_batches_is_dropped_in_both_passes(narrow: None) -> None:
    """A loss's gradient: along it the loss falls by what it says, with the same paths dropped."""
    exact = {"micro_batch": 3, "precision": "float64"}
    run = run_of("convnext_tiny", "uniform", engine=exact, optim={"clip_norm": 1e6})
    drawn, index = draw([fake_pool()], [8], 0, 0), torch.arange(8)
    learner, losses = tiny_model(run, (16,)).double(), []
    with torch.no_grad():  # ConvNeXt's paths weigh next to nothing at the start
        for name, p in learner.named_parameters():
            if name.endswith("gamma"):
                p.fill_(0.3)
    for _ in range(2):
        optimiser = torch.optim.SGD(learner.parameters())
        optimiser.step = lambda *_: None  # type: ignore[method-assign, assignment]
        losses.append(train_step(learner, optimiser, drawn, index, run, 0))
        slope = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
        used = [p for p in learner.parameters() if p.grad is not None]
        with torch.no_grad():
            for p, g in zip(used, slope, strict=True):
                p -= 1e-6 * g
    expected = 1e-6 * sum(float(g.square().sum()) for g in slope)
    assert losses[0] - losses[1] == pytest.approx(expected, rel=1e-3)


def test_a_locked_tower_keeps_its_statistics(narrow: None) -> None:
    run = run_of("RN50", "uniform")
    learner = tiny_model(run, (32,))
    locked = run.model_copy(update={"model": run.model.model_copy(update={"lock_image": True})})
    make_trainee(learner, locked, SINGLE_PROCESS)
    before = {k: v.clone() for k, v in learner.clip.visual.state_dict().items()}
    drawn = draw([fake_pool()], [8], 0, 0)
    train_step(learner, make_optimiser(learner, run.optim), drawn, torch.arange(8), locked, 0)
    after = learner.clip.visual.state_dict()
    assert before and all(torch.equal(after[k], v) for k, v in before.items())
