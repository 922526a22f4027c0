"""A claim as an experiment's file states it, fixed before the runs that decide it.

    claims:
      joint selection:
        says: Joint selection beats independent selection [S].
        refuted_if: independent is above joint selection at f = .9
        core: joint@0.9 > independent@0.9; joint@0.9 > joint@0.5
        against: independent@0.9 > joint@0.9
        sanity: joint@0.9 > uniform

core: what decides; against: what, where it holds, refutes the claim (unless said otherwise each
core difference the other way round); sanity: what is shown and decides nothing; all as of
`contrasts.parse_contrasts`. A region is a factor claimed of the map, whose criterion is met cell by
cell. The primary metric is the mean score of the benchmarks, the secondary one nats above guessing;
where a claim counts something else its metric says so. Provenance tags as everywhere: [P] seen in
the paper, [S] second-hand, [U] remembered and unverified, [ours] a question that the paper does not
ask. `verdicts` judges, by what `evidence` gathers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from pydantic import model_validator as whole

from jestcli.config import ConfigError, did_you_mean
from jestcli.paper.contrasts import parse_contrasts

JEST = "saving of JEST over uniform training"
FLEXI = "saving of Flexi-JEST over uniform training"
BEST = "saving of JEST over the best control"
LONGEST, MOST = 2_000, 64  # characters of a text; claims of a file
Words = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST)]
Contrasts = Annotated[str, StringConstraints(max_length=LONGEST)]
Key = Annotated[str, StringConstraints(pattern=r"^\w[\w .,'’/+-]*$", max_length=80)]
Score = Literal["mean", "nats", "logprob", "icons", "icons:nats", "emoji", "emoji:nats"]
Counted = Literal["noise", "curated", "share", "ratio", "logarithm", "rare", "gap", "iteration"]
Metric = Score | Counted
# By kind of figure, what is measured on its runs: metric -> the numbers' names (none: the runs').
MEASURED: dict[str, dict[str, tuple[str, ...]]] = {
    "matrix": {
        "share": (
            *("independent", "nine tenths", "Gibbs sampling"),
            *(f"{n} chunks" for n in (2, 4, 8, 16, 32)),
        ),
        "ratio": ("f = .5", "f = .8", "f = .9"),
    },
    "choices": {
        "logarithm": tuple(
            f"{which} {what}"
            for which in ("chosen", "random")
            for what in ("sets", "categories", "captions")
        ),
        "rare": (),
        "gap": (),
    },
    "map": {
        "iteration": tuple(
            f"{what}{method}"
            for method in ("jest", "flexi")
            for what in ("cost of ", "paper and a point: ")
        )
    },
}


class Region(BaseModel):
    """ "A factor of at least `factor`" along `axis`, a cost of saving.AXES, on the map."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    surface: Literal[
        "saving of JEST over uniform training",
        "saving of Flexi-JEST over uniform training",
        "saving of JEST over the best control",
    ]
    factor: Annotated[float, Field(strict=True, gt=0, le=1e6)]
    axis: Literal[
        "examples",
        "seen",
        "cached_reuse",
        "cached",
        "uncached",
        "cached_reuse+reference",
        "charged",
        "uncached+reference",
        "seconds",
    ] = "examples"


class Statement(BaseModel):
    """A claim as it is written. metric: see `records.value` and MEASURED. tested_at: the setting
    that a verdict is about, beside it; the experiment's where it is not said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    says: Words
    refuted_if: Words
    core: Contrasts = ""
    against: Contrasts = ""
    sanity: Contrasts = ""
    region: Region | None = None
    metric: Metric = "mean"
    tested_at: Annotated[str, StringConstraints(max_length=80)] = ""

    @field_validator("core", "against", "sanity")
    @classmethod
    def _are_contrasts(cls, text: str) -> str:
        parse_contrasts(text)
        return text

    @whole(mode="after")
    def _decides(self) -> Statement:
        core = parse_contrasts(self.core)
        if not core and self.region is None:
            raise ValueError("neither core nor region: nothing decides it")
        if not self.against and self.region is None and all(c.equal for c in core):
            raise ValueError("against is missing: nothing refutes what is level")
        return self


def check_names(claims: Mapping[str, Statement], kind: str, runs: Collection[str]) -> None:
    """That claims are about what their experiment has. kind: of its figure; runs: their names, and
    those of references. Raises ConfigError with the nearest name."""
    for key, claim in claims.items():
        measured = next((k for k, of in MEASURED.items() if claim.metric in of), kind)
        if measured != kind:
            what = f"claims.{key}.metric: {claim.metric!r} is measured"
            raise ConfigError(f"{what} where the figure is of kind {measured}, not {kind}")
        if claim.region and kind != "map":
            raise ConfigError(f"claims.{key}.region: the figure is of kind {kind}, not map")
        names = list(MEASURED.get(kind, {}).get(claim.metric) or runs)
        for part in ("core", "against", "sanity"):
            for contrast in parse_contrasts(getattr(claim, part)):
                for name in contrast.conditions:
                    if name not in names:
                        near = did_you_mean(name, names)[:200]
                        raise ConfigError(f"claims.{key}.{part}: no run {name[:80]!r}{near}")
