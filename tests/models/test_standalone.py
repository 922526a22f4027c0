"""The exported small towers, loaded with PyTorch alone, compute what the suite's do."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch
from test_cnn import cnn_run

from jestcli.data.tokens import small_tokenizer
from jestcli.runs.export import _export_small
from jestcli.runs.trained import new_learner
from jestcli.training.augment import normalise

TEXTS = ["a cat", "Two dogs' house, 24px", "naïve café_icon", "", "arrow-up &amp; down " * 9]


def test_an_exported_model_is_the_model(tmp_path: Path) -> None:
    run = cnn_run(selection={"low_res_share": 0.5})
    model = new_learner(run)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    model.train()(normalise(images), torch.ones(5, 8, dtype=torch.long), n_low=2)  # move statistics
    model.eval()
    said = _export_small(run, model, tmp_path)
    assert "jest_model.load" in said
    spec = importlib.util.spec_from_file_location("jest_model", tmp_path / "jest_model.py")
    assert spec is not None and spec.loader is not None
    jest_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(jest_model)
    there = jest_model.load(tmp_path)
    tokens = small_tokenizer(run.data.vocab_size, run.data.context_length)(TEXTS)
    assert torch.equal(there.tokenizer(TEXTS), tokens)
    assert torch.allclose(
        there.encode_image(images), model.encode_image(normalise(images)), atol=1e-6
    )
    assert torch.allclose(there.encode_text(TEXTS), model.encode_text(tokens), atol=1e-6)
    assert there.scale == float(model.scale) and there.bias == float(model.bias)


def test_the_module_needs_torch_alone(tmp_path: Path) -> None:
    run = cnn_run()
    _export_small(run, new_learner(run).eval(), tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import jest_model; "
        "m = jest_model.load(sys.argv[1]); print(tuple(m.encode_text(['a']).shape)); "
        "print([x for x in ('jestcli', 'open_clip', 'timm') if x in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:2] == ["(1, 8)", "[]"], done.stderr
