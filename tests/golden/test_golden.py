"""What a restructuring must leave equal: digests, short runs, and all that a user can type.

README.md says what to do when one of these fails.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import drive
import pytest
import write
from compare import differences
from own_shards import make_own

RTOL = 1e-4  # between processors, and between one rank and two
REMOVED = ("jest gpu ",)  # commands that may go: the one-GPU parts move to tools/

Records = dict[str, dict[str, drive.Record]]


@pytest.fixture(scope="session")
def records(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    place = drive.Place(data_root, make_own(tmp_path_factory.mktemp("golden-shards")))
    return drive.all_records(place, tmp_path_factory.mktemp("golden"))


def test_every_job_keeps_its_digest() -> None:
    """Recorded results are found by it; a new job needs none here."""
    different = list(differences(write.read("digests"), drive.digests()))
    counts = Counter(line.partition(" > ")[0] for line in different)
    assert not different, (
        f"{dict(counts)}: if these files were edited on purpose, and no other differs, "
        "python -m tests.golden.write digests"
    )


@pytest.mark.numeric
@pytest.mark.parametrize("how", ["one rank", "two ranks", "killed"])
def test_short_runs_are_what_they_were(how: str, records: Records) -> None:
    stored = write.read("records")
    assert set(stored) == set(records)
    found = {name: ways[how] for name, ways in records.items() if how in ways}
    assert {"icons vit jest", "shards vit flexi", "icons vit mixed"} <= set(found)
    for name, record in found.items():
        assert list(differences(stored[name], record, RTOL))[:9] == [], name


@pytest.mark.numeric
def test_a_killed_run_is_the_whole_one_bit_for_bit(records: Records) -> None:
    both = {name: ways for name, ways in records.items() if "killed" in ways}
    assert len(both) >= 10
    for name, ways in both.items():
        assert ways["killed"] == ways["one rank"], name


def test_nothing_that_a_user_types_disappears() -> None:
    stored = write.read("surface")
    kept = {
        name: options
        for name, options in stored["commands"].items()
        if not f"{name} ".startswith(REMOVED)
    }
    now = drive.surface()
    assert list(differences(stored | {"commands": kept}, now)) == []
