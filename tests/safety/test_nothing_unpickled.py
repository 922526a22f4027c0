"""No module of the package can run what a file holds: no pickle, no unsafe YAML, no shell."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jestcli

ROOT = Path(jestcli.__file__).parent
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "code",
    "pty",
}
# Parts of libraries that decode by a member's name, pickles included, and those that call them.
DECODERS = ("webdataset.", "clip_benchmark.datasets")
# Writing is another part.
WRITERS = ("forecast/sample.py", "bench/data.py")
ALLOWED = {file: {"webdataset.writer.TarWriter"} for file in WRITERS}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
LOADERS = {"torch.load", "open_clip.create_model", "open_clip.load_checkpoint"}
# Taken under no other name, which the test would not know.
KNOWN = {*LOADERS, "open_clip.get_tokenizer", "numpy.load", "yaml.load"}
TOKENIZERS = {"data/tokens.py"}
# Where a command is run: the user's own `pipe:`; the others give lists of words.
SHELL = {"data/remote.py"}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of such an expression; empty for others."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(text: str, file: str = "x.py") -> Iterator[str]:
    """What in a module could run what a file holds."""
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.partition(".")[0] in MODULES or name in KNOWN:
                yield name
            if f"{name}.".startswith(DECODERS) and name not in ALLOWED.get(file, ()):
                yield name
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        last = name.rpartition(".")[2]
        if name in CALLS or last == "read_pickle":
            yield name
        if name in LOADERS and given.get("weights_only") != "True":
            yield f"{name} without weights_only"
        if last == "get_tokenizer" and file not in TOKENIZERS:
            yield "a tokenizer that may bring code"
        if name == "np.load" and given.get("allow_pickle", "False") != "False":
            yield "np.load of pickles"
        if name.startswith("yaml.") and last in ("load", "load_all", "unsafe_load", "full_load"):
            yield name
        if "shell" in given and file not in SHELL:
            yield "a shell"
        if given.get("trust_remote_code", "False") != "False":
            yield "a hub's code"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.stem)
def test_no_module_can_run_what_a_file_holds(path: Path) -> None:
    assert not list(faults(path.read_text(), path.relative_to(ROOT).as_posix()))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import load",
        "import torch; torch.load(f)",
        "eval(x)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f, Loader=L)",
        "import webdataset as wds",
        "from webdataset.autodecode import Decoder",
        "os.system(x)",
        "from clip_benchmark.datasets.builder import build_dataset",
        "subprocess.run(x, shell=True)",
        "open_clip.create_model(a, b)",
        "open_clip.load_checkpoint(a, b)",
        "from torch import load",
        "open_clip.get_tokenizer(a)",
        "def f():\n  import dill",
        "yaml.unsafe_load(f)",
    ],
)
def test_the_test_sees_what_it_looks_for(text: str) -> None:
    assert list(faults(text))


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, ran: Path):
        self.ran = ran

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path(str(self.ran)).touch, ()  # type: ignore[return-value]


def test_members_that_are_pickles_are_not_read(tmp_path: Path) -> None:
    """Of pool and benchmarks alike, by every reader."""
    import pickle

    from own_shards import jpeg, sample, write_tar

    from jestcli.data.shard_dataset import open_shards
    from jestcli.data.sources import Loading
    from jestcli.evaluation.benchmarks import find_benchmarks

    ran = tmp_path / "ran"
    trap = pickle.dumps(Trap(ran))
    assert pickle.loads(trap) is None and ran.exists(), "it is one"
    ran.unlink()
    traps: dict[str, bytes | None] = dict.fromkeys(
        ("pickle", "pkl", "pyd", "pth", "pt", "npy", "ten", "cbor"), trap
    )
    write_tar(tmp_path / "pool" / "0.tar", *[sample(n, **traps) for n in range(3)])
    data = open_shards("pool", (str(tmp_path / "pool"),), Loading(0, cache=tmp_path), window=2)
    assert data.pair(0).captions
    flowers, pairs = tmp_path / "b" / "wds_flowers", tmp_path / "b" / "wds_pairs"
    write_tar(
        flowers / "test" / "0.tar",
        *[
            {f"{n}.jpg": jpeg(n), f"{n}.cls": b"%d" % (n % 2)} | {f"{n}.{k}": trap for k in traps}
            for n in range(4)
        ],
    )
    (flowers / "classnames.txt").write_text("rose\naster\n")
    (flowers / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    write_tar(pairs / "test" / "0.tar", *[sample(n, json=None, **traps) for n in range(3)])
    (pairs / "dataset_type.txt").write_text("retrieval")
    for each in find_benchmarks(tmp_path / "b", 32):
        assert len(each.split())
    assert not ran.exists()


def test_a_model_in_a_folder_brings_no_code(tmp_path: Path) -> None:
    """Its config asks for the tokenizer's code beside it, as a hub's may."""
    import json

    from jestcli.data.tokens import named_tokenizer

    ran, kwargs = tmp_path / "ran", {"trust_remote_code": True}
    text = {"context_length": 8, "hf_tokenizer_name": "x", "tokenizer_kwargs": kwargs}
    own_class = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    files = {
        "open_clip_config.json": {"model_cfg": {"vision_cfg": {}, "text_cfg": text}},
        "tokenizer_config.json": own_class,
        "config.json": {"model_type": "bert"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ValueError):
        named_tokenizer(f"local-dir:{tmp_path}")
    assert not ran.exists()
