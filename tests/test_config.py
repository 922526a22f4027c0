"""Settings are checked, named by what determines a run, and never executed."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from tiny import tiny_reference, tiny_run

from jestcli import config
from jestcli.commands.shared import read_asked
from jestcli.config import (
    METHODS,
    ConfigError,
    Run,
    make_run,
    merge,
    needs_reference,
    parse_overrides,
    read_yaml,
)
from jestcli.paper.experiment import (
    find_experiment,
    jobs,
    profile_jobs,
    read_experiment,
)
from jestcli.runs.methods import (
    FOLDER,
    check_reaches_reference,
    default_reference,
    default_run,
    method_settings,
    printed,
)

EXPERIMENT = """
title: t
claim: c
refuted_if: r
runs: {jest: {method: jest}}
seeds: [0]
"""


def one_line(caught: pytest.ExceptionInfo[ConfigError]) -> str:
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"optim": {"stesp": 3}}, "unknown setting optim.stesp (did you mean steps?)"),
        ({"selektion": {}}, "unknown setting selektion (did you mean selection?)"),
        (
            {"reference": {"optim": {"lrr": 1}}},
            "unknown setting reference.optim.lrr (did you mean lr",
        ),
        ({"optim": {"zzz": 1}}, "unknown setting optim.zzz (known: augment, batch_size, "),
        (
            {
                "selection": {"sampler": "cabs"},
                "model": {"name": "ViT-B-16-SigLIP", "pretrained": "webli"},
            },
            "selection.sampler cabs reads words as CLIP's byte pairs, but ViT-B-16-SigLIP brings "
            "its own",
        ),
        (
            {"selection": {"learner_weight": 0.5, "sampler": "joint", "criterion": "hard_learner"}},
            "selection.learner_weight needs selection.criterion=learnability",
        ),
        ({"optim": {"steps": "many"}}, "optim.steps: Input should be a valid integer"),
        ({"optim": {"steps": 9, "warmup": 10}}, "optim: steps=9 is shorter than warmup=10"),
        ({"source": {"noise_share": 1}}, "source.noise_share: Input should be less than 1"),
        ({"source": {"noise_share": -0.1}}, "source.noise_share: Input should be greater than or"),
        (
            {"source": {"relevant_share": 0.05}},
            "source.relevant_share: Input should be greater than",
        ),
        (
            {"data": {"level": "verified", "curated_size": 36001}},
            "data.curated_size=36001: level verified has 36,000 pairs",
        ),
        ({"optim": {"steps": 0}}, "optim.steps: Input should be greater than or equal to 1"),
        ({"optim": {"loss": "siglip"}}, "optim.loss: Input should be 'sigmoid' or 'softmax'"),
        ({"optim": 3}, "optim: Input should be a valid dictionary"),
        (
            {"selection": {"filter_ratio": 1.0}},
            "selection.filter_ratio: Input should be less than or equal to 0.999",
        ),
        ({"source": {"kind": "pol"}}, "source.kind: Input should be 'pool', 'curated',"),
        ({"selection": {"sampler": "joint"}}, "this selection or source needs a reference run"),
        ({"source": {"kind": "filtered"}}, "this selection or source needs a reference run"),
        ({"init_from_reference": True}, "this selection or source needs a reference run"),
        (
            {"model": {"patch_sizes": [8]}, "selection": {"low_res_share": 0.5}},
            "model.patch_sizes needs a second patch size",
        ),
        (
            {
                "model": {"name": "ViT-B-32"},
                "data": {"image_size": 224},
                "selection": {"low_res_scoring": True},
            },
            "one that divides 224 px beside 32",
        ),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_run(settings)
    assert message in one_line(caught)


def test_overrides_are_yaml_scalars_at_dotted_keys() -> None:
    pairs = [
        "optim.steps=200",
        "optim.lr=1.0e-4",
        "selection.sampler=joint",
        "a=null",
        "model.patch_sizes=[4, 8]",
        "optim.augment=false",
        "optim.steps=300",
        "x=a=b",
    ]
    assert parse_overrides(pairs) == {
        "optim": {"steps": 300, "lr": 1e-4, "augment": False},
        "selection": {"sampler": "joint"},
        "a": None,
        "model": {"patch_sizes": [4, 8]},
        "x": "a=b",
    }
    for bad in ("optim.steps", "=3", "optim.steps=[1", "optim.steps=!!python/name:os.system"):
        with pytest.raises(ConfigError) as caught:
            parse_overrides([bad])
        assert f"--set {bad}: " in one_line(caught)


def test_merge_lays_over_and_changes_neither() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "d": {"e": 4}}
    assert merge(base, over) == {"a": {"b": 9, "c": 2}, "d": {"e": 4}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3} and over == {"a": {"b": 9}, "d": {"e": 4}}


def test_yaml_tags_are_refused_and_execute_nothing(tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / "evil.yaml"
    bait = f"seed: !!python/object/apply:os.mkdir ['{mark}']\n"
    path.write_text(bait)
    with pytest.raises(ConfigError, match="is not YAML") as caught:
        read_yaml(path)
    one_line(caught)
    path.write_text(EXPERIMENT + bait)
    with pytest.raises(ConfigError):
        read_experiment(path)
    with pytest.raises(ConfigError):
        parse_overrides([f"seed=!!python/object/apply:os.mkdir ['{mark}']"])
    assert not mark.exists()
    yaml.unsafe_load(bait)
    assert mark.exists(), "the bait works"


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("- a list\n")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: }")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for name, words in (
        ("mine.yaml", "is not a mapping of settings"),
        ("broken.yaml", "is not YAML"),
        ("binary.yaml", "is not YAML"),
        ("mien.yaml", f"(did you mean {tmp_path / 'mine.yaml'}?)"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_yaml(tmp_path / name)
        assert words in one_line(caught)


@pytest.mark.parametrize(
    "change,message",
    [
        ("seeds: [0]\nsead: 3", "unknown setting sead (did you mean seeds?)"),
        ("seeds: [zero]", "seeds.0: Input should be a valid integer"),
        ("seeds: [0]\nquick: {runs: [jest]}", "quick.seeds: Field required"),
        ("seeds: [0]\nruns: {jest: 3}", "runs.jest: Input should be a valid dictionary"),
    ],
)
def test_wrong_experiments_are_one_line(change: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(EXPERIMENT.replace("seeds: [0]", change))
    with pytest.raises(ConfigError) as caught:
        read_experiment(path)
    assert message in one_line(caught) and str(path) in one_line(caught)


def test_unknown_words_name_the_nearest() -> None:
    for call, words in (
        (lambda: method_settings("jset"), "no method 'jset' (did you mean jest?)"),
        (lambda: find_experiment("figur3"), "no experiment 'figur3' (did you mean figure3?)"),
        (lambda: method_settings("xyz"), "no method 'xyz' (known: cabs, curated, easy-reference, "),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert words in one_line(caught)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_experiments_that_ship_are_valid(path: Path) -> None:
    experiment = read_experiment(path)
    assert find_experiment(path.stem) == path
    # A tier may have seeds of its own: of cells that a claim left open.
    assert {job.seed for job in jobs(experiment, {})} >= set(experiment.seeds)
    assert set(experiment.runs) <= {job.name for job in jobs(experiment, {})}
    if experiment.quick:
        assert jobs(experiment, {}, experiment.quick.runs, experiment.quick.seeds)


# --- what a method means, and what names a run ---------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_run_and_its_print_is_a_valid_config(method: str) -> None:
    run = default_run(method, {}, 3)
    assert (run.reference is not None) == needs_reference(method)
    assert run.seed == 3 and (run.reference is None or run.reference.seed == 3)
    printed = yaml.safe_load(yaml.safe_dump(run.model_dump(mode="json")))
    assert make_run(printed) == run and make_run(printed).digest() == run.digest()


def test_methods_are_different_runs() -> None:
    assert len({default_run(m, {}, 0).digest() for m in METHODS}) == len(METHODS)
    own = default_run("mine.module:pick", {}, 0)
    assert own.selection.sampler == "mine.module:pick" and own.reference is not None


def test_a_learner_reads_the_data_its_reference_was_made_for() -> None:
    """A change of data or towers reaches the reference too; its steps stay its own."""
    over = {
        "data": {"image_size": 64, "vocab_size": 1000},
        "model": {"width": 32},
        "optim": {"steps": 7, "warmup": 3},
        "selection": {"n_chunks": 2},
    }
    run, plain = default_run("jest", over, 1), default_reference({}, 1)
    assert run.reference is not None and run.optim.steps == 7
    assert run.reference.data.image_size == 64 and run.reference.data.vocab_size == 1000
    assert run.reference.model == run.model
    assert run.reference.optim == plain.optim and run.reference.selection == plain.selection
    short = default_run("jest", {"reference": {"optim": {"steps": 2, "warmup": 1}}}, 1)
    assert short.reference == default_reference(
        {"reference": {"optim": {"steps": 2, "warmup": 1}}}, 1
    )
    assert short.reference is not None and short.reference.reference is None


def numbers(kind: Any, metadata: list[Any]) -> list[list[Any]]:
    """The bounds of every number that a field of this type may hold: also within | and tuple."""
    if typing.get_origin(kind) is typing.Annotated:
        kind, *more = typing.get_args(kind)
        metadata = [*metadata, *(bound for info in more for bound in info.metadata)]
    if kind in (int, float):
        return [metadata]
    return [found for part in typing.get_args(kind) for found in numbers(part, metadata)]


def test_every_number_has_both_bounds() -> None:
    models, seen = [Run], []
    for model in models:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                models.append(field.annotation)
            for bounds in numbers(field.annotation, field.metadata):
                seen.append(name)
                assert any(hasattr(x, "ge") or hasattr(x, "gt") for x in bounds), name
                assert any(hasattr(x, "le") or hasattr(x, "lt") for x in bounds), name
    assert {"channels", "patch_sizes", "weights", "lr", "seed", "shots", "n_chunks"} <= set(seen)
    assert len(seen) > 35


@pytest.mark.parametrize(
    "key,value",
    [
        ("data.image_size", 0),
        ("data.context_length", 0),
        ("data.vocab_size", 1),
        ("data.vocab_size", 50_000),
        ("optim.warmup", -3),
        ("optim.lr", 1e9),
        ("optim.lr", float("inf")),
        ("optim.lr", float("nan")),
        ("optim.batch_size", 10**12),
        ("optim.beta2", 1),
        ("evaluation.max_images", 0),
        ("model.head_width", 0),
        ("model.patch_sizes", [0]),
        ("model.patch_sizes", []),
        ("model.init_logit_scale", 0),
        ("model.init_logit_scale", -1),
        ("seed", -1),
    ],
)
def test_a_number_out_of_bounds_is_one_line_with_its_name(key: str, value: Any) -> None:
    for part in reversed(key.split(".")):
        value = {part: value}
    with pytest.raises(ConfigError) as caught:
        make_run(value)
    assert one_line(caught).startswith(key)


def leaves(model: type[BaseModel], at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += leaves(kind, (*at, name))
        elif name != "reference":
            found.append((*at, name))
    return found


def another(run: Run, path: tuple[str, ...]) -> Any:
    """A valid value of this setting that differs from the run's."""
    owner: Any = run
    for part in path[:-1]:
        owner = getattr(owner, part)
    value, kind = getattr(owner, path[-1]), type(owner).model_fields[path[-1]].annotation
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return [*value, 32]
    if isinstance(value, float):
        return 0.7 * value + 0.01
    if isinstance(value, int):
        return value + 1
    return (
        "other" if value is None and "str" in str(kind) else (3 if value is None else value + "x")
    )


def with_value(owner: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy with one setting changed; not checked, for a digest is of values alone."""
    head, *rest = path
    inner = with_value(getattr(owner, head), tuple(rest), value) if rest else value
    return owner.model_copy(update={head: inner})


@pytest.mark.parametrize("path", leaves(Run), ids=".".join)
def test_the_digest_changes_with_every_setting(path: tuple[str, ...]) -> None:
    run, reference = tiny_run("jest"), tiny_reference()
    assert with_value(run, path, another(run, path)).digest() != run.digest()
    changed = with_value(reference, path, another(reference, path))
    owners = [run.model_copy(update={"reference": r}) for r in (reference, changed)]
    assert owners[0].digest() != owners[1].digest()


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"context_length": 9}},
        {"model": {"head_width": 24}},
        {"model": {"patch_sizes": [5]}},
        {"model": {"patch_sizes": [8, 4]}},
        {"model": {"name": "ViT-B32"}},
        {"source": {"kind": "curated"}},
        {"source": {"kind": "mixed", "curated_share": 1}},
        {"selection": {"criterion": "easiest"}},
    ],
)
def test_what_cannot_work_is_refused_before_training(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make_run(merge(tiny_run("jest").model_dump(), change))


def test_the_digest_is_of_values_and_numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run("jest")
    assert run.digest() == tiny_run("jest").digest()
    spelt_out = make_run(dict(reversed(list(run.model_dump(mode="json").items()))))
    assert spelt_out.digest() == run.digest()
    assert Run().digest() == make_run({"optim": {"steps": Run().optim.steps}}).digest()
    before = run.digest()
    monkeypatch.setattr(config, "NUMERICS", config.NUMERICS + 1)
    assert run.digest() != before


def test_a_run_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run().seed = 3  # type: ignore[misc]


def test_a_field_added_later_changes_no_digest_until_it_is_used() -> None:
    class Before(config._Strict):
        a: int = 1

    class After(config._Strict):
        a: int = 1
        b: str = config.added("plain")

    assert config._determining(After()) == config._determining(Before())
    assert config._determining(After(b="other")) == {"a": 1, "b": "other"}


# --- one experiment from either place: the method, and the reference ------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_config_prints_is_that_run_and_no_other_methods(method: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(printed(method, default_run(method, {}, 3))))
    asked = read_asked(path, [])
    assert (asked.method, asked.seed) == (method, 3)
    assert default_run(asked.method, asked.settings, asked.seed) == default_run(method, {}, 3)
    for other in METHODS:  # an explicit --method or --seed wins, and nothing of the file's stays
        asked = read_asked(path, [], other, 4)
        assert default_run(other, asked.settings, asked.seed) == default_run(other, {}, 4)


@pytest.mark.parametrize("method", METHODS)
def test_a_file_that_contradicts_the_method_is_refused(method: str, tmp_path: Path) -> None:
    """Settings in full, as earlier versions printed them; without --method they mean their own."""
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(default_run(method, {}, 0).model_dump(mode="json")))
    assert read_asked(path, []).method == read_asked(path, [], method).method == method
    for other in {*METHODS, "mine:foo"} - {method}:
        with pytest.raises(ConfigError) as caught:
            read_asked(path, [], other)
        said = str(caught.value)
        assert f"--method {other} means" in said and f"but {path} says" in said and "\n" not in said


def test_which_method_settings_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: flexi\nselection: {low_res_share: 0.25}\n")
    assert read_asked(path, []).method == "flexi", "a dial of the method's is no contradiction"
    assert read_asked(path, [], "jest").method == "jest"
    assert capsys.readouterr().err == "jest: --method jest wins over `method: flexi`\n"
    for pairs, method in (
        ([], "jest"),
        (["selection.sampler=gibbs"], "gibbs"),
        (["source.kind=mixed", "selection.sampler=uniform"], "mixed"),
        (["source.kind=filtered"], "jest"),
    ):
        assert read_asked(None, pairs).method == method
    words = "--method jest means selection.sampler=joint, but --set says topk: say --method topk"
    with pytest.raises(ConfigError, match=words):
        read_asked(None, ["selection.sampler=topk"], "jest")
    with pytest.raises(ConfigError, match="say --method curated"):
        read_asked(None, ["source.kind=curated"], "uniform")
    with pytest.raises(ConfigError, match="method must be a name"):
        read_asked(None, ["method=[1]"])
    with pytest.raises(ConfigError, match="no method 'jset'"):
        read_asked(None, [], "jset")


def test_an_experiment_refuses_what_its_runs_are_told_apart_by() -> None:
    experiment = read_experiment(find_experiment("map"))
    for over in ({"selection": {"sampler": "topk"}}, {"source": {"kind": "curated"}}):
        with pytest.raises(ConfigError, match="an experiment's runs are told apart by it"):
            jobs(experiment, over)
        with pytest.raises(ConfigError, match="but --set says"):
            profile_jobs("cpu", over)


def test_train_and_train_reference_mean_one_reference() -> None:
    """Whatever the file says of the learner."""
    over = {
        "data": {"curated_size": 500}, "model": {"layers": 2}, "engine": {"scoring_batch": 8},
        "optim": {"steps": 7, "warmup": 3}, "source": {"noise_share": 0.5},
        "selection": {"filter_ratio": 0.5}, "reference": {"optim": {"steps": 50, "warmup": 5}},
    }  # fmt: skip
    for word in ("cpu", "smoke", "gpu"):
        reference = default_reference(over, 1, word)
        run = default_run("jest", over, 1, word)
        assert run.reference == reference and run.reference.digest() == reference.digest()
        assert reference.optim.steps == 50 and reference.data.curated_size == 500
        full = {k: v for k, v in printed("jest", run).items() if k != "method"}
        assert default_reference(full, 1, word) == reference
    check_reaches_reference(["data.level=weak", "reference.optim.steps=9"])
    with pytest.raises(ConfigError, match=r"say --set reference\.optim\.steps=9"):
        check_reaches_reference(["optim.steps=9"])


def test_shards_that_a_shell_wrote_out_are_all_meant() -> None:
    words = ["data.train=/a/0.tar", "data.train=/a/1.tar", "data.curated=/c", "seed=1", "seed=2"]
    assert parse_overrides(words) == {
        "data": {"train": ["/a/0.tar", "/a/1.tar"], "curated": "/c"},
        "seed": 2,
    }
