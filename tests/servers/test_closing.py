"""Connections to real servers end when a backend is closed, not when it is found to be garbage."""

from __future__ import annotations

import gc
import time

import pytest
from servers.cable import cable
from servers.sftp import SftpServer
from servers.web import web_server

from casstore.backend import open_backend


@pytest.fixture(params=["s3", "azure", "sftp", "web"])
def wired(request, tmp_path):
    """Yield a cable to a server, and a function that opens a backend through it."""
    if request.param == "web":
        (tmp_path / "format").write_bytes(b"x")
        with web_server(tmp_path) as (url, _), cable(int(url.rpartition(":")[2])) as line:
            yield line, lambda: open_backend(f"http://127.0.0.1:{line.port}", read_only=True)
        return
    server = request.getfixturevalue(f"{request.param}_server")
    with cable(server.port) as line:
        if request.param == "sftp":
            known = (server.folder / "known_hosts").read_text().replace(f":{server.port} ", f":{line.port} ")
            (tmp_path / "known").write_text(known)
            url = SftpServer(line.port, server.folder).url(tmp_path / "store")
            options = {**server.options, "known_hosts": str(tmp_path / "known")}
        else:
            options = server.options_at(line.port)
            url = (
                f"s3://{server.make_bucket()}/x"
                if request.param == "s3"
                else f"az://{server.make_container()}/x"
            )
        yield line, lambda: open_backend(url, create=True, **options)


def test_closing_ends_the_connections(wired):
    line, opened = wired
    gc.disable()
    try:
        for _ in range(3):
            backend = opened()
            list(backend.list(""))
            assert line.connections
            backend.close()
            backend.close()
            deadline = time.monotonic() + 5
            while line.open_connections and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not line.open_connections
    finally:
        gc.enable()
    # What was closed already is closed once more by its library, which must not complain.
    gc.collect()


def test_a_closed_backend_is_used_again_as_if_it_were_new(wired):
    _, opened = wired
    backend = opened()
    names = list(backend.list_keys(""))
    backend.close()
    assert list(backend.list_keys("")) == names
    backend.close()
