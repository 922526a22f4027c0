"""One tower at several patch sizes: exact where FlexiViT says exact, trainable at each."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_run

from jestcli.models.flexi import Resolution, pi_resize_matrix, resize_matrix

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_one_patch_size_is_the_unmodified_tower_bit_for_bit(patch: int) -> None:
    flexi = tiny_model(tiny_run(), (patch,)).clip.visual
    assert type(flexi.visual).__module__ == "open_clip.transformer"
    assert torch.equal(flexi(IMAGES), flexi.visual(IMAGES))
    assert torch.equal(flexi(IMAGES, Resolution(patch, 32)), flexi.visual(IMAGES))


def test_wide_towers_equal_too() -> None:
    run = tiny_run(model={"width": 64, "layers": 3, "head_width": 32, "text_width": 64})
    flexi = tiny_model(run, (8,)).clip.visual
    assert torch.equal(flexi(IMAGES), flexi.visual(IMAGES))


@pytest.mark.parametrize("old,new", [(4, 8), (4, 5), (3, 7), (8, 16), (16, 32)])
def test_resizing_up_keeps_every_inner_product(old: int, new: int) -> None:
    dice = torch.Generator().manual_seed(old * new)
    patches = torch.randn(20, old * old, generator=dice, dtype=torch.float64)
    weights = torch.randn(5, old * old, generator=dice, dtype=torch.float64)
    resized_patches = patches @ resize_matrix(old, new).T
    resized_weights = weights @ pi_resize_matrix(old, new).T
    torch.testing.assert_close(
        resized_patches @ resized_weights.T, patches @ weights.T, rtol=1e-9, atol=1e-9
    )
    plain = weights @ resize_matrix(old, new).T  # what a bilinear resize of weights would give
    assert not torch.allclose(resized_patches @ plain.T, patches @ weights.T, rtol=1e-2)


@pytest.mark.parametrize("old,new", [(8, 4), (16, 8), (32, 16)])
def test_resizing_down_is_the_least_squares_solution(old: int, new: int) -> None:
    weights = torch.randn(5, old * old, generator=torch.Generator().manual_seed(1)).double()
    down = resize_matrix(old, new)
    residual = weights @ pi_resize_matrix(old, new).T @ down - weights
    assert residual.abs().max() > 0.1, "down loses something"
    torch.testing.assert_close(
        residual @ down.T, torch.zeros(5, new * new).double(), rtol=0, atol=1e-9
    )


def test_the_same_size_is_the_identity() -> None:
    torch.testing.assert_close(
        pi_resize_matrix(8, 8), torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_resize_keeps_a_constant_image() -> None:
    for old, new in ((8, 4), (4, 8), (16, 8)):
        ones = resize_matrix(old, new) @ torch.ones(old * old, dtype=torch.float64)
        torch.testing.assert_close(ones, torch.ones(new * new, dtype=torch.float64))


@pytest.mark.parametrize("patch", [8, 16])
def test_gradients_reach_weights_and_every_position(patch: int) -> None:
    visual = tiny_model(tiny_run(), (8, 16)).clip.visual
    assert visual.visual.conv1.weight.shape[-1] == 16, "weights are stored at the largest patch"
    assert len(visual.visual.positional_embedding) == 1 + 16, "positions on the finest grid"
    visual(IMAGES, Resolution(patch, 32)).square().sum().backward()
    assert (visual.visual.conv1.weight.grad.abs().amax((1, 2, 3)) > 0).all()
    assert (visual.visual.positional_embedding.grad.abs().amax(1) > 0).all()


def test_the_patch_sizes_see_the_image_differently_but_share_weights() -> None:
    model = tiny_model(tiny_run(), (8, 16))
    fine, coarse = (model.encode_image(IMAGES, Resolution(p, 32)) for p in (8, 16))
    assert torch.equal(model.encode_image(IMAGES), fine), "full resolution unless asked"
    assert not torch.allclose(fine, coarse, atol=1e-3)
    torch.testing.assert_close(fine.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("patches", [(5,), (8, 12), (64,)])
def test_a_patch_that_does_not_divide_the_image_is_refused(patches: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"patch size {patches[-1]} does not divide image size 32"):
        tiny_model(tiny_run(), patches)


def test_the_seed_determines_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = tiny_model(tiny_run(), seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(6)
    again, other = (tiny_model(tiny_run(), seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["clip.visual.visual.proj"], other["clip.visual.visual.proj"])
