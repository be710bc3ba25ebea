"""The store that operations start from, and how small packs and blocks are while each of their calls is tried."""

from __future__ import annotations

import pytest
from fakes.operations import make_setting
from fakes.operations import work_small as be_small


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    with make_setting(tmp_path_factory.mktemp("setting")) as made:
        yield made


@pytest.fixture
def work_small(monkeypatch):
    be_small(monkeypatch)
