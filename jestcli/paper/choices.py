"""What was chosen against what was offered: shares, diversity, and their figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jestcli.data.dataset import Dataset
from jestcli.paper import theme as look
from jestcli.paper.methods import BLUE, COLOURS, VERMILLION
from jestcli.paper.theme import Axes, Figure, Theme
from jestcli.selection import PairEmbeddings
from jestcli.utils.tables import Table

TOP = 8  # names shown at either end
LEAST = 20  # candidates of a source, for its rate to mean something
WORDS = "words"  # the group of captions by their length
PLURAL = {"source": "sources", "category": "categories"}
TITLES = {"source": "Source set", "category": "Category", WORDS: "Words in the caption"}
LENGTHS = ("1", "2", "3", "4", "5", "6+")
Labels = Callable[[np.ndarray], Sequence[str]]  # rows int64 [n] -> each one's label


@dataclass(frozen=True)
class Replay:
    """One super-batch: rows int64 [B] of the pool, index int64 [b] chosen, score float64 [B]:
    the diagonal learnability, learner's loss of a pair minus the reference's, in nats."""

    rows: np.ndarray
    index: np.ndarray
    score: np.ndarray
    learner: PairEmbeddings
    reference: PairEmbeddings


def describe(
    pairs: Dataset, replays: Sequence[Replay], in_training: list[tuple[int, np.ndarray]]
) -> dict[str, Any]:
    """What is reported about a run's choices, as plain data. rates: group -> name -> [offered,
    chosen, chosen / offered relative to the mean], by what the pairs are grouped in and by words in
    the caption. over_time: group -> name -> share of the logged sub-batches in ten spans of
    training. diversity: of the chosen and of random sub-batches."""
    offered, both = np.concatenate([r.rows for r in replays]), sides(replays)
    chosen = both["chosen"]
    groups: dict[str, Labels] = {name: partial(pairs.labels, name) for name in pairs.groups}
    groups[WORDS] = lambda rows: [_length(caption) for caption in pairs.captions_of(rows)]
    most = {WORDS: pairs.most_captions}
    scores = [r.score for r in replays], [r.score[r.index] for r in replays]
    return {
        "super_batches": len(replays),
        "offered": len(offered),
        "chosen": len(chosen),
        "rates": {name: rates(labels, offered, chosen) for name, labels in groups.items()},
        "over_time": {k: over_time(x, in_training, most.get(k)) for k, x in groups.items()},
        "diversity": {kind: diversity(pairs, rows) for kind, rows in both.items()},
        "overlap_by_chance": len(chosen) / len(offered),
        "score": dict(zip(("offered", "chosen"), map(_spread, scores), strict=True)),
    }


def sides(replays: Sequence[Replay]) -> dict[str, np.ndarray]:
    """Rows of what was chosen, and of as many random candidates."""
    return {
        "chosen": np.concatenate([r.rows[r.index] for r in replays]),
        "random": np.concatenate([r.rows[: len(r.index)] for r in replays]),
    }


def _length(caption: str) -> str:
    return LENGTHS[min(max(len(caption.split()), 1), len(LENGTHS)) - 1]


def _spread(scores: list[np.ndarray]) -> dict[str, float]:
    values = np.concatenate(scores)
    low, middle, high = map(float, np.quantile(values, (0.05, 0.5, 0.95)))
    return {"mean": float(values.mean()), "p05": low, "p50": middle, "p95": high}


def rates(labels: Labels, offered: np.ndarray, chosen: np.ndarray) -> dict[str, list[float]]:
    """label -> [offered, chosen, its share of being chosen over the mean share]."""
    before, after = Counter(labels(offered)), Counter(labels(chosen))
    mean = len(chosen) / len(offered)
    return {k: [n, after[k], after[k] / n / mean] for k, n in sorted(before.items())}


def over_time(
    labels: Labels,
    in_training: list[tuple[int, np.ndarray]],
    most: int | None = None,
    spans: int = 10,
) -> dict[str, Any]:
    """{"step": ends of the spans, "share": label -> share of the sub-batches in each}. most:
    pairs to look at, evenly spread; None is all."""
    if not in_training or most == 0:
        return {"step": [], "share": {}}
    parts = [p for p in np.array_split(np.arange(len(in_training)), spans) if len(p)]
    rows = [np.concatenate([in_training[i][1] for i in p]) for p in parts]
    every = 1 if most is None else math.ceil(sum(map(len, rows)) / most)
    counts = [Counter(labels(each[::every])) for each in rows]
    top = [k for k, _ in sum(counts, Counter()).most_common(TOP)]
    share = {k: [c[k] / sum(c.values()) for c in counts] for k in top}
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
    distinct = len(captions) / len(rows)
    return found | {"effective_captions": effective(captions), "distinct_captions": distinct}


def effective(counts: Counter[str]) -> float:
    """exp(entropy) of the shares."""
    p = np.array(list(counts.values()), float) / sum(counts.values())
    return float(np.exp(-(p * np.log(p)).sum()))


def make_choices(facts: dict[str, Any], theme: Theme) -> Figure:
    """What is chosen more and less often than the mean, and shares over training."""
    words = (
        f"Selection: {facts['selects']}. Left: how much more often than the mean a group is "
        "chosen. Right: shares of the sub-batches during training."
    )
    note = f"{_measured(facts)} Groups of fewer than {LEAST} offered pairs are left out."
    heights = {name: 1.5 if name == WORDS else 3.1 for name in facts["rates"]}
    body = sum(heights.values()) + 0.2
    figure, at = look.frame(f"What {facts['label']} chooses", words, note, body, theme)
    for name, height in heights.items():
        left, right = (look.place(figure, x, at + 0.25, 2.3, height - 0.72) for x in (1.9, 5.0))
        left.set_title(TITLES[name])
        _rates(left, facts["rates"][name], name == WORDS, theme)
        _shares(right, facts["over_time"][name], theme)
        at += height
    return figure


def _measured(facts: dict[str, Any]) -> str:
    return (
        f"Run {facts['run']}; {facts['super_batches']} new super-batches, {facts['offered']:,} "
        f"pairs offered, {facts['chosen']:,} chosen with the final weights."
    )


def _rates(axes: Axes, table: dict[str, list[float]], in_order: bool, theme: Theme) -> None:
    known = {k: v[2] for k, v in table.items() if v[0] >= LEAST}
    names = list(known) if in_order else sorted(known, key=lambda k: known[k])
    if len(names) > 2 * TOP and not in_order:
        names = names[:TOP] + names[-TOP:]
    colours = [theme.colour(BLUE if known[n] >= 1 else VERMILLION) for n in names]
    axes.barh(range(len(names)), [known[n] - 1 for n in names], left=1, color=colours, height=0.7)
    axes.set_yticks(range(len(names)), [_short(n, 26) for n in names], fontsize=6.2)
    axes.axvline(1, color=theme.muted, lw=0.8)
    axes.set_xlabel("times the mean rate", size=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="y", visible=False)


def _shares(axes: Axes, series: dict[str, Any], theme: Theme) -> None:
    if not series["step"]:
        look.empty(axes, "not recorded")
        return
    ends = []
    for bare, (name, share) in zip(COLOURS, series["share"].items(), strict=False):
        colour, y = theme.colour(bare), [100 * s for s in share]
        axes.plot(series["step"], y, color=colour, lw=1.3)
        ends.append((series["step"][-1], y[-1], _short(name, 24), colour))
    look.label_ends(axes, ends)
    axes.set_xlabel("step", size=7)
    axes.set_ylabel("% of sub-batch", size=7)
    axes.tick_params(labelsize=7)


def _short(name: str, most: int) -> str:
    """Its end, which tells shards apart."""
    return name if len(name) <= most else "…" + name[1 - most :]


def to_markdown(facts: dict[str, Any], sheets: list[str]) -> str:
    """The report of `jest inspect`."""
    both, near = facts["diversity"], facts["near_duplicates"]
    rows = [
        [key.replace("_", " "), *(_n(both[kind][key]) for kind in ("chosen", "random"))]
        for key in both["chosen"]
    ]
    shares = [f"{100 * near[kind]:.1f}" for kind in ("chosen", "random")]
    varied = Table("", ("", "chosen", "random, as many"), [*rows, ["near-duplicate, %", *shares]])
    names = list(facts["overlap"])
    rows = [[a, *(f"{100 * facts['overlap'][a][b]:.0f}" for b in names)] for a in names]
    overlap = Table("", ("share of … chosen by … too, %", *names), rows)
    rows = [[kind, *(f"{x:.2f}" for x in row.values())] for kind, row in facts["score"].items()]
    head = ("nats, learner minus reference", "mean", "5 %", "median", "95 %")
    drift = "; ".join(f"{k} {v:.2f}" for k, v in facts["drift"].items())
    lines = [
        f"# What {facts['label']} chooses",
        f"Selection: {facts['selects']}. {_measured(facts)}",
        "![shares](choices.png)",
        f"## Diversity\n\n{varied.markdown()}",
        "Effective: exp of the entropy. Near-duplicate: another image of the same sub-batch with "
        "a cosine of at least .98 by the reference.",
        f"## Overlap of strategies\n\n{overlap.markdown()}",
        f"By chance: {100 * facts['overlap_by_chance']:.0f} %.",
        f"## Scores\n\n{Table('', head, rows).markdown()}",
        f"Rank correlation of a pair's score: {drift}.",
        "## Pictures",
        *(f"![{name}]({name})" for name in sheets),
        "scores.csv holds the scores by key, uids.npy the chosen pairs as a DataComp uid file.",
    ]
    return "\n\n".join(lines) + "\n"


def _n(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
