"""The one exception the data room raises for a reader to act on."""

from __future__ import annotations

import errno


class DataError(Exception):
    """The data cannot be fetched, built or read; the message is one line that says what to do."""


def explain_os_error(error: OSError, doing: str) -> DataError:
    """Turn an `OSError` met while `doing` something into a one-line `DataError`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"the disk is full while {doing}: free some space (a full build needs about 4 GB while "
            "it runs) or set JEST_DATA to a folder on another disk, then run the command again; "
            "it goes on from where it stopped"
        )
    where = f" ({error.filename})" if error.filename else ""
    return DataError(f"{doing} failed: {error.strerror or error}{where}")
