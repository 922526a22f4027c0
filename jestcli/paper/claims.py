"""The paper's claims, each fixed before the runs that decide it (see `verdicts`).

A claim has core contrasts or a region of the map, which decide, sanity contrasts, which do not, and
what refutes it, which binds. The primary metric is the mean score of the benchmarks, the secondary
one nats above guessing; where a claim counts something else its metric says so. Provenance tags as
everywhere: [P] seen in the paper, [S] second-hand, [U] remembered and unverified, [ours] a question
that the paper does not ask.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from jestcli.paper.contrasts import Contrast
from jestcli.paper.contrasts import parse_contrasts as _contrasts
from jestcli.paper.map import CONTROLS, at_quality, named, qualities
from jestcli.paper.records import Record
from jestcli.paper.saving import OverBest, Saving, over_best
from jestcli.paper.verdicts import Claim, Evidence, Refutation, Region

JEST = "saving of JEST over uniform training"
FLEXI = "saving of Flexi-JEST over uniform training"
BEST = "saving of JEST over the best control"
SPANS = {
    "sets": "effective_sources",
    "categories": "effective_categories",
    "captions": "distinct_captions",
}


def _claim(
    name: str,
    says: str,
    refuted: str,
    core: str = "",
    against: str | tuple[Contrast, ...] = "",
    sanity: str = "",
    region: Region | None = None,
    metric: str = "mean",
) -> Claim:
    """A claim as it is written below. name: experiment and key; core, sanity: contrasts as of
    `_contrasts`; against: what, where it holds, refutes the claim; unless said otherwise each core
    contrast the other way round. A region's criterion is met cell by cell."""
    experiment, _, key = name.partition(": ")
    turned = [" > ".join(c.split(" > ")[::-1]) for c in core.split("; ") if " > " in c]
    against = against or "; ".join(turned)
    contrasts = _contrasts(against) if isinstance(against, str) else against
    refutation = Refutation(refuted, contrasts)
    both, second = (_contrasts(core), _contrasts(sanity)), "nats" if metric == "mean" else None
    return Claim(key, experiment, says, refutation, *both, region, metric, second)


UNTIMED: Record = {"seconds": {"none": 0.0}, "environment": {}}  # where a run has no record
BOTH = ("filtered", "small", "small-filtered")
LOST = Contrast(
    "JEST minus its baseline, mean of four settings",
    (
        *((f"jest@{way}", 0.25) for way in ("seen", *BOTH)),
        *((f"uniform@{way}", -0.25) for way in ("paper", *BOTH)),
    ),
)
CLAIMS = (
    # --- the map: the headline
    _claim(
        "map: fewer examples",
        "JEST needs 13 times fewer examples than uniform training (Fig. 1, digitised: JEST++ "
        "13.1, JEST 11.6 [P]).",
        "at a cell of the map, the upper end of the saving's interval over uniform training is "
        "below 13",
        region=Region(JEST, 13.0),
    ),
    _claim(
        "map: less compute",
        "Flexi-JEST needs 10 times less compute (Fig. 1, digitised: Flexi-JEST++ 9.9 [P], its "
        "reference not charged; here it is).",
        "at a cell, the upper end of its saving of FLOPs, reference charged, is below 10",
        region=Region(FLEXI, 10.0, "charged"),
    ),
    _claim(
        "map: compute of JEST",
        "JEST needs 4.3 times less compute, its reference not charged (Fig. 1, digitised [P]).",
        "at a cell, the upper end of its saving of FLOPs, reference cached, is below 4.3",
        region=Region(JEST, 4.3, "cached"),
    ),
    _claim(
        "map: energy",
        "JEST needs ten times less energy (said by the press; the paper counts FLOPs). No joules "
        "were measured: FLOPs stand in for them, the reference charged [ours].",
        "at a cell, the upper end of its saving of FLOPs, reference charged, is below 10",
        region=Region(JEST, 10.0, "charged"),
    ),
    _claim(
        "map: time",
        "JEST's own training takes a tenth of uniform training's seconds, the reference's not "
        "counted [ours].",
        "at a cell, the upper end of its saving of seconds is below 10",
        region=Region(JEST, 10.0, "seconds"),
    ),
    _claim(
        "map: worth having",
        "JEST saves compute over the best of what is simpler – filtering once, the curated set "
        "alone or mixed in, fine-tuning the reference – at equal charged cost [ours].",
        "at a cell, the upper end of its saving over the best control is below 1",
        region=Region(BEST, 1.0, "charged"),
    ),
    _claim(
        "map: against the alternatives",
        "At equal steps on a poor pool JEST ends above the obvious other uses of the curated set "
        "[ours]. Tested after 750 steps (192k examples) at f = .8; what ends best at other "
        "lengths: results/map.",
        "one of them ends above JEST",
        "jest@0.8@750 > filtered@0.8@750; jest@0.8@750 > curated@750; "
        "jest@0.8@750 > mixed@0.8@750; jest@0.8@750 > finetune@0.8@750",
        sanity="jest@0.8@750 > uniform@0.8@750",
    ),
    _claim(
        "map: bootstrapping",
        "A small curated set steers training to a model that is better than the reference trained "
        "on it (“data quality bootstrapping” [S]).",
        "the reference is above JEST on the clean pool",
        "jest@0@3000 > reference; jest@0.8@3000 > reference",
        against="reference > jest@0@3000",
    ),
    _claim(
        "map: poor pools",
        "JEST's lead over uniform training grows with the share of wrong captions [ours].",
        "its lead is larger on the clean pool than with 80 % wrong captions",
        "jest@0.8@3000 - uniform@0.8@3000 > jest@0@3000 - uniform@0@3000",
    ),
    _claim(
        "map: rare relevance",
        "JEST's lead over uniform training is larger where what the benchmarks ask for is rare in "
        "the pool [ours].",
        "its lead is larger on the pool as it is",
        "relevance-jest@0.1@3000 - relevance-uniform@0.1@3000 > "
        "relevance-jest@1@3000 - relevance-uniform@1@3000",
    ),
    _claim(
        "map: strength of the reference",
        "JEST ends higher with the stronger of two references trained on the same pairs [ours].",
        "it ends higher with the weaker one",
        "jest@0.5@3000 > jest-weak@0.5@3000; jest@0.8@3000 > jest-weak@0.8@3000",
    ),
    _claim(
        "map: weight of the learner",
        "With a strong reference learnability is above easy-reference scores, with one that the "
        "learner outgrows below [ours].",
        "with the strong reference easy-reference scores are above learnability",
        "jest@0.8@3000 > easy@0.8@3000; weight-weak@0.8@0@3000 > jest-weak@0.8@3000",
        against="easy@0.8@3000 > jest@0.8@3000",
    ),
    _claim(
        "map: cost of an iteration",
        "An iteration costs 233 % of a uniform one with JEST, 110 % with Flexi-JEST (Table 1 "
        "[P]), selected forwards re-used; here: no more than a point above that.",
        "one of them costs more",
        "paper and a point: jest > cost of jest; paper and a point: flexi > cost of flexi",
        metric="iteration",
    ),
    # --- tables
    _claim(
        "table1: final scores",
        "JEST++ and Flexi-JEST++ end about level with or above uniform training on 10 times as "
        "many examples (Table 1 [P]); 8 times here.",
        "uniform-long ends above jest, or above flexi",
        "jest > uniform-long; flexi > uniform-long",
        sanity="jest > uniform",
    ),
    _claim(
        "table2: raw pool against filters",
        "JEST on the raw pool beats training on the best filtered pool (Table 2 [P]). Tested after "
        "750 steps (192k examples) at f = .8; what ends best at other lengths: results/map.",
        "a filter at some rate is above JEST at the same number of training examples",
        "jest > cosine@0.05; jest > cosine@0.1; jest > cosine@0.2; jest > cosine@0.4; "
        "jest > negclip@0.05; jest > negclip@0.1; jest > negclip@0.2; jest > negclip@0.4",
        sanity="jest > uniform",
    ),
    _claim(
        "table3: no need of a filter",
        "Uniform training needs the pre-filtered pool, JEST hardly: it ends level on both (Table 3 "
        "[U]).",
        "JEST gains more from the filter than uniform training does",
        "uniform@filtered > uniform@raw; jest@filtered ~ jest@raw; "
        "uniform@filtered - uniform@raw > jest@filtered - jest@raw",
        against="jest@filtered - jest@raw > uniform@filtered - uniform@raw",
    ),
    # --- figures
    _claim(
        "figure2: sub-batches",
        "Sixteen chunks give .993 of the best sub-batch's learnability, independent selection "
        "being 0 (Fig. 2, digitised [P]); here: more than nine tenths.",
        "16 chunks do not raise learnability over independent selection",
        "16 chunks > nine tenths; 16 chunks > 4 chunks",
        against="independent > 16 chunks; independent ~ 16 chunks",
        sanity="16 chunks > Gibbs sampling",
        metric="share",
    ),
    _claim(
        "figure2: learnability by ratio",
        "Higher filter ratios give more learnable sub-batches: 1.12 at f = .8 and 1.15 at .9 in "
        "units of f = .5 (Fig. 2, digitised [P]).",
        "f = .8 gives less than .5, or .9 less than .8",
        "f = .8 > f = .5; f = .9 > f = .8",
        metric="ratio",
    ),
    _claim(
        "figure3: joint selection",
        "Joint selection keeps improving with the filter ratio, independent selection does not, "
        "and is beaten by it at high ratios (Fig. 3 [S]).",
        "independent is above joint selection at f = .9, or joint at .5 above joint at .9",
        "joint@0.9 > joint@0.5; joint@0.9 > independent@0.9; "
        "joint@0.9 - joint@0.5 > independent@0.9 - independent@0.5",
        against="independent@0.9 > joint@0.9; joint@0.5 > joint@0.9",
        sanity="joint@0.8 > uniform",
    ),
    _claim(
        "figure3: easy-reference scores",
        "With easy-reference scores joint selection beats independent, which regresses at high "
        "ratios (Fig. 3 [S]).",
        "independent is above joint easy-reference selection at f = .9",
        "joint-easy@0.9 > independent-easy@0.9; independent-easy@0.5 > independent-easy@0.9",
        against="independent-easy@0.9 > joint-easy@0.9",
    ),
    _claim(
        "figure3: learnability",
        "Learnability is the criterion to use: above easy-reference and hard-learner scores [S].",
        "easy-reference or hard-learner scores are above learnability",
        "joint@0.8 > joint-easy@0.8; joint@0.8 > joint-hard@0.8",
        sanity="joint-hard@0.8 > uniform",
    ),
    _claim(
        "figure4: multi-resolution",
        "At equal learner FLOPs Flexi-JEST beats the multi-resolution uniform baseline from a "
        "low-resolution share of about 25 % on ([U] for the 25 %).",
        "uniform training at the same shares is above Flexi-JEST at .25, .5 or .75",
        "flexi@0.25 > uniform@0.25; flexi@0.5 > uniform@0.5; flexi@0.75 > uniform@0.75",
    ),
    _claim(
        "figure4: a share at low resolution",
        "At equal learner FLOPs a batch seen half at low resolution is worth more than one seen "
        "all at full, with selection and without [ours: Flexi-JEST rests on it].",
        "JEST at full resolution is above Flexi-JEST",
        "flexi@0.5 > jest; uniform@0.5 > uniform@0",
        against="jest > flexi@0.5",
    ),
    _claim(
        "figure5: curation of the reference",
        "The more strongly the reference's data are curated, the better JEST gets (+2.7 / +1.5 / "
        "+0.3 % [U]) …",
        "JEST is better with a less curated reference",
        "by-wrong@0 > by-wrong@0.5; by-wrong@0.5 > by-wrong@0.8",
        against="by-wrong@0.5 > by-wrong@0; by-wrong@0.8 > by-wrong@0.5; by-wrong@0.8 > by-wrong@0",
    ),
    _claim(
        "figure5: weaker but better",
        "… although stronger curation, of a smaller set, makes a weaker reference [U].",
        "the reference on the smaller curated set is the better one",
        "reference wrong@0.2 > reference wrong@0",
    ),
    _claim(
        "figure5: kind of the curated set",
        "A reference trained on checked pairs of the pool's own kind serves JEST better than one "
        "trained on well captioned drawings of another kind [ours].",
        "drawings of another kind serve JEST better",
        "by-kind@verified > by-kind@strong++",
    ),
    _claim(
        "figure5: size of the curated set",
        "More curated data of one quality improve results further (JEST to JEST++ [P]).",
        "JEST is better with a reference of a smaller curated set",
        "by-size@36000 > by-size@5000; by-size@5000 > by-size@1000",
        against="by-size@5000 > by-size@36000; by-size@1000 > by-size@5000; "
        "by-size@1000 > by-size@36000",
    ),
    _claim(
        "figure5: training of the reference",
        "The better trained the reference, the better JEST, until it saturates [U].",
        "JEST is better with a less trained reference: of 375 steps than of 3,000",
        "by-length@3000 > by-length@375; by-length@12000 ~ by-length@6000",
    ),
    # --- ablations
    _claim(
        "batch-size: a larger batch",
        "Choosing from B candidates is worth about as much as training on all B [S]: JEST at b = "
        "256 of 1,280 ends level with uniform training of batch 1,280.",
        "uniform training with batch 256 is above JEST from B candidates at the same steps",
        "joint@0.8 ~ uniform@1280",
        against="uniform@256 > joint@0.8",
        sanity="joint@0.8 > uniform@256; joint@0.8 > uniform@512",
    ),
    _claim(
        "stability: beta2",
        "At high filter ratios training needs beta2 = .95 ([S] for SigLIP 2, [U] for the paper).",
        "beta2 = .999 serves JEST at f = .9 better, relative to uniform training",
        "jest-high@0.95 > jest-high@0.999; "
        "jest-high@0.95 - jest-high@0.999 > uniform@0.95 - uniform@0.999",
        against="jest-high@0.999 - jest-high@0.95 > uniform@0.999 - uniform@0.95",
    ),
    _claim(
        "softmax: softmax",
        "The method is defined for the softmax loss too, and holds there [ours]; a public softmax "
        "attempt found it to lose [S].",
        "with the softmax loss uniform training, or independent selection, is above JEST",
        "jest@softmax > uniform@softmax; jest@softmax > independent@softmax",
    ),
    _claim(
        "large-reference: larger reference",
        "A reference larger than the student is best (ACED [S]).",
        "JEST is better with a reference of the learner's size than with the larger one",
        "jest@512 > jest@256",
    ),
    _claim(
        "noise: moved captions",
        "Selection by learnability rejects pairs that are wrong: it trains on fewer moved "
        "captions than uniform training, hard-learner selection on more [ours].",
        "the share of moved captions among the pairs that JEST or independent selection chooses is "
        "above that of the pool, which is uniform training's",
        "uniform@0.5 > joint@0.5; hard@0.5 > uniform@0.5; uniform@0.8 > joint@0.8; "
        "hard@0.8 > uniform@0.8",
        against="joint@0.5 > uniform@0.5; joint@0.8 > uniform@0.8; "
        "independent@0.5 > uniform@0.5; independent@0.8 > uniform@0.8",
        sanity="independent@0.8 > joint@0.8",
        metric="noise",
    ),
    _claim(
        "lost: ways to lose",
        "JEST falls behind uniform training when the super-batch counts as samples seen, or the "
        "pool is finite or already filtered; selecting on each rank alone costs some of it [S].",
        "over the four settings that are said to lose, JEST stays above its own uniform baseline "
        "on average",
        "uniform@paper > jest@seen; uniform@filtered > jest@filtered; uniform@small > jest@small; "
        "uniform@small-filtered > jest@small-filtered; jest@paper > jest@per-rank",
        against=(LOST,),
        sanity="jest@paper > uniform@paper",
    ),
    _claim(
        "curated-in-pool: curated pairs found",
        "With the curated sources left in the pool, JEST trains on them more often than they "
        "occur there [ours] …",
        "uniform training sees a larger share of curated pairs than JEST trains on",
        "jest@left > uniform@left",
        sanity="independent@left > uniform@left",
        metric="curated",
    ),
    _claim(
        "curated-in-pool: curated sources in the pool",
        "… and gains from them, more than uniform training does [ours].",
        "JEST ends higher without them in the pool than with",
        "jest@left > jest@removed; jest@left - jest@removed > uniform@left - uniform@removed",
        against="jest@removed > jest@left",
        sanity="jest@removed > uniform@removed",
    ),
    _claim(
        "schedule: filter-ratio schedules",
        "At equal mean scoring cost a filter ratio that rises along training beats a constant "
        "one, and that a falling one [ours].",
        "constant f is above rising f, or falling f above rising",
        "jest@rising > jest@constant; jest@constant > jest@falling",
        against="jest@constant > jest@rising; jest@falling > jest@rising",
        sanity="jest@constant > uniform",
    ),
    _claim(
        "diversity: diversity",
        "Selected data are more diverse than random ones (said by the press of JEST; no claim of "
        "the paper [ours]): more source sets, categories and captions, in logarithms …",
        "the chosen pairs span fewer source sets, categories or captions than as many random ones",
        "chosen sets > random sets; chosen categories > random categories; "
        "chosen captions > random captions",
        metric="logarithm",
    ),
    _claim(
        "diversity: fairness",
        "… and with that rarely named classes fare better than under uniform training [ours].",
        "accuracy on rarely named classes falls against uniform training",
        "jest > uniform",
        metric="rare",
    ),
)


# --- evidence ------------------------------------------------------------------------------------


def gather(
    records: dict[str, list[Record]], measured: dict[str, list[dict[str, Any]]] | None = None
) -> Evidence:
    """What the claims are judged by. measured: one a seed (and run) of `figure2.measure_all` and
    `diversity.measure_all`; they enter as records that hold one number. Both by experiment."""
    given, on_map = measured or {}, records.get("map", [])

    def runs(experiment: str) -> list[tuple[dict[str, Any], Record]]:
        """What was measured, each beside the record of the run that it was measured on."""
        made = {(r["name"], r["seed"]): r for r in records.get(experiment, [])}
        every = given.get(experiment, [])
        return [(one, made.get((one.get("name", "jest"), one["seed"]), UNTIMED)) for one in every]

    more = {
        "map": _iteration_costs(on_map),
        "figure2": [r for one, run in runs("figure2") for r in _sub_batches(one, run)],
        "diversity": [r for one, run in runs("diversity") for r in _diversity(one, run)],
    }
    every = {name: [*records.get(name, []), *more.get(name, [])] for name in (*records, *more)}
    surfaces = {
        JEST: _surface(on_map, "jest", "uniform"),
        FLEXI: _surface(on_map, "flexi", "uniform"),
        BEST: _surface(on_map, "jest", *CONTROLS),
    }
    return Evidence(every, surfaces)


def _surface(records: list[Record], method: str, *over: str) -> dict[str, Saving | OverBest]:
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
    accuracy on rarely named classes."""
    found, seed, rare = [], one["seed"], one["accuracy"].get("rare")
    if one["name"] == "jest" and one["chosen"]:
        for kind, (what, key) in product(("chosen", "random"), SPANS.items()):
            logarithm = math.log(one[kind][key])
            found.append(_number(run, f"{kind} {what}", seed, "logarithm", logarithm))
    return found + ([] if rare is None else [_number(run, one["name"], seed, "rare", rare)])
