"""Which version of a shard a server has, by what it says without sending it.

A version is a few strings: "etag", "size" (bytes) and "modified" (when). A server need give none of
them; one of which nothing is known differs from no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Version = dict[str, str]
Names = dict[str, tuple[str, ...]]

_HEADERS: Names = {"etag": ("ETag",), "size": ("Content-Length",), "modified": ("Last-Modified",)}
# What the stores of fsspec call them; where the content has a name of its own, that.
_INFO: Names = {
    "etag": ("ETag", "etag", "blob_id", "generation", "md5Hash"),
    "size": ("size",),
    "modified": ("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
}


def of_headers(headers: Mapping[str, Any]) -> Version:
    """Of an HTTP answer."""
    return _found(headers, _HEADERS)


def of_info(info: Mapping[str, Any]) -> Version:
    """Of fsspec's description of a file."""
    return _found(info, _INFO)


def _found(about: Mapping[str, Any], names: Names) -> Version:
    out = {}
    for key, others in names.items():
        values = (about.get(name) for name in others)
        value = next((each for each in values if each is not None), None)
        if value is not None:
            out[key] = str(value).removeprefix("W/")[:200]
    return out


def differ(one: Version | None, other: Version | None) -> bool:
    """Whether these are surely two versions: by size, by ETag, and by time only without an ETag."""
    both = (one or {}).keys() & (other or {}).keys()
    if one is None or other is None or not both:
        return False
    if "size" in both and one["size"] != other["size"]:
        return True
    key = "etag" if "etag" in both else "modified"
    return key in both and one[key] != other[key]
