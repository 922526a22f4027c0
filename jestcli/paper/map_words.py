"""What the map says, in sentences and tables whose every number is from the records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from jestcli.paper.map import (
    CONTROLS,
    JESTS,
    Ended,
    at_quality,
    better,
    every_length,
    lengths,
    named,
    qualities,
    reach,
    saving,
    several,
    winners,
)
from jestcli.paper.methods import MARK, style
from jestcli.paper.records import Record, value
from jestcli.paper.saving import LESS, MORE, REACHED, Cell, Ratio, cells
from jestcli.utils.tables import Table

REFERENCE = "reference"
SINGLE = "¹"  # after a score of one seed
# Methods whose settings trials of their own chose (docs/protocol.md); the others have JEST's.
TUNED = (
    *("uniform", "jest", "jest-90", "filtered", "filtered-20", "negclip", "curated"),
    *("finetune-1e-3", "finetune-slow", "independent", "easy", "jest-curated", "flexi"),
)
UNTUNED = "†"
FAMILIES = {
    **dict.fromkeys(JESTS, "JEST"),
    **dict.fromkeys(("filtered", "filtered-20", "negclip"), "filter once"),
    **dict.fromkeys(("finetune", "finetune-1e-3", "finetune-slow"), "fine-tune"),
    **{"curated": "curated alone", "independent": "independent"},
}
# What the paper is known for; it charges no reference, and the ten are Flexi-JEST's.
CLAIMED = (
    ("the paper's ×13 fewer examples", "examples", 13.0),
    ("its ×4.3 less compute, the reference given,", "cached", 4.3),
    ("×10 less (Flexi-JEST's in the paper), the reference charged,", "charged", 10.0),
)
AGAINST = {
    "uniform training": {
        "examples": "examples",
        "compute": "cached",
        "compute with the reference charged": "charged",
    },
    "the best simpler recipe": {
        "with every cost charged": "charged",
        "with the reference given": "cached",
    },
}
ANSWER = (
    *("examples", "wrong captions", "f", "JEST", "uniform", "best simpler recipe"),
    *("fewer examples than uniform", "less compute (with the reference's)"),
    "less compute than the simpler recipe that is cheapest there (reference and scores given)",
)
ABOUT = (
    "Above 1 JEST needs less. “More than”: the other never got there; “less than”: its shortest "
    "run was better already; an interval's 0 and ∞ say the same of its ends. f: JEST's better "
    f"filter ratio of .8 and .9. {UNTUNED}: with JEST's settings, not chosen by trials of its own."
)


def answer(records: list[Record]) -> list[str]:
    """What cells.md says, as lines of Markdown: the short answer, what is saved, counted, and a row
    for each pool quality and length. Every number is from the records."""
    curves, rows = at_quality(records), []
    for steps, quality in product(every_length(records), qualities(records)):
        examples, method = steps * records[0]["batch_size"], better(records, quality, steps)
        scores = {
            name: 100 * cell.mean
            for name in (method, "uniform", *CONTROLS)
            for cell in cells(curves, named(name, quality))
            if cell.examples == examples
        }
        axes, cell = ("examples", "cached", "charged"), (records, method, quality, steps)
        fewer, less, with_reference = (_plain(saving(*cell, axis)) for axis in axes)
        charged, given = (saving(*cell, axis, True) for axis in axes[:0:-1])
        controls = [name for name in scores if name in CONTROLS]
        if method not in scores or "uniform" not in scores or charged is None or not controls:
            continue
        best, ratio = max(controls, key=scores.__getitem__), ".9" if method == "jest-90" else ".8"
        where = [f"{examples / 1000:,.0f}k", f"{100 * quality:g} %", ratio]
        reached = [f"{scores[name]:.1f} %" for name in (method, "uniform", best)]
        reached[-1] += f" {called(best)}"
        saved = [fewer, f"{less} ({with_reference})", f"{_plain(charged)} ({_plain(given)})"]
        rows.append([*where, *reached, *saved])
    more = (*overall(records), *filter(None, [relevance(records)]))
    return [
        *short_answer(records),
        "",
        *((*(f"- {words}" for words in more), "") if more else ()),
        *(("For the score that JEST reached:", "", ABOUT, "") if rows else ()),
        *Table("", ANSWER, rows).markdown().split("\n"),
    ]


def called(method: str) -> str:
    """A method's label; marked where its settings were taken over and not tuned by trials."""
    return style(method).label + ("" if method.removesuffix("-weak") in TUNED else UNTUNED)


def level(rows: Sequence[Ended]) -> list[Ended]:
    """Of a cell of `winners` those that are within the error of the best, it first."""
    best = rows[0]
    near = (r for r in rows[1:] if best.score - r.score <= math.hypot(best.half, r.half))
    return [best, *near]


def kinds(rows: Sequence[Ended]) -> list[str]:
    """The kinds of recipe that end best at a cell, the best first; ¹ behind one that is there by
    runs of one seed alone."""
    seeds: dict[str, int] = {}
    for row in level(rows):
        kind = FAMILIES.get(row.method, style(row.method).label)
        seeds[kind] = max(row.seeds, seeds.get(kind, 0))
    return [kind + SINGLE * (n == 1) for kind, n in seeds.items()]


def best_cells(records: list[Record]) -> dict[tuple[float, int], list[Ended]]:
    """`winners` of the qualities that several seeds ran."""
    best = winners(records, every_length(records))
    return {at: rows for at, rows in best.items() if at[0] in several(records)}


def ended_best(records: list[Record]) -> Table:
    """The kinds of recipe that ended best, by pool quality and length, with the best one's score;
    beside JEST at its better filter ratio where that is another."""
    batch, best = records[0]["batch_size"], best_cells(records)
    steps, rows = sorted({n for _, n in best}), []
    for quality in sorted({q for q, _ in best}):
        row = [f"{100 * quality:g} %"]
        for n in steps:
            if (quality, n) not in best:
                row.append("–")
                continue
            here = best[quality, n]
            names = kinds(here)
            *before, last = names
            words = f"{', '.join(before)} or {last}" if before else last
            # Its kind may have several seeds by another recipe than the best one.
            marked = names[0].endswith(SINGLE)
            score = f"{100 * here[0].score:.1f}" if marked else _percent(here[0])
            text = f"**{words}** {score}"
            jest = next(row for row in here if row.method in JESTS)
            row.append(text if jest is here[0] else f"{text}; JEST {_percent(jest)}")
        rows.append(row)
    heads = [f"{n * batch / 1000:,.0f}k examples" for n in steps]
    return Table("", ["wrong captions", *heads], rows)


def headline(records: list[Record]) -> list[str]:
    """What the README says beside figure 1, as far as runs are there: sentences, as Markdown."""
    found = [*over_uniform(records), *with_weak(records), *over_simpler(records)]
    found += [*below_the_reference(records), *ahead(records)]
    return [f"- {words}" for words in found]


def short_answer(records: list[Record]) -> list[str]:
    """The headline, and figure 1's grid with scores, as Markdown."""
    lines = headline(records)
    lines += [""] if lines else []
    ended = ended_best(records)
    if ended.rows:
        half = 100 * reach(records) / math.sqrt(3)
        error = "" if math.isnan(half) else f" (95 % interval ±{half:.1f} with three seeds)"
        lines += [
            f"What ended best at an equal number of examples{_not_counted(records)}, and its score "
            f"in %; “A or B”: within the error of each other{error}, the first one's score.",
            *("", *ended.markdown().split("\n"), ""),
        ]
    if any(SINGLE in line for line in lines):
        most = max(row.seeds for rows in best_cells(records).values() for row in rows)
        others = f"; the others two to {most}" if most > 2 else ""
        lines += [f"{SINGLE} One seed{others}.", ""]
    return lines[:-1]


def _not_counted(records: list[Record]) -> str:
    """What fine-tuning, filters and selection have had before."""
    run = next((r for r in records if r["name"] in (f"{REFERENCE} strong", REFERENCE)), None)
    if run is None:
        return ""
    return f" (the reference's own {run['steps'] * run['batch_size'] / 1000:,.0f}k not counted)"


def _percent(ended: Ended) -> str:
    return f"{100 * ended.score:.1f}{SINGLE * (ended.seeds == 1)}"


def ahead(records: list[Record]) -> list[str]:
    """Of each quality at which JEST ends above everything else, at the longest such length: does a
    recipe that selects nothing get there when it goes on?"""
    size, curves, shown = records[0]["batch_size"] / 1000, at_quality(records), best_cells(records)
    first = {q: n for (q, n), rows in sorted(shown.items()) if kinds(rows) == ["JEST"]}
    lines = []
    for quality, steps in first.items():
        best = shown[quality, steps][0]
        others = [
            (Ended(name, cell.mean, math.nan, len(cell.scores)), cell.examples / 1000)
            for name in CONTROLS
            for cell in cells(curves, named(name, quality))
        ]
        if not others:
            continue
        top, after = max(others, key=lambda other: other[0].score)
        text = f"With {100 * quality:g} % wrong captions {called(best.method)} is at "
        ended = cells(curves, named(best.method, quality))
        cell = next(cell for cell in ended if cell.examples == steps * records[0]["batch_size"])
        kinds_of_image = _by_kind(records, best.method, quality, steps)
        text += f"{_over_seeds(cell)}{kinds_of_image} after {steps * size:,.0f}k examples; "
        if top.score < best.score:
            text += f"no simpler recipe got above {_percent(top)} % ({called(top.method)}), in up "
            text += f"to {max(n for _, n in others):,.0f}k."
        else:
            text += f"{called(top.method)} gets to {_percent(top)} % after {after:,.0f}k."
        lines.append(text)
    return lines


def _by_kind(records: list[Record], method: str, quality: float, steps: int) -> str:
    """ ": 37.1 % on icons, 4.5 % on emoji,", where the records tell them apart."""
    runs = [r for r in records if r["name"] == f"{named(method, quality)}{MARK}{steps}"]
    parts = []
    for kind in ("icons", "emoji"):
        scores = [score for r in runs if (score := value(r, kind)) is not None]
        parts += [f"{100 * np.mean(scores):.1f} % on {kind}"] if scores else []
    return f": {', '.join(parts)}," if parts else ""


def below_the_reference(records: list[Record]) -> list[str]:
    """Where a run ends below the reference that it was given: nothing done with it is better."""
    own, ended = cells(records, REFERENCE), list(best_cells(records).values())
    if not own or not ended:
        return []
    score = own[-1].mean
    jest = [next(row for row in rows if row.method in JESTS) for rows in ended]
    below = [sum(row.score < score for row in each) for each in (jest, [r[0] for r in ended])]
    return [
        f"The reference itself is at {_over_seeds(own[-1])}: JEST ends below it in {below[0]} of "
        f"{len(ended)} cells, what ended best in {below[1]}; there its weights are better as they "
        "are."
    ]


class _Saved(NamedTuple):
    """What JEST saves at a cell, at its better filter ratio, where its interval is known."""

    quality: float
    examples: int
    ratio: Ratio


def _savings(records: list[Record], axis: str, simpler: bool) -> list[_Saved]:
    """Over uniform training, or over the best simpler recipe, at every cell."""
    found = []
    for steps, quality in product(every_length(records), several(records)):
        ratio = saving(records, better(records, quality, steps), quality, steps, axis, simpler)
        if ratio is not None and not math.isnan(ratio.low):
            found.append(_Saved(quality, steps * records[0]["batch_size"], ratio))
    return found


def _places(found: Sequence[_Saved]) -> str:
    """ "80 % (96k, 192k)"."""
    by: dict[float, list[str]] = {}
    for each in found:
        by.setdefault(each.quality, []).append(f"{each.examples / 1000:,.0f}k")
    return ", ".join(f"{100 * q:g} % ({', '.join(n)})" for q, n in sorted(by.items()))


def _sides(found: Sequence[_Saved], factor: float = 1.0) -> tuple[list[_Saved], list[_Saved]]:
    """Those whose whole interval lies above, and below, a factor."""
    above = [each for each in found if each.ratio.low > factor]
    return above, [each for each in found if each.ratio.high < factor]


def over_uniform(records: list[Record]) -> list[str]:
    """What JEST saves over uniform training, beside the paper's factors."""
    saved = {axis: _savings(records, axis, False) for _, axis, _ in CLAIMED}
    found = saved["examples"]
    if not found:
        return []
    ordered = sorted((each.ratio for each in found), key=lambda ratio: ratio.ratio)
    least = next((ratio for ratio in ordered if ratio.status == REACHED), ordered[0])
    text = (
        f"**Over uniform training,** which needs {_plain(least)} to {_plain(ordered[-1])} the "
        f"examples for JEST's score: of {len(found)} cells (wrong captions, examples)"
    )
    for words, axis, factor in CLAIMED:
        above, below = _sides(saved[axis], factor)
        text += f" {words} is reached at {_places(above) or 'no cell'}, excluded in {len(below)};"
    text = text[:-1] + "."
    factor = CLAIMED[0][2]
    hidden = [r for r in ordered if r.status == MORE and r.ratio < factor <= r.high]
    if hidden:
        text += f" In {len(hidden)} others uniform training ended too early to show ×{factor:g}."
    return [text]


def with_weak(records: list[Record]) -> list[str]:
    """What JEST saves over uniform training by the weak reference."""
    found = [
        ratio
        for steps, quality in product(
            lengths(records, "jest-weak"), qualities(records, "jest-weak")
        )
        if (ratio := saving(records, "jest-weak", quality, steps, "examples")) is not None
        and not math.isnan(ratio.low)
    ]
    own = cells(records, f"{REFERENCE} weak")
    if not found or not own:
        return []
    ordered = sorted(found, key=lambda ratio: ratio.ratio)
    more = sum(ratio.high < 1 for ratio in found)
    return [
        f"**With a weaker reference,** itself at {_over_seeds(own[-1])}, uniform training needs "
        f"{_plain(ordered[0])} to {_plain(ordered[-1])} the examples: JEST needs *more* than it in "
        f"{more} of {len(found)} cells."
    ]


def over_simpler(records: list[Record]) -> list[str]:
    """Where JEST needs less compute than everything simpler, every cost charged."""
    found = _savings(records, "charged", True)
    if not found:
        return []
    less, more = _sides(found)
    undecided = len(found) - len(less) - len(more)
    return [
        "**Over something simpler** with the same curated pairs, everything charged, JEST saves "
        f"compute at {_places(less) or 'no cell'}; it costs more in {len(more)} of {len(found)} "
        f"cells{f', undecided in {undecided}' if undecided else ''}."
    ]


def overall(records: list[Record]) -> list[str]:
    """In how many cells JEST needs less than uniform training, and than the best simpler recipe, by
    what is counted. Nothing where no interval is known."""
    lines = []
    for against, axes in AGAINST.items():
        parts = []
        for words, axis in axes.items():
            if sure := _savings(records, axis, against != "uniform training"):
                less, more = map(len, _sides(sure))
                rest = {"more": more, "undecided": len(sure) - less - more}
                told = [f"{word} in {n}" for word, n in rest.items() if n]
                parts.append(", ".join([f"{words}: less in {less} of {len(sure)} cells", *told]))
        if parts:
            lines.append(f"For its score JEST needs, beside {against}, {'; '.join(parts)}.")
    return lines


def sentence(records: list[Record]) -> str:
    """The answer in words, of the poorest and the cleanest pool at JEST's shortest length, each
    score with its range over seeds. "" before the runs that it needs."""
    curves, parts, run = at_quality(records), [], lengths(records)
    steps = run[0] if run else 0
    shown = several(records)
    for quality in sorted({*shown[:1], *shown[-1:]}, reverse=True):
        cell = (records, "jest", quality, steps)
        fewer, less, paid = (saving(*cell, axis) for axis in ("examples", "cached", "charged"))
        if fewer is None:
            continue
        examples = steps * records[0]["batch_size"]
        ends = {
            name: found[0]
            for name in ("jest", *CONTROLS)
            if (found := [c for c in cells(curves, named(name, quality)) if c.examples == examples])
        }
        best = max((n for n in ends if n != "jest"), key=lambda n: ends[n].mean, default=None)
        text = (
            f"With {100 * quality:g} % wrong captions uniform training needs {_plain(fewer)} the "
            f"examples and {_plain(less)} the compute ({_plain(paid)} where the reference is "
            f"charged) for what JEST reaches in {examples / 1000:,.0f}k examples, "
            f"{_over_seeds(ends['jest'])}"
        )
        if best:
            text += f"; the best simpler recipe, {called(best)}, is then at "
            text += _over_seeds(ends[best])
        parts.append(text + ".")
    if shown and run[-1] > steps:
        parts.append(_longest(curves, shown, run[-1] * records[0]["batch_size"]))
    return " ".join(parts)


def _longest(curves: list[Record], shown: list[float], examples: int) -> str:
    """At JEST's longest length, at each quality: the better filter ratio and the best recipe."""
    parts = []
    for quality in reversed(shown):
        runs = {
            name: cells(curves, named(name, quality))
            for name in ("jest", "jest-90", "uniform", *CONTROLS)
        }
        ends = {n: c for n, each in runs.items() for c in each if c.examples == examples}
        mine = max((n for n in ends if "jest" in n), key=lambda n: ends[n].mean, default=None)
        best = max((n for n in ends if "jest" not in n), key=lambda n: ends[n].mean, default=None)
        if mine is None or best is None:
            continue
        text = f"with {100 * quality:g} % wrong captions {style(mine).label} is at "
        text += f"{_over_seeds(ends[mine])} and {called(best)} at {_over_seeds(ends[best])}"
        longer = [c for c in runs[best] if c.examples > examples]
        if longer:  # a recipe without scoring has them for the compute that JEST has spent
            text += f", {100 * longer[-1].mean:.1f} % after {longer[-1].examples / 1000:,.0f}k"
        parts.append(text)
    return f"After {examples / 1000:,.0f}k examples: {'; '.join(parts)}." if parts else ""


def _over_seeds(cell: Cell) -> str:
    low, high, n = 100 * min(cell.scores), 100 * max(cell.scores), len(cell.scores)
    spread = f"{low:.1f} to {high:.1f} over {n} seeds" if n > 1 else "one seed"
    return f"{100 * cell.mean:.1f} % ({spread})"


def _plain(ratio: Ratio | None) -> str:
    """A saving in a cell of a table; the simpler recipe that it is over, if there is one."""
    if ratio is None:
        return "–"
    text = str(ratio).replace(" (one seed: no interval)", "")
    if ratio.ratio == {MORE: ratio.low, LESS: ratio.high}.get(ratio.status):
        text = text.partition(" [")[0]  # the interval only repeats the bound
    over = ratio.over.split(MARK)[0]
    return text if over == "uniform" else f"{text}, {called(over)}"


def relevance(records: list[Record]) -> str:
    """JEST's lead over uniform training by the share of what the benchmarks ask for that the pool
    has kept, at the longest length of both. "" before these runs."""
    curves = at_quality(records)
    shares = sorted(q for q in qualities(records, "relevance-jest"))
    leads = []
    for share in shares:
        mine, theirs = (
            {c.examples: c for c in cells(curves, f"relevance-{method}{MARK}{share:g}")}
            for method in ("jest", "uniform")
        )
        if both := mine.keys() & theirs.keys():
            n = max(both)
            lead = 100 * (mine[n].mean - theirs[n].mean)
            seeds = min(len(mine[n].scores), len(theirs[n].scores))
            leads.append(
                f"{lead:+.1f} points at {share:g} ({n / 1000:,.0f}k examples, {seeds} seeds)"
            )
    if not leads:
        return ""
    return (
        "JEST over uniform training, by the share of what the benchmarks ask for that a pool of "
        f"the same size has kept: {', '.join(leads)}."
    )


def _told(name: str) -> tuple[str, str]:
    """What a cell of the map is called, and the share of wrong captions in its pool."""
    method, *rest = name.split(MARK)
    if method.startswith("relevance-"):
        return f"{called(method.partition('-')[2])}, relevance {rest[0]}", "0"
    if method.startswith("weight"):
        return f"{called(method.replace('weight', 'jest'))}, weight {rest[1]}", rest[0]
    return called(method), rest[0] if rest else "–"


def table(records: list[Record]) -> Table:
    """A row for every cell, means over its seeds; "wrong chosen": of the pairs trained on."""
    metrics = {"mean": 100, "icons": 100, "emoji": 100, "nats": 1, "noise": 1}
    groups: dict[tuple[tuple[str, str], int], list[Record]] = {}
    for record in at_quality(records):
        groups.setdefault((_told(record["name"]), record["steps"]), []).append(record)
    rows = []
    for ((method, quality), steps), runs in sorted(groups.items()):
        trained, looked = (steps * runs[0][f"{what}batch_size"] for what in ("", "super_"))
        row = [method, quality, f"{trained:,}", f"{looked:,}", str(len(runs))]
        for metric, factor in metrics.items():
            found = [v for r in runs if (v := value(r, metric)) is not None]
            row.append(f"{factor * float(np.mean(found)):.2f}" if found else "–")
        rows.append(row)
    head = ("method", "wrong captions", "examples", "pairs looked at", "seeds")
    return Table("", [*head, "mean %", "icons %", "emoji %", "nats", "wrong chosen"], rows)
