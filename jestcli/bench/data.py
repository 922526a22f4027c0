"""`jest bench data`: what the loader gives against what training asks for.

Super-batches mean that many more pairs are decoded than trained on: at f = .8 five for each. The
loader is measured on real shards (the user's, or JPEGs drawn for the purpose) by itself, decoded in
full and reduced; the demand is the super-batch over the time of a training step.
"""

from __future__ import annotations

import io
import os
import platform
import tempfile
import time
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jestcli.bench import save
from jestcli.data.dataset import Transform
from jestcli.data.loader import Source, SuperBatchLoader
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.data.tokens import small_tokenizer
from jestcli.runs.environment import environment
from jestcli.utils.console import Terminal
from jestcli.utils.tables import Table

SHARDS, SAMPLES, SIDE = 4, 64, (512, 384)  # of the drawn shards; pixels


def draw_shards(folder: Path) -> str:
    """JPEG shards in img2dataset's layout: smooth pictures with some noise, quality 90."""
    from webdataset.writer import TarWriter

    rng, text = np.random.default_rng(0), b"a picture of something"
    for shard in range(SHARDS):
        with TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as tar:
            for number in range(SAMPLES):
                rough = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
                smooth = np.asarray(rough.resize(SIDE, Image.Resampling.BICUBIC))
                pixels = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255)
                picture = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(picture, "JPEG", quality=90)
                key = f"{shard:05d}{number:04d}"
                tar.write({"__key__": key, "jpg": picture.getvalue(), "txt": text})
    return str(folder)


def rate(
    shards: tuple[str, ...], view: Transform, batch: int, workers: int, seconds: float, cache: Path
) -> tuple[float, float | None]:
    """Pairs a second that a loader of so many workers gives, its start apart. Without workers also
    pairs a processor second: what one core gives, whatever runs beside it."""
    loading = Loading(workers=workers, cache=cache, max_faults=1.0)
    dataset = open_shards("pool", shards, loading)
    source = Source(dataset, dataset.order(0, "pool"), batch)
    with closing(SuperBatchLoader([source], view, loading)) as loader:
        loader(0)
        started, used, step = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - started < seconds:
            step += 1
            loader(step)
        pairs, used = step * batch, time.process_time() - used
        return pairs / (time.perf_counter() - started), None if workers else pairs / used


def bench_data(
    shards: tuple[str, ...] = (),
    size: int = 224,
    scoring_size: int = 112,
    batch: int = 64,
    workers: tuple[int, ...] = (0, 1, 2),
    seconds: float = 3.0,
    super_batch: int | None = None,
    step_seconds: float | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure, print and, if `out` is given, write the numbers.

    Args:
        shards: sources as in data.train; without any, shards are drawn in a temporary folder.
        size, scoring_size: pixels trained on, and scored at where that is reduced.
        batch, seconds: of each measurement: pairs drawn at a time, and how long.
        super_batch, step_seconds: what training asks for: so many pairs in so many seconds (both
            are in a run's log, or from `jest bench train`); without, no demand is printed.
    """
    console, tokenizer, rows = Terminal(), small_tokenizer(8192, 16), []
    with tempfile.TemporaryDirectory(prefix="jest-bench-") as name:
        sources, cache = shards or (draw_shards(Path(name)),), Path(name) / "cache"
        for (decode, reduced), count in product(
            {"full": None, "reduced": scoring_size}.items(), workers
        ):
            view = Transform(size, tokenizer, reduced)
            given, core = rate(sources, view, batch, count, seconds, cache)
            speed = {"pairs_per_second": given, "pairs_per_core_second": core}
            rows.append({"decode": decode, "workers": count, **speed})
    demand = super_batch / step_seconds if super_batch and step_seconds else None
    result = {
        "shards": list(shards) or f"drawn: JPEG, {SIDE[0]} x {SIDE[1]}, quality 90",
        **{"size": size, "scoring_size": scoring_size, "batch": batch, "cores": os.cpu_count()},
        **{"load_average": os.getloadavg()[0], "machine": platform.machine()},
        **{"torch": torch.__version__, "commit": environment()["commit"] or "unknown"},
        **{"rows": rows, "demand_pairs_per_second": demand},
    }
    console.print(table(result))
    console.print(verdict(result))
    for path in save(result, markdown(result), out):
        console.print(f"wrote {path}")
    return result


def table(result: dict[str, Any]) -> Table:
    """Pairs a second by decode and workers."""
    demand, rows = result["demand_pairs_per_second"], []
    for row in result["rows"]:
        given, core = row["pairs_per_second"], row["pairs_per_core_second"]
        share = f"{100 * given / demand:.0f} %" if demand else "-"
        alone = f"{core:,.0f}" if core is not None else ""
        rows.append((row["decode"], str(row["workers"]), f"{given:,.0f}", alone, share))
    title = f"The loader at {result['size']} px (reduced: {result['scoring_size']} px)"
    head = ("decode", "workers", "pairs/s", "pairs/core second", "of the demand")
    return Table(title, head, rows)


def verdict(result: dict[str, Any]) -> str:
    """One line: whether the loader keeps up with what training asks for."""
    best = max(result["rows"], key=lambda row: row["pairs_per_second"])
    given, demand = best["pairs_per_second"], result["demand_pairs_per_second"]
    what = f"{given:,.0f} pairs/s ({best['decode']}, {best['workers']} workers)"
    if demand is None:
        return f"at best {what}; name --super-batch and --step-seconds to compare with training"
    if given >= demand:
        return f"the loader keeps up: at best {what}, training asks for {demand:,.0f}"
    return (
        f"the loader is the bottleneck: at best {what}, training asks for {demand:,.0f}; "
        f"it waits {100 * (1 - given / demand):.0f} % of the time"
    )


def markdown(result: dict[str, Any]) -> str:
    """The table for a reader of the repository."""
    return (
        f"# The loader\n\n`jest bench data`: {result['shards']}, to {result['size']} px (reduced: "
        f"{result['scoring_size']} px). {result['cores']} cores, load average "
        f"{result['load_average']:.1f} when it was measured.\n\n"
        "Pairs a core second are of processor time: what one core gives, whatever runs beside it."
        f"\n\n{table(result).markdown()}\n\n{verdict(result)}\n"
    )
