"""Libraries keep their bars, warnings and advice to themselves: what a command prints is for the
user, and what a log holds is the run's."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from jestcli.utils.plain import PlainFormatter

# Read when a library is imported, here or in a worker; what the user has set stays.
SETTINGS = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",  # else a word of advice from each forked worker
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_LOGS": "-all",  # "-" is errors alone
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def _for_the_user(record: logging.LogRecord) -> bool:
    """Our own warnings, and any library's errors."""
    return record.levelno >= logging.ERROR or record.name.split(".")[0] == "jestcli"


def quiet_libraries() -> None:
    """Hush them in this process and its children; to be called before they are imported.

    Our own warnings go to standard error, a plain line each."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions and os.environ["PYTHONWARNINGS"] == "ignore":
        warnings.simplefilter("ignore")
    handler = logging.lastResort
    if handler is not None:
        handler.setFormatter(PlainFormatter())
        handler.addFilter(_for_the_user)
        # With a handler at the root, `logging.warning` of a library does not set up its own.
        logging.getLogger().addHandler(handler)
