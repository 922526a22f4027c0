"""What makes records and pages of this repository; not in the package."""

from __future__ import annotations

import sys

from jestcli.bench import other_work


def words_of(argv: list[str]) -> list[str]:
    """What a measuring tool is given, without --busy; where that is missing, a busy machine ends
    it."""
    words = [word for word in argv[1:] if word != "--busy"]
    if len(words) == len(argv) - 1 and (why := other_work()):
        sys.exit(why)
    return words
