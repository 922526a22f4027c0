"""The paper's claims, each fixed before the runs that decide it (see `verdicts`).

A claim has core contrasts or a region of the map, which decide, sanity contrasts, which do not, and
what refutes it, which binds. The primary metric is the mean score of the benchmarks, the secondary
one nats above guessing; where a claim counts something else its metric says so. Provenance tags as
everywhere: [P] seen in the paper, [S] second-hand, [U] remembered and unverified, [ours] a question
that the paper does not ask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from jestcli.paper.effects import Contrast, difference, interaction
from jestcli.paper.map import CONTROLS, at_quality, named, qualities
from jestcli.paper.records import Record
from jestcli.paper.saving import OverBest, Saving, over_best, savings
from jestcli.paper.verdicts import Claim, Evidence, Refutation, Region

JEST = "saving of JEST over uniform training"
FLEXI = "saving of Flexi-JEST over uniform training"
BEST = "saving of JEST over the best control"
METHODS = {JEST: "jest", FLEXI: "flexi"}

Asked = Contrast | tuple[str, ...]  # (a, b): a above b; (a, b, c, d): a - b above c - d


def _claim(
    key: str,
    experiment: str,
    says: str,
    refuted: str,
    core: Iterable[Asked] = (),
    against: Iterable[Asked] = (),
    sanity: Iterable[Asked] = (),
    region: Region | None = None,
    **more: Any,
) -> Claim:
    """against: what, above 0, refutes the claim; of a claim about a region, its contradiction."""
    refuted_if = Refutation(refuted, _contrasts(against), region)
    return Claim(
        key, experiment, says, refuted_if, _contrasts(core), _contrasts(sanity), region, **more
    )


def _contrasts(asked: Iterable[Asked]) -> tuple[Contrast, ...]:
    return tuple(
        a if isinstance(a, Contrast) else difference(*a) if len(a) == 2 else interaction(*a)
        for a in asked
    )


def _each(name: str, others: Iterable[str], below: bool = False) -> tuple[Asked, ...]:
    """`name` above each of the others, or each of them above it."""
    return tuple((other, name) if below else (name, other) for other in others)


ALTERNATIVES = tuple(f"{name}@750" for name in ("filtered@0.8", "curated", "mixed@0.8"))
ALTERNATIVES += ("finetune@0.8@750",)
FILTERS = tuple(
    f"{name}@{keep}" for name in ("filtered", "negclip") for keep in ("0.05", "0.1", "0.2", "0.4")
)
SHARES = ("0.25", "0.5", "0.75")
LOSING = ("seen", "filtered", "small", "small-filtered")
BASELINES = tuple("uniform@paper" if way == "seen" else f"uniform@{way}" for way in LOSING)

CLAIMS = (
    # --- the map: the headline
    _claim(
        "fewer examples",
        "map",
        "JEST needs 13 times fewer examples than uniform training (Fig. 1, digitised: JEST++ "
        "13.1, JEST 11.6 [P]).",
        "the upper end of its saving is below 13 in every cell",
        region=Region(JEST, 13.0),
    ),
    _claim(
        "less compute",
        "map",
        "Flexi-JEST needs 10 times less compute (Fig. 1, digitised: Flexi-JEST++ 9.9 [P], its "
        "reference not charged; here it is).",
        "the upper end of its saving of FLOPs is below 10 in every cell",
        region=Region(FLEXI, 10.0, "charged"),
    ),
    _claim(
        "compute of JEST",
        "map",
        "JEST needs 4.3 times less compute, its reference not charged (Fig. 1, digitised [P]).",
        "the upper end of its saving of FLOPs, reference cached, is below 4.3 in every cell",
        region=Region(JEST, 4.3, "cached"),
    ),
    _claim(
        "energy",
        "map",
        "JEST needs ten times less energy (said by the press; the paper counts FLOPs). Seconds "
        "of training stand in for joules [ours].",
        "the upper end of its saving of seconds is below 10 in every cell",
        region=Region(JEST, 10.0, "seconds"),
    ),
    _claim(
        "worth having",
        "map",
        "JEST saves compute over the best of what is simpler – filtering once, the curated set "
        "alone or mixed in, fine-tuning the reference – at equal charged cost [ours].",
        "the upper end of its saving over the best control is below 1 in every cell",
        region=Region(BEST, 1.0, "charged"),
    ),
    _claim(
        "against the alternatives",
        "map",
        "At equal steps on a poor pool JEST ends above the obvious other uses of the curated "
        "set [ours].",
        "one of them ends above JEST",
        _each("jest@0.8@750", ALTERNATIVES),
        _each("jest@0.8@750", ALTERNATIVES, below=True),
        [("jest@0.8@750", "uniform@0.8@750")],
    ),
    _claim(
        "bootstrapping",
        "map",
        "A small curated set steers training to a model that is better than the reference "
        "trained on it (“data quality bootstrapping” [S]).",
        "the reference is above JEST on the clean pool",
        [("jest@0@3000", "reference"), ("jest@0.8@3000", "reference")],
        [("reference", "jest@0@3000")],
    ),
    _claim(
        "poor pools",
        "map",
        "JEST's lead over uniform training grows with the share of wrong captions [ours].",
        "its lead is larger on the clean pool than with 80 % wrong captions",
        [("jest@0.8@3000", "uniform@0.8@3000", "jest@0@3000", "uniform@0@3000")],
        [("jest@0@3000", "uniform@0@3000", "jest@0.8@3000", "uniform@0.8@3000")],
    ),
    _claim(
        "rare relevance",
        "map",
        "JEST's lead over uniform training is larger where what the benchmarks ask for is rare "
        "in the pool [ours].",
        "its lead is larger on the pool as it is",
        [
            (
                "relevance-jest@0.1@3000",
                "relevance-uniform@0.1@3000",
                "relevance-jest@1@3000",
                "relevance-uniform@1@3000",
            )
        ],
        [
            (
                "relevance-jest@1@3000",
                "relevance-uniform@1@3000",
                "relevance-jest@0.1@3000",
                "relevance-uniform@0.1@3000",
            )
        ],
    ),
    _claim(
        "strength of the reference",
        "map",
        "JEST ends higher with the stronger of two references trained on the same pairs [ours].",
        "it ends higher with the weaker one",
        [("jest@0.5@3000", "jest-weak@0.5@3000"), ("jest@0.8@3000", "jest-weak@0.8@3000")],
        [("jest-weak@0.5@3000", "jest@0.5@3000"), ("jest-weak@0.8@3000", "jest@0.8@3000")],
    ),
    _claim(
        "weight of the learner",
        "map",
        "With a strong reference learnability is above easy-reference scores, with one that the "
        "learner outgrows below [ours].",
        "with the strong reference easy-reference scores are above learnability",
        [("jest@0.8@3000", "easy@0.8@3000"), ("weight-weak@0.8@0@3000", "jest-weak@0.8@3000")],
        [("easy@0.8@3000", "jest@0.8@3000")],
    ),
    _claim(
        "cost of an iteration",
        "map",
        "An iteration costs 233 % of a uniform one with JEST, 110 % with Flexi-JEST (Table 1 [P]), "
        "selected forwards re-used; here: no more than a point above that.",
        "one of them costs more",
        [
            ("paper and a point: jest", "cost of jest"),
            ("paper and a point: flexi", "cost of flexi"),
        ],
        [
            ("cost of jest", "paper and a point: jest"),
            ("cost of flexi", "paper and a point: flexi"),
        ],
        metric="iteration",
        second=None,
    ),
    # --- tables
    _claim(
        "final scores",
        "table1",
        "JEST++ and Flexi-JEST++ end about level with or above uniform training on 10 times as "
        "many examples (Table 1 [P]); 8 times here.",
        "uniform-long ends above jest, or above flexi",
        _each("jest", ["uniform-long"]) + _each("flexi", ["uniform-long"]),
        _each("uniform-long", ["jest", "flexi"]),
        [("jest", "uniform")],
    ),
    _claim(
        "raw pool against filters",
        "table2",
        "JEST on the raw pool beats training on the best filtered pool (Table 2 [P]).",
        "a filter at some rate is above JEST",
        _each("jest", FILTERS),
        _each("jest", FILTERS, below=True),
        [("jest", "uniform")],
    ),
    _claim(
        "no need of a filter",
        "table3",
        "Uniform training needs the pre-filtered pool, JEST hardly (Table 3 [U]).",
        "JEST gains more from the filter than uniform training does",
        [
            ("uniform@filtered", "uniform@raw"),
            ("uniform@filtered", "uniform@raw", "jest@filtered", "jest@raw"),
        ],
        [("jest@filtered", "jest@raw", "uniform@filtered", "uniform@raw")],
    ),
    # --- figures
    _claim(
        "sub-batches",
        "figure2",
        "Sixteen chunks give .993 of the best sub-batch's learnability, independent selection "
        "being 0 (Fig. 2, digitised [P]); here: more than nine tenths.",
        "independent selection is above 16 chunks",
        [("16 chunks", "nine tenths"), ("16 chunks", "4 chunks")],
        [("independent", "16 chunks")],
        [("16 chunks", "Gibbs sampling")],
        metric="share",
        second=None,
    ),
    _claim(
        "learnability by ratio",
        "figure2",
        "Higher filter ratios give more learnable sub-batches: 1.12 at f = .8 and 1.15 at .9 in "
        "units of f = .5 (Fig. 2, digitised [P]).",
        "f = .8 gives less than .5, or .9 less than .8",
        [("f = .8", "f = .5"), ("f = .9", "f = .8")],
        [("f = .5", "f = .8"), ("f = .8", "f = .9")],
        metric="ratio",
        second=None,
    ),
    _claim(
        "joint selection",
        "figure3",
        "Joint selection keeps improving with the filter ratio, independent selection does not, "
        "and is beaten by it at high ratios (Fig. 3 [S]).",
        "independent is above joint selection at f = .9, or joint at .5 above joint at .9",
        [
            ("joint@0.9", "joint@0.5"),
            ("joint@0.9", "independent@0.9"),
            ("joint@0.9", "joint@0.5", "independent@0.9", "independent@0.5"),
        ],
        [("independent@0.9", "joint@0.9"), ("joint@0.5", "joint@0.9")],
        [("joint@0.8", "uniform")],
    ),
    _claim(
        "easy-reference scores",
        "figure3",
        "With easy-reference scores joint selection beats independent, which regresses at high "
        "ratios (Fig. 3 [S]).",
        "independent is above joint easy-reference selection at f = .9",
        [
            ("joint-easy@0.9", "independent-easy@0.9"),
            ("independent-easy@0.5", "independent-easy@0.9"),
        ],
        [("independent-easy@0.9", "joint-easy@0.9")],
    ),
    _claim(
        "learnability",
        "figure3",
        "Learnability is the criterion to use: above easy-reference and hard-learner scores [S].",
        "one of them is above learnability",
        _each("joint@0.8", ["joint-easy@0.8", "joint-hard@0.8"]),
        _each("joint@0.8", ["joint-easy@0.8", "joint-hard@0.8"], below=True),
        [("joint-hard@0.8", "uniform")],
    ),
    _claim(
        "multi-resolution",
        "figure4",
        "At equal learner FLOPs Flexi-JEST beats the multi-resolution uniform baseline from a "
        "low-resolution share of about 25 % on ([U] for the 25 %).",
        "uniform training is above Flexi-JEST at one of these shares",
        [(f"flexi@{s}", f"uniform@{s}") for s in SHARES],
        [(f"uniform@{s}", f"flexi@{s}") for s in SHARES],
    ),
    _claim(
        "a share at low resolution",
        "figure4",
        "At equal learner FLOPs a batch seen half at low resolution is worth more than one seen "
        "all at full, with selection and without [ours: Flexi-JEST rests on it].",
        "JEST at full resolution is above Flexi-JEST",
        [("flexi@0.5", "jest"), ("uniform@0.5", "uniform@0")],
        [("jest", "flexi@0.5")],
    ),
    _claim(
        "curation of the reference",
        "figure5",
        "The more strongly the reference's data are curated, the better JEST gets (+2.7 / +1.5 "
        "/ +0.3 % [U]) …",
        "JEST is better with the uncurated reference than with the curated one",
        [("by-wrong@0", "by-wrong@0.5"), ("by-wrong@0.5", "by-wrong@0.8")],
        [("by-wrong@0.8", "by-wrong@0")],
    ),
    _claim(
        "weaker but better",
        "figure5",
        "… although stronger curation, of a smaller set, makes a weaker reference [U].",
        "the reference on the smaller curated set is the better one",
        [("reference wrong@0.2", "reference wrong@0")],
        [("reference wrong@0", "reference wrong@0.2")],
    ),
    _claim(
        "kind of the curated set",
        "figure5",
        "A reference trained on checked pairs of the pool's own kind serves JEST better than "
        "one trained on well captioned drawings of another kind [ours].",
        "the other kind serves better",
        [("by-kind@verified", "by-kind@strong++")],
        [("by-kind@strong++", "by-kind@verified")],
    ),
    _claim(
        "size of the curated set",
        "figure5",
        "More curated data of one quality improve results further (JEST to JEST++ [P]).",
        "a smaller curated set serves better",
        [("by-size@36000", "by-size@5000"), ("by-size@5000", "by-size@1000")],
        [("by-size@1000", "by-size@36000")],
    ),
    _claim(
        "training of the reference",
        "figure5",
        "The better trained the reference, the better JEST, until it saturates [U].",
        "JEST is better with the reference of 375 steps than with that of 3,000",
        [
            ("by-length@3000", "by-length@375"),
            difference("by-length@12000", "by-length@6000", equal=True),
        ],
        [("by-length@375", "by-length@3000")],
    ),
    # --- ablations
    _claim(
        "a larger batch",
        "batch-size",
        "Choosing a sub-batch is worth about as much as training on a larger batch [S].",
        "uniform training with batch 256 is above JEST",
        _each("joint@0.8", ["uniform@256", "uniform@512"]),
        [("uniform@256", "joint@0.8")],
        [("joint@0.8", "uniform@1280")],
    ),
    _claim(
        "beta2",
        "stability",
        "At high filter ratios training needs beta2 = .95 ([S] for SigLIP 2, [U] for the paper).",
        "beta2 = .999 serves JEST at f = .9 better, relative to uniform training",
        [
            ("jest-high@0.95", "jest-high@0.999"),
            ("jest-high@0.95", "jest-high@0.999", "uniform@0.95", "uniform@0.999"),
        ],
        [("jest-high@0.999", "jest-high@0.95", "uniform@0.999", "uniform@0.95")],
    ),
    _claim(
        "softmax",
        "softmax",
        "The method is defined for the softmax loss too, and holds there [ours]; a public "
        "softmax attempt found it to lose [S].",
        "with the softmax loss uniform training, or independent selection, is above JEST",
        _each("jest@softmax", ["uniform@softmax", "independent@softmax"]),
        _each("jest@softmax", ["uniform@softmax", "independent@softmax"], below=True),
    ),
    _claim(
        "larger reference",
        "large-reference",
        "A reference larger than the student is best (ACED [S]).",
        "one of the learner's size is better",
        [("jest@512", "jest@256")],
        [("jest@256", "jest@512")],
    ),
    _claim(
        "moved captions",
        "noise",
        "Selection by learnability rejects pairs that are wrong: it trains on fewer moved "
        "captions than uniform training, hard-learner selection on more [ours].",
        "JEST trains on more moved captions than uniform training",
        [
            (a, b)
            for q in ("0.5", "0.8")
            for a, b in ((f"uniform@{q}", f"joint@{q}"), (f"hard@{q}", f"uniform@{q}"))
        ],
        [(f"joint@{q}", f"uniform@{q}") for q in ("0.5", "0.8")],
        [("independent@0.8", "joint@0.8")],
        metric="noise",
        second=None,
    ),
    _claim(
        "ways to lose",
        "lost",
        "JEST falls behind uniform training when the super-batch counts as samples seen, or the "
        "pool is finite or already filtered; selecting on each rank alone costs some of it [S].",
        "over the four settings that are said to lose JEST is above its baseline on average",
        [
            *[(base, f"jest@{way}") for way, base in zip(LOSING, BASELINES, strict=True)],
            ("jest@paper", "jest@per-rank"),
        ],
        [
            Contrast(
                "JEST minus its baseline, mean of four settings",
                (
                    *[(f"jest@{way}", 0.25) for way in LOSING],
                    *[(base, -0.25) for base in BASELINES],
                ),
            )
        ],
        [("jest@paper", "uniform@paper")],
    ),
    _claim(
        "curated pairs found",
        "curated-in-pool",
        "With the curated sources left in the pool, JEST trains on them more often than they "
        "occur there [ours] …",
        "uniform training sees more of them",
        [("jest@left", "uniform@left")],
        [("uniform@left", "jest@left")],
        [("independent@left", "uniform@left")],
        metric="curated",
        second=None,
    ),
    _claim(
        "curated sources in the pool",
        "curated-in-pool",
        "… and gains from them, more than uniform training does [ours].",
        "JEST ends higher without them",
        [
            ("jest@left", "jest@removed"),
            ("jest@left", "jest@removed", "uniform@left", "uniform@removed"),
        ],
        [("jest@removed", "jest@left")],
        [("jest@removed", "uniform@removed")],
    ),
    _claim(
        "filter-ratio schedules",
        "schedule",
        "At equal mean scoring cost a filter ratio that rises along training beats a constant "
        "one, and that a falling one [ours].",
        "constant f is above rising f, or falling f above rising",
        [("jest@rising", "jest@constant"), ("jest@constant", "jest@falling")],
        [("jest@constant", "jest@rising"), ("jest@falling", "jest@rising")],
        [("jest@constant", "uniform")],
    ),
    _claim(
        "diversity",
        "diversity",
        "Selected data are more diverse than random ones (said by the press of JEST; no claim "
        "of the paper [ours]): more source sets, categories and captions, in logarithms …",
        "they span fewer of one of these",
        [(f"chosen {what}", f"random {what}") for what in ("sets", "categories", "captions")],
        [(f"random {what}", f"chosen {what}") for what in ("sets", "categories", "captions")],
        metric="logarithm",
        second=None,
    ),
    _claim(
        "fairness",
        "diversity",
        "… and with that rarely named classes fare better than under uniform training [ours].",
        "they fare worse",
        [("jest", "uniform")],
        [("uniform", "jest")],
        metric="rare",
        second=None,
    ),
)


# --- evidence ------------------------------------------------------------------------------------


def gather(
    records: dict[str, list[Record]], measured: dict[str, list[dict[str, Any]]] | None = None
) -> Evidence:
    """What the claims are judged by.

    Args:
        records: by experiment.
        measured: one a seed (and run), by experiment: of `chunks.measure_all` ("figure2") and
            `diversity_of.measure_all` ("diversity"). They enter as records that hold one number.
    """
    surfaces = _surfaces(records.get("map", []))
    every = {name: list(found) for name, found in records.items()}
    every.setdefault("map", []).extend(_iteration_costs(records.get("map", [])))
    for name, of in (("figure2", _sub_batches), ("diversity", _diversity)):
        every.setdefault(name, []).extend(of((measured or {}).get(name, [])))
    return Evidence(every, surfaces)


def _surfaces(records: list[Record]) -> dict[str, dict[str, Saving | OverBest]]:
    """Savings by cell of the map, "q = 0.8, 192,000 pairs"; a cell without an interval is none."""
    curves = at_quality(records)
    found: dict[str, dict[str, Saving | OverBest]] = {JEST: {}, FLEXI: {}, BEST: {}}
    for surface, method in METHODS.items():
        for quality in qualities(records, method):
            for one in savings(curves, named(method, quality), named("uniform", quality)):
                if one.df:
                    found[surface][_cell(quality, one)] = one
    for quality in qualities(records):
        controls = [named(control, quality) for control in CONTROLS]
        for best in over_best(curves, named("jest", quality), controls):
            if all(one.df for one in best.savings):
                found[BEST][_cell(quality, best.savings[0])] = best
    return found


def _cell(quality: float, saving: Saving) -> str:
    return f"q = {quality:g}, {saving.cell.examples:,.0f} pairs"


def _number(name: str, seed: int, metric: str, value: float) -> Record:
    """A measured number as the record of a run that took no time."""
    return {
        "name": name,
        "seed": seed,
        "digest": f"{metric} of {name}, seed {seed}",
        "final": {metric: value},
        "seconds": {},
        "environment": {},
    }


def _iteration_costs(records: list[Record]) -> list[Record]:
    """An iteration's FLOPs in units of a uniform one, and the paper's with a point for rounding."""
    found = []
    for name, paper in (("jest", 2.34), ("flexi", 1.11)):
        for record in (r for r in records if r["name"] == f"{name}@0.8@750"):
            if unit := record["uniform_flops_per_iteration"]:
                cost = record["flops_per_iteration"]["cached_reuse"] / unit
                found += [
                    _number(f"cost of {name}", record["seed"], "iteration", cost),
                    _number(f"paper and a point: {name}", record["seed"], "iteration", paper),
                ]
    return found


def _sub_batches(measured: list[dict[str, Any]]) -> list[Record]:
    """Figure 2 by seed: learnability on a scale from independent selection, 0, to the best found,
    1; and by filter ratio, f = .5 being 1."""
    from jestcli.paper.figure2 import chunk_curves, ratio_curve

    found = []
    for one in measured:
        chunks, gibbs, _ = chunk_curves([one])
        ratios = ratio_curve([one])
        shares = {
            "independent": 0.0,
            "nine tenths": 0.9,
            "Gibbs sampling": gibbs[max(gibbs)],
            **{f"{n:g} chunks": value for n, value in chunks.items() if n > 1},
        }
        found += [_number(n, one["seed"], "share", x) for n, x in shares.items()]
        found += [
            _number(f"f = {str(f).lstrip('0')}", one["seed"], "ratio", x)
            for f, x in ratios.items()
            if f
        ]
    return found


def _diversity(measured: list[dict[str, Any]]) -> list[Record]:
    """By seed: logarithms of what JEST's chosen and as many random pairs span, and accuracy on
    rarely named classes."""
    spans = {
        "sets": "effective_sources",
        "categories": "effective_categories",
        "captions": "distinct_captions",
    }
    found = []
    for one in measured:
        if one["name"] == "jest" and one["chosen"]:
            for what, key in spans.items():
                for kind in ("chosen", "random"):
                    value = math.log(one[kind][key])
                    found.append(_number(f"{kind} {what}", one["seed"], "logarithm", value))
        rare = one["accuracy"].get("rare")
        if rare is not None:
            found.append(_number(one["name"], one["seed"], "rare", rare))
    return found
