"""The counter-based noise: a pure function, strictly inside (0, 1), Gumbel."""

import pytest
import torch

from jestcli.selection.noise import _mix, _mixed, _signed, gumbel, uniform

INDEX = torch.arange(100_000)


def test_splitmix64_reference_values():
    """First outputs of SplitMix64 seeded with 1234567 (the published test vector)."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + golden * n) % 2**64 for n in (1, 2, 3)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    got = [x % 2**64 for x in _mix(signed).tolist()]
    assert got == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("word", [0, 1, -1, 1234567, 2**63, 2**64 - 1, 2**70 + 5, -(2**65) - 3])
def test_one_number_is_mixed_as_a_tensor_is(word: int):
    assert _mixed(word) == int(_mix(torch.tensor(_signed(word)))) % 2**64


def test_a_pure_function_of_its_counters():
    base = uniform(1, 2, 3, INDEX)
    assert torch.equal(uniform(1, 2, 3, INDEX[500:600]), base[500:600])
    assert torch.equal(uniform(1, 2, 3, INDEX.flip(0)), base.flip(0))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (-1, 2, 3), (2**70, 2, 3)):
        assert torch.corrcoef(torch.stack([base, uniform(*other, INDEX)]))[0, 1].abs() < 0.02
        assert not (uniform(*other, INDEX) == base).any()


def test_uniform_and_gumbel_moments():
    u = torch.cat([uniform(0, step, draw, INDEX) for step in range(3) for draw in range(3)])
    assert u.min() > 0 and u.max() < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=2e-3)
    assert float(u.var()) == pytest.approx(1 / 12, abs=5e-4)
    shifted = torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1]
    assert abs(float(shifted)) < 5e-3
    g = gumbel(0, 0)(0, INDEX)
    assert g.dtype == torch.float64 and g.isfinite().all()
    assert float(g.mean()) == pytest.approx(0.5772, abs=0.015)
    assert float(g.var()) == pytest.approx(1.6449, abs=0.04)


def test_draws_computed_together_are_those_computed_alone():
    few, many = torch.arange(5, 105), torch.arange(5000)
    noise = gumbel(3, 4)
    for draw in (0, 15, 16, 3):  # across the block of draws and back
        for index in (few, many, few.flip(0)):
            expected = -(-uniform(3, 4, draw, index).log()).log()
            assert torch.equal(noise(draw, index), expected)


def test_the_extreme_hashes_stay_inside():
    """All-zero and all-one hashes: the smallest and the largest number that can occur."""
    for bits in (0, (1 << 52) - 1):
        u = (torch.tensor(bits).double() + 0.5) / (1 << 52)
        assert 0 < u < 1
        assert (-(-u.log()).log()).isfinite()
