import json
import math

import pytest
from synthetic_records import HEADER, many, write_run

from jestcli.reporting.records import (
    RecordError,
    collect,
    load_records,
    save_records,
    total_seconds,
)


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
    expected = score ** (math.log(1321) / math.log(700))
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
        ("jest", 0), ("jest", 1), ("uniform", 0), ("uniform", 1),
    ]  # fmt: skip
    assert {r["digest"]: r for r in loaded} == {r["digest"]: r for r in records}
    assert path.stat().st_size < 15_000 * len(records)


def test_unfinished_runs_and_wrong_files_are_named_in_one_line(tmp_path):
    folder = write_run(tmp_path / "a", "uniform", 0)
    (folder / "done.json").unlink()
    with pytest.raises(RecordError, match="not finished"):
        collect(folder, "uniform", 0)
    (tmp_path / "x.json").write_text('{"format": 99}')
    with pytest.raises(RecordError, match="format 99"):
        load_records(tmp_path / "x.json")
