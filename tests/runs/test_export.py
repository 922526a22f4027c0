"""What is exported computes, in open_clip, what was trained; and comes back by --init."""

from __future__ import annotations

import http.server
import json
import os
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import fake_dataset, tiny_model, tiny_run

from jestcli.config import ConfigError, Run, merge
from jestcli.data.tokens import small_tokenizer
from jestcli.models.flexi import Resolution
from jestcli.models.towers import Clip
from jestcli.runs.card import push_folder
from jestcli.runs.export import export, init_from
from jestcli.runs.trained import MODEL, new_learner
from jestcli.runs.workspace import StageError, Workspace, start_folder
from jestcli.training.augment import normalise
from jestcli.training.checkpoint import save_model, write_json
from jestcli.utils import catalogue
from jestcli.utils.errors import DataError

TEXTS = ["a red car", "Two CATS, one dog!"]


def made(run: Run, workspace: Workspace) -> tuple[Path, Clip]:
    """A run directory with a model that looks trained."""
    folder, model = workspace.folder(run), new_learner(run)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    start_folder_in(folder, run)
    save_model(folder / MODEL, model, {})
    return folder, model.eval()


def start_folder_in(folder: Path, run: Run) -> None:
    folder.mkdir(parents=True)
    start_folder(folder, run, "x")


@torch.no_grad()
@pytest.mark.parametrize(
    "method,patch",
    [
        ("uniform", None),
        ("flexi-uniform", 8),
        ("flexi-uniform", 16),
    ],
)
@pytest.mark.parametrize("form", ["open_clip", "hf"])
def test_open_clip_computes_the_same_features(
    method: str, patch: int | None, form: str, tmp_path: Path, capsys: Any
) -> None:
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    run = tiny_run(method)
    folder, model = made(run, workspace)
    code = export(folder, tmp_path / "out", patch, form, workspace)
    space: dict[str, Any] = {}
    exec(code, space)  # as a user pastes it
    theirs, tokenizer = space["model"].eval(), space["tokenizer"]
    tokens = small_tokenizer(600, 8)(TEXTS)
    assert torch.equal(tokenizer(TEXTS), tokens)
    images = fake_dataset().read(np.arange(4)).images
    images = normalise(images)
    expected = model.encode_image(images, Resolution(patch, 32) if patch else None)
    mine = theirs.encode_image(images, normalize=True)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        theirs.encode_text(tokens, normalize=True), model.encode_text(tokens), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(theirs.logit_bias, model.bias)
    transforms = str(space["preprocess"])
    assert "0.5, 0.5, 0.5" in transforms and "32" in transforms


NATIVE = {"image_size": 99, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
TIMM = {
    "image_size": 99,
    "timm_model_name": "vit_test_patch16",
    "timm_pool": "map",
    "timm_proj": "none",
}
TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 16,
    "heads": 2,
    "layers": 1,
    "hf_tokenizer_name": "some/hub",
}


@pytest.fixture
def named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A flexible run of a narrow tower that "ViT-B-32" names, open_clip's own or timm's."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    def create(name: str, pretrained: bool = False, **more: Any) -> VisionTransformer:
        patch = int(name.removeprefix("vit_test_patch"))
        if patch > 16:
            raise RuntimeError(f"Unknown model ({name})")
        made = VisionTransformer(
            img_size=32,
            patch_size=patch,
            embed_dim=16,
            depth=1,
            num_heads=2,
            class_token=False,
            no_embed_class=True,
            **more,
        )
        made.default_cfg = {}
        return made

    config = {"embed_dim": 16, "vision_cfg": NATIVE, "text_cfg": TEXT}
    changes: dict[str, Any] = {"optim": {"loss": "softmax"}}
    if request.param != "native":
        config |= {"vision_cfg": TIMM, "custom_text": True, "init_logit_bias": -3}
        sizes = {"timm": [8, 16], "timm, unknown to it": [16, 32]}[request.param]
        changes = {"model": {"patch_sizes": sizes}}
    monkeypatch.setattr(catalogue, "read", lambda _: config)
    monkeypatch.setattr(catalogue, "problem", lambda _: None)
    monkeypatch.setattr(catalogue, "patch_size", lambda _: 8)
    monkeypatch.setattr(timm, "create_model", create)
    return tiny_run("flexi-uniform", **merge({"model": {"name": "ViT-B-32"}}, changes))


@torch.no_grad()
@pytest.mark.parametrize("named", ["native", "timm"], indirect=True)
@pytest.mark.parametrize("patch", [8, 16])
def test_a_named_tower_is_exported_at_either_patch(named: Run, patch: int, tmp_path: Path) -> None:
    """The native one trains a softmax loss, so it has no bias; timm's is stored at 16."""
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    folder, model = made(named, workspace)
    space: dict[str, Any] = {}
    exec(export(folder, tmp_path / "out", patch, "open_clip", workspace), space)
    theirs = space["model"].eval()
    tokens = small_tokenizer(600, 8)(TEXTS)
    assert torch.equal(space["tokenizer"](TEXTS), tokens)
    images = normalise(fake_dataset().read(np.arange(4)).images)
    for mine, expected in (
        (
            theirs.encode_image(images, normalize=True),
            model.encode_image(images, Resolution(patch, 32)),
        ),
        (theirs.encode_text(tokens, normalize=True), model.encode_text(tokens)),
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    assert (theirs.logit_bias is None) == (named.optim.loss == "softmax")
    fresh = new_learner(named.model_copy(update={"seed": 5}))
    init_from(folder / MODEL, fresh)
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("named", ["timm, unknown to it"], indirect=True)
def test_a_tower_that_open_clip_has_not_is_one_line(named: Run, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    folder, _ = made(named, workspace)
    with pytest.raises(StageError, match="no image tower vit_test_patch32 at patch 32 and 32 pix"):
        export(folder, tmp_path / "out", 32, "hf", workspace)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    folder, _ = made(tiny_run(), workspace)
    with pytest.raises(ConfigError, match="--patch 16: this run was trained at 8"):
        export(folder, tmp_path, 16, "hf", workspace)
    with pytest.raises(ConfigError, match="--format onnx"):
        export(folder, tmp_path, None, "onnx", workspace)
    with pytest.raises(StageError, match="is not a run directory"):
        export(tmp_path, tmp_path, None, "hf", workspace)


def test_an_exported_model_is_where_another_run_starts(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    folder, model = made(tiny_run(), workspace)
    export(folder, tmp_path / "out", None, "hf", workspace)
    weights = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "c.pt")
    for path in (
        tmp_path / "out" / "open_clip_model.safetensors",
        tmp_path / "c.pt",
        folder / MODEL,
    ):
        fresh = tiny_model(tiny_run(), (8,), seed=5)
        init_from(path, fresh)
        assert all(torch.equal(fresh.state_dict()[k], v) for k, v in model.state_dict().items())
    with pytest.raises(StageError, match="does not fit the model"):
        init_from(folder / MODEL, tiny_model(tiny_run(model={"width": 32}), (8,)))


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["evil.pt", "evil.bin", "evil.safetensors"])
def test_a_malicious_checkpoint_executes_nothing(name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": Evil(tmp_path / "executed")}, tmp_path / name)
    with pytest.raises(StageError, match="cannot read the checkpoint") as caught:
        init_from(tmp_path / name, tiny_model(tiny_run(), (8,)))
    assert not (tmp_path / "executed").exists() and "\n" not in str(caught.value)


def test_the_card_says_what_was_trained_and_what_it_scores(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    run = tiny_run("uniform", source={"noise_share": 0.5})
    folder, _ = made(run, workspace)
    scores = {"birds": {"score": 0.25, "stderr": 0.05, "chance": 0.1, "n": 75}}
    flops = {"cached": 2e12, "charged": 3e12}
    write_json(folder / "done.json", {"scores": scores, "flops": flops, "part": "test", "steps": 4})
    export(folder, tmp_path / "out", None, "hf", workspace)
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "Trained by uniform",
        "not photographs",
        "50% of the pool's captions",
        "2 TFLOP",
        "scoring 3.",
        "| birds | 25.0 ± 10.9 | 10.00 | 75 |",
        "Images scored: test",
        "local-dir:.",
        "bpe_path='bpe-600",
    ):
        assert words in card, words
    assert str(tmp_path) not in card, "nothing of this machine"


def test_a_model_is_pushed_to_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local server stands for the hub: the client's own requests arrive there."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            asked.append(f"{self.path} {self.rfile.read(length)[:2000].decode(errors='replace')}")
            self.send_response(403 if "closed" in asked[-1] else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"url": "https://huggingface.co/mine/birds"}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    out = tmp_path / "für alle"
    out.mkdir()
    written = json.dumps({"bpe_path": f"{out}/bpe.txt.gz"})
    (out / "open_clip_config.json").write_text(written)
    (out / "open_clip_model.safetensors").write_bytes(b"weights")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = huggingface_hub.HfApi(f"http://127.0.0.1:{server.server_port}", token="t")
        sent: list[dict[str, bytes]] = []

        def upload_folder(repo_id: str, folder_path: str) -> None:
            assert repo_id == "mine/birds"
            sent.append({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

        monkeypatch.setattr(hub, "upload_folder", upload_folder)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        assert push_folder(out, "mine/birds") == f"{hub.endpoint}/mine/birds"
        with pytest.raises(
            DataError, match=r"--push mine/closed failed: .*403.*; the upload is missing"
        ):
            push_folder(out, "mine/closed")
        server.shutdown()
    assert asked[0].startswith("/api/repos/create") and '"birds"' in asked[0]
    (files,) = sent
    assert json.loads(files.pop("open_clip_config.json")) == {"bpe_path": "bpe.txt.gz"}
    assert files == {"open_clip_model.safetensors": b"weights"}
    assert (out / "open_clip_config.json").read_text() == written, "the printed Python reads it"
    with pytest.raises(ConfigError, match="expected ORG/NAME"):
        push_folder(out, "birds")
