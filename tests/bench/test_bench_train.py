"""`jest bench train`: a row a contender, on the default tower and on a ViT, against its FLOPs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from jestcli.bench.training import CONTENDERS, bench_training

SMALL: dict[str, Any] = {
    "data": {"image_size": 16, "context_length": 8, "vocab_size": 600},
    "optim": {"batch_size": 16, "warmup": 2},
    "selection": {"n_chunks": 4},
}
TOWERS: dict[str, dict[str, Any]] = {
    "cnn": {"channels": [8, 16], "embed_dim": 8, "text_width": 8},
    "vit": {
        **{"tower": "vit", "embed_dim": 8, "width": 16, "layers": 1, "head_width": 8},
        **{"patch_sizes": [4, 8], "text_width": 16, "text_layers": 1},
    },
}


@pytest.mark.parametrize("tower", TOWERS)
def test_every_contender_is_measured_on_either_tower(tower: str, tmp_path: Path) -> None:
    told, out = io.StringIO(), tmp_path / "train"
    settings = SMALL | {"model": TOWERS[tower]}
    result = bench_training(settings, 2, torch.device("cpu"), out, Console(file=told, width=200))
    assert result["model"]["tower"] == tower
    rows = {row["name"]: row for row in result["rows"]}
    assert tuple(rows) == CONTENDERS
    assert result["super_batch_size"] == 80
    # JEST also scores 80 candidates, a forward pass each: a third of a trained pair's cost.
    assert rows["jest"]["counted_ratio"] == pytest.approx(1 + 5 / 3)
    assert rows["flexi"]["counted_ratio"] < rows["jest"]["counted_ratio"] * 0.7
    assert 0 < rows["jest"]["select_share"] < 1
    assert rows["uniform"]["select_share"] == rows["open_clip"]["select_share"] == 0
    assert rows["open_clip"]["counted_ratio"] == 1
    assert json.loads(out.with_suffix(".json").read_text()) == result
    assert "| open_clip |" in out.with_suffix(".md").read_text()
    assert "open_clip" in told.getvalue()
