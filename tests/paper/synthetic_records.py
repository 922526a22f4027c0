"""Made-up runs of realistic shape: run directories as the trainer writes them, and records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jestcli.config import METHODS, make_run, merge, needs_reference
from jestcli.paper.records import Header, Record, collect

HEADER = Header("icons and emoji (not ImageNet or COCO)", "synthetic")
TESTS = {  # name: (test images, chance, share of the mean that it scores)
    "objects": (1362, 1 / 269, 1.1),
    "objects_fewshot": (486, 1 / 231, 1.5),
    "tagged_i2t": (1321, 1 / 1321, 0.5),
    "tagged_t2i": (1321, 1 / 1321, 0.45),
    "emoji_3d": (1562, 1 / 1562, 0.7),
    "emoji_ink": (1520, 1 / 1520, 0.4),
    "animals": (315, 1 / 158, 1.6),
    "food": (257, 1 / 130, 1.75),
}
FULL, LOW = 51_900_000, 20_000_000
# name: (method, steps, best, speed, late decay)
METHOD_OF = {
    "uniform-long": ("uniform", 12000, 0.19, 1.0, 0.0),
    "uniform": ("uniform", 3000, 0.19, 1.0, 0.0),
    "jest": ("jest", 3000, 0.225, 3.4, 0.0),
    "flexi": ("flexi", 3000, 0.215, 3.0, 0.0),
    "jest++": ("jest", 3000, 0.24, 3.9, 0.0),
    "flexi++": ("flexi", 3000, 0.228, 3.6, 0.0),
    "curated": ("curated", 3000, 0.15, 8.0, 0.03),
    "mixed": ("mixed", 3000, 0.19, 3.0, 0.0),
    "finetune": ("finetune", 3000, 0.17, 6.0, 0.0),
    "filtered": ("filtered", 3000, 0.16, 2.6, 0.0),
    "reference": ("curated", 1500, 0.14, 8.0, 0.0),
    "reference size@9": ("curated", 2500, 0.165, 7.0, 0.0),
    "reference++": ("curated", 2500, 0.165, 7.0, 0.0),
}


def write_run(
    folder: Path, name: str, seed: int, max_images: int = 2000, speed: float = 1.0
) -> Path:
    """A finished run directory with a plausible learning curve."""
    method, steps, best, rate, decay = METHOD_OF.get(name, ("independent", 3000, 0.2, 2.5, 0.0))
    rng = np.random.default_rng([seed, sum(map(ord, name))])
    settings: dict[str, Any] = merge(
        METHODS[method],
        {"seed": seed, "optim": {"steps": steps}, "evaluation": {"max_images": max_images}},
    )
    if needs_reference(method):
        settings["reference"] = merge(METHODS["curated"], {"seed": seed, "optim": {"steps": 1500}})
    run = make_run(settings)
    folder.mkdir(parents=True)
    b, super_b = run.optim.batch_size, run.super_batch_size
    train = 3 * b * (FULL if not run.selection.low_res_share else (FULL + LOW) / 2)
    one = LOW if run.selection.low_res_scoring else FULL
    scored = super_b * one if super_b > b else 0
    once = 1500 * 3 * b * FULL + 350_000 * FULL if needs_reference(method) else 0.0

    def flops(step: int) -> dict[str, float]:
        cached = step * (train + scored)
        reuse = step * b * FULL if scored and one == FULL else 0
        uncached = cached + step * (super_b * FULL if scored else 0)
        return {
            "cached_reuse": cached - reuse,
            "cached": cached,
            "uncached": uncached,
            "charged": cached + once,
        }

    def seconds(step: int) -> dict[str, float]:
        return {
            "draw": 0.004 * step * speed,
            "choose": 6e-11 * scored * step * speed * 0.8,
            "update": 6e-11 * train * step * speed,
        }

    level = rng.normal(0, 0.004)

    def scores(step: int, final: bool) -> dict[str, dict[str, Any]]:
        x = rate * step / 3000
        anneal = 0.9 + 0.1 * (step / steps) ** 2
        mean = (best + level) * (1 - math.exp(-(x**0.75))) * anneal - decay * step / steps
        out = {}
        for task, (n, chance, share) in TESTS.items():
            m = n if final else min(n, max_images)
            p = float(np.clip(chance + mean * share + rng.normal(0, 0.004), 0, 1))
            row: dict[str, Any] = {
                "score": p,
                "chance": chance,
                "n": m,
                "stderr": math.sqrt(p * (1 - p) / m),
            }
            if task.startswith("tagged"):
                kind = "text" if task.endswith("i2t") else "image"
                row[f"{kind}_retrieval_recall@1"] = p
            else:
                row["logprob"] = math.log(chance) * (1 - 2 * mean)
                row["nats"] = -math.log(chance) * 2 * mean
                if final:
                    right = rng.random(m) < p
                    row |= {"hits": np.packbits(right).tobytes().hex(), "score": right.mean()}
            out[task] = row
        return out

    lines: list[dict[str, Any]] = []
    evaluate_at = {round(x) for x in np.geomspace(0.05 * steps, steps, 14)} | {steps}
    for step in sorted({1, *range(60, steps + 1, 60)} | evaluate_at):
        cost = {"seconds": seconds(step), "flops": flops(step)}
        if step % 60 == 0 or step == 1:
            drift = 1 - math.exp(-step / 800)
            both = [
                0.5 - 0.4 * drift + rng.normal(0, 0.02),
                1.6 - 0.7 * drift + rng.normal(0, 0.04),
            ]
            lines.append(
                {
                    "step": step,
                    "loss": 9 * math.exp(-step / 300) + 2,
                    "lr": 1e-3,
                    "learnability": both if scored else [None, None],
                    **cost,
                }
            )
        if step in evaluate_at:
            last = scores(step, step == steps)
            lines.append({"step": step, "scores": last, **cost})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "config.json").write_text(json.dumps({"label": name, **run.model_dump(mode="json")}))
    mean = sum(row["score"] for row in last.values()) / len(last)
    done = {
        "label": name,
        "scores": last,
        "mean": mean,
        "steps": steps,
        "examples": steps * b,
        "flops": flops(steps),
        "flops_per_example": {
            "image_full": FULL - 8_000_000,
            "image_low": LOW - 8_000_000,
            "text": 8_000_000,
        },
    }
    (folder / "done.json").write_text(json.dumps(done))
    environment = {
        "commit": "0123456789ab",
        "cpu": "Example(R) Processor",
        "cores": 2,
        "threads": 1,
        "packages": {"torch": "2.15.0"},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def many(folder: Path, names: list[str], seeds: list[int], **more: Any) -> list[Record]:
    """Records of made-up runs."""
    return [
        collect(write_run(folder / f"{name}-{seed}", name, seed, **more), name, seed)
        for name in names
        for seed in seeds
    ]


def tiny(name: str, seed: int, scores: list[float], examples: list[int] | None = None) -> Record:
    """A minimal record with one benchmark, 1,000 items at chance 0.01, batch of 1."""
    examples = examples or [10 ** (i + 1) for i in range(len(scores))]
    curve = [
        {
            "step": x,
            "examples": x,
            "seen": x,
            "seconds": 2.0 * x,
            "flops": {
                "cached_reuse": 3.0 * x,
                "cached": 4.0 * x,
                "uncached": 5.0 * x,
                "charged": 4.0 * x + 100,
            },
            "mean": s,
            "mean_chance_corrected": (s - 0.01) / 0.99,
            "logprob": None,
            "scores": {"task": s},
        }
        for x, s in zip(examples, scores, strict=True)
    ]
    last, steps = scores[-1], examples[-1]
    flops = curve[-1]["flops"]
    return {
        "name": name,
        "seed": seed,
        "digest": f"{name}{seed}",
        "label": name,
        "settings": {},
        "steps": steps,
        "batch_size": 1,
        "super_batch_size": 1,
        "benchmarks": {"task": {"chance": 0.01, "n": 1000, "n_curve": 1000, "retrieval": False}},
        "retrieval_rescaled": False,
        "curve": curve,
        "final": {
            "mean": last,
            "mean_chance_corrected": (last - 0.01) / 0.99,
            "logprob": None,
            "scores": {"task": {"score": last, "chance": 0.01, "n": 1000, "stderr": 0.01}},
        },
        "flops_per_iteration": {k: v / steps for k, v in flops.items()},  # type: ignore[attr-defined]
        "uniform_flops_per_iteration": 3.0,
        "seconds": {"update": 2.0 * steps},
        "training": {"step": [], "loss": [], "super": [], "sub": []},
        "environment": {"cpu": "Example", "cores": 2, "threads": 1, "torch": "2", "commit": "c"},
    }
