"""What records say about a claim: one word, where it holds, and the numbers behind it.

A claim is written down before its runs. Its *core* contrasts and its region decide, all of which
must come out as claimed, and its refutation criterion, which binds: where it is met the claim is
contradicted, whatever else holds. *Sanity* contrasts are shown and decide nothing. p values are
Holm's within a claim, over core and refutation contrasts (tests of being level among themselves,
the cells of a region among themselves; a contrast and the same turned round are one test), and
Benjamini and Hochberg's across claims (`judge_all`).

holds                   everything core came out as claimed; of a region: at some of its cells
contradicted            something core came out the other way, or below the margin where a
                        difference is claimed, and nothing as claimed; or the criterion is met;
                        of a region: at some of its cells, and it holds at none
mixed                   some of the core as claimed, some the other way or level; of a region: it
                        holds at some of its cells and is contradicted at others
depends on the metric   on a core contrast the intervals of the primary and the secondary metric
                        exclude 0 with opposite signs
not decidable here      undecided, and deciding it would cost more than HOURS core-hours
open                    undecided, and a few more runs would decide: their price is said
not run yet             runs are missing
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from jestcli.paper.contrasts import Contrast, label
from jestcli.paper.effects import LEVEL, Effect, Fit, benjamini_hochberg, fit, holm
from jestcli.paper.records import Record
from jestcli.paper.saving import AXES, OverBest, Saving, core_hours

HOLDS, CONTRADICTED, MIXED = "holds", "contradicted", "mixed"
METRIC, UNDECIDED, MISSING = "depends on the metric", "not decidable here", "not run yet"
SOON = "open"
WORDS = (HOLDS, MIXED, METRIC, CONTRADICTED, UNDECIDED, SOON, MISSING)
ALPHA = 1 - LEVEL
HOURS = 10.0
LEAST = 1e-9  # of a p value that is told; less depends on the processor's rounding
FOR, AGAINST, OPEN, ABSENT = "for", "against", "open", "absent"


@dataclass(frozen=True)
class Region:
    """ "A factor of at least `factor`" along `axis`, in cells of a surface (all, if none is named).

    It holds at the cells where the lower end of the surface's interval exceeds it, and is
    contradicted at those where the upper end lies below; simultaneously over the cells (Holm).
    """

    surface: str
    factor: float
    axis: str = "examples"
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refutation:
    """What counts as refuted. says: in words; met where one of `contrasts` comes out so. A region
    is refuted cell by cell."""

    says: str
    contrasts: tuple[Contrast, ...] = ()


@dataclass(frozen=True)
class Claim:
    """says: the claim with its source; metric, second: see `records.value`; tested_at: the setting
    that the verdict is about, in words."""

    key: str
    experiment: str
    says: str
    refuted_if: Refutation
    core: tuple[Contrast, ...] = ()
    sanity: tuple[Contrast, ...] = ()
    region: Region | None = None
    metric: str = "mean"
    second: str | None = "nats"
    tested_at: str = ""

    @property
    def margin(self) -> float:
        """The smallest difference that matters: 1 point, or .05 nats."""
        return 0.05 if _unit(self.metric)[1] == "nats" else 0.01

    @property
    def placed(self) -> str:
        """ " (with 80 % wrong captions)", after the verdict's word; "" where it is not stated."""
        return f" ({self.tested_at})" if self.tested_at else ""


@dataclass(frozen=True)
class Evidence:
    """Records by experiment; surfaces: by experiment and the surface's name, savings by cell in
    words ("q = .8, 768,000 pairs")."""

    records: dict[str, list[Record]]
    surfaces: dict[str, dict[str, dict[str, Saving | OverBest]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """word: of WORDS; where: the region's cells that hold; under, open: those where it is
    contradicted and those that decide nothing; p: of the verdict, within the claim (1 where
    undecided, NaN where nothing was run); hours: core-hours that deciding would cost."""

    word: str
    sentences: tuple[str, ...]
    p: float
    hours: float
    where: tuple[str, ...] = ()
    under: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The word; of a region every cell's: "holds (q = .8: 96,000 pairs); open (q = .9)", a q
        without lengths being all of its cells."""
        states = {HOLDS: self.where, CONTRADICTED: self.under, SOON: self.open}
        every = [cell for cells in states.values() for cell in cells]
        if self.word not in (*states, MIXED) or not every:
            return self.word
        found = []
        for state, cells in states.items():
            lengths: dict[str, list[str]] = {}
            for cell in cells:
                quality, _, length = cell.partition(", ")
                lengths.setdefault(quality, []).append(length.removesuffix(" pairs"))
            of = Counter(cell.partition(", ")[0] for cell in every)
            named = [
                q if len(some) == of[q] else f"{q}: {' and '.join(some)} pairs"
                for q, some in lengths.items()
            ]
            found += [f"{state} ({'; '.join(named)})"] if named else []
        return "; ".join(found)


@dataclass(frozen=True)
class _Part:
    """One thing that decides. p: after Holm; p_under: of a region, that of `under`; clash: p of the
    metrics' disagreement; price: core-hours of deciding it, by condition or surface."""

    state: str
    sentence: str
    p: float = 1.0
    clash: float = math.nan
    price: dict[str, float] = field(default_factory=dict)
    where: tuple[str, ...] = ()
    under: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    p_under: float = 1.0


def judge_all(claims: Sequence[Claim], evidence: Evidence) -> list[Verdict]:
    """Verdicts in the claims' order; one that does not survive Benjamini-Hochberg is undecided."""
    found = [judge(claim, evidence) for claim in claims]
    across = benjamini_hochberg([verdict.p for verdict in found])
    for i, (verdict, q) in enumerate(zip(found, across, strict=True)):
        if verdict.word not in (UNDECIDED, SOON, MISSING) and q >= ALPHA:
            lost = f"“{verdict.word}” does not survive the number of claims: "
            lost += f"p = {q:.2g} (Benjamini–Hochberg)."
            found[i] = _undecided(verdict, verdict.hours, lost)
    return found


def judge(claim: Claim, evidence: Evidence) -> Verdict:
    """The verdict on one claim alone."""
    records = evidence.records.get(claim.experiment, [])
    first = fit(records, claim.metric)
    second = fit(records, claim.second) if claim.second else None
    parts = _contrasts(claim, first, second, _costs(records, first))
    core, criteria = parts[: len(claim.core)], parts[len(claim.core) :]
    against = claim.refuted_if.contrasts
    surfaces = evidence.surfaces.get(claim.experiment, {})
    region = _region(claim.region, surfaces) if claim.region else None
    if region:
        core.append(region)
    refuted = [part.p for part in criteria if part.state == FOR]
    absent = any(part.state == ABSENT for part in criteria)
    met = "met" if refuted else "not run" if absent else "not met"
    if region and not refuted:
        met = f"met at {_cells(len(region.under))}" if region.under else met
    sanity = [_sentence(c, first, second, claim) for c in claim.sanity]
    said = {_hypothesis(c) for c in claim.core}
    more = [p for p, c in zip(criteria, against, strict=True) if _hypothesis(c) not in said]
    sentences = (
        *dict.fromkeys(part.sentence for part in (*core, *more)),
        f"Refuted if {claim.refuted_if.says}: {met}.",
        *(f"Sanity, decides nothing: {sentence}" for sentence in sanity),
    )
    verdict = Verdict(MISSING, sentences, 1.0, _total(core))
    if region:
        verdict = replace(verdict, under=region.under, open=region.open)
    good, bad = ([part.p for part in core if part.state == s] for s in (FOR, AGAINST))
    if region and region.where and region.under:
        bad.append(region.p_under)
    clash = [part.clash for part in core if not math.isnan(part.clash)]
    where = tuple(cell for part in core for cell in part.where)
    if refuted:
        return replace(verdict, word=CONTRADICTED, p=min(refuted))
    if clash:
        return replace(verdict, word=METRIC, p=min(clash))
    if good and bad:
        return replace(verdict, word=MIXED, p=max(min(good), min(bad)), where=where)
    if bad:
        return replace(verdict, word=CONTRADICTED, p=min(bad))
    if absent or any(part.state == ABSENT for part in core):
        return replace(verdict, p=1.0 if any(p.state != ABSENT for p in core) else math.nan)
    if len(good) < len(core):
        return _undecided(verdict, _total([part for part in core if part.state == OPEN]))
    return replace(verdict, word=HOLDS, p=max(good), where=where)


def _undecided(verdict: Verdict, hours: float, *why: str) -> Verdict:
    """Word and price of what the runs so far do not decide."""
    text = (*verdict.sentences, *why)
    if hours:  # not where what was measured cannot be told from nothing
        price = f"about {max(hours, 0.1):,.1f}" if hours < 1e4 else "more than 10,000"
        text = (*text, f"Deciding it would cost {price} core-hours.")
    word = UNDECIDED if hours > HOURS else SOON
    none: tuple[str, ...] = ()
    return replace(
        verdict, word=word, p=1.0, hours=hours, sentences=text, where=none, under=none, open=none
    )


def _cells(n: int) -> str:
    return f"{n} cell{'s' * (n != 1)}"


def _hypothesis(contrast: Contrast) -> tuple[object, ...]:
    """The same for a contrast and for the same turned round."""
    weights = sorted(contrast.weights)
    sign = math.copysign(1, weights[0][1])
    return contrast.equal, *((name, sign * weight) for name, weight in weights)


def _holm(contrasts: Sequence[Contrast], p: Sequence[float]) -> list[float]:
    """Holm's p values, each hypothesis counted once."""
    keys = [_hypothesis(contrast) for contrast in contrasts]
    once = dict(zip(keys, p, strict=True))
    adjusted = dict(zip(once, holm(list(once.values())), strict=True))
    return [adjusted[key] for key in keys]


def _contrasts(
    claim: Claim, first: Fit, second: Fit | None, costs: dict[str, tuple[str, float]]
) -> list[_Part]:
    """A part for each core contrast, then for each of the refutation criterion."""
    asked = (*claim.core, *claim.refuted_if.contrasts)
    effects, margin = [first.effect(c) for c in asked], claim.margin
    differ = [e.p_outside(margin if e.contrast.equal else 0) if e else math.nan for e in effects]
    # A claimed difference is contradicted by one that is too small, or negative.
    level = [
        (e.p_within if e.contrast.equal else e.p_below)(margin) if e else math.nan for e in effects
    ]
    parts = []
    n = len(claim.core)  # too small the one way is another hypothesis than the other way round
    adjusted = _holm(asked, differ), [*holm(level[:n]), *holm(level[n:])]
    for contrast, effect, p, p_level in zip(asked, effects, *adjusted, strict=True):
        sentence = _sentence(contrast, first, second, claim, p)
        if effect is None:
            parts.append(_Part(ABSENT, sentence))
            continue
        apart, alike = p < ALPHA, p_level < ALPHA
        if contrast.equal:
            state = FOR if alike else AGAINST if apart else OPEN
        elif apart:
            state = FOR if effect.estimate > 0 else AGAINST
        else:
            state = AGAINST if alike else OPEN
        scale, unit, digits = _unit(claim.metric)
        level_too = effect.p_within(margin) < ALPHA
        within = f"±{scale * margin:.{digits}f} {unit}"
        words = [f"further apart than {within}" if contrast.equal else "beyond chance"] * apart
        words += [f"no difference beyond {within}"] * (alike and level_too)
        words += [f"not above by {within[1:]}"] * (alike and not apart and not level_too)
        other = second.effect(contrast) if second else None
        disagree = other and max(effect.low, other.low) > 0 > min(effect.high, other.high)
        sentence = f"{sentence[:-1]}: {', '.join(words) or 'open'}."
        decided = p if apart else p_level if alike else 1.0
        clash = max(effect.p, other.p) if other and disagree else math.nan
        parts.append(_Part(state, sentence, decided, clash, _price(effect, claim, costs)))
    return parts


def _sentence(
    contrast: Contrast, first: Fit, second: Fit | None, claim: Claim, p: float | None = None
) -> str:
    """A contrast's numbers by both metrics. p: Holm's, where the contrast decides."""
    effect, other = first.effect(contrast), second.effect(contrast) if second else None
    if effect is None:
        lacking = ", ".join(label(n) for n in contrast.conditions if n not in first.alias)
        return f"{contrast.says}: {f'{lacking} not run' if lacking else 'the same runs'}."
    text = f"{contrast.says}: {_number(effect, claim.metric)}"
    if math.isnan(effect.se):
        return f"{text}, one seed."
    text += f", {_chance(effect.p)}" if p is None else f", {_chance(p)} (Holm)"
    scale, _, digits = _unit(claim.metric)
    text += f", detectable {scale * effect.detectable:.{digits}f}"
    text += ", by their own scatter" if first.own else ""
    if other and claim.second:
        text += f"; {_number(other, claim.second)}"
    return f"{text} ({effect.n} seeds)."


def _chance(p: float) -> str:
    return f"p = {p:.2g}" if p >= LEAST else f"p < {LEAST:.0e}"


def _number(effect: Effect, metric: str) -> str:
    scale, unit, digits = _unit(metric)
    # Records hold five digits; the sixteenth, another on another processor, must not decide a tie.
    told = (round(scale * x, 9) for x in (effect.estimate, effect.low, effect.high))
    estimate, low, high = (f"{x:+.{digits}f}" for x in told)
    return f"{estimate} {unit}" + ("" if math.isnan(effect.se) else f" [{low}, {high}]")


def _unit(metric: str) -> tuple[float, str, int]:
    if metric.endswith(("nats", "logprob")):
        return 1.0, "nats", 3
    share = {"noise": " of moved captions", "curated": " of curated pairs"}.get(metric, "")
    return 100.0, f"points{share}", 2


def _region(region: Region, surfaces: dict[str, dict[str, Saving | OverBest]]) -> _Part:
    """FOR where the factor holds at some cell; else AGAINST where the saving is below it at one."""
    surface, axis, k = surfaces.get(region.surface, {}), region.axis, region.factor
    named = region.cells or surface
    cells = {c: s for c, s in surface.items() if s.knows(axis) and c in named}
    if not cells or set(region.cells) - set(cells):
        return _Part(ABSENT, f"{region.surface}: not run.")
    above = holm([min(1.0, 2 * s.p_above(k, axis)) for s in cells.values()])
    below = holm([min(1.0, 2 * s.p_below(k, axis)) for s in cells.values()])
    where, under = (
        tuple(cell for cell, p in zip(cells, ps, strict=True) if p < ALPHA) for ps in (above, below)
    )
    numbers = "; ".join(f"{cell}: {s.ratio(axis)}" for cell, s in cells.items())
    text = (
        f"{region.surface}, {AXES.get(axis, axis)}: {numbers}. At least ×{k:g}: "
        f"{', '.join(where) or 'nowhere'}; less: {', '.join(under) or 'nowhere'}."
    )
    left = tuple(cell for cell in cells if cell not in (*where, *under))
    if where:
        return _Part(FOR, text, min(above), where=where, under=under, open=left, p_under=min(below))
    if under:
        return _Part(AGAINST, text, min(below), under=under, open=left)
    hours = min(s.hours(k, axis) for s in cells.values())
    return _Part(OPEN, text, price={region.surface: hours})


def _costs(records: Iterable[Record], first: Fit) -> dict[str, tuple[str, float]]:
    """By condition, the run that a seed of it takes and its core-hours, its reference's training
    left out. Numbers that were measured on one run take that run once."""
    spent: dict[str, list[float]] = {}
    source: dict[str, str] = {}
    for record in records:
        name: str = record["name"]
        name = first.alias.get(name, name)
        spent.setdefault(name, []).append(core_hours(record))
        source[name] = record.get("measured_on", name)
    return {n: (source[o], sum(spent[o]) / len(spent[o])) for n, o in first.alias.items()}


def _price(effect: Effect, claim: Claim, costs: dict[str, tuple[str, float]]) -> dict[str, float]:
    """Core-hours of the seeds with which the margin would be the detectable difference, which
    falls with the root of their number; of one more where a condition has but one."""
    more = 1
    if not math.isnan(effect.se):
        more = max(1, math.ceil(effect.n * (effect.detectable / claim.margin) ** 2) - effect.n)
    return {run: more * hours for run, hours in (costs[n] for n in effect.contrast.conditions)}


def _total(parts: Iterable[_Part]) -> float:
    """The seeds of a condition serve every contrast that it is part of."""
    most: dict[str, float] = {}
    for part in parts:
        for name, hours in part.price.items():
            most[name] = max(hours, most.get(name, 0.0))
    return sum(most.values())
