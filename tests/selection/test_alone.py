"""The selection in a loop of one's own: it imports torch, numpy and nothing else."""

from __future__ import annotations

import subprocess
import sys

SINGLE_PROCESS = """
import sys

STANDARD = {*sys.stdlib_module_names, "jestcli", "torch", "numpy"}


class Nothing:
    \"\"\"What torch and numpy did not bring in themselves cannot be imported.\"\"\"

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in STANDARD:
            raise ModuleNotFoundError(f"{name} is not there", name=name)


import numpy, torch

brought = {name.partition(".")[0] for name in sys.modules}
for name in "open_clip typer pydantic yaml rich wandb webdataset scipy PIL matplotlib".split():
    assert name not in brought, f"torch imports {name} itself: this test shows nothing"
STANDARD |= brought
sys.meta_path.insert(0, Nothing())

from jestcli.selection import PairEmbeddings, select

g = torch.Generator().manual_seed(0)
image, text, ref_image, ref_text = (
    torch.nn.functional.normalize(torch.randn(64, 8, generator=g), dim=-1) for _ in range(4)
)
learner = PairEmbeddings(image, text, torch.tensor(10.0), torch.tensor(-10.0))
reference = PairEmbeddings(ref_image, ref_text, torch.tensor(10.0), torch.tensor(-10.0))
for sampler in ("joint", "independent", "topk", "uniform"):
    index = select(learner, reference, size=16, seed=0, step=1, sampler=sampler, n_chunks=4)
    assert len(set(index.tolist())) == 16
print(sorted(name for name in sys.modules if name.startswith("jestcli")))
"""


def test_the_selection_needs_torch_and_numpy_alone() -> None:
    ran = subprocess.run([sys.executable, "-c", SINGLE_PROCESS], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "jestcli.selection" in ran.stdout and "jestcli.config" not in ran.stdout
