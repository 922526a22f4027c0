"""What was chosen against what was offered: shares, diversity, and their figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jestcli.data.dataset import Dataset
from jestcli.paper import theme as look
from jestcli.paper.grid import frame
from jestcli.paper.methods import BLUE, VERMILLION
from jestcli.paper.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 0.13  # inches between labels
TOP = 8  # names shown at either end
LEAST = 20  # candidates of a source, for its rate to mean something
WORDS = "words"  # the group of captions by their length
PLURAL = {"source": "sources", "category": "categories"}
LENGTHS = ("1", "2", "3", "4", "5", "6+")


class Chosen(Protocol):
    """rows int64 [B] of the pool; index int64 [b] of those chosen; score float [B]."""

    @property
    def rows(self) -> np.ndarray: ...
    @property
    def index(self) -> np.ndarray: ...
    @property
    def score(self) -> np.ndarray: ...


def describe(
    pairs: Dataset,
    replays: Sequence[Chosen],
    in_training: list[tuple[int, np.ndarray]],
    overlaps: dict[str, dict[str, float]],
    drift: dict[str, float],
    near_duplicates: tuple[float, float],
) -> dict[str, Any]:
    """All that is reported about a run's choices, as plain data.

    rates: group -> name -> [offered, chosen, chosen / offered relative to the mean], by what the
    pairs are grouped in and by words in the caption. over_time: group -> name -> share of the
    logged sub-batches in ten spans of training. diversity: of the chosen and of random sub-batches.
    """
    offered = np.concatenate([r.rows for r in replays])
    chosen = np.concatenate([r.rows[r.index] for r in replays])
    random = np.concatenate([r.rows[: len(r.index)] for r in replays])
    groups = {name: labelled(pairs, name) for name in (*pairs.groups, WORDS)}
    most = {WORDS: pairs.most_captions}
    return {
        "super_batches": len(replays),
        "offered": len(offered),
        "chosen": len(chosen),
        "rates": {k: rates(labels, offered, chosen) for k, labels in groups.items()},
        "over_time": {k: over_time(x, in_training, most.get(k)) for k, x in groups.items()},
        "diversity": {"chosen": diversity(pairs, chosen), "random": diversity(pairs, random)},
        "overlap": overlaps,
        "overlap_by_chance": len(chosen) / len(offered),
        "drift": drift,
        "near_duplicates": {"chosen": near_duplicates[0], "random": near_duplicates[1]},
        "score": {
            "offered": _spread(np.concatenate([r.score for r in replays])),
            "chosen": _spread(np.concatenate([r.score[r.index] for r in replays])),
        },
    }


def labelled(pairs: Dataset, group: str) -> Any:
    """rows int64 [n] -> each one's label, by one of the pairs' groups or words in the caption."""
    if group == WORDS:
        return lambda rows: [_length(caption) for caption in pairs.captions_of(rows)]
    return partial(pairs.labels, group)


def _length(caption: str) -> str:
    return LENGTHS[min(max(len(caption.split()), 1), len(LENGTHS)) - 1]


def rates(labels: Any, offered: np.ndarray, chosen: np.ndarray) -> dict[str, list[float]]:
    """label -> [offered, chosen, its share of being chosen over the mean share]."""
    before, after = Counter(labels(offered)), Counter(labels(chosen))
    mean = len(chosen) / len(offered)
    return {k: [n, after[k], after[k] / n / mean] for k, n in sorted(before.items())}


def over_time(
    labels: Any,
    in_training: list[tuple[int, np.ndarray]],
    most: int | None = None,
    spans: int = 10,
) -> dict[str, Any]:
    """{"step": ends of the spans, "share": label -> share of the sub-batches in each}.

    most: pairs to look at, evenly spread; None is all.
    """
    if not in_training or most == 0:
        return {"step": [], "share": {}}
    parts = [p for p in np.array_split(np.arange(len(in_training)), spans) if len(p)]
    rows = [np.concatenate([in_training[i][1] for i in p]) for p in parts]
    every = 1 if most is None else math.ceil(sum(map(len, rows)) / most)
    counts = [Counter(labels(each[::every])) for each in rows]
    top = [k for k, _ in sum(counts, Counter()).most_common(TOP)]
    totals = [sum(c.values()) for c in counts]
    share = {k: [c[k] / n for c, n in zip(counts, totals, strict=True)] for k in top}
    return {"step": [in_training[int(p[-1])][0] for p in parts], "share": share}


def diversity(pairs: Dataset, rows: np.ndarray) -> dict[str, float]:
    """How varied these pairs are. effective_*: exp of the entropy, the number of equally common
    sets, categories or captions that would be as varied; distinct_captions: share of captions
    that no other of these pairs has."""
    found: dict[str, float] = {"pairs": len(rows)}
    for group in pairs.groups:
        counts = Counter(pairs.labels(group, rows))
        found |= {PLURAL[group]: len(counts), f"effective_{PLURAL[group]}": effective(counts)}
    captions = Counter(pairs.captions_of(rows))
    return found | {
        "effective_captions": effective(captions),
        "distinct_captions": len(captions) / len(rows),
    }


def effective(counts: Counter[str]) -> float:
    """exp(entropy) of the shares."""
    p = np.array(list(counts.values()), float) / sum(counts.values())
    return float(np.exp(-(p * np.log(p)).sum()))


def _spread(values: np.ndarray) -> dict[str, float]:
    names = ("p05", "p50", "p95")
    found = dict(zip(names, map(float, np.quantile(values, (0.05, 0.5, 0.95))), strict=True))
    return {"mean": float(values.mean()), **found}


# --- figure --------------------------------------------------------------------------------------


def draw_choices(facts: dict[str, Any], path: Path) -> list[Path]:
    """Write `path`.png, .svg and -dark.png."""
    return look.both(lambda theme: make_choices(facts, theme), path)


def make_choices(facts: dict[str, Any], theme: Theme) -> Figure:
    """What is chosen more and less often than the mean, and shares over training."""
    note = (
        f"Run {facts['run']}; {facts['super_batches']} new super-batches, {facts['offered']:,} "
        f"pairs offered, {facts['chosen']:,} chosen by the final weights; groups of fewer than "
        f"{LEAST} offered pairs are left out."
    )
    heights = {name: 1.5 if name == WORDS else 3.1 for name in facts["rates"]}
    figure, top = frame(
        f"What {facts['label']} chooses",
        f"Selection: {facts['selects']}. Left: how much more "
        "often than the mean a group is chosen. Right: shares of the sub-batches during training.",
        note,
        sum(heights.values()) + 0.2,
        theme,
    )
    at = top + 0.25
    for name, height in heights.items():
        axes = look.place(figure, 1.9, at, 2.3, height - 0.72)
        axes.set_title(
            {"source": "Source set", "category": "Category", WORDS: "Words in the caption"}[name]
        )
        _rates(axes, facts["rates"][name], name == WORDS, theme)
        right = look.place(figure, 5.0, at, 2.4, height - 0.72)
        _shares(right, facts["over_time"][name], height - 0.72, theme)
        at += height
    return figure


def _rates(axes: Axes, table: dict[str, list[float]], in_order: bool, theme: Theme) -> None:
    known = {k: v[2] for k, v in table.items() if v[0] >= LEAST}
    names = list(known) if in_order else sorted(known, key=lambda k: known[k])
    if len(names) > 2 * TOP and not in_order:
        names = names[:TOP] + names[-TOP:]
    values = [known[n] for n in names]
    colours = [theme.colour(BLUE if v >= 1 else VERMILLION) for v in values]
    axes.barh(range(len(names)), [v - 1 for v in values], left=1, color=colours, height=0.7)
    axes.set_yticks(range(len(names)), [_short(n, 26) for n in names], fontsize=6.2)
    axes.axvline(1, color=theme.muted, lw=0.8)
    axes.set_xlabel("times the mean rate", size=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="y", visible=False)


def _shares(axes: Axes, series: dict[str, Any], height: float, theme: Theme) -> None:
    """height: of the axes, inches."""
    from jestcli.paper.grid import COLOURS

    if not series["step"]:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    ends = []
    for i, (name, share) in enumerate(list(series["share"].items())[: len(COLOURS)]):
        colour = theme.colour(COLOURS[i])
        axes.plot(series["step"], [100 * s for s in share], color=colour, lw=1.3)
        ends.append((100 * share[-1], name, colour))
    low, high = axes.get_ylim()
    heights = [(y - low) / (high - low) for y, _, _ in ends]
    gap = LINE / height
    for (_, name, colour), y in zip(ends, look.spread(heights, gap, 0, 1), strict=True):
        axes.text(
            1.02, y, _short(name, 24), transform=axes.transAxes, size=6.4, color=colour, va="center"
        )
    axes.set_xlabel("step", size=7)
    axes.set_ylabel("% of sub-batch", size=7)
    axes.tick_params(labelsize=7)


def _short(name: str, most: int) -> str:
    """Its end, which tells shards apart."""
    return name if len(name) <= most else "…" + name[1 - most :]


# --- words ---------------------------------------------------------------------------------------


def to_markdown(facts: dict[str, Any], sheets: list[str]) -> str:
    """The report of `jest inspect`."""
    many, few = facts["diversity"]["random"], facts["diversity"]["chosen"]
    lines = [
        f"# What {facts['label']} chooses",
        f"Run {facts['run']}; selection: {facts['selects']}. {facts['super_batches']} new "
        f"super-batches, {facts['offered']:,} pairs offered, {facts['chosen']:,} chosen with the "
        "final weights.",
        "![shares](choices.png)",
        "## Diversity",
        "| | chosen | random, as many |\n|---|---:|---:|\n"
        + "\n".join(f"| {k.replace('_', ' ')} | {_n(few[k])} | {_n(many[k])} |" for k in few)
        + f"\n| near-duplicate in the batch, % | {100 * facts['near_duplicates']['chosen']:.1f} | "
        f"{100 * facts['near_duplicates']['random']:.1f} |",
        "Effective: exp of the entropy. Near-duplicate: another image of the same sub-batch with "
        "a cosine of at least .98 by the reference.",
        "## Overlap of strategies",
        _overlap(facts),
        "## Scores",
        "| nats, learner minus reference | mean | 5 % | median | 95 % |\n"
        "|---|---:|---:|---:|---:|\n"
        + "\n".join(
            f"| {k} | {v['mean']:.2f} | {v['p05']:.2f} | {v['p50']:.2f} | {v['p95']:.2f} |"
            for k, v in facts["score"].items()
        ),
        "Rank correlation of a pair's score: "
        + "; ".join(f"{k} {v:.2f}" for k, v in facts["drift"].items())
        + ".",
        "## Pictures",
        *(f"![{name}]({name})" for name in sheets),
        "scores.csv holds the scores by key, uids.npy the chosen pairs as a DataComp uid file.",
    ]
    return "\n\n".join(lines) + "\n"


def _overlap(facts: dict[str, Any]) -> str:
    names = list(facts["overlap"])
    head = "| share of … chosen by … too, % | " + " | ".join(names) + " |"
    rows = [
        f"| {a} | " + " | ".join(f"{100 * facts['overlap'][a][b]:.0f}" for b in names) + " |"
        for a in names
    ]
    chance = f"By chance: {100 * facts['overlap_by_chance']:.0f} %."
    return "\n".join([head, "|---|" + "---:|" * len(names), *rows, "", chance])


def _n(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
