"""What `--reference` and `--init` take: words for a model, turned into settings.

Neither torch nor open_clip is imported unless a word names a run or a tag.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jestcli.config import ConfigError, merge
from jestcli.models.words import FILES, check_word, weights_file
from jestcli.runs import listing
from jestcli.utils import catalogue

SMALL = "jest_model.py"  # what loads an exported convolutional tower


def find_reference(word: str, runs: Path) -> str | Path:
    """What `word` names: an open_clip model with weights (MODEL:TAG or MODEL:FILE), local-dir:DIR,
    hf-hub:ORG/NAME or an exported folder, as a checked word; or the folder of a finished run.
    Raises ConfigError."""
    folder = Path(word).expanduser()
    if folder.is_dir() and not (folder / "config.json").exists():
        word = _exported(folder)
    elif _is_run(word):
        folder = listing.find(word, runs)
        if not listing.read(folder).done:
            raise ConfigError(f"--reference {word}: {folder} is not finished")
        return folder
    check_word(word)
    return word


def reference_settings(word: str, runs: Path, data: Path | None = None) -> dict[str, Any]:
    """The settings that make what `word` names the reference. Raises ConfigError, also for a run
    that this version would not find again.

    runs: the folder of runs; data: the root of the embedded data (None: where it usually is).
    """
    found = find_reference(word, runs)
    if isinstance(found, str):
        return {"reference_model": found}
    from jestcli.runs.workspace import Workspace, read_run

    folder, run = found, read_run(found)[1]
    if Workspace(data, runs).folder(run).resolve() != folder.resolve():
        raise ConfigError(
            f"--reference {word}: {folder} was trained on other data than are here now, or lies in "
            "another folder than $JEST_RUNS: `jest export` it and name what that writes"
        )
    return {"reference": run.model_dump(mode="json")}


def _is_run(word: str) -> bool:
    """Whether a word can only name a run: a model without its weights is one that lacks them."""
    return Path(word).expanduser().is_dir() or (":" not in word and word not in catalogue.known())


def models_in(folder: Path) -> list[str]:
    """The file that stands for each exported model in a folder: open_clip_config.json, the
    NAME.safetensors that have a NAME.json, and jest_model.py."""
    named = (x for x in folder.glob("*.safetensors") if x.with_suffix(".json").is_file())
    single = (folder / name for name in (catalogue.FOLDER_CONFIG, SMALL))
    return sorted(x.name for x in (*named, *single) if x.is_file())


def _exported(folder: Path) -> str:
    """MODEL:FILE or local-dir:DIR for what `jest export` wrote. Raises ConfigError, also for
    several models."""
    folder = folder.resolve()
    found = models_in(folder)
    if len(found) > 1:
        raise ConfigError(f"{folder} holds {len(found)} models, keep one: {', '.join(found)}")
    if not found:
        raise ConfigError(f"{folder} is neither a run nor an exported model")
    if found == [SMALL]:
        raise ConfigError(f"{folder} holds a model for PyTorch alone: name the run it came from")
    if found == [catalogue.FOLDER_CONFIG]:
        return f"{catalogue.LOCAL}{folder}"
    file = folder / found[0]
    return f"{file.stem}:{file}"


def start_settings(word: str, settings: dict[str, Any], runs: Path) -> dict[str, Any]:
    """`settings` with what a run starts from.

    A checkpoint, an exported folder or a run gives its weights to the same towers; an open_clip
    model with weights, local-dir:DIR and hf-hub:ORG/NAME bring towers, tokenizer, and (where the
    settings name none) image size, too. Raises ConfigError.
    """
    path = Path(word).expanduser()
    if path.is_file() or (path.suffix in FILES and ":" not in word):
        return _from_file(path, settings)
    if path.is_dir() and not (path / "config.json").exists():
        try:
            return _from_file(Path(weights_file(_exported(path))), settings)
        except ValueError as error:  # no weights there
            raise ConfigError(f"--init {word}: {error}") from None
    if _is_run(word):
        return _from_file(listing.find(word, runs) / listing.MODEL, settings)
    try:
        name, weights = check_word(word, "--init")
        config = catalogue.read(name)
        weights = weights or catalogue.weights_of(name)
    except ValueError as error:
        raise ConfigError(f"--init {word}: {error}") from None
    other = settings.get("model", {}).get("name", name)
    if other != name:
        raise ConfigError(f"--init {word}: model.name is {other}")
    vision, text = config["vision_cfg"], config["text_cfg"]
    data = {
        "image_size": vision.get("image_size", 224),
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
    }
    return merge({"data": data, "model": {"name": name, "pretrained": weights}}, settings)


def _from_file(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"--init {path}: no such file")
    # The file's hash is filled in.
    return merge(settings, {"init": str(path.resolve()), "init_sha256": None})
