"""The one exception the data room raises for a reader to act on, and errors in one line each."""

from __future__ import annotations

import errno

FAILED = (
    *("DataError", "StageError", "CheckpointError"),
    *("TrainingError", "RanksError", "RecordError"),
)
# What the machine refuses; any other error of the system is a fault of the program's.
REFUSED = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE),
)


class DataError(Exception):
    """The data cannot be fetched, built or read; the message is one line that says what to do."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """One line and the exit code; None for what nobody foresaw.

    By name: nothing is imported that the failing command had not imported."""
    name = type(error).__name__
    if name == "ConfigError":
        return str(error), 2
    if name in FAILED:
        return str(error), 1
    if name == "Interrupted":
        return str(error), 130
    if isinstance(error, OSError) and error.errno in REFUSED:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}", 1
    if isinstance(error, MemoryError):
        return "out of memory", 1
    return None


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
