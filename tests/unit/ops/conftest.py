"""Object stores in memory, emptied behind each test: their listings look at every key that they hold."""

from __future__ import annotations

import pytest
from contract.backends import ObjectFileSystem
from fakes.sync_stores import FlakyFileSystem


@pytest.fixture(autouse=True)
def _empty_object_stores():
    yield
    ObjectFileSystem.store.clear()
    FlakyFileSystem.store.clear()
