"""One server of each kind for the whole session, started by the first test that asks for it."""

from __future__ import annotations

import pytest
from servers import azure, s3, sftp


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    with s3.s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory):
    with azure.azure_server(tmp_path_factory.mktemp("azure")) as server:
        yield server


@pytest.fixture(scope="session")
def sftp_server(tmp_path_factory):
    with sftp.sftp_server(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture(params=["s3", "azure", "sftp"])
def remote_place(request, tmp_path):
    """Return the URL of a new place on a server of each kind, and what opens it."""
    server = request.getfixturevalue(f"{request.param}_server")
    url = {
        "s3": lambda: f"s3://{server.make_bucket()}/team/store",
        "azure": lambda: f"az://{server.make_container()}/team/store",
        "sftp": lambda: server.url(tmp_path / "team/store"),
    }[request.param]()
    return url, server.options
