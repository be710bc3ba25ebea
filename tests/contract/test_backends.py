from __future__ import annotations

import pytest
from contract.backend_contract import BackendContract
from contract.backends import BACKENDS


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS.keys())
def subject(request, tmp_path):
    with request.param(tmp_path) as subject, subject.backend:
        yield subject


@pytest.fixture
def backend(subject):
    return subject.backend


class TestBackends(BackendContract):
    """The contract, on every backend."""
