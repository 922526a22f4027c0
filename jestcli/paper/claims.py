"""The paper's claims, and what records say about each: the verdicts of `jest report`.

A claim is decided by comparisons fixed here, before the runs unless said: final scores paired
over seeds, on the mean score for the headline and on nats above guessing for the ablations (whose
accuracies are close to chance). A comparison counts when its 95 % t-interval over at least three
seeds leaves out zero; a factor (of examples, FLOPs, energy) is reproduced when it is at least
half of what is claimed and every seed has it beyond chance (a rule made after the first Figure 1,
none of whose verdicts it changed). Changed or added when runs had been seen: that one filter
above JEST refutes Table 2, the claim of a share at low resolution, and that the larger reference
alone decides on larger references (both changes went against the claim). Provenance tags as
everywhere: [P] seen in the paper, [S] second-hand, [D] derived by arithmetic, [U] remembered and
unverified, [ours] a question that the paper does not ask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jestcli.paper.methods import style
from jestcli.paper.panels import line_of, value_of
from jestcli.paper.records import Record
from jestcli.paper.statistics import (
    BASELINE,
    JOULES,
    Difference,
    by_name,
    faster,
    find_target,
    has_joules,
    joules_by_seed,
    paired_difference,
    speed_up,
    t_interval,
)
from jestcli.paper.statistics import verdict as verdict_of

REPRODUCED, PARTLY, NOT = "reproduced", "partly", "not reproduced"
OPEN, MISSING = "inconclusive", "not run at this scale"
NO_METER = "not measurable on this machine"
VERDICTS = (REPRODUCED, PARTLY, NOT, OPEN, NO_METER, MISSING)
SEEDS = 3  # as many are needed for a verdict
FACTOR = 0.5  # share of the paper's factor that a measured one must reach to count as reproduced
PRESS_ENERGY = 10.0  # "ten times less energy"
SHARES = {"noise": "moved captions", "curated": "curated pairs"}  # metrics: of what is trained on


@dataclass(frozen=True)
class Evidence:
    """Records and Figure 2's measurements, by experiment."""

    records: dict[str, list[Record]]
    measured: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """verdict: one of VERDICTS; sentences: what was measured; names: the runs it rests on."""

    verdict: str
    sentences: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """says: the paper's words with a tag; orders: (higher, lower) names of runs, all of which must
    come out so; metric: what decides; judge: replaces orders where a claim is no ordering."""

    key: str
    experiment: str
    says: str
    orders: tuple[tuple[str, str], ...] = ()
    metric: str = "nats"
    judge: Callable[[Evidence], Finding] | None = None

    def find(self, evidence: Evidence) -> Finding:
        """The verdict on what has been run so far."""
        if self.judge is not None:
            return self.judge(evidence)
        records = evidence.records.get(self.experiment, [])
        return ordering(records, self.orders, self.metric)


# --- orderings -----------------------------------------------------------------------------------


def ordering(records: list[Record], orders: tuple[tuple[str, str], ...], metric: str) -> Finding:
    """Verdict on whether each first run ends above its second."""
    found = [paired_difference(records, a, b, metric) for a, b in orders]
    sentences = tuple(_sentence(records, d, metric) for d in found if d.interval.n)
    missing = "; ".join(f"{label(d.a)} against {label(d.b)}" for d in found if not d.interval.n)
    sentences += (f"Not run: {missing}.",) if missing else ()
    words = [_word(d) for d in found]
    names = tuple(dict.fromkeys(n for pair in orders for n in pair))
    return Finding(together(words), sentences, names)


def together(words: list[str]) -> str:
    """The verdict over comparisons that read higher, lower, not distinguishable, few or not run."""
    known = [w for w in words if w != "not run"]
    if not known:
        return MISSING
    if all(w == "higher" for w in words):
        return REPRODUCED
    if "higher" in known:
        return PARTLY
    if "lower" in known:
        return NOT
    return OPEN


def _word(difference: Difference) -> str:
    n = difference.interval.n
    if n == 0:
        return "not run"
    return difference.words if n >= SEEDS else "few"


def _sentence(records: list[Record], d: Difference, metric: str) -> str:
    a, b = label(d.a), label(d.b)
    first = metric if metric in SHARES else "mean"
    n = d.interval.n
    parts = [_number(paired_difference(records, d.a, d.b, m), m, n) for m in (first, "nats")]
    parts = [p for p in parts if p]
    if metric == "nats":
        parts = parts[::-1]
    few = "" if n >= SEEDS else f", too few for a verdict ({SEEDS} are needed)"
    return f"{a} minus {b}: {'; '.join(parts)} ({_seeds(n)}{few})."


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"


def _number(d: Difference, metric: str, n: int) -> str:
    """n: the seeds of the deciding metric; where this one has fewer, that is said."""
    if d.interval.n == 0:
        return ""
    factor, unit, digits = {
        "mean": (100, "points", 2), "nats": (1, "nats", 3),
        **{name: (100, f"points of {what} trained on", 1) for name, what in SHARES.items()},
    }[metric]  # fmt: skip
    i = d.interval
    text = f"{factor * i.mean:+.{digits}f} {unit}"
    if i.n != n:
        text += f" ({_seeds(i.n)})"
    if math.isnan(i.low):
        return text
    text += f" [{factor * i.low:+.{digits}f}, {factor * i.high:+.{digits}f}]"
    return text + (", not distinguishable" if d.words == "not distinguishable" else "")


def label(name: str) -> str:
    """A run's name in words: "joint@0.9" is "joint at 0.9"."""
    line, value = line_of(name), value_of(name)
    words = style(line).label
    return f"{words} at {value}" if value else words


# --- the headline --------------------------------------------------------------------------------


def speed(name: str, examples: float, flops: float) -> Callable[[Evidence], Finding]:
    """Judge whether `name` reaches the long uniform run's final with less, by the factors that the
    paper prints: reproduced, if beyond the chance of seeds and at least half as large."""

    def judge(evidence: Evidence) -> Finding:
        records = evidence.records.get("figure1", [])
        found, target = speed_up(records, name), find_target(records)
        names = (name, "uniform-long")
        if found.status == "not run" or target is None:
            return Finding(MISSING, (f"{label(name)}: not run.",), names)
        about = (
            f"Target: {100 * target.score:.2f} %, {target.standard_errors:.1f} standard errors "
            f"above chance."
        )
        seeds = len(by_name(records)[name])
        if found.status == "invalid target":
            return Finding(OPEN, (about, "Too close to chance to be a target (5 needed)."), names)
        if not found.crossed:
            verdict = NOT if seeds >= SEEDS else OPEN
            return Finding(verdict, (about, f"{label(name)} never reaches it (censored)."), names)
        f, sign = found.factor, "at least " if found.status == "at first evaluation" else ""
        own = ", ".join(f"×{x:.1f}" if x else "censored" for x in found.per_seed)
        sentences: tuple[str, ...] = (
            about,
            f"{label(name)} reaches it with {sign}×{f['examples']:.1f} fewer examples "
            f"(by seed: {own}), {_less(f['cached'])} FLOPs with the reference cached, "
            f"{_less(f['charged'])} with the reference's training and scoring charged, and "
            f"{_less(f['seconds'])} CPU seconds."
            f" The paper: ×{examples} and ×{flops}.",
        )
        if seeds < SEEDS:
            return Finding(
                OPEN, (*sentences, f"{_seeds(seeds).capitalize()}: too few for a verdict."), names
            )
        near = f["examples"] >= FACTOR * examples and f["cached"] >= FACTOR * flops
        share = f"{FACTOR:.0%} of the paper's factors"
        enough = f"At least {share}, as much as “reproduced” asks for."
        sentences += (enough if near else f"Below {share}.",)
        if not faster(found.per_seed):
            sentences += ("Not beyond the chance of seeds.",)
        if near and faster(found.per_seed):
            return Finding(REPRODUCED, sentences, names)
        return Finding(PARTLY if f["examples"] > 1 else NOT, sentences, names)

    return judge


def _less(factor: float) -> str:
    """A factor in words: below 1 it is more, not fewer."""
    return f"×{factor:.1f} fewer" if factor >= 1 else f"×{1 / factor:.2f} more"


def iteration_cost(evidence: Evidence) -> Finding:
    """Cost of an iteration of JEST and Flexi-JEST in units of a uniform one (233 and 110 %)."""
    groups = by_name(evidence.records.get("figure1", []))
    sentences, near = [], []
    for name, paper in (("jest", 233), ("flexi", 110)):
        if name not in groups:
            sentences.append(f"{label(name)}: not run.")
            continue
        run = groups[name][0]
        unit = run["uniform_flops_per_iteration"]
        if not unit:
            continue
        re_used, cached = (
            100 * run["flops_per_iteration"][c] / unit for c in ("cached_reuse", "cached")
        )
        near.append(abs(re_used - paper) <= 2)
        sentences.append(
            f"{label(name)}: {re_used:.0f} % with selected forwards re-used (paper {paper} %), "
            f"{cached:.0f} % as executed, counted on the modules."
        )
    verdict = MISSING if not near else REPRODUCED if all(near) else PARTLY if any(near) else NOT
    return Finding(verdict, tuple(sentences), ("jest", "flexi"))


def sub_batches(evidence: Evidence) -> Finding:
    """Figure 2: chunks against independent selection and brute force."""
    from jestcli.paper.figure2 import chunk_curves, ratio_curve

    measured = evidence.measured.get("figure2", [])
    if not measured:
        return Finding(MISSING, ("Not measured.",), ("jest",))
    chunks, gibbs, _ = chunk_curves(measured)
    ratios = ratio_curve(measured)
    sentences = (
        f"Learnability at f = .5, independent 0 and best found 1: {chunks[4]:.2f} with 4 chunks, "
        f"{chunks[16]:.3f} with 16 (paper .993), {gibbs[max(gibbs)]:.3f} by Gibbs sampling after "
        f"{max(gibbs):,.0f} iterations.",
        f"By ratio, f = .5 being 1: {ratios[0.8]:.2f} at .8 (paper 1.12), {ratios[0.9]:.2f} at .9 "
        f"(paper 1.15). {_seeds(len(measured)).capitalize()}.",
    )
    holds = [chunks[16] > 0.9, chunks[16] > chunks[4] > 0, ratios[0.9] > ratios[0.8] > 1]
    if len(measured) < SEEDS:
        return Finding(OPEN, sentences, ("jest",))
    verdict = REPRODUCED if all(holds) else PARTLY if any(holds) else NOT
    return Finding(verdict, sentences, ("jest",))


def best_filter(evidence: Evidence) -> Finding:
    """Table 2: JEST against every offline filter at every rate. The claim is of the best of them:
    to be above some decides nothing, to be below one refutes it (a rule made while the runs were
    under way, stricter than the one before)."""
    records = evidence.records.get("table2", [])
    lines = ("filtered", "negclip")
    others = sorted({r["name"] for r in records if line_of(r["name"]) in lines})
    found = ordering(records, tuple(("jest", o) for o in others) or (("jest", "filtered"),), "nats")
    words = [_word(paired_difference(records, "jest", other, "nats")) for other in others]
    verdict = NOT if "lower" in words else OPEN if found.verdict == PARTLY else found.verdict
    return Finding(verdict, found.sentences, found.names)


def filter_gain(evidence: Evidence) -> Finding:
    """Table 3: what the pre-filter gives uniform training and JEST, and the difference of both."""
    records = evidence.records.get("table3", [])
    names = ("uniform@filtered", "uniform@raw", "jest@filtered", "jest@raw")
    made = []
    groups = by_name(records)
    values = [{r["seed"]: r["final"].get("nats") for r in groups.get(n, [])} for n in names]
    for seed in sorted(set.intersection(*map(set, values))):
        four = [v[seed] for v in values]
        if None not in four:
            made += [
                {"name": "gain of uniform", "seed": seed, "final": {"nats": four[0] - four[1]}},
                {"name": "gain of JEST", "seed": seed, "final": {"nats": four[2] - four[3]}},
            ]
    found = ordering(made, (("gain of uniform", "gain of JEST"),), "nats")
    return Finding(found.verdict, found.sentences, names)


def varied(evidence: Evidence) -> Finding:
    """Diversity: the effective number of sets and captions of chosen pairs against random ones."""
    found = [m for m in evidence.measured.get("diversity", []) if m["name"] == "jest"]
    chosen = [m for m in found if m["chosen"]]
    if not chosen:
        return Finding(MISSING, ("Not measured.",), ("jest", "uniform"))
    sentences, words = [], []
    for key, what in (
        ("effective_sources", "effective source sets"),
        ("effective_categories", "effective categories"),
        ("distinct_captions", "share of distinct captions"),
    ):
        each = t_interval([m["chosen"][key] - m["random"][key] for m in chosen])
        a, b = (sum(m[k][key] for m in chosen) / len(chosen) for k in ("chosen", "random"))
        words.append(verdict_of(each) if each.n >= SEEDS else "few")
        sentences.append(f"{what}: {a:.3g} chosen, {b:.3g} random.")
    rare = {
        name: {m["seed"]: m["accuracy"].get("rare") for m in evidence.measured["diversity"]
               if m["name"] == name} for name in ("jest", "uniform")
    }  # fmt: skip
    both = [s for s in rare["jest"] if None not in (rare["jest"][s], rare["uniform"].get(s))]
    if both:
        each = t_interval([rare["jest"][s] - rare["uniform"][s] for s in both])
        words.append(verdict_of(each) if each.n >= SEEDS else "few")
        sentences.append(f"Accuracy on rarely named classes: {100 * each.mean:+.2f} points.")
    sentences.append(f"{_seeds(len(chosen)).capitalize()}.")
    return Finding(together(words), tuple(sentences), ("jest", "uniform"))


def energy(evidence: Evidence) -> Finding:
    """Joules until the long uniform run's final is reached, where the hardware counts them."""
    records = evidence.records.get("figure1", [])
    groups = by_name(records)
    if not any(has_joules(runs) for runs in groups.values()):
        reasons = dict.fromkeys(r["environment"].get("no_energy") for r in records)
        known = "; ".join(reason for reason in reasons if reason)
        if known:
            return Finding(NO_METER, (f"No joules were counted: {known}.", INSTEAD), ())
        return Finding(MISSING, (f"No record holds joules. {INSTEAD}",), ())
    sentences = ["Joules are the whole machine's, other jobs and evaluations included."]
    verdicts: list[str] = []
    counted = has_joules(groups.get(BASELINE, []))
    for name in ("jest", "flexi", "flexi-long", "jest++", "flexi++") if counted else ():
        if not has_joules(groups.get(name, [])):
            continue
        found, own = speed_up(records, name), joules_by_seed(records, name)
        n = len(groups[name])
        if not found.crossed:
            sentences.append(f"{label(name)}: {found.status} ({_seeds(n)}).")
            verdicts.append(NOT if found.status == "censored" and n >= SEEDS else OPEN)
            continue
        spent, factor = found.at[JOULES], found.factor[JOULES]
        sentences.append(
            f"{label(name)} reaches the long uniform run's final with {spent / 1e3:,.3g} kJ, a "
            f"factor of ×{factor:.2f} (by seed: {', '.join(f'×{x:.2f}' for x in own)}"
            f"{'; ' if own else ''}{n - len(own)} censored; {_seeds(n)})."
        )
        every = faster([*own, *[None] * (n - len(own))])
        if n < SEEDS:
            verdicts.append(OPEN)
        elif every and factor >= FACTOR * PRESS_ENERGY:
            verdicts.append(REPRODUCED)
        else:
            verdicts.append(PARTLY if factor > 1 else NOT)
    if not verdicts:
        return Finding(MISSING, (*sentences, "Not counted for both methods of a comparison."), ())
    best = min(verdicts, key=VERDICTS.index)  # the claim is of the best method
    return Finding(best, tuple(sentences), ("jest", BASELINE))


INSTEAD = "FLOPs and processor seconds stand in the cost table."

# --- the list ------------------------------------------------------------------------------------

CLAIMS = (
    Claim("speed-up of JEST", "figure1",
          "JEST reaches the final score of long uniform training with 11.6× fewer examples and "
          "4.3× fewer FLOPs (Fig. 1, digitised [P]).", judge=speed("jest", 11.6, 4.3)),
    Claim("speed-up of JEST++", "figure1",
          "With the larger curated set 13.1× fewer examples and 4.9× fewer FLOPs (Fig. 1, "
          "digitised [P]).", judge=speed("jest++", 13.1, 4.9)),
    Claim("speed-up of Flexi-JEST++", "figure1",
          "With multi-resolution training 10.9× fewer examples and 9.9× fewer FLOPs (Fig. 1, "
          "digitised [P]).", judge=speed("flexi++", 10.9, 9.9)),
    Claim("speed-up of Flexi-JEST", "figure1",
          "With the small reference and JEST's FLOPs [ours]; the paper gives Flexi-JEST++'s "
          "alone: 10.9× fewer examples and 9.9× fewer FLOPs (Fig. 1, digitised [P]).",
          judge=speed("flexi-long", 10.9, 9.9)),
    Claim("multi-resolution training at equal FLOPs", "figure1",
          "Flexi-JEST, given as many FLOPs as JEST, ends above it [ours: the paper's Flexi-JEST++ "
          "needs half of JEST++'s FLOPs to the target, Fig. 1, digitised [P]].",
          orders=tuple(("flexi-long", c) for c in ("jest", "uniform-long", "flexi-uniform")),
          metric="mean"),
    Claim("bootstrapping", "figure1",
          "A small curated set steers training to a model that is better than the reference "
          "trained on it (“data quality bootstrapping” [S]).",
          orders=(("jest", "reference"), ("jest++", "reference++")), metric="mean"),
    Claim("against the alternatives", "figure1",
          "JEST is worth more than the obvious other uses of the curated set: training on it "
          "alone, mixing it in, filtering once, fine-tuning the reference [ours].",
          orders=tuple(("jest", c) for c in ("curated", "mixed", "filtered", "finetune")),
          metric="mean"),
    Claim("cost of an iteration", "figure1",
          "An iteration costs 233 % of a uniform one with JEST, 110 % with Flexi-JEST (Table 1 "
          "[P]).", judge=iteration_cost),
    Claim("final scores", "table1",
          "JEST++ and Flexi-JEST++ end about level with or above uniform training on 10× as many "
          "examples (Table 1 [P]).",
          orders=(("jest++", "uniform-long"), ("flexi++", "uniform-long")), metric="mean"),
    Claim("sub-batches", "figure2",
          "Sixteen chunks give .993 of the best sub-batch's learnability, brute force needs about "
          "2,000 Gibbs iterations; 1.12 at f = .8 and 1.15 at .9 (Fig. 2, digitised [P]).",
          judge=sub_batches),
    Claim("joint selection", "figure3",
          "Joint selection keeps improving with the filter ratio and beats independent selection "
          "at high ratios (Fig. 3 [S]).",
          orders=(("joint@0.9", "joint@0.5"), ("joint@0.9", "independent@0.9"),
                  ("joint@0.8", "independent@0.8"), ("joint@0.8", "uniform"))),
    Claim("easy-reference scores", "figure3",
          "With easy-reference scores joint selection beats independent, which regresses at high "
          "ratios (Fig. 3 [S]).",
          orders=(("joint-easy@0.9", "independent-easy@0.9"),
                  ("independent-easy@0.5", "independent-easy@0.9"))),
    Claim("learnability", "figure3",
          "Learnability is the criterion to use: above easy-reference and hard-learner scores "
          "[S].",
          orders=(("joint@0.8", "joint-easy@0.8"), ("joint@0.8", "joint-hard@0.8"))),
    Claim("multi-resolution", "figure4",
          "At equal learner FLOPs Flexi-JEST beats the multi-resolution uniform baseline from a "
          "low-resolution share of about 25 % on ([U] for the 25 %).",
          orders=tuple((f"flexi@{s}", f"uniform@{s}") for s in ("0.25", "0.5", "0.75"))),
    Claim("a share at low resolution", "figure4",
          "At equal learner FLOPs a batch seen half at low resolution is worth more than one seen "
          "all at full, with selection and without [ours: Flexi-JEST rests on it].",
          orders=(("flexi@0.5", "flexi@0"), ("uniform@0.5", "uniform@0"))),
    Claim("curation of the reference", "figure5",
          "The more strongly the reference's data are curated, the better JEST gets (+2.7 / +1.5 / "
          "+0.3 % [U]) …",
          orders=(("by-level@strong++", "by-level@moderate"),
                  ("by-level@moderate", "by-level@weak"))),
    Claim("weaker but better", "figure5",
          "… although stronger curation makes a weaker reference [U].",
          orders=(("reference level@weak", "reference level@strong++"),)),
    Claim("size of the curated set", "figure5",
          "More curated data of one quality improve results further (JEST to JEST++ [P]).",
          orders=(("by-size@all", "by-size@500"), ("by-size@2000", "by-size@250"))),
    Claim("training of the reference", "figure5",
          "The better trained the reference, the better JEST, until it saturates [U].",
          orders=(("by-length@600", "by-length@75"), ("by-length@300", "by-length@75"))),
    Claim("raw pool against filters", "table2",
          "JEST on the raw pool beats training on the best filtered pool (Table 2 [P]).",
          judge=best_filter),
    Claim("no need of a filter", "table3",
          "Uniform training needs the pre-filtered pool, JEST hardly (Table 3 [U]).",
          judge=filter_gain),
    Claim("beta2", "stability",
          "At high filter ratios training needs beta2 = .95 ([S] for SigLIP 2, [U] for the "
          "paper).", orders=(("jest-high@0.95", "jest-high@0.999"),)),
    Claim("a larger batch", "batch-size",
          "Choosing a sub-batch is worth about as much as training on a larger batch [S].",
          orders=(("joint@0.8", "uniform@64"), ("joint@0.8", "uniform@128"))),
    Claim("softmax", "softmax",
          "The method is defined for the softmax loss too, and holds there [ours]; a public "
          "softmax attempt found it to lose [S].",
          orders=(("jest@softmax", "uniform@softmax"), ("jest@softmax", "independent@softmax"))),
    Claim("larger reference", "large-reference",
          "A reference larger than the student is best (ACED [S]).",
          orders=(("jest@128", "jest@64"),)),
    Claim("moved captions", "noise",
          "Selection by learnability rejects pairs that are wrong: it trains on fewer moved "
          "captions than uniform training, hard-learner selection on more [ours].",
          orders=(("uniform@0.5", "joint@0.5"), ("hard@0.5", "uniform@0.5"),
                  ("independent@0.5", "joint@0.5")), metric="noise"),
    Claim("ways to lose", "lost",
          "JEST falls behind uniform training when the super-batch counts as samples seen, or the "
          "pool is finite and already filtered; selecting on each rank alone costs some of it [S].",
          orders=(("jest@paper", "uniform@paper"), ("uniform@paper", "jest@seen"),
                  ("uniform@filtered", "jest@filtered"), ("uniform@small", "jest@small"),
                  ("uniform@small-filtered", "jest@small-filtered"),
                  ("jest@paper", "jest@per-rank"))),
    Claim("curated pairs found", "curated-in-pool",
          "With the curated sources left in the pool, JEST trains on them more often than they "
          "occur there, joint selection as well as independent [ours] …",
          orders=(("jest@left", "uniform@left"), ("independent@left", "uniform@left")),
          metric="curated"),
    Claim("curated sources in the pool", "curated-in-pool",
          "… and gains from them; without them it is still above uniform training [ours].",
          orders=(("jest@left", "jest@removed"), ("jest@removed", "uniform@removed"))),
    Claim("filter-ratio schedules", "schedule",
          "At equal mean scoring cost a filter ratio that rises along training beats a constant "
          "one, and that a falling one [ours].",
          orders=(("jest@rising", "jest@constant"), ("jest@constant", "jest@falling"))),
    Claim("diversity", "diversity",
          "Selecting diverse data promotes fairness (said by the press of JEST; no claim of the "
          "paper) [ours].", judge=varied),
    Claim("energy", "figure1",
          "JEST needs ten times less energy (said by the press; the paper counts FLOPs) [ours].",
          judge=energy),
)  # fmt: skip
