"""How far the suite's intervals and verdicts can be trusted: simulated studies of records' shape.

    python tests/paper/simulated_studies.py [--studies 2000] [--out results/statistics]

A study draws true curves, logistic in log examples from chance (.44 %) to 15–45 %, half-way after 2
to 64 times the shortest length; uniform training at 4–6 lengths, each twice the last, a method at 4
with a true saving of 1.2–32 that shrinks by up to the power .3 of the length; 2–5 seeds a method,
which scatter by .1–.8 points. What records say is then held against the truth.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jestcli.paper.contrasts import difference, interaction
from jestcli.paper.records import CONVENTIONS, Record
from jestcli.paper.saving import OverBest, Saving, savings
from jestcli.paper.verdicts import (
    CONTRADICTED,
    HOLDS,
    METRIC,
    MIXED,
    Claim,
    Evidence,
    Refutation,
    Region,
    judge,
)
from jestcli.training.checkpoint import write_atomic, write_json

SHORTEST, LOW, HIGH = 96_000, 0.001, 0.008
ALIKE, OWN, SPARSE, FEW, UNLIKE = "alike", "own", "sparse", "few", "unlike"
SCATTERS = {
    ALIKE: "every cell scatters alike, as pooling assumes",
    "grows": "it grows with the score, from .1 points at 0 to .8 at 30 %",
    OWN: "every cell has its own",
    "shared": "half of the variance is a seed's, at all its lengths, as with a common trunk",
    SPARSE: "alike, but lengths four times apart",
    FEW: "alike, but uniform training at two or three lengths, four times apart",
}
NO_SCORES = {UNLIKE: "no scores: b is fixed, c and d scatter thirty times as much as a"}
NEVER = Refutation("nothing")
AB, CD, TIED = difference("a", "b"), difference("c", "d"), difference("d", "c")
LEVEL = difference("a", "b", equal=True)
# truth: its means of a, b, c, d; the claim; the words that would be false
TRUTHS: dict[str, tuple[tuple[float, ...], Claim, tuple[str, ...]]] = {
    "two differences claimed, none there": (
        (0.1, 0.1, 0.1, 0.1),
        Claim("", "", "", NEVER, (AB, CD)),
        (HOLDS, MIXED, METRIC),
    ),
    "two differences claimed, 2 points each": (
        (0.12, 0.1, 0.12, 0.1),
        Claim("", "", "", NEVER, (AB, CD)),
        (CONTRADICTED, MIXED, METRIC),
    ),
    "two differences claimed, one the other way": (
        (0.12, 0.1, 0.1, 0.12),
        Claim("", "", "", NEVER, (AB, CD)),
        (HOLDS, METRIC),
    ),
    "a difference of 2 points, the criterion a tie": (
        (0.12, 0.1, 0.1, 0.1),
        Claim("", "", "", Refutation("", (TIED,)), (AB,)),
        (CONTRADICTED, MIXED, METRIC),
    ),
    "said to be level, 1 point apart, just the margin": (
        (0.11, 0.1, 0.1, 0.1),
        Claim("", "", "", NEVER, (LEVEL,)),
        (HOLDS, METRIC),
    ),
    "an interaction claimed, none there": (
        (0.13, 0.11, 0.12, 0.1),
        Claim("", "", "", NEVER, (interaction("a", "b", "c", "d"),)),
        (HOLDS, MIXED, METRIC),
    ),
}
JUST = "a factor claimed that is just the true one, at six cells"
AT_LEAST = Claim("", "", "", NEVER, region=Region("saving", 1.0))


def record(name: str, seed: int, examples: float, score: float, nats: float = 0.0) -> Record:
    """What the statistics read of a record: a run of one FLOP and one microsecond an example."""
    return {
        "name": name,
        "seed": seed,
        "digest": f"{name}-{examples:.0f}-{seed}",
        "curve": [],
        "steps": examples,
        "batch_size": 1,
        "super_batch_size": 1,
        "flops_per_iteration": dict.fromkeys(CONVENTIONS, 1.0),
        "seconds": {"update": examples * 1e-6},
        "environment": {"threads": 1},
        "final": {"mean": score, "nats": nats, "scores": {}},
    }


def scatter(rng: np.random.Generator, kind: str, means: np.ndarray) -> np.ndarray:
    """Standard deviation over seeds of each cell, in fractions; drawn apart for each with OWN;
    of four of which one is fixed and two are wild with UNLIKE."""
    if kind == "grows":
        return LOW + (HIGH - LOW) * np.clip(means / 0.3, 0, 1)
    if kind == OWN:
        return np.exp(rng.uniform(math.log(LOW), math.log(HIGH), len(means)))
    if kind == UNLIKE:
        return rng.uniform(LOW, HIGH) * np.array([1.0, 0.0, 30.0, 30.0])
    return np.full(len(means), rng.uniform(LOW, HIGH))


def study(rng: np.random.Generator, kind: str) -> tuple[list[Record], np.ndarray, float]:
    """Records of "uniform" and "jest", jest's true savings by length, the first cell's scatter."""
    steep, top = rng.uniform(0.5, 1.1) / math.log(2), rng.uniform(0.15, 0.45)
    middle, apart = rng.uniform(1, 3) / steep, math.log(4 if kind in (SPARSE, FEW) else 2)
    longest = int(rng.integers(2, 4) if kind == FEW else rng.integers(4, 7))
    saved = rng.uniform(math.log(1.2), math.log(32)) - rng.uniform(0, 0.3) * apart * np.arange(4)
    x = np.concatenate([apart * np.arange(longest), apart * np.arange(4)])
    ahead = x + np.concatenate([np.zeros(longest), saved])
    means = 0.0044 + (top - 0.0044) / (1 + np.exp(-steep * (ahead - middle)))
    sd, made = scatter(rng, kind, means), []
    for name, cells in (("uniform", range(longest)), ("jest", range(longest, longest + 4))):
        for seed in range(rng.integers(2, 6)):
            noise = rng.normal(size=len(x))
            if kind == "shared":
                noise = (noise + rng.normal()) / math.sqrt(2)
            scores = means + sd * noise
            made += [record(name, seed, SHORTEST * math.exp(x[i]), scores[i]) for i in cells]
    return made, np.exp(saved), float(sd[0])


def coverage(rng: np.random.Generator, kind: str, studies: int) -> dict[str, float]:
    """How often the interval of one saving a study, at a random length, holds the truth.

    within: the same among those whose truth lies within uniform's lengths, where an interval can
    fail on both sides; closed: the share with two ends; span: of these high / low, median; width:
    their width in logarithms over that with the scatter known, median.
    """
    held, within, spans, widths = [], [], [], []
    for _ in range(studies):
        records, truth, sd = study(rng, kind)
        at = int(rng.integers(len(truth)))
        saving = savings(records, "jest")[at]
        found, known = saving.ratio(), replace(saving, sd=sd, df=10**9).ratio()
        held.append(found.low <= truth[at] <= found.high)
        within.append(truth[at] <= saving.curve[-1].examples / saving.cell.examples)
        spans.append(found.high / found.low if found.low else math.inf)
        if math.isfinite(spans[-1]) and known.low and math.isfinite(known.high):
            widths.append(math.log(spans[-1]) / math.log(known.high / known.low))
    closed = np.isfinite(spans)
    out = {
        "covered": np.mean(held),
        "within": np.mean(np.array(held)[within]),
        "closed": closed.mean(),
        "span": np.median(np.array(spans)[closed]),
    }
    if kind in (ALIKE, SPARSE, FEW):
        out["width"] = np.median(widths)
    return {key: round(float(number), 3) for key, number in out.items()}


def words(rng: np.random.Generator, truth: str, kind: str, studies: int) -> dict[str, float]:
    """Shares of the words that a claim gets where `truth` holds, and of those that are false."""
    given: Counter[str] = Counter()
    wrong: tuple[str, ...]
    for _ in range(studies):
        if truth == JUST:
            claim, wrong = AT_LEAST, (HOLDS, CONTRADICTED)
            evidence = _just(rng, kind)
        else:
            means, claim, wrong = TRUTHS[truth]
            if kind == UNLIKE:
                claim = replace(claim, metric="share", second=None)
            evidence = _four(rng, kind, np.array(means))
        given[judge(claim, evidence).word] += 1
    shares = {word: n / studies for word, n in sorted(given.items())}
    return {"false": sum(shares.get(word, 0.0) for word in wrong), **shares}


def _four(rng: np.random.Generator, kind: str, means: np.ndarray) -> Evidence:
    """Four conditions that share seeds, whose own part is .3 points; nats go with the score."""
    made = []
    sd, own = scatter(rng, kind, means), rng.normal(0, 0.003, rng.integers(2, 6))
    own *= kind != UNLIKE
    for name, mean, each in zip("abcd", means, sd, strict=True):
        for seed, part in enumerate(own):
            score, nats = mean + part + rng.normal(0, each, 2)
            made.append(record(name, seed, 1e6, score, 3 * nats))
            made[-1]["final"]["share"] = score
    return Evidence({"": made})


def _just(rng: np.random.Generator, kind: str) -> Evidence:
    """Savings at six cells, as multiples of their truths."""
    cells: dict[str, Saving | OverBest] = {}
    for name in "abcdef":
        records, truth, _ = study(rng, kind)
        at = int(rng.integers(len(truth)))
        saving = savings(records, "jest")[at]
        cost = {axis: value * truth[at] for axis, value in saving.cell.cost.items()}
        cells[name] = replace(saving, cell=replace(saving.cell, cost=cost))
    return Evidence({}, {"": {"saving": cells}})


def simulate(studies: int, seed: int = 0) -> dict[str, Any]:
    """All simulations. Each has a random stream of its own, so that one more changes no other."""

    def stream(*of: str) -> np.random.Generator:
        return np.random.default_rng([seed, *" ".join(of).encode()])

    return {
        "studies": studies,
        "seed": seed,
        "savings": {kind: coverage(stream(kind), kind, studies) for kind in SCATTERS},
        "verdicts": {
            truth: {kind: words(stream(truth, kind), truth, kind, studies) for kind in kinds}
            for truths, kinds in ((TRUTHS, (ALIKE, OWN, UNLIKE)), ((JUST,), (ALIKE, OWN)))
            for truth in truths
        },
    }


def page(found: dict[str, Any]) -> str:
    """README.md of the folder: what came out, in words and two tables."""
    percent = "{:.1f} %".format
    savings, verdicts = "", ""
    for kind in SCATTERS:
        row = found["savings"][kind]
        shares = " | ".join(percent(100 * row[key]) for key in ("covered", "within", "closed"))
        savings += f"| {SCATTERS[kind]} | {shares} | {row['span']:.2f} | {row.get('width', '')} |\n"
    for truth in (*TRUTHS, JUST):
        for kind, row in found["verdicts"][truth].items():
            row = dict(row)
            false = percent(100 * row.pop("false"))
            words = ", ".join(f"{word} {100 * share:.0f} %" for word, share in row.items())
            said = NO_SCORES.get(kind) or SCATTERS[kind].partition(",")[0]
            verdicts += f"| {truth} | {said} | {false} | {words} |\n"
    return PAGE.format(studies=found["studies"], savings=savings, verdicts=verdicts)


PAGE = """# How far intervals and verdicts can be trusted

Simulated studies of the shape of this suite's records, {studies:,} a row, written by
`python tests/paper/simulated_studies.py`, which says what a study is.

## Savings

The 95 % interval of n_uniform / n_method at the method's score. *Within*: of the studies whose
truth lies within uniform training's lengths. *Closed*: the share of intervals with two ends; of
these *span* is high / low and *width* the width over that with the scatter known, both the median.

| scatter of seeds | hold the truth | within | closed | span | width |
|---|---|---|---|---|---|
{savings}
## Verdicts

Four conditions with 2–5 seeds each that scatter by .1–.8 points. *False*: words that the truth
contradicts. “Contradicted” is right where a difference is claimed and there is none.

| truth | scatter | false | words given |
|---|---|---|---|
{verdicts}"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate studies; write a table of the results.")
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies a row")
    parser.add_argument("--out", type=Path, default=Path("results/statistics"), help="folder")
    args = parser.parse_args()
    found = simulate(args.studies)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "simulation.json", found)
    write_atomic(args.out / "README.md", page(found).encode())


if __name__ == "__main__":
    main()
