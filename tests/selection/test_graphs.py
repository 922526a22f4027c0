"""What a CUDA graph records, run as it is on a CPU; and the graph itself where there is a GPU."""

import copy

import pytest
import torch
from selection_oracle import make_pairs

from jestcli.selection import PairEmbeddings, distributed, graphs, select
from jestcli.selection.distributed import SINGLE_PROCESS
from jestcli.selection.joint import independent, joint
from jestcli.selection.noise import gumbel
from jestcli.selection.task import Task

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


def both(dtype=torch.float64, device="cpu", first=1):
    pairs = [make_pairs(90, 16, seed=seed, dtype=dtype) for seed in (first, first + 1)]
    return [each.to(torch.device(device)) for each in pairs]


@pytest.mark.parametrize("loss", ["sigmoid", "softmax", "softmax_negatives"])
@pytest.mark.parametrize("sampler", [joint, independent])
@pytest.mark.parametrize("criterion", ["learnability", "easy_reference"])
def test_what_is_recorded_picks_as_select_does(loss, sampler, criterion):
    more = (gumbel(5, 6), 1, SINGLE_PROCESS)
    task = Task(*both(first=7), 31, criterion, loss, 4, *more)  # other numbers than are filled in
    learner, reference = both()
    learner = PairEmbeddings(learner.image, learner.text, torch.tensor([12.5]), torch.tensor(-3.0))
    inputs = graphs.Inputs.like(task)
    inputs.fill([learner, reference], seed=3, step=11)
    index, good = inputs.run(task, sampler)
    settings = {"size": 31, "n_chunks": 4, "loss": loss, "criterion": criterion}
    name = sampler.__name__
    expected = select(learner, reference, sampler=name, seed=3, step=11, **settings)
    assert good and torch.equal(index, expected)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: PairEmbeddings(p.image * 2, p.text, p.scale, p.bias),
        lambda p: PairEmbeddings(p.image, p.text * float("nan"), p.scale, p.bias),
        lambda p: PairEmbeddings(p.image, p.text, -1.0, p.bias),
        lambda p: PairEmbeddings(p.image, p.text, float("nan"), p.bias),
        lambda p: PairEmbeddings(p.image, p.text, p.scale, float("inf")),
        lambda p: PairEmbeddings(p.image, p.text, 1e35, p.bias),
    ],
)
def test_inputs_that_select_would_refuse_are_not_good(spoil, monkeypatch):
    monkeypatch.setattr(distributed, "_recording", lambda _: True)  # nothing is read then
    learner, reference = both()
    more = (gumbel(0, 0), 1, SINGLE_PROCESS)
    task = Task(learner, reference, 9, "learnability", "sigmoid", 2, *more)
    inputs = graphs.Inputs.like(task)
    inputs.fill([learner, reference], 0, 0)
    assert inputs.run(task, joint)[1]
    inputs.fill([learner, spoil(reference)], 0, 0)
    assert not inputs.run(task, joint)[1]


def test_no_name_on_a_cpu_for_wrong_things_or_for_many_candidates():
    learner, reference = both()
    assert graphs.key([learner, reference], (9,)) is None
    assert graphs.key([None, "pairs"], (9,)) is None
    assert graphs.key([None, None], ([],)) is None


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_replayed_picks_are_those_computed(monkeypatch, dtype, loss):
    for name in ("_seen", "_recorded"):
        monkeypatch.setattr(graphs, name, copy.copy(getattr(graphs, name)))
    graphs._recorded.clear()
    graphs._seen.clear()
    calls = []
    for step in range(6):
        pairs = both(dtype, "cuda", first=10 * step)
        scale = torch.tensor(10.0 + step, device="cuda")
        pairs[0] = PairEmbeddings(pairs[0].image, pairs[0].text, scale, pairs[0].bias)
        settings = {"size": 31, "n_chunks": 4, "loss": loss, "seed": 2, "step": step}
        calls.append((pairs, settings, select(*pairs, **settings)))
    assert len(graphs._recorded) == 1 and all(graphs._recorded.values())
    for pairs, settings, picks in calls:
        own = gumbel(2, settings["step"])  # a noise of one's own is never recorded
        assert torch.equal(picks, select(*pairs, **settings, noise=own))
    pairs, settings, _ = calls[0]
    bad = PairEmbeddings(pairs[0].image * 3, pairs[0].text, 10.0, -10.0)
    with pytest.raises(ValueError, match="L2-normalised"):
        select(bad, pairs[1], **settings)
