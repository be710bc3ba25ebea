from __future__ import annotations

import pytest
from contract.backend_contract import BackendContract
from contract.backends import BACKENDS, ON_SERVERS


@pytest.fixture(params=[*BACKENDS, *ON_SERVERS])
def subject(request, tmp_path):
    if request.param in BACKENDS:
        made = BACKENDS[request.param](tmp_path)
    else:
        made = ON_SERVERS[request.param](tmp_path, request.getfixturevalue(f"{request.param}_server"))
    with made as subject, subject.backend:
        yield subject


@pytest.fixture
def backend(subject):
    return subject.backend


class TestBackends(BackendContract):
    """The contract, on every backend."""
