"""How many samples remote shards hold, from the small files beside them.

Fetching a pool of terabytes only to count it is out of the question. `sizes.json` (of webdataset
and open_clip: {"00000.tar": 9123}) and img2dataset's `00000_stats.json` ("successes") say the
number. They are claims: the reader finds out when it has the shard (data/shard_dataset.py).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from jestcli.data.fetch import download_small
from jestcli.data.remote import is_address
from jestcli.data.sources import Loading
from jestcli.utils.errors import explain_os_error
from jestcli.utils.io import save_bytes
from jestcli.utils.reading import parse_json

SIZES = "sizes.json"
MOST = 1_000_000  # samples of a shard; a larger claim is not believed: an order has to hold them
LARGEST = 64_000_000  # bytes of one such file


def stated_counts(shards: list[str], loading: Loading) -> Callable[[str], int | None]:
    """A function from a shard to the number of samples that is stated for it; None: none is.

    Not those of a `pipe:`. What a server has answered is kept in `loading.cache`.
    """
    folders = {_beside(shard, SIZES) for shard in shards if is_address(shard)}
    sizes = {address: _fetched(address, loading) for address in sorted(folders)}

    def stated(shard: str) -> int | None:
        if not is_address(shard):
            return None  # a local one is counted by its headers, which is sure
        # By webdataset and open_clip a list names it as its address does, escapes undone or not.
        name = posixpath.basename(urlsplit(shard).path)
        listed = sizes.get(_beside(shard, SIZES), {})
        found = _believed(listed.get(name, listed.get(unquote(name))))
        if found is not None:
            return found
        stats = _beside(shard, f"{name.removesuffix('.tar')}_stats.json")
        return _believed(_fetched(stats, loading).get("successes"))

    return stated


def _beside(url: str, name: str) -> str:
    """The address of another file in the folder of `url`; its query may be an access token."""
    parts = urlsplit(url)
    path = posixpath.join(posixpath.dirname(parts.path), name)
    return urlunsplit(SplitResult(parts.scheme, parts.netloc, path, parts.query, ""))


def _believed(count: object) -> int | None:
    """A count between 1 and MOST. An empty shard is small: it is fetched to be sure."""
    whole = isinstance(count, int) and not isinstance(count, bool)
    return count if whole and 1 <= count <= MOST else None  # type: ignore[operator,return-value]


def _fetched(url: str, loading: Loading) -> dict[str, object]:
    """The JSON object at an address, kept once it was there; {} where there is none."""
    kept = loading.cache / "sizes" / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.json"
    if kept.exists():
        return _object(kept.read_bytes())
    content = download_small(url, loading, LARGEST)  # one that is not there is asked for again
    if content is None or not _object(content):
        return {}
    try:
        save_bytes(kept, content)
    except OSError as error:
        raise explain_os_error(error, f"keeping counts in {kept.parent}") from error
    return _object(content)


def _object(content: bytes) -> dict[str, object]:
    try:
        found = parse_json(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
