"""How time and memory grow with B, b, d, the pool and the ranks: one plot, with exponents.

    OMP_NUM_THREADS=1 python -m tools.growth OUT     # OUT.json, OUT.md, OUT.png

A busy machine is refused unless `--busy` is given.

Everything is in processor seconds of one thread; medians of calls that take turns up and down a
series. The exponent is the slope of the last three points, both axes logarithmic. Shards of the
larger pools are hard links to ten files with real headers, so that their bytes stay in memory:
what is measured is the work of a processor, not of a disk.
"""

from __future__ import annotations

import ctypes
import io
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from jestcli.bench import save
from jestcli.bench.selection import peak_memory, random_pairs
from jestcli.bench.training import measure
from jestcli.data.shard_dataset import open_shards
from jestcli.data.sources import Loading
from jestcli.paper import theme
from jestcli.runs.environment import environment
from jestcli.selection import PairEmbeddings, select
from jestcli.utils.tables import Table
from tools import words_of

CPU = torch.device("cpu")
Row = dict[str, Any]


def in_turn(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median processor seconds of each call: up the list, down the list, and again."""
    found: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        for i in range(len(calls)) if number % 2 == 0 else reversed(range(len(calls))):
            start = time.process_time()
            calls[i]()
            found[i].append(time.process_time() - start)
    return [float(np.median(each)) for each in found]


def selections(what: str, shapes: list[tuple[int, int, int]], x: int) -> Row:
    """`select` at shapes (B, b, d); x: which of the three changes."""
    pairs = [tuple(random_pairs(B, d, seed, CPU) for seed in (0, 1)) for B, _, d in shapes]
    calls: list[Callable[[], torch.Tensor]] = [
        partial(select, *each, size=b) for each, (_, b, _) in zip(pairs, shapes, strict=True)
    ]
    seconds = in_turn(calls, 4)
    with mp.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        extra = fresh.map(_extra_bytes, shapes, chunksize=1)
    return {"what": what, "x": [s[x] for s in shapes], "seconds": seconds, "bytes": extra}


def _extra_bytes(shape: tuple[int, int, int]) -> int:
    """What `select` holds beside its inputs, in a process whose heap has nothing to use again."""
    torch.set_num_threads(1)
    (B, b, d), small = shape, [random_pairs(64, 8, seed, CPU) for seed in (0, 1)]
    select(*small, size=16)  # what the libraries allocate once
    pairs = [random_pairs(B, d, seed, CPU) for seed in (0, 1)]
    ctypes.CDLL(None).malloc_trim(0)  # glibc: what drawing the inputs left in the heap
    return peak_memory(lambda: select(*pairs, size=b), CPU)[1]


def steps(method: str, sizes: list[int]) -> Row:
    """A training step of `method` at sub-batches of these sizes."""
    rows = [
        measure({"optim": {"batch_size": b}}, 5, CPU, tuple(dict.fromkeys(("uniform", method))))
        for b in sizes
    ]
    return {
        "what": f"{method} step: b",
        "x": sizes,
        "seconds": [result["rows"][-1]["seconds"] for result in rows],
    }


def write_shards(folder: Path, files: int = 10, pairs: int = 10_000) -> list[Path]:
    """Shards in img2dataset's layout whose images are 300 bytes that nobody decodes."""
    made = []
    for number in range(files):
        made.append(folder / f"seed{number}.tar")
        with tarfile.open(made[-1], "w") as tar:
            for i in range(pairs):
                key = f"{number * pairs + i:09d}"
                for kind, content in (("jpg", b"\xff\xd8\xff" + bytes(300)), ("txt", b"a caption")):
                    member = tarfile.TarInfo(f"{key}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return made


def pools(sizes: list[int]) -> list[Row]:
    """Indexing, opening again, and finding the places of a first super-batch."""
    first: list[float] = []
    again: list[float] = []
    places: list[float] = []
    disk: list[float] = []
    with tempfile.TemporaryDirectory() as root:
        seeds = write_shards(Path(root))
        for size in sizes:
            pool, cache = Path(root) / f"pool{size}", Path(root) / f"cache{size}"
            pool.mkdir()
            shards, each = max(1, size // 10_000), min(size, 10_000)
            if each < 10_000:
                seeds_here = write_shards(pool, 1, each)
                seeds_here[0].rename(pool / "00000.tar")
            for number in range(shards if each == 10_000 else 0):
                os.link(seeds[number % len(seeds)], pool / f"{number:05d}.tar")
            loading = Loading(workers=0, cache=cache)

            def open_pool(pool: Path = pool, loading: Loading = loading) -> Any:
                return open_shards("pool", (str(pool),), loading, record=pool / "shards.json")

            (seconds,) = in_turn([open_pool], 1)
            first.append(seconds)
            (seconds,) = in_turn([open_pool], 1)
            again.append(seconds)
            order = open_pool().order(0, "train")
            start = time.process_time()
            order.rows(0, 1_280)
            places.append(time.process_time() - start)
            kept = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
            disk.append(kept / size)
    return [
        {"what": "index a pool: pairs", "x": sizes, "seconds": first, "bytes_a_pair": disk},
        {"what": "open it again: pairs", "x": sizes, "seconds": again},
        {"what": "places of 1,280 pairs: pairs of the pool", "x": sizes, "seconds": places},
    ]


def _rank(rank: int, world: int, folder: str, B: int, b: int, d: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world
    )
    whole, own = [random_pairs(B, d, seed, CPU) for seed in (0, 1)], B // world
    mine = slice(rank * own, (rank + 1) * own)
    parts = [PairEmbeddings(p.image[mine], p.text[mine], p.scale, p.bias) for p in whole]
    seconds = in_turn([lambda: select(*parts, size=b, group=dist.group.WORLD)], 5)[0]
    Path(folder, f"{world}-{rank}").write_text(str(seconds))
    dist.destroy_process_group()


def ranks(worlds: list[int], B: int, b: int, d: int) -> Row:
    """The same selection over more ranks: processor seconds of all ranks together."""
    with tempfile.TemporaryDirectory() as folder:
        for world in worlds:
            mp.spawn(_rank, (world, folder, B, b, d), nprocs=world)
        seconds = [
            sum(float(Path(folder, f"{world}-{rank}").read_text()) for rank in range(world))
            for world in worlds
        ]
    return {"what": f"select over ranks, all together (B = {B:,})", "x": worlds, "seconds": seconds}


def exponent(row: Row) -> float:
    """The slope of the last three points."""
    x, y = np.log(row["x"][-3:]), np.log(np.maximum(row["seconds"][-3:], 1e-9))
    return float(np.polyfit(x, y, 1)[0])


def draw(rows: list[Row], note: str, path: Path) -> None:
    with theme.themed(theme.LIGHT):
        figure, top = theme.frame("How time grows", "", note, 4.2, theme.LIGHT)
        axes, ends = theme.place(figure, 0.75, top, 4.6, 3.6), []
        axes.set_xscale("log")
        axes.set_yscale("log")
        for number, row in enumerate(rows):
            colour = f"C{number}"
            axes.plot(row["x"], row["seconds"], "o-", color=colour)
            words = f"{row['what']}: exponent {row['exponent']:.2f}"
            ends.append((row["x"][-1], row["seconds"][-1], words, colour))
        axes.set_xlabel("what is named beside each line")
        axes.set_ylabel("processor seconds")
        low, high = np.log10(axes.get_ylim())
        order = theme.spread([(np.log10(e[1]) - low) / (high - low) for e in ends], 0.05, 0, 1)
        for (x, y, words, colour), at in zip(ends, order, strict=True):
            hair = {"arrowstyle": "-", "color": colour, "lw": 0.4}
            how: Any = {"textcoords": "axes fraction", "va": "center", "size": 7.2}
            axes.annotate(words, (x, y), (1.03, at), color=colour, arrowprops=hair, **how)
        figure.savefig(path, dpi=theme.DPI // 2, metadata={"Software": None})


def markdown(rows: list[Row], note: str) -> str:
    cells = []
    for row in rows:
        memory = ""
        if "bytes" in row:
            memory = " … ".join(f"{row['bytes'][k] / 2**20:,.0f}" for k in (0, -1)) + " MiB"
        if "bytes_a_pair" in row:
            memory = f"{row['bytes_a_pair'][-1]:.0f} bytes of index a pair"
        span = f"{row['x'][0]:,} … {row['x'][-1]:,}"
        ends = f"{row['seconds'][0]:.3g} … {row['seconds'][-1]:.3g}"
        cells.append((row["what"], span, ends, f"{row['exponent']:.2f}", memory))
    head = ("what grows", "from … to", "seconds at the ends", "exponent", "memory")
    table = Table("", head, cells).markdown()
    return f"# How time and memory grow\n\n{note}\n\n{table}\n"


def main(out: Path, small: bool = False) -> None:
    torch.set_num_threads(1)
    sizes = [2_560, 5_120, 10_240] if small else [1_280, 2_560, 5_120, 10_240, 20_480, 40_960]
    rows = [selections("select: B, b = B/5, d = 64", [(B, B // 5, 64) for B in sizes], 0)]
    rows.append(
        selections("select: b, B = 10,240", [(10_240, b, 64) for b in (256, 512, 1_024, 2_048)], 1)
    )
    rows.append(
        selections("select: d, B = 5,120", [(5_120, 1_024, d) for d in (64, 256, 1_024)], 2)
    )
    rows.append(ranks([1, 2, 4], 5_120 if small else 20_480, 1_024, 64))
    batches = [32, 64] if small else [32, 64, 128, 256]
    rows += [steps(method, batches) for method in ("uniform", "jest", "flexi")]
    rows += pools([1_000, 10_000, 100_000] if small else [10_000, 100_000, 1_000_000, 10_000_000])
    rows = [row | {"exponent": exponent(row)} for row in rows]
    about = environment()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    note = (
        f"Processor seconds of one thread, {about['cpu']}, torch {torch.__version__}, commit "
        f"{about['commit']}; load {os.getloadavg()[0]:.1f}; random unit embeddings, 16 chunks; "
        f"steps of the default tower at random images; the process held at most {peak:.1f} GiB."
    )
    save({"rows": rows, "note": note}, markdown(rows, note), out)
    draw(rows, note, out.with_suffix(".png"))


if __name__ == "__main__":
    words = words_of(sys.argv)
    main(Path(words[0]), "--small" in words)
