"""Caches in a temporary directory, closed behind each test."""

from __future__ import annotations

import pytest
from fakes.machines import Machines


@pytest.fixture
def machines(tmp_path):
    """Machines without a shared cache."""
    found = Machines(tmp_path / "machines")
    yield found
    found.close()


@pytest.fixture(params=["file", "memory"])
def sharing(request, tmp_path):
    """Machines with one shared cache, in a folder or in memory."""
    url = (tmp_path / "shared").as_uri() if request.param == "file" else f"memory://{tmp_path}"
    found = Machines(tmp_path / "machines", shared=url)
    yield found
    found.close()


@pytest.fixture
def cache(machines):
    return machines.open()
