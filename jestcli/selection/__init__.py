"""Joint example selection (JEST, arXiv 2406.17711) as a small library of tensor functions.

    indices = select(learner, reference, size=batch_size, seed=seed, step=step)

See docs/selection.md."""

from jestcli.selection.api import select
from jestcli.selection.embeddings import PairEmbeddings
from jestcli.selection.registry import SAMPLERS, names
from jestcli.selection.scores import learnability_of, pairwise_learnability
from jestcli.selection.task import Task

__all__ = [
    "SAMPLERS",
    "PairEmbeddings",
    "Task",
    "learnability_of",
    "names",
    "pairwise_learnability",
    "select",
]
