"""Figure 1 of this suite, the map of winners, and why it comes out so, from paper/map.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from jestcli.paper import theme as look
from jestcli.paper.map import (
    Ended,
    at_quality,
    best_of,
    better,
    lengths,
    longer,
    longest,
    qualities,
    reach,
    saving,
    winners,
)
from jestcli.paper.map_words import FAMILIES, JESTS, SINGLE, answer, best_cells, kinds, table
from jestcli.paper.methods import (
    BLUE,
    COLOURS,
    GREEN,
    MARK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    style,
)
from jestcli.paper.records import Header, Record
from jestcli.paper.saving import LESS, MORE, REACHED, cells
from jestcli.paper.table import caption
from jestcli.paper.theme import FONT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Fig. 1, digitised [P]; the paper charges no reference.
PAPER = ((13.1, "paper: ×13.1 examples", 1.06, "bottom"), (9.9, "paper: ×9.9 FLOPs", 0.94, "top"))

LEAST = 2**-5.6  # the lowest saving that is drawn
ARROW = 15.0  # points
# Kinds of recipe with a colour and a learning curve, the last in front. The others were run at a
# length or two and are in cells.md.
KINDS = ("uniform", "curated alone", "fine-tune", "filter once", "JEST")
FIXED = "JEST at f = .8 throughout (figure 1: the better of .8 and .9)."


class Line(NamedTuple):
    """A saving that is drawn. simpler: over the best simpler recipe, not over uniform training;
    method: in place of the figure's own JEST."""

    axis: str
    simpler: bool
    label: str
    colour: str
    method: str = ""


FEW = (  # in figure 1
    Line("examples", False, "examples, over uniform training", BLUE),
    Line("examples", False, "the same, with a weak reference", SKY, "jest-weak"),
    Line("charged", True, "all costs, over the best simpler recipe", GREEN),
)
ALL = (  # every convention
    Line("examples", False, "examples", BLUE),
    Line("cached_reuse", False, "FLOPs, forwards re-used", ""),
    Line("cached", False, "FLOPs, reference cached", ORANGE),
    Line("uncached", False, "FLOPs, reference not cached", PURPLE),
    Line("charged", False, "FLOPs, cached, reference charged", VERMILLION),
    Line("seconds", False, "seconds", SKY),
    Line("charged", True, "the last but one, over the best simpler recipe", GREEN),
)


def draw_all(header: Header, records: list[Record], folder: Path) -> list[Path]:
    """Every figure, and cells.md: the answer in sentences and a row for every cell."""
    steps = sorted({r["steps"] for r in records if r["name"].startswith("jest@")}) or [750]
    note = caption(header, records, brief=True, paired=False)
    written = look.both(lambda t: make_headline(records, note, t), folder / "figure1")
    narrow = folder / "figure1-phone"
    written += look.both(lambda t: make_headline(records, note, t, phone=True), narrow, False)
    written += look.both(lambda t: make_conventions(records, note, t), folder / "conventions")
    written += look.both(lambda t: make_map(records, note, steps, t), folder / "map")
    if longest(records):
        written += look.both(lambda t: make_why(records, note, t), folder / "why")
    page, parts = folder / "cells.md", ["\n".join(answer(records)), table(records).markdown()]
    parts.append(caption(header, records, paired=False))
    page.write_text("\n\n".join(["# The map, cell by cell", *parts]) + "\n")
    return [*written, page]


def make_headline(records: list[Record], note: str, theme: Theme, phone: bool = False) -> Figure:
    """Does it pay, and against what: savings against pool quality at the shortest length, the
    longest, and those beyond; below them what ends best, and the curves at .8 wrong captions.
    phone: all of it in one narrow column."""
    title = "Does JEST pay? What it saves, by the share of wrong captions in the pool"
    words = "JEST at its better filter ratio (.8 or .9), others at their best setting, strong "
    words += "reference. Hollow: one seed, or a bound. Arrow: open interval."
    ends = lengths(records)
    lines = [line for line in FEW if not line.method or lengths(records, line.method)]
    shown = {
        length: {q: better(records, q, length) for q in qualities(records)}
        for length in (*ends[:1], *ends[-1:], *longer(records))
    }
    width, body = (look.PHONE, 2.6 * len(shown) + 7.0) if phone else (look.WIDTH, 7.75)
    figure, top = look.frame(title, words, note, body, theme, width)
    wide = {  # as there are pools
        length: 1
        + sum(saving(records, m, q, length, "examples") is not None for q, m in of.items())
        for length, of in shown.items()
    }
    left, unit = 0.75, (8.1 - 0.35 * (len(shown) - 1)) / max(1, sum(wide.values()))
    for number, (length, methods) in enumerate(shown.items()):
        if phone:
            axes = look.place(figure, 0.6, top + 0.75 + 2.6 * number, 2.9, 1.85)
        else:
            axes = look.place(figure, left, top + 0.55, unit * wide[length], 3.1)
            left += unit * wide[length] + 0.35
        _savings(axes, records, methods, length, lines, theme)
        if not number:
            how: Any = {"ncols": 1 if phone else 3, "fontsize": FONT, "columnspacing": 1.4}
            at = (-0.2 if phone else -0.16, 1.14 if phone else 1.07)
            axes.legend(loc="lower left", bbox_to_anchor=at, borderpad=0, **how)
        elif not phone:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
    if phone:
        below = top + 0.75 + 2.6 * len(shown)
        _best(look.place(figure, 0.6, below, 2.9, 2.5), records, theme)
        _curves(look.place(figure, 0.6, below + 3.35, 2.0, 2.4), records, 0.8, theme)
    else:
        _best(look.place(figure, 0.75, top + 4.6, 3.75, 2.6), records, theme)
        _curves(look.place(figure, 5.15, top + 4.6, 2.8, 2.6), records, 0.8, theme)
    return figure


def make_conventions(records: list[Record], note: str, theme: Theme) -> Figure:
    """The same in every convention of cost, a row for each reference."""
    rows = [(m, ends) for m in ("jest", "jest-weak") if (ends := lengths(records, m))]
    title = "What JEST saves over uniform training, in every convention of cost"
    words = f"{FIXED} Hollow: a bound, or one seed. Arrow: open interval."
    figure, top = look.frame(title, words, note, 0.4 + 3.4 * len(rows), theme)
    for i, (method, ends) in enumerate(rows):
        for k, length in enumerate(dict.fromkeys((ends[0], ends[-1]))):
            axes = look.place(figure, 0.75 + 4.15 * k, top + 0.65 + 3.4 * i, 4.0, 2.7)
            methods = dict.fromkeys(qualities(records, method), method)
            _savings(axes, records, methods, length, ALL, theme)
            which = "weak" if method.endswith("weak") else "strong"
            axes.set_title(f"{axes.get_title('left')}, {which} reference")
            if k:
                axes.set_ylabel("")
                axes.tick_params(labelleft=False)
            elif not i:
                how: Any = {"ncols": 4, "columnspacing": 1.2, "handletextpad": 0.4, "fontsize": 7}
                axes.legend(loc="lower left", bbox_to_anchor=(-0.15, 1.08), **how)
    return figure


def _savings(
    axes: Axes,
    records: list[Record],
    methods: dict[float, str],
    steps: int,
    lines: Sequence[Line],
    theme: Theme,
) -> None:
    """These savings at one length, with intervals; arrows where there is a bound. methods: by
    quality."""
    every = []
    for line in lines:
        each = {
            q: saving(records, line.method or m, q, steps, line.axis, line.simpler)
            for q, m in methods.items()
        }
        every.append({q: ratio for q, ratio in each.items() if ratio is not None})
    shown = sorted(set().union(*every))
    axes.set_yscale("log", base=2)
    # Many stand so far apart that no symbol hides another, and unjoined: lines would cross there.
    many = len(lines) > 3
    for number, (found, line) in enumerate(zip(every, lines, strict=True)):
        aside = (0.12 if many else 0.06) * (number - (len(lines) - 1) / 2)
        there = [(shown.index(q) + aside, ratio) for q, ratio in sorted(found.items())]
        colour = theme.colour(line.colour)
        how: Any = {"color": colour, "marker": "o", "zorder": 3}
        sure = [r.status == REACHED and r.seeds > 1 for _, r in there]
        x, saved = [at for at, _ in there], np.array([r.ratio for _, r in there])
        axes.plot(x, np.where(sure, saved, np.nan), ls="" if many else "-", label=line.label, **how)
        # Single seeds and bounds are hollow and never joined.
        axes.plot(x, np.where(sure, np.nan, saved), ls="", mfc=theme.background, **how)
        for at, ratio in there:
            up = ratio.status == MORE or (ratio.status == REACHED and math.isinf(ratio.high))
            if ratio.status == REACHED and not math.isnan(ratio.low):
                top = ratio.ratio if up else ratio.high
                axes.plot([at, at], [max(ratio.low, LEAST), top], color=colour, lw=1.2, zorder=2)
            if up or ratio.status == LESS:
                arrow = {"arrowstyle": "<-", "color": colour, "lw": 1.2}
                tip = (0, ARROW if up else -ARROW)
                axes.annotate(
                    "", (at, ratio.ratio), tip, textcoords="offset points", arrowprops=arrow
                )
    axes.axhline(1, color=theme.text, lw=0.8)
    for y, words, off, va in PAPER[: 2 if many else 1]:  # few have no FLOPs over uniform
        axes.axhline(y, color=theme.muted, lw=0.8, ls=":")
        axes.text(-0.45, y * off, words, size=7, color=theme.muted, va=va)
    axes.set_ylim(LEAST, 100)
    axes.axhspan(LEAST, 1, color=theme.grid, alpha=0.55, lw=0, zorder=0)
    small: Any = {"transform": axes.get_yaxis_transform(), "size": 7, "color": theme.muted}
    small["bbox"] = {"fc": theme.background, "lw": 0, "pad": 1, "alpha": 0.8}  # bars may be behind
    axes.text(0.98, LEAST * 1.2, "below 1: JEST costs more", ha="right", **small)
    axes.set_yticks([2.0**k for k in range(-5, 7)], ["1/32", "1/16", *"⅛¼½1248", "16", "32", "64"])
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.set_xticks(range(len(shown)), [f"{100 * q:g} %" for q in shown])
    axes.set_xlabel("wrong captions in the pool")
    size = steps * records[0]["batch_size"] / 1000
    axes.set_title(f"{size:,.0f}k examples")
    axes.set_ylabel("JEST needs so many times less")


def _settings(kind: str) -> list[str]:
    """The methods that a kind of recipe is run as."""
    return [method for method, of in FAMILIES.items() if of == kind] or [kind]


def _colour(kind: str, theme: Theme) -> str:
    return theme.colour(style(_settings(kind)[0]).colour if kind in KINDS else "grey")


def _best(axes: Axes, records: list[Record], theme: Theme) -> None:
    """What ends best by length and pool quality; a cell is divided where kinds are level."""
    from matplotlib.patches import Rectangle

    found = best_cells(records)
    shown, rows = sorted({q for q, _ in found}), sorted({steps for _, steps in found})
    axes.set_title("What ends best after so many examples")
    if not found:
        look.empty(axes)
        return
    for (quality, steps), ended in found.items():
        names = kinds(ended)
        names = names if len(names) < 4 else [*names[:2], "…"]
        x, y, part = shown.index(quality), rows.index(steps), 0.92 / len(names)
        for number, name in enumerate(names, 1):
            at, colour = y + 0.96 - part * number, _colour(name.removesuffix(SINGLE), theme)
            axes.add_patch(Rectangle((x + 0.03, at), 0.94, part, fc=colour, alpha=0.36, lw=0))
            short = name.replace(" alone", "").replace("pendent", "p.")
            axes.text(x + 0.5, at + part / 2, short, ha="center", va="center", size=7)
    axes.set_xlim(0, len(shown))
    axes.set_ylim(0, len(rows))
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    sizes = [f"{n * records[0]['batch_size'] / 1000:,.0f}k" for n in rows]
    axes.set_xticks([i + 0.5 for i in range(len(shown))], [f"{100 * q:g} %" for q in shown])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], sizes)
    axes.set_xlabel("wrong captions in the pool\n(divided: within the error; ¹: one seed)")


def _curves(axes: Axes, records: list[Record], quality: float, theme: Theme) -> None:
    """Annealed ends at one quality, each kind of recipe at its best setting of every length,
    labelled where it ends."""
    sizes, ends, half = set[float](), list[look.End](), 100 * reach(records)
    axes.set_xscale("log")
    for kind in KINDS:
        found, colour = best_of(records, _settings(kind), quality), _colour(kind, theme)
        if not found:
            continue
        x, y = [c.examples for c in found], [100 * c.mean for c in found]
        how: Any = {"color": colour, "marker": style(_settings(kind)[0]).marker}
        sure = [math.nan if len(c.scores) == 1 else 100 * c.mean for c in found]
        axes.plot(x, sure, zorder=2 + KINDS.index(kind) / 10, **how)
        for c in found:
            if len(c.scores) == 1:
                axes.plot(c.examples, 100 * c.mean, zorder=3, mfc=theme.background, **how)
                continue
            bar = half / math.sqrt(len(c.scores))
            low, high = 100 * c.mean - bar, 100 * c.mean + bar
            axes.plot([c.examples] * 2, [low, high], color=colour, lw=1)
        ends.append((x[-1], y[-1], kind, colour))
        sizes |= set(x)
    scores = [
        [r["final"]["mean"] for r in records if r["name"] == name]
        for name in ("reference strong", "reference")
    ]
    if own := scores[0] or scores[1]:
        score = 100 * float(np.mean(own))
        axes.axhline(score, color=theme.muted, lw=0.8, ls="--")
        ends.append((None, score, "the reference", theme.muted))
    if sizes:
        # As many labels as there is room for, the longest's among them.
        ticks, whole = sorted(sizes), cast("Figure", axes.figure)
        room = axes.get_position().width * whole.get_size_inches()[0] / len(ticks)
        ticks = ticks[:: -1 if room > 0.45 else -2]
        axes.set_xticks(ticks, [f"{n / 1000:,.0f}k" for n in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    look.label_ends(axes, ends)
    axes.set_xlabel("examples (annealed end of a run)")
    axes.set_ylabel("mean of eight benchmarks, %")
    axes.set_title(f"Scores at {100 * quality:g} % wrong captions")


def make_map(records: list[Record], note: str, steps: Sequence[int], theme: Theme) -> Figure:
    """The best method of each cell, and its lead over the best that is not a JEST, or JEST's score;
    hatched where the lead is within the error or a score is of one seed. A panel a reference."""
    panels = [(weak, best) for weak in (False, True) if (best := winners(records, steps, weak))]
    height = 0.95 * len(steps)
    title = "What ends best (hatched: another kind of recipe is level, or one seed)"
    figure, top = look.frame(title, "", note, (height + 0.9) * len(panels), theme)
    for number, (weak, best) in enumerate(panels):
        axes = look.place(figure, 1.2, top + 0.2 + (height + 0.9) * number, 7.4, height)
        _cells_of_map(axes, best, steps, theme)
        which = "weak reference, or none" if weak else "strong reference, or none"
        axes.set_title(f"Methods that read the {which}")
    return figure


def _cells_of_map(
    axes: Axes,
    best: dict[tuple[float, int], list[Ended]],
    steps: Sequence[int],
    theme: Theme,
) -> None:
    from matplotlib.patches import Rectangle

    shown = sorted({quality for quality, _ in best})
    for (quality, length), rows in best.items():
        first, *rest = rows
        x, y, how = shown.index(quality), list(steps).index(length), style(first.method)
        mine = first.method.removesuffix("-weak") in JESTS
        against = next(
            (r for r in rest if (r.method.removesuffix("-weak") in JESTS) != mine), rest[0]
        )
        sure = len(kinds(rows)) == 1 and min(first.seeds, against.seeds) > 1
        colours: Any = {
            "facecolor": theme.colour(how.colour),
            "edgecolor": theme.muted,
            "alpha": 0.28,
        }
        box = Rectangle((x, y), 0.97, 0.94, hatch=None if sure else "///", lw=0.5, **colours)
        axes.add_patch(box)
        words, other = f"{how.label}\n{100 * first.score:.1f} %\n", style(against.method).label
        between = "\n" if len(shown) > 4 else " "  # narrow cells
        lead = f"+{100 * (first.score - against.score):.1f} over{between}{other}"
        words += lead if mine else f"{other} {100 * against.score:.1f}"
        axes.text(x + 0.485, y + 0.47, words, ha="center", va="center", size=FONT - 1)
    axes.set_xlim(0, len(shown))
    axes.set_ylim(0, len(steps))
    axes.grid(False)
    axes.set_xticks([i + 0.5 for i in range(len(shown))], [f"{100 * q:g} %" for q in shown])
    axes.set_yticks([i + 0.5 for i in range(len(steps))], [f"{n:,}" for n in steps])
    axes.set_xlabel("wrong captions in the pool")
    axes.set_ylabel("steps of 256")


def make_why(records: list[Record], note: str, theme: Theme) -> Figure:
    """Of JEST's longest runs over time the share of wrong pairs among those chosen, and the mean
    learnability of right and of wrong pairs, whose sign turns when the learner has passed its
    reference; the weight of the learner's loss; where what is asked for is rare."""
    dials = any(r["name"].startswith(("weight", "relevance")) for r in records)
    title, body = "Why: what JEST picks over time", 6.4 if dials else 3.2
    title += ", and what that does" if dials else ""
    words = f"{FIXED} Below: 95 % intervals; hollow: one seed." if dials else FIXED
    figure, top = look.frame(title, words, note, body, theme)
    rows = [
        [look.place(figure, x, top + 0.25 + y, 3.4, 2.35) for x in (0.75, 5.1)]
        for y in (0, 3.2)[: 1 + dials]
    ]
    _over_time(rows[0][0], rows[0][1], records, theme)
    if dials:
        _weights(rows[1][0], records, theme)
        _relevance(rows[1][1], records, theme)
    return figure


def _over_time(left: Axes, right: Axes, records: list[Record], theme: Theme) -> None:
    runs = longest(records)
    most = max((r["steps"] for r in runs.values()), default=0)
    for number, (quality, run) in enumerate(runs.items()):
        colour, training = theme.colour(COLOURS[number % len(COLOURS)]), run["training"]
        steps, share = training["step"], 100 * quality
        short = "" if run["steps"] == most else f" ({run['steps']:,} steps)"
        left.plot(steps, [100 * x for x in training["wrong_sub"]], color=colour)
        left.axhline(share, color=colour, ls=":", lw=0.9)
        left.text(steps[0], share, f"{share:g} % drawn{short}", color=colour, va="bottom", size=7)
        for key, dash in (("right", "-"), ("wrong", "--")):
            right.plot(steps, training[f"learnability_{key}"], color=colour, ls=dash)
            if not number:  # the qualities' colours are explained on the left
                right.plot([], [], color=theme.muted, ls=dash, label=f"{key} pairs")
    weak = longest(records, "jest-weak")
    if weak:
        quality, run = max(weak.items())
        training, label = run["training"], f"right, {100 * quality:g} %, weak ref."
        right.plot(
            training["step"], training["learnability_right"], color=theme.text, ls="-.", label=label
        )
    left.set_ylim(0, 100)
    left.set_title("Wrong captions among JEST's picks, %")
    right.axhline(0, color=theme.text, lw=0.8)
    right.set_title("Mean learnability of right and wrong pairs, nats")
    where: Any = {"loc": "center right", "bbox_to_anchor": (1, 0.345)}
    legend = right.legend(fontsize=7, title="colours as left", **where)
    legend.get_title().set(size=7, color=theme.muted)
    for axes in (left, right):
        axes.set_xlabel("step (one seed each)")


def _dots(
    axes: Axes, ends: dict[float, list[float]], half: float, theme: Theme, **how: Any
) -> None:
    """Mean scores by a dial's setting, in %, with 95 % intervals; joined where there are three
    settings or more, of several seeds each. half: of one seed's interval, in %."""
    x = sorted(ends)
    y, n = [float(np.mean(ends[at])) for at in x], [len(ends[at]) for at in x]
    bars = [half / math.sqrt(k) if k > 1 else 0.0 for k in n]
    dash = "-" if len(x) > 2 and min(n) > 1 else ""
    axes.errorbar(x, y, bars, ls=dash, elinewidth=1.2, **how)
    alone = [at for at, k in enumerate(n) if k == 1]
    how |= {"ls": "", "mfc": theme.background, "label": None, "zorder": 3}
    axes.plot([x[at] for at in alone], [y[at] for at in alone], **how)


def _weights(axes: Axes, records: list[Record], theme: Theme) -> None:
    """Scores by the weight of the learner's loss, at each reference, quality and length that one
    between the ends, or that end of the weak reference, was run at."""
    axes.set_title("Weight of the learner's loss (0: easy reference, 1: JEST)")
    lines: dict[tuple[str, str, int], dict[float, list[float]]] = {}
    ends = {"easy": ("weight", "0"), "jest": ("weight", "1"), "jest-weak": ("weight-weak", "1")}
    named = [
        (r["name"].split(MARK)[1], r["steps"]) for r in records if r["name"].startswith("weight")
    ]
    half, ticks = 100 * reach(records), set[float]()
    for record in records:
        method, *rest = record["name"].split(MARK)
        if not rest or (rest[0], steps := record["steps"]) not in named:
            continue
        key, weight = ends.get(method, (method, rest[1]))
        if key.startswith("weight"):
            at = lines.setdefault((key, rest[0], steps), {})
            at.setdefault(float(weight), []).append(100 * record["final"]["mean"])
    some = [(at, line) for at, line in sorted(lines.items()) if len(line) > 1]
    for number, ((key, quality, steps), line) in enumerate(some):
        which, colour = "weak" if "weak" in key else "strong", COLOURS[number % len(COLOURS)]
        label = f"{which} ref., {100 * float(quality):g} % wrong, {steps:,} steps"
        how = {"label": label, "marker": "o"}
        _dots(axes, line, half, theme, color=theme.colour(colour), **how)
        ticks |= set(line)
    if not axes.lines:
        look.empty(axes)
        return
    axes.legend(fontsize=7)
    axes.set_xlim(-0.15, 1.15)
    axes.set_xticks(sorted(ticks))
    axes.set_ylim(0, None)
    axes.set_xlabel("weight")
    axes.set_ylabel("mean of eight, %")


def _relevance(axes: Axes, records: list[Record], theme: Theme) -> None:
    """Scores of uniform training and JEST by the share of what is asked for that the pool has."""
    axes.set_title("What the benchmarks ask for, thinned in the pool")
    curves, ticks, half = at_quality(records), set[float](), 100 * reach(records)
    for method in ("uniform", "filtered", "jest"):
        shares = qualities(records, f"relevance-{method}")
        found = {
            s: each for s in shares if (each := cells(curves, f"relevance-{method}{MARK}{s:g}"))
        }
        if not found:
            continue
        n = min(max(c.examples for c in each) for each in found.values())
        ends = {
            s: next((c for c in each if c.examples == n), each[-1]) for s, each in found.items()
        }
        scores = {s: [100 * score for score in c.scores] for s, c in ends.items()}
        how = {"label": f"{style(method).label}, {n / 1000:,.0f}k", "marker": style(method).marker}
        _dots(axes, scores, half, theme, color=theme.colour(style(method).colour), **how)
        ticks |= set(scores)
    if not axes.lines:
        look.empty(axes)
        return
    axes.set_ylim(0, None)
    axes.set_xlim(0, 1.1)
    axes.set_xticks(sorted(ticks))
    axes.legend(fontsize=7)
    axes.set_xlabel("share that is left (no wrong captions)")
    axes.set_ylabel("mean of eight, %")
