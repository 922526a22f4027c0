"""The exported small towers, loaded with PyTorch alone, compute what the suite's do."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cnn import cnn_run

from jestcli.config import ConfigError
from jestcli.data.tokens import small_tokenizer
from jestcli.runs.export import _export_small, export
from jestcli.runs.trained import MODEL, new_learner
from jestcli.runs.workspace import Workspace, start_folder
from jestcli.training.augment import normalise
from jestcli.training.checkpoint import save_model, write_json

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


def test_open_clip_is_not_named_where_it_cannot_load_the_model(tmp_path: Path) -> None:
    """A convolutional tower has a form of its own; another that is asked for is refused."""
    run, workspace = cnn_run(), Workspace(tmp_path / "data", tmp_path / "runs")
    folder, out = workspace.folder(run), tmp_path / "out"
    folder.mkdir(parents=True)
    start_folder(folder, run, "cnn")
    save_model(folder / MODEL, new_learner(run).eval(), {})
    write_json(folder / "done.json", {"scores": {}})
    for patch, form in ((8, None), (None, "hf"), (None, "open_clip")):
        with pytest.raises(ConfigError, match="which open_clip cannot load"):
            export(folder, out, patch, form, workspace)
    assert not out.exists()
    code = export(folder, out, None, None, workspace)
    card = (out / "README.md").read_text()
    for words in (code, card):
        assert "import jest_model" in words and "import open_clip" not in words
    assert "library_name: pytorch" in card
