"""A small store that tests damage, each a copy of its own."""

from __future__ import annotations

import shutil

import pytest
from fakes.damage import SMALL, build


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    top = tmp_path_factory.mktemp("small")
    assert build(top / "store", SMALL, top, more=False) == {"raw", "zstd", "planes"}
    return top / "store"


@pytest.fixture
def copied(small, tmp_path, monkeypatch):
    """A copy of the small store on the disk, and a machine that knows nothing."""
    shutil.copytree(small, tmp_path / "copy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh-cache"))
    return tmp_path / "copy"
