"""A small store that tests damage, each a copy of its own; and where a store will be, with a model for it."""

from __future__ import annotations

import shutil

import pytest
from fakes.damage import SMALL, build
from fakes.stores import noise


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


@pytest.fixture
def root(tmp_path):
    """Where a test makes its store."""
    return tmp_path / "store"


@pytest.fixture
def model(tmp_path):
    """A model of one file."""
    file = tmp_path / "model.bin"
    file.write_bytes(noise(1, 100_000))
    return file
