"""Any open_clip ViT by name: the original view is the unmodified tower, the others are trainable.

Real configs are built on the meta device, which allocates nothing; what is computed is computed
with the same code on narrow copies of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from narrow import NATIVE, NO_BIAS, TEXT, TIMM, narrow_timm
from safetensors.torch import save_file
from tiny import tiny_run

from jestcli.config import ConfigError, Data, Model, Run, make_run
from jestcli.models.flexi import FlexiVisual, Resolution, drop_tokens
from jestcli.models.towers import Clip, build_model, low_view, named
from jestcli.runs.trained import MODEL, load_folder, new_learner
from jestcli.training.checkpoint import save_model
from jestcli.training.loss import contrastive_loss
from jestcli.training.optimiser import make_optimiser
from jestcli.utils import catalogue

DATA = Data(image_size=32, context_length=8, vocab_size=600)
HEAD = {"init_logit_scale": 2.3, "init_logit_bias": -10.0}
TOWERS: dict[str, dict[str, Any]] = {
    "class token": {"vision_cfg": NATIVE},
    "average pooling": {"vision_cfg": {**NATIVE, "pool_type": "avg", "no_ln_pre": True}},
    "attentional pooling": {
        "vision_cfg": {
            **NATIVE,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "attn_pooler_queries": 4,
        },
    },
    "fixed positions": {"vision_cfg": {**NATIVE, "pos_embed_type": "sin_cos_2d"}},
    "timm, MAP pooling, no class token (SigLIP)": {
        "custom_text": True,
        "vision_cfg": {**TIMM, "timm_model_name": "vit_tiny_patch16_siglip", "timm_pool": "map"},
    },
    "timm, class token": {
        "custom_text": True,
        "vision_cfg": {
            **TIMM,
            "timm_model_name": "vit_tiny_patch16",
            "timm_pool": "token",
            "timm_proj": "linear",
        },
    },
    "timm, positions without the class and register tokens": {
        "custom_text": True,
        "vision_cfg": {**TIMM, "timm_model_name": "vit_tiny_patch16_reg", "timm_pool": "avg"},
    },
}
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(autouse=True, scope="module")
def narrow() -> Iterator[None]:
    with narrow_timm():
        yield


def tower(kind: str, seed: int = 0) -> Any:
    """An unmodified open_clip model at 32 px, patch 8 (native) or 16 (timm)."""
    torch.manual_seed(seed)
    config = {"embed_dim": 12, "text_cfg": TEXT, **TOWERS[kind]}
    if config.get("custom_text"):
        config["text_cfg"] = TEXT | NO_BIAS
    return named(config, DATA, HEAD)


def views(visual: FlexiVisual) -> dict[str, Resolution]:
    patch = visual.stored_patch
    return {
        "own": Resolution(patch, 32),
        "larger": Resolution(2 * patch, 32),
        "smaller": Resolution(patch // 2, 32),
        "resolution": Resolution(patch, 16),
        "tokens": Resolution(patch, 32, 0.5),
    }


@pytest.mark.parametrize("kind", TOWERS)
def test_the_original_view_of_a_flexified_tower_is_the_unmodified_one(kind: str) -> None:
    plain = tower(kind)
    expected = plain.visual(IMAGES).detach()
    seen = views(FlexiVisual(plain.visual, Resolution(8, 32)))
    flexi = FlexiVisual(plain.visual, seen["own"], tuple(seen.values()))
    assert torch.equal(flexi(IMAGES), expected)
    # The same through the resizing code, with maps that are the identity: it handles class and
    # register tokens, norms, pooling and heads as the tower itself does.
    side, patch = 32, flexi.stored_patch
    flexi.stored_patch, flexi.stored_grid = -1, -1
    flexi.register_buffer(f"weight_map_{patch}", torch.eye(patch**2))
    flexi.register_buffer(f"position_map_{side // patch}", torch.eye((side // patch) ** 2))
    torch.testing.assert_close(
        flexi(IMAGES, Resolution(patch, side)), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", TOWERS)
def test_every_view_differs_and_reaches_weights_and_positions(kind: str) -> None:
    plain = tower(kind)
    seen = views(FlexiVisual(plain.visual, Resolution(8, 32)))
    flexi = FlexiVisual(plain.visual, seen["own"], tuple(seen.values()))
    full = flexi(IMAGES).detach()
    for name, view in seen.items():
        flexi.zero_grad()
        features = flexi(IMAGES, view)
        assert features.shape == full.shape
        assert name == "own" or not torch.allclose(features, full, atol=1e-4)
        features.square().sum().backward()
        assert (flexi._convolution.weight.grad.abs().amax((1, 2, 3)) > 0).all()
        if flexi._position.requires_grad:
            assert flexi._position.grad.abs().sum() > 0


def test_maps_are_no_part_of_a_checkpoint_and_made_once() -> None:
    plain = tower("class token")
    names = {f"visual.{key}" for key in plain.visual.state_dict()}
    flexi = FlexiVisual(plain.visual, Resolution(8, 32), (Resolution(16, 32), Resolution(8, 16)))
    assert set(flexi.state_dict()) == names
    first = flexi.get_buffer("position_map_2")
    flexi.prepare(Resolution(16, 32))
    assert flexi.get_buffer("position_map_2") is first


# --- by name --------------------------------------------------------------------------------------


def by_name(name: str, **changes: Any) -> Run:
    model = {"name": name, **changes.pop("model", {})}
    data = {"image_size": 256, "context_length": 16, "vocab_size": 32000, **changes.pop("data", {})}
    return make_run({"model": model, "data": data, **changes})


@pytest.mark.parametrize(
    "name,size,patches",
    [
        ("ViT-B-16", 224, (16, 32)),
        ("ViT-B-16-SigLIP-256", 256, (16, 32)),
        ("ViT-SO400M-14-SigLIP", 224, (14, 28)),
        ("ViT-B-32", 224, (32,)),  # 64 does not divide it
    ],
)
def test_a_real_config_builds_at_its_own_patch_and_twice_that_if_it_divides_the_image(
    name: str, size: int, patches: tuple[int, ...]
) -> None:
    run = by_name(name, data={"image_size": size})
    assert run.model.patch_sizes == patches
    with torch.device("meta"):
        model = build_model(run.model, run.data, run.model.patch_sizes, 0)
        images, tokens = torch.zeros(2, 3, size, size), torch.zeros(2, 16, dtype=torch.long)
    assert model.clip.visual.stored_patch == patches[0]
    image, text, _, _ = model(images, tokens, 1)
    assert image.shape == text.shape and image.device.type == "meta"
    assert model.clip.visual.stored_grid == size // patches[0]


def test_one_real_tower_computes_what_open_clip_computes() -> None:
    run = by_name("ViT-B-32", data={"image_size": 64, "vocab_size": 600, "context_length": 8})
    small = catalogue.read("ViT-B-32")
    for part in ("vision_cfg", "text_cfg"):
        small[part] |= {"layers": 1, "width": 128}
    small["text_cfg"]["heads"] = 2
    model = Clip(named(small, run.data, HEAD), Resolution(32, 64), Resolution(64, 64))
    tokens = torch.arange(16).reshape(2, 8)
    image, text, scale, bias = model(torch.ones(2, 3, 64, 64), tokens)
    theirs = model.clip.visual.visual(torch.ones(2, 3, 64, 64))
    assert torch.equal(image, torch.nn.functional.normalize(theirs, dim=-1))
    assert torch.equal(text, model.clip.encode_text(tokens, normalize=True))
    assert float(scale) == pytest.approx(9.974, abs=1e-3) and float(bias) == -10


@pytest.mark.parametrize(
    "name,words",
    [
        ("ViT-B16", "no model.name 'ViT-B16' (did you mean ViT-B-16?)"),
        ("roberta-ViT-B-32", "its text tower comes from a model hub"),
        ("coca_ViT-B-32", "it also generates captions"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        by_name(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_read_without_importing_open_clip() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from jestcli.utils import catalogue; assert len(catalogue.usable()) > 120;"
        "assert 'open_clip' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(catalogue.known()) <= set(open_clip.list_models())


def test_a_name_is_part_of_the_digest_and_none_changes_nothing() -> None:
    assert by_name("ViT-B-16").digest() != by_name("ViT-B-16-quickgelu").digest()
    assert make_run({"model": {"name": None}}).digest() == Run().digest()


def test_softmax_has_no_bias_that_nothing_would_train() -> None:
    run = tiny_run(optim={"loss": "softmax"})
    for loss, trained in (("softmax", False), ("sigmoid", True)):
        model = build_model(run.model, run.data, (8,), 0, loss=loss)
        outputs = model(IMAGES, torch.arange(24).reshape(3, 8))
        contrastive_loss(*outputs, loss).backward()
        assert all(p.grad is not None for p in model.parameters()), "DDP waits for every gradient"
        assert (model.clip.logit_bias is not None) == trained


# --- the three ways to low resolution -------------------------------------------------------------


def test_each_approximation_sees_as_many_cells() -> None:
    for kind, view in (
        ("patch", Resolution(16, 32)),
        ("resolution", Resolution(8, 16)),
        ("tokens", Resolution(8, 32, 0.25)),
    ):
        run = tiny_run("flexi", selection={"approximation": kind})
        assert low_view(run.model, run.data, run.selection) == view and view.tokens == 4
    run = tiny_run("flexi", selection={"approximation": "tokens", "keep_tokens": 0.5})
    assert low_view(run.model, run.data, run.selection).tokens == 8
    with pytest.raises(ConfigError, match=r"keep_tokens needs selection\.approximation=tokens"):
        tiny_run("flexi", selection={"keep_tokens": 0.5})


def test_the_cells_of_most_contrast_are_kept() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, 8:16, 24:32] = IMAGES[0, :, :8, :8]  # cell 7 of 16
    images[1, :, 24:32, 0:8] = IMAGES[0, :, :8, :8]  # cell 12
    cells = torch.arange(17.0).expand(2, 17)[:, :, None]
    kept = drop_tokens(cells, images, Resolution(8, 32, 1 / 16), prefix=1)
    assert kept[:, :, 0].tolist() == [[0, 8], [0, 13]], "the prefix, and that cell"
    everything = drop_tokens(cells, images, Resolution(8, 32), prefix=1)
    assert everything is cells


def test_larger_patches_nearly_are_a_smaller_image() -> None:
    """PI-resizing to twice the patch, on smooth images, is the old patch on the halved image."""
    model = build_model(tiny_run().model, DATA, (8,), 0)
    smooth = torch.nn.functional.interpolate(IMAGES[:, :, :8, :8], size=32, mode="bicubic")
    patch, small = Resolution(16, 32), Resolution(8, 16)
    for view in (patch, small):
        model.set_low(view)
    a, b = (model.encode_image(smooth, view) for view in (patch, small))
    full = model.encode_image(smooth)
    assert (a - b).norm() < 0.25 * (a - full).norm(), "closer to each other than to full"


# --- pretrained -----------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """A checkpoint of an unmodified narrow ViT-B-32, which "ViT-B-32" then names."""
    config = {"embed_dim": 12, "vision_cfg": NATIVE, "text_cfg": TEXT}
    monkeypatch.setattr(catalogue, "read", lambda name: config)
    torch.manual_seed(7)
    plain = named(config, DATA, {"init_logit_scale": 3.0})
    save_file(
        {k: v.contiguous() for k, v in plain.state_dict().items()}, tmp_path / "w.safetensors"
    )
    return tmp_path / "w.safetensors", plain


def settings(path: Path | str) -> Model:
    return Model(name="ViT-B-32", patch_sizes=(8, 16), pretrained=str(path))


def test_a_pretrained_fixed_patch_checkpoint_is_flexified(weights: tuple[Path, Any]) -> None:
    path, plain = weights
    model = build_model(settings(path), DATA, (8, 16), 0)
    openai = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    mean, std = (torch.tensor(x)[:, None, None] for x in openai)
    theirs = plain.encode_image((IMAGES * 0.5 + 0.5 - mean) / std, normalize=True)
    torch.testing.assert_close(model.encode_image(IMAGES), theirs, rtol=0, atol=1e-6)
    assert float(model.scale) == pytest.approx(20.09, abs=0.01), "the weights' own"
    assert float(model.bias) == -10, "a model without a bias starts at the setting's"
    image, text, *head = model(IMAGES, torch.arange(24).reshape(3, 8), 2)
    contrastive_loss(image, text, *head, "sigmoid").backward()
    make_optimiser(model, tiny_run().optim).step()
    larger = build_model(settings(path), Data(**DATA.model_dump() | {"image_size": 64}), (8, 16), 0)
    assert larger.encode_image(torch.ones(1, 3, 64, 64)).isfinite().all(), "another image size"


def test_a_trained_model_needs_no_file_that_it_started_from(
    weights: tuple[Path, Any], tmp_path: Path
) -> None:
    path, _ = weights
    run = make_run(
        {"data": DATA.model_dump(), "model": settings(path).model_dump()}
        | {"selection": {"sampler": "uniform"}}
    )
    before = new_learner(run)
    save_model(tmp_path / MODEL, before, {})
    path.write_bytes(b"another")
    with pytest.raises(ConfigError, match="is not the file this run was made for"):
        new_learner(run)
    for _ in range(2):
        model = load_folder(run, tmp_path)
        assert torch.equal(model.encode_image(IMAGES), before.encode_image(IMAGES))
        path.unlink(missing_ok=True)


def test_weights_that_do_not_fit_are_one_line(weights: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = weights
    save_file({"logit_scale": torch.ones(())}, tmp_path / "few.safetensors")
    (tmp_path / "evil.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for given, data, words in (
        (tmp_path / "few.safetensors", DATA, "does not fit ViT-B-32"),
        (tmp_path / "evil.bin", DATA, "does not fit ViT-B-32"),
        (path, Data(vocab_size=700, context_length=8), "need data.vocab_size=600"),
        ("laion2b", DATA, "no file and no tag 'laion2b' (did you mean laion"),
    ):
        with pytest.raises(ConfigError, match="") as caught:
            build_model(settings(given), data, (8, 16), 0)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"model\.pretrained needs model\.name"):
        make_run({"model": {"pretrained": "x"}})
