"""Run by test_kernels in Triton's interpreter: the fused kernel against the torch tiles."""

import torch
from selection_oracle import make_pairs

from jestcli.selection import blocks, kernels, select

torch.set_num_threads(1)
kernels.BLOCK_MEMBERS, kernels.BLOCK_CANDIDATES, kernels.BLOCK_DIM = 16, 32, 32
assert kernels.usable(torch.zeros(1))
assert not kernels.usable(torch.zeros(1).double())
# bfloat16 is left out: the interpreter computes in NumPy, which has no such type
for dtype, dim in ((torch.float32, 24), (torch.float16, 16)):
    pairs = make_pairs(45, dim, seed=0, dtype=dtype)
    members, candidates = pairs.image[:21], pairs.text
    for scale, bias in ((10.0, -10.0), (30.0, 25.0), (200.0, 0.0)):
        offset = torch.full((21,), bias)
        wide = members.double(), candidates.double()
        got = kernels.sum_softplus(members, candidates, scale, offset)
        expected = blocks.sum_softplus(*wide, scale, offset)
        assert torch.allclose(got.double(), expected, rtol=2e-5, atol=1e-6), (dtype, scale)
        got = kernels.log_sum_exp(members, candidates, scale)
        expected = blocks.log_sum_exp(*wide, scale)
        assert torch.allclose(got.double(), expected, rtol=2e-5, atol=1e-5), (dtype, scale)
learner, reference = (make_pairs(45, 16, seed=s, dtype=torch.float32) for s in (1, 2))
double = [make_pairs(45, 16, seed=s) for s in (1, 2)]  # float64: the torch path
for loss in ("sigmoid", "softmax", "softmax_negatives"):
    fused = select(learner, reference, size=20, n_chunks=3, loss=loss)
    assert torch.equal(fused, select(*double, size=20, n_chunks=3, loss=loss)), loss
print("ok")
