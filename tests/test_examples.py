"""The loops of examples/open_clip, on tiny shards and models: they train on what select chooses."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from webdataset.writer import TarWriter

from jestcli import selection

EXAMPLES = Path(__file__).parents[1] / "examples" / "open_clip"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    "init_logit_scale": math.log(10),
    "init_logit_bias": -10.0,
}
WORDS = ("red", "blue", "cat", "tree", "cup", "star")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, dice = tmp_path_factory.mktemp("pool"), np.random.default_rng(0)
    for shard in range(2):
        with TarWriter(str(folder / f"{shard:05d}.tar")) as out:
            for i in range(40):
                pixels = dice.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "one.png")
                text = f"a {dice.choice(WORDS)} {dice.choice(WORDS)}"
                row = {"png": (folder / "one.png").read_bytes(), "txt": text.encode()}
                out.write({"__key__": f"{shard}-{i}", **row})
    return f"{folder}/{{00000..00001}}.tar"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """open_clip's model "tiny", and weights of it for a reference."""
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny.json")
    torch.manual_seed(1)
    weights = tmp_path / "reference.pt"
    torch.save(open_clip.create_model("tiny").state_dict(), weights)
    return weights


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `select` is asked and answers."""
    calls: list[dict[str, Any]] = []

    def spy(*pairs: Any, **how: Any) -> torch.Tensor:
        index = selection.api.select(*pairs, **how)
        calls.append({**how, "index": index, "candidates": len(pairs[0])})
        return index

    monkeypatch.setattr(selection, "select", spy)
    return calls


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pairs in every SigLIP loss."""
    sizes: list[int] = []
    forward = open_clip.loss.SigLipLoss.forward

    def spy(self: Any, image_features: torch.Tensor, *rest: Any, **more: Any) -> Any:
        sizes.append(len(image_features))
        return forward(self, image_features, *rest, **more)

    monkeypatch.setattr(open_clip.loss.SigLipLoss, "forward", spy)
    return sizes


def test_the_stand_alone_loop(
    shards: str,
    tiny: Path,
    chosen: list[dict[str, Any]],
    trained_on: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tiny.parent / "learner.pt"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "train.py",
            shards,
            "--model",
            "tiny",
            "--reference",
            "tiny",
            "--weights",
            str(tiny),
            "--batch-size",
            "4",
            "--steps",
            "3",
            "--workers",
            "0",
            "--out",
            str(out),
        ],
    )
    runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")
    assert trained_on == [4, 4, 4]
    assert [call["candidates"] for call in chosen] == [20, 20, 20]
    assert len({tuple(call["index"].tolist()) for call in chosen}) == 3
    assert re.search(r"^step 3  loss \d+\.\d+$", capsys.readouterr().out, re.MULTILINE)
    saved = torch.load(out, weights_only=True)
    assert set(saved) >= {"logit_scale", "logit_bias", "visual.conv1.weight"}


def patched_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """open_clip's own trainer with jest.patch applied, as a copy in `folder`."""
    found = importlib.util.find_spec("open_clip_train")
    assert found is not None and found.submodule_search_locations
    shutil.copytree(next(iter(found.submodule_search_locations)), folder / "open_clip_train")
    done = subprocess.run(
        ["git", "apply", "-p2", str(EXAMPLES / "jest.patch")],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(folder)
    for name in [n for n in sys.modules if n.partition(".")[0] == "open_clip_train"]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("open_clip_train.main")


def test_the_patch_has_at_most_15_lines() -> None:
    lines = (EXAMPLES / "jest.patch").read_text().splitlines()
    changed = [line for line in lines if re.match(r"[+-](?!--|\+\+)", line)]
    assert 0 < len(changed) <= 15


def test_open_clips_trainer_with_the_patch(
    shards: str,
    tiny: Path,
    chosen: list[dict[str, Any]],
    trained_on: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("open_clip_train.main", reason="open_clip_torch[training] is not installed")
    main = patched_trainer(tmp_path / "patched", monkeypatch)
    assert Path(main.__file__ or "").is_relative_to(tmp_path)
    # open_clip's reader of shards knows webdataset up to 0.2.86 (its extra "training" asks for it)
    old = tuple(map(int, version("webdataset").split(".")[:3])) <= (0, 2, 86)
    real = ["--dataset-type", "webdataset", "--train-data", shards]
    main.main(
        [
            *(real if old else ["--dataset-type", "synthetic"]),
            "--train-num-samples",
            "80",
            "--batch-size",
            "20",
            "--epochs",
            "1",
            "--warmup",
            "1",
            "--workers",
            "0",
            "--siglip",
            "--model",
            "tiny",
            "--distill-model",
            "tiny",
            "--distill-pretrained",
            str(tiny),
            "--logs",
            str(tmp_path / "logs"),
            "--name",
            "run",
            "--device",
            "cpu",
            "--precision",
            "fp32",
            "--log-every-n-steps",
            "1",
            "--seed",
            "5",
        ]
    )
    assert trained_on == [4, 4, 4, 4], "a fifth of 20 candidates in each of 80 / 20 steps"
    assert [(call["step"], call["seed"], call["loss"]) for call in chosen] == [
        (step, 5, "sigmoid") for step in range(4)
    ]
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    losses = [float(x) for x in re.findall(r" Loss: ([\d.]+)", log)]
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    assert (tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt").exists()


@pytest.mark.parametrize("kind", ["Siglip", "CLIP"])
def test_the_hugging_face_loop(
    kind: str, chosen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        **small,
        "vocab_size": 64,
        "max_position_embeddings": 8,
        "projection_size": 16,
        "eos_token_id": 63,
        "bos_token_id": 62,
        "pad_token_id": 1,
    }
    vision = {**small, "image_size": 16, "patch_size": 8}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    learner, reference = (getattr(transformers, f"{kind}Model")(config) for _ in range(2))
    before = [p.detach().clone() for p in learner.parameters()]
    tokens = torch.randint(2, 62, (20, 8))
    tokens[:, -1] = 63
    batch = {"pixel_values": torch.randn(20, 3, 16, 16), "input_ids": tokens}
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "train_accelerate.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.train(learner, reference, [batch] * 3, size=4, steps=3)
    assert [(call["candidates"], len(call["index"])) for call in chosen] == [(20, 4)] * 3
    assert {call["loss"] for call in chosen} == {"softmax" if kind == "CLIP" else "sigmoid"}
    after = list(learner.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.isfinite().all() for p in after)
    assert all(p.grad is None for p in reference.parameters())
