"""What claims are judged by: records of runs, numbers measured on them and the map's savings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from jestcli.paper.claims import BEST, FLEXI, JEST, Statement
from jestcli.paper.contrasts import parse_contrasts
from jestcli.paper.experiment import Experiment
from jestcli.paper.map import CONTROLS, at_quality, named, qualities
from jestcli.paper.records import Record
from jestcli.paper.saving import OverBest, Saving, over_best
from jestcli.paper.verdicts import Claim, Evidence, Refutation, Region

SURFACES = {JEST: ("jest", ["uniform"]), FLEXI: ("flexi", ["uniform"]), BEST: ("jest", CONTROLS)}
SPANS = {
    "sets": "effective_sources",
    "categories": "effective_categories",
    "captions": "distinct_captions",
}
UNTIMED: Record = {"seconds": {"none": 0.0}, "environment": {}}  # where a run has no record


def claims_of(experiments: Sequence[Experiment]) -> list[Claim]:
    """Every claim that they state, in their order."""
    return [_claim(e, key, claim) for e in experiments for key, claim in e.claims.items()]


def _claim(experiment: Experiment, key: str, stated: Statement) -> Claim:
    core, sanity = parse_contrasts(stated.core), parse_contrasts(stated.sanity)
    turned = tuple(contrast.turned() for contrast in core if not contrast.equal)
    against = Refutation(stated.refuted_if, parse_contrasts(stated.against) or turned)
    region = Region(**stated.region.model_dump()) if stated.region else None
    second = "nats" if stated.metric == "mean" else None
    decides = (stated.says, against, core, sanity, region, stated.metric, second)
    return Claim(key, experiment.name, *decides, stated.tested_at or experiment.tested_at)


def gather(
    experiments: Sequence[Experiment],
    records: dict[str, list[Record]],
    measured: dict[str, list[dict[str, Any]]] | None = None,
) -> Evidence:
    """What their claims are judged by. measured: one a seed (and run) of `figure2.measure_all` and
    `diversity.measure_all`; they enter as records that hold one number. Both by experiment."""
    every: dict[str, list[Record]] = {}
    surfaces: dict[str, dict[str, dict[str, Saving | OverBest]]] = {}
    for experiment in experiments:
        name, kind = experiment.name, experiment.figure.kind
        own, given = records.get(name, []), (measured or {}).get(name, [])
        made = {(r["name"], r["seed"]): r for r in own}
        # What was measured, each beside the record of the run that it was measured on.
        beside = [(x, made.get((x.get("name", "jest"), x["seed"]), UNTIMED)) for x in given]
        every[name] = list(own)
        if kind == "map":
            every[name] += _iteration_costs(own)
            asked = {c.region.surface for c in experiment.claims.values() if c.region}
            surfaces[name] = {words: _surface(own, *SURFACES[words]) for words in asked}
        elif kind == "matrix":
            every[name] += [r for one, run in beside for r in _sub_batches(one, run)]
        elif kind == "choices":
            every[name] += [r for one, run in beside for r in _diversity(one, run)]
    return Evidence(every, surfaces)


def _surface(
    records: list[Record], method: str, over: Sequence[str]
) -> dict[str, Saving | OverBest]:
    """Savings by cell of the map, "q = 0.8, 192,000 pairs"; a cell without an interval is none."""
    curves = at_quality(records)
    found: dict[str, Saving | OverBest] = {}
    for quality in qualities(records, method):
        others = [named(other, quality) for other in over]
        for best in over_best(curves, named(method, quality), others):
            if all(one.df for one in best.savings):
                saving = best if len(over) > 1 else best.savings[0]
                found[f"q = {quality:g}, {best.cell.examples:,.0f} pairs"] = saving
    return found


def _number(run: Record, name: str, seed: int, metric: str, value: float) -> Record:
    """A number measured on a run as a record that took what the run did."""
    about = {"name": name, "seed": seed, "digest": f"{metric} of {name}, seed {seed}"}
    return {**run, **about, "final": {metric: value}, "measured_on": run.get("name", name)}


def _iteration_costs(records: list[Record]) -> list[Record]:
    """An iteration's FLOPs in units of a uniform one, and the paper's with a point for rounding."""
    found = []
    for name, paper in (("jest", 2.34), ("flexi", 1.11)):
        for record in (r for r in records if r["name"] == f"{name}@0.8@750"):
            if unit := record["uniform_flops_per_iteration"]:
                cost = record["flops_per_iteration"]["cached_reuse"] / unit
                numbers = {f"cost of {name}": cost, f"paper and a point: {name}": paper}
                seed = record["seed"]
                found += [_number(record, k, seed, "iteration", x) for k, x in numbers.items()]
    return found


def _sub_batches(one: dict[str, Any], run: Record) -> list[Record]:
    """A seed of Figure 2: learnability on a scale from independent selection, 0, to the best found,
    1; and by filter ratio, f = .5 being 1."""
    from jestcli.paper.figure2 import chunk_curves, ratio_curve  # imports torch

    chunks, gibbs, _ = chunk_curves([one])
    shares = {"independent": 0.0, "nine tenths": 0.9, "Gibbs sampling": gibbs[max(gibbs)]}
    shares |= {f"{n:g} chunks": value for n, value in chunks.items() if n > 1}
    ratios = {f"f = {str(f).lstrip('0')}": x for f, x in ratio_curve([one]).items() if f}
    numbers = {"share": shares, "ratio": ratios}
    each = ((k, m, x) for m, found in numbers.items() for k, x in found.items())
    return [_number(run, k, one["seed"], m, x) for k, m, x in each]


def _diversity(one: dict[str, Any], run: Record) -> list[Record]:
    """A seed of a method: logarithms of what JEST's chosen and as many random pairs span, and
    accuracy on rarely named classes, and how far it lies below that on frequently named ones."""
    found, seed, accuracy = [], one["seed"], one["accuracy"]
    if one["name"] == "jest" and one["chosen"]:
        for kind, (what, key) in product(("chosen", "random"), SPANS.items()):
            logarithm = math.log(one[kind][key])
            found.append(_number(run, f"{kind} {what}", seed, "logarithm", logarithm))
    if accuracy.keys() >= {"rare", "frequent"}:
        numbers = {"rare": accuracy["rare"], "gap": accuracy["frequent"] - accuracy["rare"]}
        found += [_number(run, one["name"], seed, key, x) for key, x in numbers.items()]
    return found
