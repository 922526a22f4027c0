"""Verdicts follow from records by rules fixed beforehand, and the page is one whole file."""

from html.parser import HTMLParser

import pytest
from synthetic_records import HEADER, tiny

from jestcli.paper.claims import (
    CLAIMS,
    MISSING,
    NO_METER,
    NOT,
    OPEN,
    PARTLY,
    REPRODUCED,
    Evidence,
    best_filter,
    energy,
    filter_gain,
    iteration_cost,
    ordering,
    speed,
    sub_batches,
    together,
    varied,
)
from jestcli.paper.experiment import FOLDER, jobs, list_experiments, read_experiment
from jestcli.paper.records import save_records
from jestcli.paper.report import report


def record(name, seed, score, nats=None):
    made = tiny(name, seed, [0.012, score])
    made["final"]["nats"] = nats
    return made


def many(name, nats, seeds=3, wobble=0.01):
    return [record(name, s, 0.05, nats + wobble * (s % 2)) for s in range(seeds)]


@pytest.mark.parametrize("words,verdict", [
    ([], MISSING), (["not run", "not run"], MISSING), (["higher", "higher"], REPRODUCED),
    (["higher", "lower"], PARTLY), (["higher", "not run"], PARTLY), (["lower"], NOT),
    (["lower", "not distinguishable"], NOT), (["not distinguishable"], OPEN), (["few"], OPEN),
    (["higher", "few"], PARTLY),
])  # fmt: skip
def test_a_verdict_needs_every_comparison(words, verdict):
    assert together(words) == verdict


def test_an_ordering_counts_only_beyond_its_interval_and_with_three_seeds():
    far, near = many("a", 0.6), many("b", 0.3)
    assert ordering(far + near, (("a", "b"),), "nats").verdict == REPRODUCED
    assert ordering(far + near, (("b", "a"),), "nats").verdict == NOT
    two = [r for r in far + near if r["seed"] < 2]
    found = ordering(two, (("a", "b"),), "nats")
    assert found.verdict == OPEN and "too few for a verdict" in found.sentences[0]
    noisy = [record("a", s, 0.05, x) for s, x in enumerate((0.1, 0.6, 0.35))]
    found = ordering(noisy + near, (("a", "b"),), "nats")
    assert found.verdict == OPEN and "not distinguishable" in found.sentences[0]
    found = ordering(far, (("a", "b"),), "nats")
    assert found.verdict == MISSING and found.sentences == ("Not run: a against b.",)
    found = ordering(far + near, (("a", "b"), ("a", "c"), ("c", "b")), "nats")
    assert found.verdict == PARTLY and found.sentences[1:] == (
        "Not run: a against c; c against b.",
    )


def test_one_filter_above_jest_refutes_it_and_one_below_proves_nothing():
    jest, poor, good = many("jest", 0.5), many("filtered@0.4", 0.3), many("negclip@0.1", 0.7)
    same = many("filtered@0.2", 0.5)

    def verdict(*runs):
        return best_filter(Evidence({"table2": [r for each in runs for r in each]})).verdict

    assert verdict(jest, poor) == REPRODUCED and verdict(jest, poor, good) == NOT
    assert verdict(jest, poor, same) == OPEN and verdict(poor) == MISSING


def curve(name, seed, scores):
    return tiny(name, seed, scores, [100, 200, 400, 800])


def test_the_speed_up_needs_every_seed_and_a_target_worth_reaching():
    long = [curve("uniform-long", s, [0.02, 0.05, 0.08, 0.1]) for s in range(3)]
    fast = [curve("jest", s, [0.11, 0.12, 0.13, 0.14]) for s in range(3)]
    found = speed("jest", 11.6, 4.3)(Evidence({"figure1": long + fast}))
    assert found.verdict == REPRODUCED
    assert "at least ×8.0 fewer examples" in found.sentences[1] and "×11.6" in found.sentences[1]
    assert found.sentences[-1].startswith("At least 50% of the paper's factors")
    one = speed("jest", 11.6, 4.3)(Evidence({"figure1": [r for r in long + fast if not r["seed"]]}))
    assert one.verdict == OPEN and "One seed: too few for a verdict." in one.sentences
    slow = [curve("jest", s, [0.02, 0.03, 0.04, 0.05]) for s in range(3)]
    assert speed("jest", 1, 1)(Evidence({"figure1": long + slow})).verdict == NOT
    uneven = [*fast[:2], slow[2]]
    assert speed("jest", 1, 1)(Evidence({"figure1": long + uneven})).verdict == PARTLY
    small = speed("jest", 20, 4.3)(Evidence({"figure1": long + fast}))
    assert small.verdict == PARTLY, "x8 is not x20"
    assert "Below 50% of the paper's factors." in small.sentences
    lucky = [curve("jest", s, [0.02, 0.03, x, 0.2]) for s, x in enumerate((0.2, 0.05, 0.06))]
    lucky[1]["curve"][-1]["mean"] = lucky[2]["curve"][-1]["mean"] = 0.1
    apart = speed("jest", 1, 1)(Evidence({"figure1": long + lucky}))
    assert apart.verdict == PARTLY and "Not beyond the chance of seeds." in apart.sentences
    chance = [curve("uniform-long", s, [0.01, 0.01, 0.01, 0.011]) for s in range(3)]
    assert speed("jest", 1, 1)(Evidence({"figure1": chance + fast})).verdict == OPEN
    assert speed("jest", 1, 1)(Evidence({})).verdict == MISSING


def test_more_is_not_called_fewer():
    long = [curve("uniform-long", s, [0.02, 0.05, 0.08, 0.1]) for s in range(3)]
    late = [curve("jest", s, [0.02, 0.05, 0.08, 0.1]) for s in range(3)]
    for run in late:
        for point in run["curve"]:
            point["flops"]["charged"] *= 2
    found = speed("jest", 11.6, 4.3)(Evidence({"figure1": long + late}))
    assert "×1.0 fewer FLOPs" in found.sentences[1]
    assert "×2.00 more with the reference's training" in found.sentences[1]


@pytest.mark.parametrize("each", [1, 3])
def test_energy_is_judged_where_joules_were_counted(each):
    def with_joules(run, a_step):
        for point in run["curve"]:
            point["joules"] = a_step * point["step"]
        return run

    long = [with_joules(curve("uniform-long", s, [0.02, 0.05, 0.08, 0.1]), 10) for s in range(each)]
    fast = [with_joules(curve("jest", s, [0.02, 0.1, 0.13, 0.14]), 7.9) for s in range(each)]
    found = energy(Evidence({"figure1": long + fast}))
    total, spent = 800 * 10, 200 * 7.9
    words = f"with 1.58 kJ, a factor of ×{total / spent:.2f}"
    assert words in found.sentences[1] and "other jobs" in found.sentences[0]
    assert found.verdict == (OPEN if each == 1 else REPRODUCED), "half of the press's ten"
    dear = [with_joules(run, 9) for run in fast]
    if each == 3:
        assert energy(Evidence({"figure1": long + dear})).verdict == PARTLY
        dearer = [with_joules(run, 80) for run in fast]
        assert energy(Evidence({"figure1": long + dearer})).verdict == NOT
        slow = [with_joules(curve("jest", s, [0.02, 0.03, 0.04, 0.05]), 1) for s in range(3)]
        assert energy(Evidence({"figure1": long + slow})).verdict == NOT, "never reached"
    for point in fast[0]["curve"]:
        del point["joules"]
    assert energy(Evidence({"figure1": long + fast})).verdict == MISSING, "one seed counted none"


def test_energy_that_nothing_counts_is_said_with_the_reason():
    run = curve("jest", 0, [0.1, 0.1, 0.1, 0.1])
    assert energy(Evidence({"figure1": [run]})).verdict == MISSING, "nothing known of the machine"
    run["environment"]["no_energy"] = "no NVML and no RAPL"
    found = energy(Evidence({"figure1": [run]}))
    assert found.verdict == NO_METER == "not measurable on this machine"
    assert found.sentences[0] == "No joules were counted: no NVML and no RAPL."
    assert energy(Evidence({})).verdict == MISSING


def test_costs_are_held_against_the_papers():
    def run(name, re_used):
        made = record(name, 0, 0.1)
        made["uniform_flops_per_iteration"] = 100.0
        made["flops_per_iteration"] = {"cached_reuse": re_used, "cached": 267.0}
        return made

    found = iteration_cost(Evidence({"figure1": [run("jest", 233.4), run("flexi", 115)]}))
    assert found.verdict == PARTLY and "233 %" in found.sentences[0]
    assert iteration_cost(Evidence({})).verdict == MISSING


def test_the_gain_from_a_filter_is_compared_between_methods():
    made = many("uniform@raw", 0.1) + many("uniform@filtered", 0.5) + many("jest@raw", 0.5)
    found = filter_gain(Evidence({"table3": made + many("jest@filtered", 0.55)}))
    assert found.verdict == REPRODUCED
    assert filter_gain(Evidence({"table3": made + many("jest@filtered", 1.2)})).verdict == NOT
    assert filter_gain(Evidence({"table3": made})).verdict == MISSING


def test_sub_batches_are_judged_by_the_curves():
    one = {"b": 4, "uniform": [0.0], "chunks": {"1": [0.0], "4": [0.8], "16": [0.98]},
           "gibbs": {"0": [0.0], "2000": [1.0]},
           "ratios": {"0.0": [0.0], "0.5": [1.0], "0.8": [1.1], "0.9": [1.2]}}  # fmt: skip
    assert sub_batches(Evidence({}, {"figure2": [one] * 3})).verdict == REPRODUCED
    assert sub_batches(Evidence({}, {"figure2": [one]})).verdict == OPEN
    assert sub_batches(Evidence({})).verdict == MISSING


def test_claims_name_experiments_and_runs_that_exist():
    known = {e.name: {j.name for j in jobs(e, {}, None, [0])} for e in list_experiments()}
    for claim in CLAIMS:
        assert claim.experiment in known
        assert claim.orders or claim.judge
        assert "[" in claim.says, "says where it comes from"
        for pair in claim.orders:
            assert set(pair) <= known[claim.experiment], claim.key
    assert len({c.key for c in CLAIMS}) == len(CLAIMS)


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
    experiments = [read_experiment(p) for p in sorted(FOLDER.glob("figure[13].yaml"))]
    made = many("joint@0.9", 0.6) + many("joint@0.5", 0.3) + many("independent@0.9", 0.2)
    results = tmp_path / "results"
    save_records(results / "figure3" / "records.json", made, HEADER.data, HEADER.profile)
    (results / "figure3" / "figure3.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (results / "figure3" / "figure3-dark.png").write_bytes(b"png")
    html, markdown = report(experiments, results, results)
    text = html.read_text()
    reader = Reader()
    reader.feed(text)
    assert not reader.open and "<script" not in text
    assert len(set(reader.ids)) == len(reader.ids)
    assert {x.removeprefix("#") for x in reader.links} <= set(reader.ids)
    assert reader.sources and all(x.startswith("data:image/") for x in reader.sources)
    words = " ".join(reader.text)
    assert "prefers-color-scheme" in text and "joint selection" in words
    assert "joint at 0.9 minus joint at 0.5: +0.300 nats" in words
    assert "partly" in words, "the comparison at .8 is missing"
    assert "not run at this scale" in words, "figure1 has no record"
    assert "joint@0.90" in words, "the run directory's name"
    assert "9 of 9 records are of other settings, data or numerics" in words, "made up, so stale"
    plain = markdown.read_text()
    assert "figure3/records.json" in plain and "| joint selection | ◐ partly |" in plain


def test_diversity_is_judged_against_random_pairs_and_uniform_training():
    def one(name, seed, chosen, rare):
        spans = {"effective_sources": 10.0, "effective_categories": 5.0, "distinct_captions": 0.9}
        mine = {k: v * chosen for k, v in spans.items()} if name == "jest" else None
        return {"name": name, "seed": seed, "chosen": mine, "accuracy": {"rare": rare},
                "random": spans if mine else None}  # fmt: skip

    def found(chosen, rare):
        made = [one("uniform", s, 1, 0.1) for s in range(3)]
        made += [one("jest", s, chosen + 0.001 * s, rare + 0.001 * s) for s in range(3)]
        return varied(Evidence({}, {"diversity": made}))

    assert found(1.2, 0.3).verdict == REPRODUCED
    assert found(0.8, 0.05).verdict == NOT
    assert found(0.8, 0.3).verdict == PARTLY
    assert varied(Evidence({})).verdict == MISSING


def test_noise_is_compared_in_points_of_what_is_trained_on():
    def noisy(name, share):
        made = many(name, 0.3)
        for i, each in enumerate(made):
            each["final"]["noise"] = share + 0.001 * i
        return made

    found = ordering(noisy("u", 0.5) + noisy("j", 0.2), (("u", "j"),), "noise")
    assert found.verdict == REPRODUCED and "+30.0 points of moved captions" in found.sentences[0]
