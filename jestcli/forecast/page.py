"""What a forecast leaves behind: forecast.json, one HTML page, a configuration to start from."""

from __future__ import annotations

import io
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jestcli.config import Run
from jestcli.data.contact_sheet import contact_sheet
from jestcli.data.decoded import DecodedDataset
from jestcli.forecast.answer import AXES, Answer, Standing, label, sentences
from jestcli.forecast.races import RECIPES, SIMPLE, UNREFERENCED, Races
from jestcli.forecast.sample import Sample
from jestcli.forecast.seen import Seen
from jestcli.forecast.share import BOUND, ESTIMATE, QUANTILE, Share
from jestcli.paper import theme as look
from jestcli.paper.experiment import Job
from jestcli.paper.methods import BLUE, style
from jestcli.paper.plan import make_plans
from jestcli.paper.records import Record
from jestcli.paper.saving import LESS, MORE, cells
from jestcli.paper.theme import FONT, Figure, Theme
from jestcli.runs.methods import default_run
from jestcli.utils import catalogue
from jestcli.utils.io import save_bytes, save_text

METHOD = {name: recipe["method"] for name, recipe in RECIPES.items()}
SIZES = ("image_size", "context_length", "vocab_size")  # of data: a tower's
NEAR = 0.15  # of a share of wrong captions: names of cells so near would meet
KEPT = ("filter_ratio", "learner_weight")  # of selection: what a larger tower can take over


@dataclass(frozen=True)
class Asked:
    """What the user wants to know. overrides: settings of a run (data.train is the pool)."""

    overrides: dict[str, Any]
    out: Path
    minutes: float = 25.0
    reference: str | None = None
    benchmarks: str | None = None
    tower: str = "ViT-B-16"
    examples: float = 1e8
    tflops: float = 100.0
    workers: int | None = None


def share_sentence(share: Share) -> str:
    """What the share is, and what kind of number."""
    value, low, high = (100 * x for x in asdict(share.looks_wrong).values())
    number = f"{value:.0f} % of the pool [{low:.0f}, {high:.0f}]"
    which = "" if share.doubtful else " which are right,"
    right = f"of curated pairs,{which} {100 * share.curated:.0f} % do"
    if share.kind == ESTIMATE:
        return (
            f"The reference cannot tell {number} from wrong captions ({right}). It knows pairs "
            "like the pool's, so this is an estimate of how much is wrong."
        )
    if share.doubtful:
        why = (
            "Curated pairs look wrong, too: it tells those held out worse than the pool's right "
            f"ones (AUC {share.auc_curated:.2f} against {share.auc_right.value:.2f}). Look at "
            "them, and read the share as an upper bound"
        )
    elif share.kind == BOUND:
        why = (
            "It tells the pool's pairs worse than curated ones: the share of wrong captions is at "
            "most that, and may be far lower"
        )
    else:
        why = (
            "Too few right pairs are left to say whether it knows the pool: read it as an upper "
            "bound"
        )
    return f"The reference cannot tell {number} from wrong captions ({right}). {why}."


def seen_lines(seen: Seen, samples: dict[str, Sample]) -> list[str]:
    """The pool, before any race."""
    share, pool, also = seen.share, samples["pool"], []
    if pool.also_curated:
        left = f"{pool.left_out:,} of them, held out, were" if pool.left_out else "none had to be"
        also = [
            f"{pool.also_curated:,} of the pool's pairs are curated ones, too; {left} left out."
        ]
    return [
        share_sentence(share),
        f"Right against wrong captions (AUC; 1/2 is guessing): {share.auc_curated:.2f} on "
        f"{share.n_curated:,} curated pairs held out, {share.auc:.2f} on {share.n:,} pool pairs as "
        f"they are, {share.auc_right.value:.2f} on those that are not wrong.",
        f"{100 * seen.near:.0f} % of the pool's pictures lie as near the curated set as half of "
        f"the curated ones do. In the sample {100 * seen.same_pictures:.1f} % of the pictures and "
        f"{100 * seen.same_captions:.1f} % of the captions repeat another's; "
        f"{100 * pool.bad_share:.1f} % of {pool.asked:,} pairs could not be read.",
        *also,
    ]


def caveats(asked: Asked, source: Run, races: Races, samples: dict[str, Sample]) -> list[str]:
    """What the races are not."""
    size, n = races.settings["data"]["image_size"], samples["pool"].pairs
    times = races.lengths[1] * races.batch / n
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
    best = found.now.best
    if best not in found.saving:
        return []
    saving, steps = found.saving[best]["examples"], max(1, round(asked.examples / races.batch))
    runs = {"uniform": steps, best: max(1, round(steps / saving.ratio))}
    jobs = [
        Job(name, 0, default_run(METHOD[name], recipe(asked, races, name, n), 0))
        for name, n in runs.items()
    ]
    flops = [plan.flops["charged"] for plan in make_plans(jobs, timed=False)]
    cost = [each / (asked.tflops * 1e12) / 3600 for each in flops]
    bound = {
        MORE: ", and if it is no larger: uniform training did not get there",
        LESS: ", and if it is no smaller: uniform training was ahead from the first length on",
    }.get(saving.status, "")
    return [
        f"For {asked.tower} at {asked.examples:,.0f} examples and {asked.tflops:g} TFLOP/s: "
        f"uniform training {cost[0]:,.0f} GPU-hours, {label(best, races.dials)} {cost[1]:,.0f} for "
        "the same score, the reference's training included, if the saving of the races "
        f"held{bound}."
    ]


def answer_lines(asked: Asked, races: Races, found: Answer) -> list[str]:
    """What stands on the screen in the end."""
    return [
        *sentences(found, races.dials),
        *hours(asked, races, found),
        f"Train it: {command(asked, found)}",
        f"All of it: {asked.out / 'forecast.html'}",
    ]


def command(asked: Asked, found: Answer) -> str:
    """What trains the best recipe, whose file names its method; a filter scores the whole pool
    before."""
    config = f"--config {shlex.quote(str(asked.out / 'recipe.yaml'))}"
    before = f"jest cache-reference {config} && " if METHOD[found.now.best] == "filtered" else ""
    return f"{before}jest train {config}"


def recipe(asked: Asked, races: Races, name: str, steps: int) -> dict[str, Any]:
    """Settings of a run by this recipe with an open_clip tower, over the user's own data, read as
    the forecast read them."""
    config = catalogue.read(asked.tower)
    text = config.get("text_cfg", {})
    run = races.run(name, races.steps)
    own, side = asked.overrides.get("data", {}), config.get("vision_cfg", {}).get("image_size", 224)
    data = {
        **{k: v for k, v in own.items() if k not in (*SIZES, "decoded", "benchmarks")},
        "image_size": int(side[0] if isinstance(side, list) else side),
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49_408),
        **({"benchmarks": asked.benchmarks} if asked.benchmarks else {}),
    }
    model = {"name": asked.tower, "patch_sizes": [catalogue.patch_size(config)]}
    settings: dict[str, Any] = {"data": data, "model": model, "optim": _rates(steps, races.batch)}
    settings["source"] = run.source.model_dump(mode="json", exclude_defaults=True)
    settings["source"] |= asked.overrides.get("source") or {}
    selection = asked.overrides.get("selection", {})
    settings["selection"] = {k: v for k, v in selection.items() if k in KEPT}
    if name not in SIMPLE:
        settings["selection"]["filter_ratio"] = run.selection.filter_ratio
    if name in UNREFERENCED:
        return settings
    if word := races.settings.get("reference_model"):
        return settings | {"reference_model": word}
    few = _rates(max(1, steps // 4), races.batch)
    return settings | {"reference": {"model": model, "optim": few}}


def _rates(steps: int, batch: int) -> dict[str, Any]:
    """`optim` of a run to start from."""
    warmup = min(100, steps // 2)
    return {"steps": steps, "batch_size": batch, "lr": 5e-4, "schedule": "wsd", "warmup": warmup}


def _row(row: Standing, found: Answer, races: Races) -> tuple[str, ...]:
    saved = found.saving.get(row.name)
    error = "–" if math.isnan(row.se) else f"{100 * row.se:.1f}"
    ratios = [str(saved[axis]) if saved else "–" for axis in AXES]
    return label(row.name, races.dials), f"{100 * row.score:.1f}", error, *ratios


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

    out, steps = asked.out, max(1, round(asked.examples / races.batch))
    config = recipe(asked, races, found.now.best, steps)
    worst = np.array(seen.worst)
    captions, path = pool.captions_of(worst), out / "likely-wrong.png"
    sheet = contact_sheet([pool.images[row] for row in worst], captions, path, 8)
    content = {
        "asked": {**asdict(asked), "out": str(out)},
        "samples": {k: {**asdict(v), "folder": str(v.folder)} for k, v in samples.items()},
        "seen": {"share": asdict(seen.share)}
        | {key: getattr(seen, key) for key in ("near", "same_pictures", "same_captions")},
        "races": {"steps": races.lengths, **races.dials._asdict()},
        "answer": asdict(found),
        "sentences": lines,
    }
    # What is not a number is null.
    plain = json.loads(json.dumps(content), parse_constant=lambda _: None)
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
        sheet=look.data_url(sheet.read_bytes(), "image/png"),
    )
    paths = [out / "forecast.json", out / "recipe.yaml", out / "forecast.html"]
    save_text(paths[0], json.dumps({**plain, "records": records}, indent=1) + "\n")
    text, config = f"# {command(asked, found)}\n", {"method": METHOD[found.now.best], **config}
    save_text(paths[1], text + yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    save_bytes(paths[2], html.encode())
    return paths


def draw_scores(seen: Seen, theme: Theme) -> Figure:
    """Scores of the pool as it is and under permuted captions."""
    figure = look.new_figure(2.9)
    axes = look.place(figure, 0.5, 0.45, 8.2, 1.9)
    right, wrong = seen.scores.right, seen.scores.wrong.ravel()
    bins = np.linspace(min(right.min(), wrong.min()), max(right.max(), wrong.max()), 80).tolist()
    how: Any = {"density": True, "alpha": 0.55}
    axes.hist(wrong, bins, color=theme.colour("grey"), label="under other pairs' captions", **how)
    axes.hist(right, bins, color=theme.colour(BLUE), label="as they are", **how)
    cut, words = float(np.quantile(wrong, QUANTILE)), f" {100 * QUANTILE:g} % of wrong pairs are"
    axes.axvline(cut, color=theme.text, lw=0.8, ls="--")
    axes.text(cut, axes.get_ylim()[1], f"{words} below", va="top", size=FONT - 1)
    axes.set_yticks([])
    axes.set_xlabel("cosine of picture and caption by the reference")
    axes.set_title("What the reference thinks of the pool's pairs")
    axes.legend(frameon=False, loc="upper right")
    return figure


def draw_races(records: list[Record], races: Races, theme: Theme) -> Figure:
    """Annealed ends, hollow where there is one seed; lines as the answer reads between lengths.
    Uniform training, JEST and the best four others have a name where their line ends."""
    figure = look.new_figure(4.0)
    axes = look.place(figure, 0.7, 0.45, 7.6, 2.9)
    axes.set_xscale("log", base=2)
    curves = {name: curve for name in RECIPES if (curve := cells(records, name))}
    best = sorted(curves, key=lambda name: -curves[name][:2][-1].mean)  # at the longer race
    named = {"uniform", "jest", *[x for x in best if x not in ("uniform", "jest")][:4]}
    ends: dict[float, list[tuple[float, str, str]]] = {}
    for name, curve in curves.items():
        how, mine = style(name), name in named
        x, y = [c.examples for c in curve], [100 * c.mean for c in curve]
        colour = theme.colour(how.colour) if mine else theme.colour("grey")
        axes.plot(x, y, ls=how.dash, color=colour, lw=0.9, alpha=0.6 if mine else 0.3)
        for cell, mean in zip(curve, y, strict=True):
            scores = [100 * s for s in cell.scores]
            face = theme.background if len(scores) == 1 else colour
            axes.plot(cell.examples, mean, how.marker, ms=5, color=colour, mfc=face)
            axes.plot([cell.examples] * 2, [min(scores), max(scores)], color=colour, lw=1)
        filtered = f"Filtered, best {100 * races.dials.keep:.0f} %"
        words = filtered if name == "filtered" else how.label
        if mine:
            ends.setdefault(x[-1], []).append((y[-1], words, colour))
    ticks = sorted({r["steps"] * r["batch_size"] for r in records})
    axes.set_xticks(ticks, [f"{n / 1000:,.3g}k" for n in ticks])
    axes.minorticks_off()
    axes.set_xlim(right=ticks[-1] * 1.6)
    for x_end, group in ends.items():
        _name_ends(axes, x_end, group, theme)
    axes.set_xlabel("examples trained on (annealed end of a run of that length; hollow: one seed)")
    axes.set_ylabel("mean score, %")
    axes.set_title("The races (grey: recipes further behind, in the table)")
    return figure


def _name_ends(axes: look.Axes, x: float, ends: list[tuple[float, str, str]], theme: Theme) -> None:
    """Names of lines that end at `x`, beside it and apart from one another. ends: (y, words,
    colour)."""
    low, high = axes.get_ylim()
    shares = [(y - low) / (high - low) for y, _, _ in ends]
    beside: Any = {"textcoords": axes.get_xaxis_transform(), "va": "center", "size": FONT - 1}
    for (y, words, colour), at in zip(ends, look.spread(shares, 0.055, 0, 1), strict=True):
        box = {"facecolor": theme.background, "edgecolor": "none", "pad": 0.6, "alpha": 0.75}
        hair = {"arrowstyle": "-", "color": colour, "lw": 0.4, "shrinkA": 0, "shrinkB": 4}
        place = (x * 1.09, at)
        axes.annotate(words, (x, y), place, color=colour, bbox=box, arrowprops=hair, **beside)


def draw_map(share: Share, examples: float, theme: Theme) -> Figure:
    """The cells of this suite's own map (forecast/map.json), and where this pool lies."""
    known = json.loads(files("jestcli.forecast").joinpath("map.json").read_text())["cells"]
    figure, at = look.new_figure(4.2), share.looks_wrong
    axes = look.place(figure, 0.9, 0.45, 7.8, 3.1)
    under: Any = {"textcoords": "offset points", "size": FONT - 2.5}
    for cell in known:
        how, x, y = style(cell["best"]), cell["q"], cell["examples"]
        axes.plot(x, y, how.marker, color=theme.colour(how.colour), ms=6)
        words = f"{how.label}\n(JEST {cell['bound']}×{cell['saving']:.2g})"
        row = [c["q"] for c in known if c["examples"] == y and abs(c["q"] - x) < NEAR]
        side = "center" if len(row) == 1 else "right" if x == min(row) else "left"
        axes.annotate(words, (x, y), ({"right": 8, "left": -8}.get(side, 0), 6), ha=side, **under)
    error = [[at.value - at.low], [at.high - at.value]]
    star: Any = {"fmt": "*", "ms": 13, "color": theme.text, "capsize": 3}
    axes.errorbar([at.value], [examples], xerr=error, **star)
    if share.kind != ESTIMATE:
        arrow = {"arrowstyle": "->", "color": theme.text}
        axes.annotate("", (0, examples), (at.value, examples), arrowprops=arrow)
    axes.set_yscale("log", base=2)
    axes.set_xlim(-0.1, 1.1)
    ticks = sorted({c["examples"] for c in known} | {examples})
    axes.set_yticks(ticks, [f"{n / 1000:,.3g}k" for n in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * 1.7)
    axes.set_xlabel("share of wrong captions (star: what the reference cannot tell, of your pool)")
    axes.set_ylabel("examples")
    axes.set_title(
        "Where you are on the map (icons): each cell's best recipe, what JEST saves over uniform"
    )
    return figure


def as_svg(draw: Callable[[Theme], Figure]) -> dict[str, str]:
    """The picture in light and in dark, as data addresses."""
    out = {}
    for theme in (look.LIGHT, look.DARK):
        content = io.BytesIO()
        with look.themed(theme):
            draw(theme).savefig(content, format="svg", metadata={"Date": None, "Creator": None})
        out[theme.name] = look.data_url(content.getvalue(), "image/svg+xml")
    return out
