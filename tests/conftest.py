from __future__ import annotations

import pytest
from miniature_world import Miniature, make_miniature


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("registry"))
