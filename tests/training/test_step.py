"""One step: the paper's losses, what is chosen, what is trained at which resolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import draw, fake_pool, tiny_model, tiny_run
from torch import Tensor

from jestcli.config import Run
from jestcli.data.loader import SuperBatch
from jestcli.models.flexi import Resolution
from jestcli.models.towers import Clip
from jestcli.selection import PairEmbeddings, learnability_of, select
from jestcli.training.augment import augment, normalise
from jestcli.training.loss import contrastive_loss
from jestcli.training.optimiser import learning_rate, make_optimiser
from jestcli.training.step import encode_pairs, select_sub_batch, train_step


def paper_sigmoid(image: Tensor, text: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Equation 2, pair by pair, averaged over the batch."""
    total = image.new_zeros(())
    for i in range(len(image)):
        for j in range(len(text)):
            logit = alpha * (image[i] @ text[j]) - beta
            total = total + torch.log1p(torch.exp(-logit if i == j else logit))
    return total / len(image)


def paper_softmax(image: Tensor, text: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Equation 1, pair by pair, averaged over the batch; beta plays no part."""
    z = torch.stack([torch.stack([alpha * (i @ t) for t in text]) for i in image])
    total = image.new_zeros(())
    for i in range(len(image)):
        own = z[i, i]
        total = total - 0.5 * (own - z[i].exp().sum().log())
        total = total - 0.5 * (own - z[:, i].exp().sum().log())
    return total / len(image)


@pytest.mark.parametrize("kind,paper", [("sigmoid", paper_sigmoid), ("softmax", paper_softmax)])
def test_loss_and_gradients_are_the_papers(
    kind: str, paper: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
) -> None:
    dice = torch.Generator().manual_seed(0)

    def leaves() -> list[Tensor]:
        dice.manual_seed(0)
        rows = [torch.randn(6, 4, generator=dice, dtype=torch.float64) for _ in range(2)]
        numbers = [torch.tensor(x, dtype=torch.float64) for x in (7.0, -3.0)]
        return [x.requires_grad_() for x in [*rows, *numbers]]

    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)

    ours, theirs = leaves(), leaves()
    loss = contrastive_loss(unit(ours[0]), unit(ours[1]), ours[2], ours[3], kind)
    expected = paper(unit(theirs[0]), unit(theirs[1]), theirs[2], -theirs[3])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        if mine.grad is None:
            assert kind == "softmax" and mine is ours[3]
            continue
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-12)


def candidates(run: Run, step: int = 0) -> SuperBatch:
    return draw([fake_pool()], [run.super_batch_size], run.seed, step)


def reference_of(model: Clip) -> Callable[[SuperBatch], PairEmbeddings]:
    return lambda drawn: encode_pairs(model, drawn.images, drawn.tokens, None)


@pytest.mark.parametrize("method", ["jest", "flexi", "independent", "easy-reference"])
@pytest.mark.parametrize("measure", [False, True])
def test_choose_returns_what_select_gives_for_the_same_embeddings(
    method: str, measure: bool
) -> None:
    run = tiny_run(method, seed=3)
    learner, model = tiny_model(run, seed=1), tiny_model(run, (8,), seed=2)
    drawn, step = candidates(run, 5), 5
    low = run.selection.low_res_scoring
    mine = encode_pairs(learner, drawn.images, drawn.tokens, Resolution(16 if low else 8, 32))
    theirs = reference_of(model)(drawn)
    choice = select_sub_batch(learner, reference_of(model), drawn, run, step, measure)
    expected = select(
        mine,
        theirs,
        size=8,
        sampler=run.selection.sampler,
        criterion=run.selection.criterion,
        n_chunks=4,
        seed=3,
        step=5,
    )
    assert torch.equal(choice.index, expected)
    if measure:
        whole = learnability_of(mine, theirs, torch.arange(16), loss="sigmoid")
        chosen = learnability_of(mine, theirs, expected, loss="sigmoid")
        assert choice.super_batch_learnability == whole
        assert choice.sub_batch_learnability == chosen != whole
    else:
        assert choice.sub_batch_learnability is None


def test_resolution_and_step_matter_to_the_choice() -> None:
    run = tiny_run("flexi")
    learner, model = tiny_model(run, seed=1), tiny_model(run, (8,), seed=2)
    drawn = candidates(run)
    full = tiny_run("flexi", selection={"low_res_scoring": False})
    low, fine, later = (
        select_sub_batch(learner, reference_of(model), drawn, r, s).index
        for r, s in ((run, 0), (full, 0), (run, 1))
    )
    assert not torch.equal(low, later)
    a, b = (
        encode_pairs(learner, drawn.images, drawn.tokens, Resolution(p, 32)).image for p in (16, 8)
    )
    assert not torch.allclose(a, b)
    assert len(fine) == len(low) == 8


def test_uniform_trains_on_everything_it_draws() -> None:
    run = tiny_run()
    drawn = candidates(run)
    assert len(drawn) == 8
    assert select_sub_batch(tiny_model(run), None, drawn, run, 0).index.tolist() == list(range(8))


def test_cabs_chooses_by_the_words_and_embeds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run("cabs", seed=3)
    assert run.reference is None and run.super_batch_size == 16
    drawn = candidates(run, 5)
    monkeypatch.setattr("jestcli.training.step.encode_pairs", None)  # would raise if called
    choice = select_sub_batch(tiny_model(run), None, drawn, run, 5, measure=True)
    words = drawn.tokens.masked_fill((drawn.tokens == 0) | (drawn.tokens >= 598), -1)
    expected = select(None, None, size=8, sampler="cabs", labels=words, seed=3, step=5)
    assert torch.equal(choice.index, expected)


def test_embeddings_do_not_depend_on_the_micro_batch() -> None:
    run = tiny_run("jest")
    model, drawn = tiny_model(run), candidates(run)
    whole = encode_pairs(model, drawn.images, drawn.tokens, None)
    parts = encode_pairs(model, drawn.images, drawn.tokens, None, micro_batch=3)
    torch.testing.assert_close(parts.image, whole.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts.text, whole.text, rtol=0, atol=1e-6)
    coarse = Resolution(16, 32)  # four cells instead of sixteen: four times as many at a time
    low = [encode_pairs(model, drawn.images, drawn.tokens, coarse, n).image for n in (1, 64)]
    torch.testing.assert_close(*low, rtol=0, atol=1e-6)
    assert not whole.image.requires_grad and float(whole.scale) == pytest.approx(10)
    assert float(whole.bias) == -10
    expected = model.encode_image(drawn.images.float() / 127.5 - 1)
    torch.testing.assert_close(whole.image, expected.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "share,sizes",
    [
        (0.0, {8: 8}),
        (0.25, {16: 2, 8: 6}),
        (0.5, {16: 4, 8: 4}),
        (1.0, {16: 8}),
    ],
)
def test_update_splits_the_sub_batch_between_the_patch_sizes(
    share: float, sizes: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("flexi", selection={"low_res_share": share})
    learner = tiny_model(run)
    seen: dict[int, int] = {}
    encode = learner.encode_image

    def spy(images: Tensor, view: Resolution | None = None) -> Tensor:
        assert view is not None
        seen[view.patch] = len(images)
        return encode(images, view)

    monkeypatch.setattr(learner, "encode_image", spy)
    drawn = candidates(run)
    train_step(learner, make_optimiser(learner, run.optim), drawn, torch.arange(3, 11), run, 0)
    assert seen == sizes


def test_every_pair_keeps_its_text_whatever_its_resolution() -> None:
    """With both patch sizes, the loss is the paper's on a permutation of the chosen pairs."""
    run = tiny_run("flexi", optim={"augment": False})
    learner, drawn, index = tiny_model(run), candidates(run), torch.arange(3, 11)
    images = normalise(drawn.images)
    rows = {p: learner.encode_image(images, Resolution(p, 32)).detach() for p in (8, 16)}
    text = learner.encode_text(drawn.tokens).detach()
    loss = train_step(learner, make_optimiser(learner, run.optim), drawn, index, run, 0)
    found = []
    for low in range(2**8):  # every split into halves, the pairs being in no order
        if low.bit_count() == 4:
            mixed = torch.stack([rows[16 if low >> k & 1 else 8][i] for k, i in enumerate(index)])
            found.append(
                float(
                    contrastive_loss(
                        mixed, text[index], torch.tensor(10.0), torch.tensor(-10.0), "sigmoid"
                    )
                )
            )
    assert min(abs(loss - each) for each in found) < 1e-5
    assert max(abs(loss - each) for each in found) > 1e-3, "the split matters"


def trained(run: Run, steps: list[int]) -> tuple[list[float], dict[str, Tensor]]:
    learner = tiny_model(run)
    optimiser = make_optimiser(learner, run.optim)
    index = torch.arange(8)
    losses = [train_step(learner, optimiser, candidates(run, s), index, run, s) for s in steps]
    return losses, learner.state_dict()


def test_an_update_is_a_pure_function_of_weights_and_step() -> None:
    run = tiny_run("flexi")
    torch.manual_seed(0)
    first, weights = trained(run, [0, 1, 2])
    torch.manual_seed(1)
    torch.rand(5)
    again, same = trained(run, [0, 1, 2])
    assert first == again and all(torch.equal(weights[k], same[k]) for k in weights)
    other, _ = trained(run, [0, 2, 1])
    assert other[0] == first[0] and other[1:] != first[1:]


def test_update_clips_sets_the_rate_and_falls() -> None:
    run = tiny_run(optim={"steps": 40, "lr": 3e-3, "augment": False})
    learner = tiny_model(run)
    optimiser = make_optimiser(learner, run.optim)
    drawn, index = candidates(run), torch.arange(8)
    losses = []
    for step in range(30):
        losses.append(train_step(learner, optimiser, drawn, index, run, step))
        assert optimiser.param_groups[0]["lr"] == learning_rate(step, run.optim)
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in learner.parameters()))
        assert norm <= 1.0 + 1e-4
    assert losses[-1] < 0.5 * losses[0]


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    optim = tiny_run(optim={"steps": 100, "warmup": 10, "lr": 1e-3}).optim
    rates = [learning_rate(step, optim) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * (k + 1) for k in range(10)])
    assert max(rates) == pytest.approx(1e-3) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-6
    short = tiny_run(optim={"steps": 1, "warmup": 1}).optim
    assert learning_rate(0, short) == pytest.approx(1e-3)


def test_weight_decay_is_on_matrices_only() -> None:
    run = tiny_run()
    model = tiny_model(run)
    groups = make_optimiser(model, run.optim).param_groups
    decayed = {id(p) for p in groups[0]["params"]}
    assert groups[0]["weight_decay"] == 1e-4 and groups[1]["weight_decay"] == 0
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.ndim >= 2), name
    assert groups[0]["betas"] == (0.9, 0.95)


def test_augmentation_is_torchs_affine_map() -> None:
    images, dice = torch.rand(4, 3, 12, 12) * 2 - 1, torch.rand(3, 4)
    theta = torch.zeros(4, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 0.95 + 0.1 * dice[0]
    theta[:, :, 2] = 0.1 * (dice[1:].T - 0.5)
    grid = F.affine_grid(theta, [4, 3, 12, 12], align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(augment(images, dice), expected, rtol=1e-5, atol=1e-5)


def test_augmentation_is_slight_random_and_leaves_its_input() -> None:
    images = normalise(candidates(tiny_run("jest")).images)
    before = images.clone()

    def go(seed: int) -> Any:
        dice = torch.Generator().manual_seed(seed)
        return augment(images, torch.rand(3, len(images), generator=dice))

    assert torch.equal(go(0), go(0)) and not torch.equal(go(0), go(1))
    assert torch.equal(images, before) and go(0).shape == images.shape
    ramp = torch.linspace(-1, 1, 32).expand(5, 3, 32, 32).contiguous()
    assert (augment(ramp, torch.rand(3, 5)) - ramp).abs().max() < 0.25


def test_normalise_maps_bytes_to_minus_one_and_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8)
    assert normalise(pixels).tolist() == [-1.0, 1.0] and pixels.tolist() == [0, 255]
