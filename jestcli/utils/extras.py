"""Optional packages: what brings each, and one line where one is missing. Imports nothing heavy."""

from __future__ import annotations

from importlib.util import find_spec

TRAIN = (
    *("typer", "rich", "pydantic", "yaml", "open_clip", "torchvision", "clip_benchmark", "scipy"),
    *("webdataset", "braceexpand", "safetensors", "PIL", "jinja2", "fsspec", "filelock"),
    "threadpoolctl",
)
EXTRAS = {
    **dict.fromkeys(TRAIN, "train"),
    "matplotlib": "plots",
    "statsmodels": "plots",
    "resvg_py": "icons",
    "submitit": "slurm",
    "pynvml": "gpu",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "s3fs": "cloud",
    "gcsfs": "cloud",
}


def how_to_install(module: str) -> str | None:
    """What to do where `module` cannot be imported; None if it is not an optional package."""
    extra = EXTRAS.get(module.partition(".")[0])
    return f"this needs {module}: pip install 'jest-suite[{extra}]'" if extra else None


def need(module: str) -> None:
    """Raise ModuleNotFoundError, before hours of work, where the optional `module` is missing."""
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
