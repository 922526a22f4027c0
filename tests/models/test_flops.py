"""Counted FLOPs against closed formulas, and the cost table of the paper."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import draw, fake_pool, tiny_model, tiny_run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jestcli.config import Run, make_run
from jestcli.models.flops import ForwardFlops, forward_flops, per_iteration, run_cost, step_cost
from jestcli.models.towers import build_model
from jestcli.training.optimiser import make_optimiser
from jestcli.training.step import train_step

LEARNER = ForwardFlops(image_full=800, image_low=180, text=200)
REFERENCE = ForwardFlops(image_full=700, image_low=700, text=300)


def transformer(tokens: int, width: int, layers: int) -> int:
    """Projections 8 T w², MLP 16 T w², two attention products 2 T² w each."""
    return layers * (24 * tokens * width**2 + 4 * tokens**2 * width)


def test_forward_count_equals_the_closed_formula() -> None:
    run = make_run({})
    model = build_model(run.model, run.data, (4,), 0)
    m, cells = run.model, (32 // 4) ** 2
    patches = 2 * cells * m.width * 3 * 4 * 4
    image = patches + transformer(cells + 1, m.width, m.layers) + 2 * m.width * m.embed_dim
    length = run.data.context_length
    text = transformer(length, m.text_width, m.text_layers) + 2 * m.text_width * m.embed_dim
    counted = forward_flops(model, 32, length)
    assert (counted.image_full, counted.image_low, counted.text) == (image, image, text)


def test_resizing_weights_and_positions_is_counted_once_per_forward() -> None:
    """The fixed linear maps of FlexiViT: a batch pays them once, the count of one example too."""
    run = make_run({})
    model = build_model(run.model, run.data, (4, 8), 0)
    m, counted = run.model, forward_flops(model, 32, run.data.context_length)

    def tower(patch: int) -> int:
        cells = (32 // patch) ** 2
        head = 2 * m.width * m.embed_dim
        return 2 * cells * m.width * 3 * patch**2 + transformer(cells + 1, m.width, m.layers) + head

    weights = 2 * m.width * 3 * 64 * 16  # patch 8 as stored -> patch 4
    positions = 2 * 16 * 64 * m.width  # 8 x 8 cells as stored -> 4 x 4
    assert counted.image_full == pytest.approx(tower(4) + weights, abs=weights)
    assert counted.image_low == pytest.approx(tower(8) + positions, abs=positions)
    assert counted.image_low < 0.3 * counted.image_full


def cost_run(f: float, method: str = "jest") -> Run:
    return tiny_run(method, optim={"batch_size": 16}, selection={"filter_ratio": f})


@pytest.mark.parametrize("f,k", [(0.5, 2), (0.8, 5), (0.9, 10)])
def test_cost_per_iteration_is_the_papers_table(f: float, k: int) -> None:
    run = cost_run(f)
    assert run.super_batch_size == 16 * k
    one, uniform = step_cost(run, LEARNER, REFERENCE), step_cost(tiny_run(), LEARNER, None)
    unit = 3 * 16 * LEARNER.full
    assert one.cached_reuse / unit == pytest.approx(1 + (k - 1) / 3, rel=1e-12)
    assert one.cached / unit == pytest.approx(1 + k / 3, rel=1e-12)
    assert one.uncached - one.cached == 16 * k * REFERENCE.full
    assert uniform.cached == uniform.uncached == 3 * 8 * LEARNER.full
    printed = {2: ("1.33", "1.67"), 5: ("2.33", "2.67"), 10: ("4.00", "4.33")}
    assert (f"{one.cached_reuse / unit:.2f}", f"{one.cached / unit:.2f}") == printed[k]


def test_the_paper_scale_batch_is_not_one_short() -> None:
    run = tiny_run("jest", optim={"batch_size": 32768}, selection={"filter_ratio": 0.8})
    assert run.super_batch_size == 163840


@pytest.mark.parametrize("f,k", [(0.5, 2), (0.8, 5), (0.9, 10)])
def test_flexi_costs_half_of_each_resolution_and_scores_at_the_low_one(f: float, k: int) -> None:
    one = step_cost(cost_run(f, "flexi"), LEARNER, REFERENCE)
    r = LEARNER.low / LEARNER.full
    assert one.cached / (3 * 16 * LEARNER.full) == pytest.approx((1 + r) / 2 + r * k / 3, rel=1e-12)
    assert one.cached_reuse == one.cached, "the paper re-uses no low-resolution forward"


def test_the_papers_own_ratio_gives_the_papers_110_percent() -> None:
    """Its image tower at 32 px patches costs 28 % and the text tower of 16 tokens little."""
    paper = ForwardFlops(image_full=1000, image_low=280, text=0)
    one = step_cost(cost_run(0.8, "flexi"), paper, None)
    assert round(one.cached / (3 * 16 * paper.full), 3) == pytest.approx(
        0.64 + 0.28 * 5 / 3, abs=1e-3
    )


def test_easy_reference_scores_with_the_cache_alone() -> None:
    run = cost_run(0.8, "easy-reference")
    assert step_cost(run, LEARNER, REFERENCE).cached == 3 * 16 * LEARNER.full
    dial = {"filter_ratio": 0.8, "learner_weight": 0.0}
    same = tiny_run("jest", optim={"batch_size": 16}, selection=dial)
    assert step_cost(same, LEARNER, REFERENCE) == step_cost(run, LEARNER, REFERENCE)


def test_cabs_costs_what_uniform_does() -> None:
    run, uniform = cost_run(0.8, "cabs"), tiny_run(optim={"batch_size": 16})
    assert run.super_batch_size == 80
    assert step_cost(run, LEARNER, REFERENCE) == step_cost(uniform, LEARNER, None)
    assert run_cost(run, 7, LEARNER, None, 0.0, 10_000).charged == 7 * 3 * 16 * LEARNER.full
    assert set(per_iteration(run, LEARNER, None).values()) == {100.0}


def test_charged_adds_the_references_training_and_one_scoring_of_each_pair_seen() -> None:
    run = cost_run(0.8)
    few = run_cost(run, 3, LEARNER, REFERENCE, 5e6, pool_size=10_000)
    assert few.cached == 3 * step_cost(run, LEARNER, REFERENCE).cached
    assert few.charged - few.cached == 5e6 + 3 * 80 * REFERENCE.full
    many = run_cost(run, 500, LEARNER, REFERENCE, 5e6, pool_size=10_000)
    assert many.charged - many.cached == 5e6 + 10_000 * REFERENCE.full, "cached: once a pair"
    finetune = run_cost(cost_run(0.8, "finetune"), 500, LEARNER, REFERENCE, 5e6, 10_000)
    assert finetune.charged - finetune.cached == 5e6, "it reads weights, not embeddings"
    uniform = run_cost(tiny_run(), 7, LEARNER, None, 0.0, 10_000)
    assert uniform.charged == uniform.cached == uniform.cached_reuse == 7 * 24 * LEARNER.full


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_training_step_is_about_three_forwards(share: float) -> None:
    """Counted by torch over forward and backward of the default model.

    What differs: the patch embedding and the text input need no gradient of their inputs
    (about -1 %), the b x b logits are not in the unit (+1 %), and FlexiViT's fixed maps are paid
    once a batch here but once an example in the unit.
    """
    run = make_run({"selection": {"low_res_share": share}, "optim": {"augment": False}})
    patches = run.model.patch_sizes if share else run.model.patch_sizes[:1]
    model = build_model(run.model, run.data, patches, 0)
    pool = fake_pool(32)
    drawn = draw([pool], [32], 0, 0)
    tokens = torch.zeros(32, run.data.context_length, dtype=torch.long)
    candidates = dataclasses.replace(drawn, tokens=tokens)
    run = make_run({**run.model_dump(), "optim": {"batch_size": 32, "augment": False}})
    unit = step_cost(run, forward_flops(model, 32, run.data.context_length), None).cached
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        train_step(model, make_optimiser(model, run.optim), candidates, torch.arange(32), run, 0)
    assert counter.get_total_flops() == pytest.approx(unit, rel=0.05)


def test_counting_leaves_no_gradient_and_the_same_weights() -> None:
    model = tiny_model(tiny_run())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    forward_flops(model, 32, 8)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
