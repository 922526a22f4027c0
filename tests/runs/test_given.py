"""What --reference and --init take: every word for a model becomes the settings that mean it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from tiny import TINY, fake_dataset, tiny_reference
from toy import train_run

from jestcli.commands.shared import Asked
from jestcli.commands.training import learner_run
from jestcli.config import METHODS, ConfigError, Run, make_run, merge
from jestcli.data.tokens import SmallTokenizer
from jestcli.models.flops import ForwardFlops, step_cost
from jestcli.runs.export import export
from jestcli.runs.given import reference_settings, start_settings
from jestcli.runs.methods import default_run
from jestcli.runs.run_data import tokenizer_of
from jestcli.runs.trained import MODEL, load_folder, new_learner
from jestcli.runs.workspace import Workspace, read_run, start_folder
from jestcli.training.augment import normalise
from jestcli.training.checkpoint import save_model, write_json
from jestcli.training.reference import open_clip_reference
from jestcli.utils import catalogue

TEXTS = ["a red car", "two cats"]


@pytest.fixture(scope="module")
def workspace(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished reference of the suite's own towers and its two exported forms."""
    made = Workspace(data_root, tmp_path_factory.mktemp("given") / "runs")
    run = tiny_reference()
    folder, model = made.folder(run), new_learner(run)
    folder.mkdir(parents=True)
    start_folder(folder, run, "reference (seed 0)")
    save_model(folder / MODEL, model, {})
    write_json(folder / "done.json", {"steps": 2, "scores": {}})
    for form in ("open_clip", "hf"):
        export(folder, made.runs.parent / form, None, form, made)
    return made


@pytest.fixture
def folder(workspace: Workspace) -> Path:
    return workspace.folder(tiny_reference())


def test_a_reference_is_a_run_by_the_beginning_of_its_name(
    workspace: Workspace, folder: Path
) -> None:
    for word in (folder.name[:5], "reference", str(folder)):
        settings = reference_settings(word, workspace.runs, workspace.data)
        assert default_run("jest", merge(TINY, settings), 0).reference == tiny_reference()
    with pytest.raises(ConfigError, match=r"no run in .* is called 'refrence-"):
        reference_settings(f"refrence-{folder.name[:4]}", workspace.runs)
    with pytest.raises(ConfigError, match="trained on other data than are here now"):
        reference_settings(str(folder), workspace.runs.parent, workspace.data)


@torch.no_grad()
@pytest.mark.parametrize("form", ["open_clip", "hf", "local-dir:"])
def test_an_exported_reference_computes_what_the_run_does(
    form: str, workspace: Workspace, folder: Path
) -> None:
    out = workspace.runs.parent / form.replace("local-dir:", "hf")
    word = f"{form}{out}" if form.endswith(":") else str(out)
    word = reference_settings(word, workspace.runs, workspace.data)["reference_model"]
    reference = open_clip_reference(word)
    images = fake_dataset().read(np.arange(4)).images
    found = reference.pairs(images, ["a", *TEXTS, "b"])
    model = load_folder(read_run(folder)[1], folder).eval()
    torch.testing.assert_close(found.image, model.encode_image(normalise(images)))
    tokens = tokenizer_of(tiny_reference().model, tiny_reference().data)(["a", *TEXTS, "b"])
    torch.testing.assert_close(found.text, model.encode_text(tokens))


@pytest.mark.parametrize("word,message", [
    ("local-dir:/nowhere", "--reference local-dir:/nowhere: .* holds no open_clip model"),
    ("hf-hub:a/b", "--reference hf-hub:a/b: hf-hub:a/b: no such repository"),
    ("ViT-B-61:openai", r"no model 'ViT-B-61' \(did you mean ViT-B-16"),
    ("ViT-B-32", r"--reference ViT-B-32: say ViT-B-32:TAG or ViT-B-32:FILE"),
    (".", "neither a run nor an exported model"),
])  # fmt: skip
def test_a_wrong_word_is_one_line(
    word: str, message: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> str:
        raise OSError("no such repository")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    with pytest.raises(ConfigError, match=message):
        reference_settings(word, workspace.runs, workspace.data)


def test_a_trained_reference_takes_no_steps(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JEST_RUNS", str(workspace.runs))
    monkeypatch.setenv("JEST_DATA", str(workspace.data))
    steps = {"reference.optim.steps": 50}
    own = {"data": TINY["data"] | {"train": ["a.tar"]}}
    given = merge(own, {"reference_model": "ViT-B-32:openai"})
    for word, settings in ((str(folder), TINY), ("ViT-B-32:openai", own), (None, given)):
        asked = Asked("jest", 0, settings)
        with pytest.raises(ConfigError, match=r"--reference-steps 50: the reference .* is trained"):
            learner_run(asked, word, None, steps, "cpu")


def test_a_folder_of_several_models_is_refused(
    workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    export(folder, tmp_path, None, "open_clip", workspace)
    own = tmp_path / f"jest-{folder.name}-patch8.safetensors"
    others = {
        "abc.safetensors": (tmp_path / "abc.safetensors", tmp_path / "abc.json"),
        catalogue.FOLDER_CONFIG: (tmp_path / catalogue.FOLDER_CONFIG,),
    }
    for other, files in others.items():
        for file in files:
            file.write_bytes(own.with_suffix(file.suffix).read_bytes())
        for named in (reference_settings, lambda word, runs: start_settings(word, TINY, runs)):
            with pytest.raises(ConfigError, match="holds 2 models, keep one: ") as caught:
                named(str(tmp_path), workspace.runs)
            assert own.name in str(caught.value) and other in str(caught.value)
        for file in files:
            file.unlink()
    settings = start_settings(str(tmp_path), TINY, workspace.runs)
    assert settings["init"] == str(own)
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / catalogue.FOLDER_CONFIG).write_text("{}")
    with pytest.raises(ConfigError, match=r"--init .*holds no weights"):
        start_settings(str(tmp_path), TINY, workspace.runs)


def test_an_export_leaves_another_model_alone(
    workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    for form, other in (("open_clip", "hf"), ("hf", "open_clip")):
        out = tmp_path / form
        for _ in range(9):  # the same one again is fine, however its header is written
            export(folder, out, None, form, workspace)
        before = {path: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(ConfigError, match="holds another model already: "):
            export(folder, out, None, other, workspace)
        (weights,) = out.glob("*.safetensors")
        weights.write_bytes(b"another's")
        with pytest.raises(ConfigError, match=f"holds another model already: {weights.name}"):
            export(folder, out, None, form, workspace)
        assert set(before) == set(out.iterdir()) and weights.read_bytes() == b"another's"


def start(settings: dict[str, Any]) -> Run:
    """A uniform run with these settings."""
    return make_run(merge(METHODS["uniform"], settings))


@pytest.mark.parametrize("place", ["run", "open_clip", "hf"])
def test_weights_for_the_same_towers_are_a_file(
    place: str, workspace: Workspace, folder: Path
) -> None:
    word = folder.name[:5] if place == "run" else str(workspace.runs.parent / place)
    run = start(start_settings(word, TINY, workspace.runs))
    assert run.init is not None and run.init_sha256 and run.model.name is None
    again = start_settings(run.init, TINY, workspace.runs)
    assert start(again) == run


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["local-dir", "hf-hub"])
def test_a_place_brings_towers_weights_tokenizer_and_sizes(
    scheme: str, workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = workspace.runs.parent / "hf"
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, file: str(out / file))
    word = f"local-dir:{out}" if scheme == "local-dir" else "hf-hub:some/model"
    run = start(start_settings(word, {}, workspace.runs))
    assert run.model.name == word and run.data.image_size == 32 and run.data.vocab_size == 600
    assert run.model.pretrained_sha256 and run.model.patch_sizes == (8, 16)
    old, new = load_folder(read_run(folder)[1], folder).eval(), new_learner(run).eval()
    images = normalise(fake_dataset().read(np.arange(4)).images)
    torch.testing.assert_close(new.encode_image(images), old.encode_image(images))
    tokenizer = tokenizer_of(run.model, run.data)
    assert isinstance(tokenizer, SmallTokenizer) and tokenizer.vocab_size == 600
    torch.testing.assert_close(new.encode_text(tokenizer(TEXTS)), old.encode_text(tokenizer(TEXTS)))
    with pytest.raises(ConfigError, match=r"model.name is ViT-B-16"):
        start_settings(word, {"model": {"name": "ViT-B-16"}}, workspace.runs)


def test_a_tag_brings_its_models_sizes(workspace: Workspace) -> None:
    settings = start_settings("ViT-B-16-SigLIP-256:webli", {"data": {"window": 3}}, workspace.runs)
    assert settings["model"] == {"name": "ViT-B-16-SigLIP-256", "pretrained": "webli"}
    assert settings["data"] == {
        "image_size": 256, "context_length": 64, "vocab_size": 32000, "window": 3
    }  # fmt: skip


def test_a_named_models_own_tokenizer_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name, context_length, **_: (name, 64))
    settings = {"model": {"name": "ViT-B-16-SigLIP", "own_tokenizer": True, "patch_sizes": [8]}}
    run = start(merge({"data": TINY["data"]}, settings))
    assert tokenizer_of(run.model, run.data) == ("ViT-B-16-SigLIP", 64)
    with pytest.raises(ConfigError, match=r"own tokenizer needs data.vocab_size=32000"):
        new_learner(run)


def test_a_locked_image_tower_stays_as_it_was(workspace: Workspace) -> None:
    settings = merge(
        start_settings("reference", TINY, workspace.runs), {"model": {"lock_image": True}}
    )
    reference = default_run("jest", settings, 0).reference
    assert reference is not None and not reference.model.lock_image, "it is the learner's dial"
    run = start(settings)
    train_run(run, workspace, "lit")
    before, after = new_learner(tiny_reference()), load_folder(run, workspace.folder(run))
    text = []
    for (name, old), new in zip(
        before.state_dict().items(), after.state_dict().values(), strict=True
    ):
        text += [torch.equal(old, new)] if ".visual." not in name else []
        assert torch.equal(old, new) or ".visual." not in name
    assert not all(text)
    flops = ForwardFlops(10, 4, 2)
    free = start(start_settings("reference", TINY, workspace.runs))
    assert step_cost(free, flops, None).cached == 3 * 8 * 12
    assert step_cost(run, flops, None).cached == 8 * (10 + 3 * 2)
    with pytest.raises(ConfigError, match="lock_image needs an image tower that is trained"):
        start(merge(TINY, {"model": {"lock_image": True}}))
