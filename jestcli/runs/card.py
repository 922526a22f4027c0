"""The model card of an exported model, and its way to a hub."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from jestcli.config import ConfigError, Run
from jestcli.runs.compare import margin
from jestcli.runs.listing import Listed, method_of, read
from jestcli.training.checkpoint import write_atomic
from jestcli.utils.errors import DataError

ICONS = (
    "Icons and emoji from registry packages, drawn at {size} px, with their human-given names: not "
    "photographs. Each package has a licence of its own (MIT, Apache-2.0, CC-BY and others; the "
    "project's NOTICE lists them)."
)
OWN = "The trainer's own image-text pairs; their licence is theirs to state here."


def write_card(folder: Path, out: Path, run: Run, code: str) -> None:
    """README.md in `out`: data, method, cost and scores of the run in `folder`, with the Python
    that loads it inside that folder. Says what it was measured on, and nothing that was not."""
    listed, code = read(folder), code.replace(str(out.resolve()), ".")
    for table in out.glob("bpe-*.txt.gz"):  # open_clip reads a path, not one beside its config
        length = run.data.context_length
        how = f"open_clip.SimpleTokenizer(bpe_path={table.name!r}, context_length={length})"
        code = re.sub(r"tokenizer = .*", f"tokenizer = {how}", code)
    done, data = listed.done, run.data
    lines = [
        "---",
        f"library_name: {'pytorch' if run.model.tower == 'cnn' else 'open_clip'}",
        "pipeline_tag: zero-shot-image-classification",
        "tags: [clip, jest]",
        "---",
        f"# {listed.name}",
        "",
        f"Trained by {method_of(listed.settings)} (`jest`, a reproduction of JEST, "
        f"[arXiv 2406.17711](https://arxiv.org/abs/2406.17711)), seed {run.seed}.",
        "",
        "## Load",
        "",
        "```python",
        code,
        "```",
        "",
        "## Data",
        "",
        OWN if data.own else ICONS.format(size=data.image_size),
    ]
    if not data.own and run.source.noise_share:
        lines.append(f"{run.source.noise_share:.0%} of the pool's captions are another pair's.")
    lines += [
        "",
        "## Training",
        "",
        f"{run.optim.steps:,} steps of {run.optim.batch_size:,} pairs, "
        f"{run.super_batch_size:,} looked at a step; images of {data.image_size} px.",
    ]
    if "flops" in done:
        lines.append(
            f"Cost: {done['flops']['cached'] / 1e12:.4g} TFLOP, with the reference's training and "
            f"scoring {done['flops']['charged'] / 1e12:.4g}."
        )
    lines += ["", "## Scores", "", *_scores(listed), ""]
    write_atomic(out / "README.md", "\n".join(lines).encode())


def _scores(listed: Listed) -> list[str]:
    """A table in Markdown, with what a guess scores."""
    scores: dict[str, Any] = listed.scores
    if not scores:
        return ["Not evaluated."]
    rows = [
        f"| {name} | {100 * s['score']:.1f} ± {100 * margin(s['score'], s['n']):.1f} "
        f"| {100 * s['chance']:.2f} | {s['n']:,} |"
        for name, s in scores.items()
    ]
    part = listed.done.get("part", "all")
    about = "± is a 95 % interval over test images, one training; another seed moves a score too. "
    return [
        "| benchmark | score % | chance % | images |",
        "|---|---:|---:|---:|",
        *rows,
        "",
        f"{about}Images scored: {part}.",
    ]


def push_folder(out: Path, repository: str) -> str:
    """Upload all of `out` to a model repository, made if missing; returns its address. What is
    uploaded does not say where the folder lies on this machine; the folder itself stays as it is.

    The token is the one that huggingface_hub finds. Raises ConfigError, DataError in one line.
    """
    import huggingface_hub

    if repository.count("/") != 1:
        raise ConfigError(f"--push {repository}: expected ORG/NAME")
    api = huggingface_hub.HfApi()
    with tempfile.TemporaryDirectory(prefix="jest-push-") as kept:
        _copy_without_place(out.resolve(), Path(kept))
        try:
            api.create_repo(repository, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=kept)
        except Exception as error:  # the hub's, and any of the network's
            why = " ".join(str(error).split())[:200]
            raise DataError(
                f"--push {repository} failed: {why}; the upload is missing or incomplete, "
                f"the export is in {out}"
            ) from None
    return f"{api.endpoint}/{repository}"


def _copy_without_place(out: Path, to: Path) -> None:
    """The files of `out` in the folder `to`, their JSON with paths from within `out`."""
    for path in out.iterdir():
        if path.suffix == ".json":
            place = json.dumps(f"{out}/")[1:-1]  # as JSON spells it: "ü" is six characters
            (to / path.name).write_text(path.read_text().replace(place, ""))
        else:  # weights may be larger than what is free where temporary files go
            (to / path.name).symlink_to(path)
