"""What a forecast leaves behind: forecast.json, one HTML page, a configuration to start from."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from jestcli.config import Run
from jestcli.data.contact_sheet import contact_sheet
from jestcli.data.decoded import DecodedDataset
from jestcli.forecast.answer import AXES, Answer, Standing, label, sentences
from jestcli.forecast.pictures import as_svg, draw_map, draw_races, draw_scores
from jestcli.forecast.races import RECIPES, Races
from jestcli.forecast.sample import Sample
from jestcli.forecast.seen import Seen
from jestcli.forecast.share import BOUND, ESTIMATE, Share
from jestcli.paper.experiment import Job
from jestcli.paper.plan import make_plans
from jestcli.paper.records import Record
from jestcli.paper.saving import LESS, MORE
from jestcli.runs.methods import default_run
from jestcli.utils import catalogue
from jestcli.utils.io import save_bytes, save_text

if TYPE_CHECKING:
    from jestcli.forecast.run import Asked

METHOD = {name: recipe["method"] for name, recipe in RECIPES.items()}


# --- words ----------------------------------------------------------------------------------------


def share_sentence(share: Share) -> str:
    """What the share is, and what kind of number."""
    value, low, high = (100 * x for x in asdict(share.looks_wrong).values())
    number = f"{value:.0f} % of the pool [{low:.0f}, {high:.0f}]"
    right = f"of curated pairs, which are right, {100 * share.curated:.0f} % do"
    if share.kind == ESTIMATE:
        return (
            f"The reference cannot tell {number} from wrong captions ({right}). It knows pairs "
            "like the pool's, so this is an estimate of how much is wrong."
        )
    why = (
        "It tells the pool's pairs worse than curated ones: the share of wrong captions is at most "
        "that, and may be far lower"
        if share.kind == BOUND
        else "Too few right pairs are left to say whether it knows the pool: read it as an upper "
        "bound"
    )
    return f"The reference cannot tell {number} from wrong captions ({right}). {why}."


def seen_lines(seen: Seen, samples: dict[str, Sample]) -> list[str]:
    """The pool, before any race."""
    share, pool = seen.share, samples["pool"]
    return [
        share_sentence(share),
        f"Right against wrong captions (AUC; 1/2 is guessing): {share.auc_curated:.2f} on "
        f"{share.n_curated:,} curated pairs held out, {share.auc:.2f} on {share.n:,} pool pairs as "
        f"they are, {share.auc_right.value:.2f} on those that are not wrong.",
        f"{100 * seen.near:.0f} % of the pool's pictures lie as near the curated set as half of "
        f"the curated ones do. In the sample {100 * seen.same_pictures:.1f} % of the pictures and "
        f"{100 * seen.same_captions:.1f} % of the captions repeat another's; "
        f"{100 * pool.bad_share:.1f} % of {pool.asked:,} pairs could not be read.",
    ]


def caveats(asked: Asked, source: Run, races: Races, samples: dict[str, Sample]) -> list[str]:
    """What the races are not."""
    size, n = races.settings["data"]["image_size"], samples["pool"].pairs
    b = races.settings["optim"]["batch_size"]
    times = races.lengths[1] * b / n
    lines = [
        f"The races train a small tower at {size} px on a sample of {n:,} pairs, each seen up to "
        f"{times:.1f} times by uniform training: directions and ratios carry over to a large "
        "model better than scores do.",
        "Intervals are 90 % and rest on a second seed of the shorter races; every run reads the "
        "same reference, whose own chance is not in them.",
    ]
    if source.data.own and not asked.benchmarks:
        lines.append(
            "Scored on retrieval over held-out curated pairs, which favours training on the "
            "curated set: give --benchmarks to score what you care about."
        )
    return lines


def hours(asked: Asked, races: Races, found: Answer) -> list[str]:
    """What the saving is in GPU-hours of the user's own tower."""
    best, batch = found.now.best, int(races.settings["optim"]["batch_size"])
    saving = found.saving.get(best, {}).get("examples")
    if saving is None:
        return []
    steps = max(1, round(asked.examples / batch))
    jobs = [
        Job(name, 0, _large(asked, races, name, round(n)))
        for name, n in (("uniform", steps), (best, max(200, steps / saving.ratio)))
    ]
    cost = [
        p.flops["charged"] / (asked.tflops * 1e12) / 3600 for p in make_plans(jobs, timed=False)
    ]
    bound = {
        MORE: ", and if it is no larger: uniform training did not get there",
        LESS: ", and if it is no smaller: uniform training was ahead from the first length on",
    }.get(saving.status, "")
    return [
        f"For {asked.tower} at {asked.examples:,.0f} examples and {asked.tflops:g} TFLOP/s: "
        f"uniform training {cost[0]:,.0f} GPU-hours, {label(best, races.keep)} {cost[1]:,.0f} for "
        "the same score, the reference's training included, if the saving of the races "
        f"held{bound}."
    ]


def answer_lines(asked: Asked, races: Races, found: Answer) -> list[str]:
    """What stands on the screen in the end."""
    return [
        *sentences(found, races.keep),
        *hours(asked, races, found),
        f"Train it: {command(asked, found)}",
        f"All of it: {asked.out / 'forecast.html'}",
    ]


def command(asked: Asked, found: Answer) -> str:
    """What trains the best recipe; a filter scores the whole pool before."""
    method, config = METHOD[found.now.best], f"--config {asked.out / 'recipe.yaml'}"
    before = f"jest cache-reference {config} && " if method == "filtered" else ""
    return f"{before}jest train --method {method} {config}"


# --- the recipe at scale --------------------------------------------------------------------------


def recipe(asked: Asked, races: Races, name: str, steps: int) -> dict[str, Any]:
    """Settings of a run by this recipe with an open_clip tower, over the user's own data."""
    config = catalogue.read(asked.tower)
    text = config.get("text_cfg", {})
    run = races.run(name, races.steps)
    own = asked.overrides.get("data", {})
    data = {
        **{k: v for k, v in own.items() if k in ("train", "curated", "weights", "level")},
        "image_size": _side(config),
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49_408),
    }
    if asked.benchmarks:
        data["benchmarks"] = asked.benchmarks
    patch = catalogue.patch_size(config)
    model = {"name": asked.tower, "patch_sizes": [patch]}
    optim = {"steps": steps, "batch_size": run.optim.batch_size, "lr": 5e-4, "schedule": "wsd"}
    settings: dict[str, Any] = {"data": data, "model": model, "optim": optim}
    settings["source"] = run.source.model_dump(mode="json", exclude_defaults=True)
    if asked.overrides.get("source"):
        settings["source"] |= asked.overrides["source"]
    if name not in ("uniform", "curated", "mixed"):
        if asked.reference and ":" in asked.reference:
            settings["reference_model"] = asked.reference
        else:
            settings["reference"] = {
                "model": model,
                "optim": {**optim, "steps": max(200, steps // 4)},
            }
    return settings


def _side(config: dict[str, Any]) -> int:
    size = config.get("vision_cfg", {}).get("image_size", 224)
    return int(size[0] if isinstance(size, list) else size)


def _large(asked: Asked, races: Races, name: str, steps: int) -> Run:
    return default_run(METHOD[name], recipe(asked, races, name, steps), 0)


# --- files ----------------------------------------------------------------------------------------


def as_json(
    asked: Asked,
    races: Races,
    samples: dict[str, Sample],
    seen: Seen,
    found: Answer,
    lines: list[str],
) -> dict[str, Any]:
    """All of the answer as plain data; what is not a number is null."""
    content = {
        "asked": {**asdict(asked), "out": str(asked.out)},
        "samples": {k: {**asdict(v), "folder": str(v.folder)} for k, v in samples.items()},
        "seen": {
            "share": asdict(seen.share),
            "near": seen.near,
            "same_pictures": seen.same_pictures,
            "same_captions": seen.same_captions,
        },
        "races": {"steps": races.lengths, "keep": races.keep},
        "answer": asdict(found),
        "sentences": lines,
    }
    plain: dict[str, Any] = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return plain


def _row(row: Standing, found: Answer, races: Races) -> tuple[str, ...]:
    saved = found.saving.get(row.name)
    error = "–" if math.isnan(row.se) else f"{100 * row.se:.1f}"
    ratios = [str(saved[axis]) if saved else "–" for axis in AXES]
    return label(row.name, races.keep), f"{100 * row.score:.1f}", error, *ratios


def write(
    asked: Asked,
    source: Run,
    races: Races,
    samples: dict[str, Sample],
    seen: Seen,
    pool: DecodedDataset,
    records: list[Record],
    found: Answer,
    lines: list[str],
) -> list[Path]:
    """forecast.json, recipe.yaml and forecast.html; returns the paths. lines: `answer_lines`."""
    import jinja2

    out = asked.out
    steps = max(200, round(asked.examples / int(races.settings["optim"]["batch_size"])))
    config = recipe(asked, races, found.now.best, steps)
    default_run(METHOD[found.now.best], config, 0)  # what is written can be run
    worst = np.array(seen.worst)
    sheet = contact_sheet(
        [pool.images[row] for row in worst], pool.captions_of(worst), out / "likely-wrong.png", 8
    )
    plain = as_json(asked, races, samples, seen, found, lines)
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("jestcli.forecast", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    examples = found.now.examples
    html = pages.get_template("forecast.html.j2").render(
        answer=lines[:-2],  # the command and the page itself stand elsewhere
        seen=seen_lines(seen, samples),
        caveats=caveats(asked, source, races, samples),
        command=command(asked, found),
        rows=[_row(row, found, races) for row in found.now.rows],
        pictures={
            "What the reference thinks of the pool": as_svg(lambda t: draw_scores(seen, t)),
            "The races": as_svg(lambda t: draw_races(records, races, t)),
            "Where you are on the map": as_svg(lambda t: draw_map(seen.share, examples, t)),
        },
        sheet=f"data:image/png;base64,{base64.b64encode(sheet.read_bytes()).decode()}",
    )
    paths = [out / "forecast.json", out / "recipe.yaml", out / "forecast.html"]
    save_text(paths[0], json.dumps({**plain, "records": records}, indent=1) + "\n")
    text = f"# {command(asked, found)}\n"
    save_text(paths[1], text + yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    save_bytes(paths[2], html.encode())
    return paths
