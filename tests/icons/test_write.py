"""Shards are written byte for byte as webdataset writes them."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.writer import TarWriter

from jestcli.icons.write import tar_member

PLAIN = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=120)
KEYS = PLAIN | st.text(st.characters(codec="utf-8", categories=["L"]), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(KEYS, st.binary(max_size=3000), st.text(max_size=40))
def test_a_member_is_as_webdatasets(key: str, picture: bytes, caption: str) -> None:
    whole, members = io.BytesIO(), {"png": picture, "txt": caption.encode()}
    writer = TarWriter(whole, encoder=False, mtime=0)
    writer.write({"__key__": key, **members})
    writer.close()
    ours = b"".join(tar_member(f"{key}.{kind}", x) for kind, x in sorted(members.items()))
    assert whole.getvalue().startswith(ours)
    with tarfile.open(fileobj=io.BytesIO(whole.getvalue())) as tar:
        assert [m.name for m in tar] == [f"{key}.png", f"{key}.txt"]
