import json
import math

import pytest
from synthetic_records import HEADER, many, write_run

from jestcli.paper.records import (
    GROUPS,
    collect,
    load_records,
    save_records,
    total_seconds,
    value,
)
from jestcli.paper.statistics import hits_of, totals
from jestcli.utils.errors import DataError


def test_examples_count_pairs_in_gradient_steps_not_the_super_batch(tmp_path):
    record = collect(write_run(tmp_path / "a", "jest", 0), "jest", 0)
    last = record["curve"][-1]
    assert last["examples"] == record["steps"] * record["batch_size"]
    assert last["seen"] == 5 * last["examples"] == record["steps"] * record["super_batch_size"]
    assert record["digest"] == "a"
    assert total_seconds(record) == pytest.approx(last["seconds"], rel=1e-3)


def test_cost_per_iteration_is_the_papers_at_f_8(tmp_path):
    record = collect(write_run(tmp_path / "a", "jest", 0), "jest", 0)
    unit = record["uniform_flops_per_iteration"]
    cost = {k: v / unit for k, v in record["flops_per_iteration"].items()}
    assert cost["cached_reuse"] == pytest.approx(7 / 3, rel=1e-3)
    assert cost["cached"] == pytest.approx(8 / 3, rel=1e-3)
    assert cost["charged"] > cost["cached"]


def test_final_is_the_last_point_of_the_curve(tmp_path):
    record = collect(write_run(tmp_path / "a", "uniform", 0, max_images=700), "uniform", 0)
    assert record["final"]["mean"] == record["curve"][-1]["mean"]
    chances = [b["chance"] for b in record["benchmarks"].values()]
    scores = [s["score"] for s in record["final"]["scores"].values()]
    corrected = [(s - c) / (1 - c) for s, c in zip(scores, chances, strict=True)]
    assert record["final"]["mean_chance_corrected"] == pytest.approx(sum(corrected) / 8, rel=1e-3)


def test_retrieval_among_fewer_candidates_is_put_on_the_full_sets_footing(tmp_path):
    folder = write_run(tmp_path / "a", "uniform", 0, max_images=700)
    raw = next(
        line
        for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if "scores" in line
    )
    record = collect(folder, "uniform", 0)
    assert record["retrieval_rescaled"]
    score = raw["scores"]["tagged_i2t"]["score"]
    # Exact at chance: five of 700 at random become five of 1,321.
    chance = record["benchmarks"]["tagged_i2t"]["chance"]
    expected = score ** (math.log(chance) / math.log(chance * 1321 / 700))
    assert record["curve"][0]["scores"]["tagged_i2t"] == pytest.approx(expected, rel=1e-4)
    assert record["curve"][0]["scores"]["objects"] == pytest.approx(
        raw["scores"]["objects"]["score"], rel=1e-4
    )
    assert not collect(write_run(tmp_path / "b", "uniform", 0), "uniform", 0)["retrieval_rescaled"]


def test_a_file_holds_what_was_saved_in_a_fixed_order(tmp_path):
    records = many(tmp_path, ["uniform", "jest"], [1, 0])
    path = tmp_path / "out" / "records.json"
    save_records(path, records, HEADER.data, HEADER.profile)
    header, loaded = load_records(path)
    assert header == HEADER
    assert [(r["name"], r["seed"]) for r in loaded] == [
        ("jest", 0),
        ("jest", 1),
        ("uniform", 0),
        ("uniform", 1),
    ]
    assert {r["digest"]: r for r in loaded} == {r["digest"]: r for r in records}
    assert path.stat().st_size < 15_000 * len(records)
    # What the benchmarks are stands there once; a record of others, and files of before, have it.
    about = json.loads(path.read_text())
    assert about["benchmarks"] and not any("benchmarks" in r for r in about["records"])
    other = records[0] | {"benchmarks": {}}
    save_records(path, [other, *records[1:]], *HEADER)
    assert {r["digest"]: r for r in load_records(path)[1]}[other["digest"]] == other
    path.write_text(json.dumps({**HEADER._asdict(), "format": 1, "records": records}))
    assert load_records(path)[1] == records


def test_unfinished_runs_and_wrong_files_are_named_in_one_line(tmp_path):
    folder = write_run(tmp_path / "a", "uniform", 0)
    (folder / "done.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        collect(folder, "uniform", 0)
    (tmp_path / "x.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="format 99"):
        load_records(tmp_path / "x.json")


@pytest.mark.parametrize(
    "key,value", [("final", None), ("final", []), ("steps", "750"), ("seconds", 3.0), ("curve", {})]
)
def test_a_damaged_record_is_named_where_it_is_read(tmp_path, key, value):
    """Not by a traceback of the first figure that needs it."""
    path, record = tmp_path / "records.json", many(tmp_path, ["jest"], [0])[0]
    for damaged in ({**record, key: value}, {k: v for k, v in record.items() if k != key}):
        save_records(tmp_path / "good.json", [record], *HEADER)
        about = json.loads((tmp_path / "good.json").read_text()) | {"records": [damaged]}
        path.write_text(json.dumps(about))
        with pytest.raises(DataError, match=key) as failed:
            load_records(path)
        assert "\n" not in str(failed.value)


def test_compact_records_of_250_runs_stay_under_a_megabyte_and_a_half(tmp_path):
    full = [
        collect(write_run(tmp_path / f"{name}-{seed}", name, seed), name, seed)
        for name in ("uniform", "jest")
        for seed in range(2)
    ]
    save_records(tmp_path / "small.json", full, HEADER.data, HEADER.profile, small=True)
    size = (tmp_path / "small.json").stat().st_size
    assert size * 250 / len(full) < 1.5e6
    _, small = load_records(tmp_path / "small.json")
    order = sorted(full, key=lambda r: (r["name"], r["seed"]))
    for lean, record in zip(small, order, strict=True):
        assert lean.keys() == record.keys()
        assert lean["curve"] == record["curve"][-1:]
        assert lean["final"]["mean"] == record["final"]["mean"]
        for task, row in record["final"]["scores"].items():
            assert lean["final"]["scores"][task] == {
                key: row[key] for key in ("score", "chance", "n", "logprob", "nats") if key in row
            }
            assert hits_of(lean["final"]["scores"][task]) is None
        spans = {key: len(values) for key, values in lean["training"].items()}
        assert set(spans.values()) == {7} and lean["training"]["step"][-1] == record["steps"]
    assert small[-1]["training"]["sub"] == [None] * 7, "uniform training selects nothing"
    losses = [record["training"]["loss"] for record in (small[0], order[0])]
    assert min(losses[1]) <= min(losses[0]) and max(losses[0]) <= max(losses[1]), "means of spans"
    save_records(tmp_path / "again.json", small, HEADER.data, HEADER.profile, small=True)
    assert load_records(tmp_path / "again.json")[1] == small


def test_a_part_of_the_queries_is_no_smaller_gallery(tmp_path):
    """Scored on development queries among all candidates: nothing to put on another footing."""
    folder = write_run(tmp_path / "a", "uniform", 0)
    for name in ("metrics.jsonl", "done.json"):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for line in lines:
            for task, row in line.get("scores", {}).items():
                if task.startswith("tagged"):
                    row["gallery"] = row["n"] if name == "done.json" else 1321
                    row["n"] = 346
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = collect(folder, "uniform", 0)
    assert not record["retrieval_rescaled"]
    assert record["curve"][0]["scores"]["tagged_i2t"] > 0
    assert record["benchmarks"]["tagged_i2t"]["n"] == 346


def test_icons_and_emoji_are_means_of_their_own_benchmarks():
    emoji = {
        "emoji_3d": {"score": 0.5, "nats": 0.2},
        "animals": {"score": 1.0, "nats": 0.4},
        "food": {"score": 0.0},
    }
    made = {"final": {"mean": 0.5, "scores": emoji}}
    assert value(made, "emoji") == pytest.approx(0.5)
    assert value(made, "emoji:nats") == pytest.approx(0.3)
    assert value(made, "mean") == 0.5 and value(made, "nats") is None
    assert value(made, "icons") is None, "a benchmark is missing"
    assert {b for group in GROUPS.values() for b in group} == {
        *("objects", "objects_filled", "objects_fewshot", "tagged_i2t", "tagged_t2i"),
        *("emoji_3d", "animals", "food"),
    }


def test_times_of_a_shared_gpu_are_not_mixed_with_a_cores(tmp_path):
    """One seed on a shared GPU would else make a method many times faster than it is."""
    cpu, gpu = many(tmp_path, ["jest"], [0, 1])
    gpu["environment"] |= {"gpu": "a GPU"}
    save_records(tmp_path / "mixed.json", [cpu, gpu], *HEADER)
    _, mixed = load_records(tmp_path / "mixed.json")
    assert total_seconds(mixed[0]) == pytest.approx(total_seconds(cpu), rel=1e-3)
    assert math.isnan(total_seconds(mixed[1])) and mixed[1]["final"] == gpu["final"]
    assert totals(mixed)["seconds"] == total_seconds(mixed[0])
    assert math.isnan(totals(mixed[1:])["seconds"])
    save_records(tmp_path / "gpu.json", [gpu], *HEADER)
    assert total_seconds(load_records(tmp_path / "gpu.json")[1][0]) > 0
