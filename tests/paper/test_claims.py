"""The claims name what exists, and the page is one whole file."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from simulated_studies import record as plain
from synthetic_records import HEADER, tiny

from jestcli.paper.claims import BEST, FLEXI, JEST, MEASURED, Region
from jestcli.paper.contrasts import difference, interaction, parse_contrasts
from jestcli.paper.diversity import MEASURED as DIVERSITY
from jestcli.paper.evidence import SURFACES, claims_of, gather
from jestcli.paper.experiment import jobs, list_experiments, read_experiment
from jestcli.paper.figure2 import MEASURED as FIGURE2
from jestcli.paper.records import load_records, save_records
from jestcli.paper.report import report
from jestcli.paper.saving import AXES
from jestcli.paper.verdicts import CONTRADICTED, HOLDS, MISSING, MIXED, judge, judge_all
from jestcli.runs.methods import FOLDER
from jestcli.utils.errors import DataError

ROOT = Path(__file__).parents[2]
EXPERIMENTS = list_experiments()
CLAIMS = claims_of(EXPERIMENTS)
BY_KEY = {claim.key: claim for claim in CLAIMS}


def many(name, score, nats=0.3, **final):
    """Three seeds that agree but for a wobble of their own."""
    made = []
    for seed in (10, 11, 12):
        wobble = 0.001 * ((seed + len(name)) % 3)
        one = tiny(name, seed, [0.012, score + wobble])
        one["final"] |= {"nats": nats + wobble, **{k: v + wobble for k, v in final.items()}}
        made.append(one)
    return made


def word(key, *records, measured=None):
    claim = BY_KEY[key]
    found = {claim.experiment: [r for each in records for r in each]}
    return judge(claim, gather(EXPERIMENTS, found, measured)).word


def test_claims_name_experiments_and_runs_that_exist():
    known = {e.name: {j.name for j in jobs(e, {}, None, [0])} for e in EXPERIMENTS}
    measured = {metric for of in MEASURED.values() for metric, names in of.items() if names}
    for claim in CLAIMS:
        assert claim.experiment in known
        assert claim.core or claim.region, "something decides"
        assert claim.refuted_if.contrasts or claim.region, "something refutes"
        assert "[" in claim.says, "says where it comes from"
        asked = (*claim.core, *claim.sanity, *claim.refuted_if.contrasts)
        names = {name for contrast in asked for name in contrast.conditions}
        assert claim.metric in measured or names <= known[claim.experiment], claim.key
    assert len(BY_KEY) == len(CLAIMS) == 44


def test_what_is_measured_is_what_a_claim_may_name():
    """Of the recorded results."""
    found = {}
    for experiment in EXPERIMENTS:
        folder = ROOT / "results" / experiment.name
        if experiment.figure.kind in MEASURED:
            files = [f for f in (folder / FIGURE2, folder / DIVERSITY) if f.exists()]
            measured = [one for f in files for one in json.loads(f.read_text()).values()]
            _, records = load_records(folder / "records.json")
            name = experiment.name
            for record in gather([experiment], {name: records}, {name: measured}).records[name]:
                if "measured_on" in record:
                    (metric,) = record["final"]
                    found.setdefault(experiment.figure.kind, {}).setdefault(metric, set()).add(
                        record["name"]
                    )
    assert found.keys() == MEASURED.keys()
    for kind, of in MEASURED.items():
        assert found[kind].keys() == of.keys()
        assert all(found[kind][metric] == set(names) for metric, names in of.items() if names)
    assert set(get_args(Region.model_fields["surface"].annotation)) == set(SURFACES)
    assert set(get_args(Region.model_fields["axis"].annotation)) == set(AXES)


def test_contrasts_are_read_from_words():
    text = "a > b; a@0.5 ~ b;\n  a - b > c - d"
    level = difference("a@0.5", "b", equal=True)
    assert parse_contrasts(text) == (difference("a", "b"), level, interaction("a", "b", "c", "d"))
    assert parse_contrasts("") == ()
    (mean,) = parse_contrasts("a, b > cost: c (the cost, not)")
    assert mean.weights == (("a", 0.5), ("b", 0.5), ("cost: c", -1.0))
    assert mean.says == "the cost, not"
    assert parse_contrasts("a, b@1 > c")[0].says == "the mean of a, b at 1 minus c"
    assert mean.turned().turned().weights == mean.weights


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a > ", "> b", "a < b", "a > b > c", "a - b > c", "a - b - c > d - e - f"),
        *("a >b", "a > b (", "a > b ()", "a > b (x) y", "a > a", "a" * 3000, " - > - "),
    ],
)
def test_what_is_no_contrast_is_said_in_one_line(text):
    with pytest.raises(ValueError, match=r"is no contrast: expected a > b|with itself") as caught:
        parse_contrasts(text)
    assert len(str(caught.value)) < 200


def test_an_experiments_criterion_is_that_of_its_claims():
    for experiment in EXPERIMENTS:
        each = [claim.refuted_if for claim in experiment.claims.values()]
        if len(each) > 1:
            each = [f"{key}: {x}" for key, x in zip(experiment.claims, each, strict=True)]
        assert experiment.refuted_if == "; ".join(each) + "." * bool(each)


def test_what_refutes_is_each_difference_turned_round_unless_it_is_said():
    plain = BY_KEY["rare classes"]
    core, against = plain.core, plain.refuted_if.contrasts
    assert [c.turned().weights for c in core] == [c.weights for c in against]
    (kept,) = BY_KEY["training of the reference"].refuted_if.contrasts  # the other is of level ones
    assert kept.conditions == ("by-length@3000", "by-length@375")
    assert len(BY_KEY["bootstrapping"].refuted_if.contrasts) == 1


def test_nothing_run_yet_reads_so():
    found = judge_all(CLAIMS, gather(EXPERIMENTS, {}))
    assert {verdict.word for verdict in found} == {MISSING} and len(found) == len(CLAIMS)


def test_the_cost_of_an_iteration_is_held_against_the_papers():
    def cost(of):
        made = []
        for method, share in of.items():
            for one in many(f"{method}@0.8@750", 0.1):
                one["flops_per_iteration"]["cached_reuse"] = 3.0 * share
                made.append(one)
        return word("cost of an iteration", made)

    assert cost({"jest": 2.3333, "flexi": 1.06}) == HOLDS
    assert cost({"jest": 2.3333, "flexi": 1.35}) == CONTRADICTED
    assert cost({"jest": 2.3333}) == MISSING


def surface_of(jest_at):
    """A uniform curve that rises by .02 a doubling from .05, and JEST at `jest_at` early on."""
    made = []
    for seed in range(3):
        for k in range(6):
            n = 96_000 * 2**k
            wobble = 0.0005 * ((seed + k) % 3 - 1)
            made.append(plain("uniform@0.8@" + str(n // 256), seed, n, 0.05 + 0.02 * k + wobble))
        made.append(plain("jest@0.8@375", seed, 96_000, jest_at + 0.0005 * (seed - 1)))
    return made


def test_the_headline_is_a_region_of_the_map():
    evidence = gather(EXPERIMENTS, {"map": surface_of(0.05 + 0.02 * 4.5)})
    surfaces = evidence.surfaces["map"]
    (cell,) = surfaces[JEST]
    assert cell == "q = 0.8, 96,000 pairs" and not surfaces[FLEXI]
    assert not surfaces[BEST], "no control was run"
    found = judge(BY_KEY["fewer examples"], evidence)
    assert (found.word, found.where) == (HOLDS, (cell,)), found
    little = gather(EXPERIMENTS, {"map": surface_of(0.05 + 0.02 * 1.5)})
    assert judge(BY_KEY["fewer examples"], little).word == CONTRADICTED
    assert judge(BY_KEY["less compute"], little).word == MISSING


def test_one_filter_above_jest_refutes_the_claim_of_the_best():
    names = [
        c
        for c in dict.fromkeys(
            n for contrast in BY_KEY["raw pool against filters"].core for n in contrast.conditions
        )
        if c != "jest"
    ]
    poor = [many(name, 0.05, 0.1) for name in names]
    assert word("raw pool against filters", many("jest", 0.2), *poor) == HOLDS
    good = [*poor[1:], many(names[0], 0.3, 0.5)]
    assert word("raw pool against filters", many("jest", 0.2), *good) == CONTRADICTED
    assert word("raw pool against filters", many("jest", 0.2), *poor[1:]) == MISSING


def test_a_filter_must_give_uniform_training_more_than_jest():
    made = [many("uniform@raw", 0.1), many("uniform@filtered", 0.3), many("jest@raw", 0.3)]
    assert word("no need of a filter", *made, many("jest@filtered", 0.302)) == HOLDS
    assert word("no need of a filter", *made, many("jest@filtered", 0.34)) == MIXED
    assert word("no need of a filter", *made, many("jest@filtered", 0.9)) == CONTRADICTED


def test_the_ways_to_lose_are_refuted_on_average():
    ways = ("seen", "filtered", "small", "small-filtered")
    base = [many(f"uniform@{w}", 0.2) for w in ("paper", "filtered", "small", "small-filtered")]
    others = [*base, many("jest@paper", 0.3), many("jest@per-rank", 0.25)]
    assert word("ways to lose", *others, *[many(f"jest@{w}", 0.1) for w in ways]) == HOLDS
    assert word("ways to lose", *others, *[many(f"jest@{w}", 0.4) for w in ways]) == CONTRADICTED


def test_moved_captions_are_counted_in_what_is_trained_on():
    shares = {"uniform": 0, "hard": 0.1, "joint": -0.3, "independent": -0.2}
    made = [
        many(f"{name}@{q}", 0.1, noise=float(q) + by)
        for q in ("0.5", "0.8")
        for name, by in shares.items()
    ]
    assert word("moved captions", *made) == HOLDS


def figure2(good=0.98):
    return [
        {
            "b": 4,
            "seed": seed,
            "uniform": [-4.0],
            "chunks": {"1": [0.0], "4": [0.5 + 0.01 * seed], "16": [good + 0.005 * (seed % 2)]},
            "gibbs": {"0": [-4.0], "2000": [1.0]},
            "ratios": {
                "0.0": [0.0],
                "0.5": [1.0],
                "0.8": [1.1 + 0.01 * seed],
                "0.9": [1.2 + 0.01 * seed],
            },
        }
        for seed in range(3)
    ]


def test_sub_batches_are_judged_by_seed():
    for key in ("sub-batches", "learnability by ratio"):
        assert word(key, measured={"figure2": figure2()}) == HOLDS
        assert word(key) == MISSING
    assert word("sub-batches", measured={"figure2": figure2(-0.5)}) == CONTRADICTED


def test_diversity_is_judged_against_random_pairs_and_uniform_training():
    def one(name, seed, chosen, rare, gap=0.03):
        spans = {"effective_sources": 10.0, "effective_categories": 5.0, "distinct_captions": 0.9}
        mine = {k: v * (chosen + 0.001 * seed) for k, v in spans.items()}
        return {
            "name": name,
            "seed": seed,
            "chosen": mine if name == "jest" else None,
            "accuracy": {"rare": rare + 0.001 * (seed % 2), "frequent": rare + gap},
            "random": spans,
        }

    def found(key, chosen, rare, gap=0.03):
        made = [one("uniform", s, 1, 0.1) for s in range(3)]
        made += [one("jest", s, chosen, rare, gap) for s in range(3)]
        return word(key, measured={"diversity": made})

    assert found("diversity", 1.2, 0.3) == found("rare classes", 0.8, 0.3) == HOLDS
    assert found("diversity", 0.8, 0.3) == found("rare classes", 1.2, 0.05) == CONTRADICTED
    # Rare classes may gain while frequent ones gain more: that is no fairness.
    assert found("fairness", 1, 0.3, gap=0.01) == HOLDS
    assert found("fairness", 1, 0.3, gap=0.08) == CONTRADICTED


class Reader(HTMLParser):
    """Collects tags, links and whatever would be fetched; fails on an unclosed element."""

    VOID = ("meta", "img", "source", "br")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found[k] for k in ("src", "srcset") if k in found]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_fetches_nothing(tmp_path):
    names = ("figure3", "table1", "tune")
    experiments = [read_experiment(FOLDER / f"{name}.yaml") for name in names]
    made = many("joint@0.9", 0.6) + many("joint@0.5", 0.3) + many("<b>", 0.2)
    results = tmp_path / "results"
    save_records(results / "figure3" / "records.json", made, HEADER.data, HEADER.profile)
    (results / "figure3" / "figure3.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for ending in (".png", "-dark.png"):
        Image.new("RGB", (90, 60)).save(results / "figure3" / f"figure3{ending}")
    html, markdown = report(experiments, results, results)
    text = html.read_text()
    reader = Reader()
    reader.feed(text)
    assert not reader.open and "<script" not in text
    assert len(set(reader.ids)) == len(reader.ids)
    assert {x.removeprefix("#") for x in reader.links} <= set(reader.ids)
    assert reader.sources and all(x.startswith("data:image/") for x in reader.sources)
    assert text.count('<details class="claim">') == sum(c.experiment in names for c in CLAIMS)
    words = " ".join(reader.text)
    assert "prefers-color-scheme" in text and 'loading="lazy"' in text
    assert "joint at 0.9 minus joint at 0.5: +30" in words
    assert "not run yet" in words and "<b>" in words, "a name is text, never markup"
    assert "joint@0.910" in words, "the run directory's name"
    assert "6 of 9 records are of other settings, data or numerics" in words, "made up, so stale"
    plain_text = markdown.read_text()
    assert "figure3/records.json" in plain_text and "figure3/figure3.png" in plain_text
    (results / "figure3" / "figure3.png").write_bytes(b"png")
    with pytest.raises(DataError, match="draw it again with `jest plot figure3`"):
        report(experiments, results, results)
    assert (
        "| [joint selection](#filter-ratio-joint-or-independent-selection-and-the-criterion) |"
        in plain_text
    )


def test_an_experiment_of_ones_own_states_claims_and_gets_verdicts(tmp_path):
    """The example of docs/experiments.md, with records that are made up."""
    page = (ROOT / "docs/experiments.md").read_text().partition("## Writing one\n")[2]
    lines = page.partition("`vary`")[0].splitlines()
    (tmp_path / "ratio.yaml").write_text("\n".join(line[4:] for line in lines))
    own = read_experiment(tmp_path / "ratio.yaml")
    assert own.refuted_if == "f = .5 ends above f = .9."

    def found(high):
        made = many("joint@0.9", high) + many("joint@0.5", 0.3) + many("uniform", 0.2)
        save_records(tmp_path / "ratio" / "records.json", made, HEADER.data, HEADER.profile)
        _, markdown = report([own], tmp_path, tmp_path / "mine", whole=False)
        return markdown.read_text()

    text = found(0.4)
    assert text.startswith(f"# {own.title}\n\nFor each claim:"), "not what of JEST holds"
    assert "](../ratio/records.json)" in text, "wherever the report lies"
    assert "Claims: 1 holds. 9 runs" in text and "beats choosing one of two [ours]." in text
    assert "<b>harder selection</b>: ✓ holds" in text
    assert "Sanity, decides nothing: joint at 0.9 minus Uniform: +20" in text
    assert "<b>harder selection</b>: ✗ contradicted" in found(0.25)
