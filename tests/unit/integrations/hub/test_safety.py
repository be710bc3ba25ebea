"""What the server refuses, and that nobody can take it from others."""

from __future__ import annotations

import base64
import contextlib
import logging
import socket
import time
from urllib.parse import urlsplit

import pytest
from fakes.hub_server import hub_server, raw, write_model
from servers.proxy import proxied
from servers.web import web_server

import casstore
from casstore.errors import ConfigError
from casstore.integrations.hub import server
from casstore.integrations.hub.access import AccessRules, read_tokens
from casstore.integrations.hub.protocol import LimitedProtocol
from casstore.integrations.hub.targets import is_reachable

INFO = "/api/models/org/minilm"
SECRET = "correct-horse-battery"


@contextlib.contextmanager
def connected(app):
    where = urlsplit(app.url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        yield connection


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LOCALHOST.:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1", 421),
        ("", 421),
    ],
)
def test_only_its_own_name(served, host, status):
    assert raw(served, "GET", INFO, headers={"Host": host}).status == status


def test_two_hosts_are_none(served):
    with connected(served) as connection:
        connection.sendall(
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        )
        assert connection.recv(1000).split()[1] in (b"400", b"421")


def test_names_of_a_server_for_others():
    rules = server.rules_for("0.0.0.0", allowed=("models.example",), tokens=())
    assert rules.any_number
    assert {"models.example", socket.gethostname().lower()} <= rules.names
    assert not server.rules_for("127.0.0.1", allowed=(), tokens=()).any_number
    assert not server.rules_for("localhost", allowed=(), tokens=()).any_number
    assert not AccessRules().tokens


def test_the_token_is_asked_for_everywhere(store, tmp_path):
    (tmp_path / "tokens").write_text(f"{SECRET}\n")
    with hub_server(store, tokens=read_tokens(tmp_path / "tokens")) as app:
        for path in (INFO, "/", "/metrics", "/org/minilm/resolve/main/config.json", "/none"):
            answer = raw(app, "GET", path)
            assert (answer.status, "WWW-Authenticate" in answer.headers) == (401, True)
        for header in ("Bearer x", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}", SECRET, "Basic !", "Bearer"):
            assert raw(app, "GET", INFO, headers={"Authorization": header}).status == 401, header
        basic = base64.b64encode(f"anybody:{SECRET}".encode()).decode()
        for header in (f"Bearer {SECRET}", f"bearer {SECRET}", f"Basic {basic}"):
            assert raw(app, "GET", INFO, headers={"Authorization": header}).status == 200, header


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "short\n"])
def test_token_files_that_protect_nothing(tmp_path, text):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigError):
        read_tokens(tmp_path / "tokens")


def test_no_secret_in_logs_and_metrics(store, tmp_path, caplog):
    (tmp_path / "tokens").write_text(f"{SECRET}\n")
    caplog.set_level(logging.DEBUG)
    logging.getLogger("casstore.serve").setLevel(logging.INFO)
    with hub_server(store, tokens=read_tokens(tmp_path / "tokens")) as app:
        headers = {"Authorization": f"Bearer {SECRET}"}
        raw(app, "GET", f"{INFO}?token={SECRET}", headers=headers)
        raw(app, "GET", INFO, headers={"Authorization": f"Bearer {SECRET}-wrong"})
        text = raw(app, "GET", "/metrics", headers=headers).body.decode()
    assert SECRET not in caplog.text
    assert SECRET not in text
    assert INFO in caplog.text
    assert 'casstore_requests_total{kind="api",method="GET",status="200"} 1.0' in text
    assert "casstore_store_bytes" in text
    assert 'casstore_requests_total{kind="other",method="GET",status="401"} 1.0' in text


def test_a_client_that_sends_nothing_or_half_a_request(store, monkeypatch):
    monkeypatch.setattr(LimitedProtocol, "head_seconds", 0.2)
    with hub_server(store) as app:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost: loc"):
            with connected(app) as connection:
                connection.sendall(begun)
                assert connection.recv(1) == b""
        with connected(app) as connection:
            # Also the second request of a connection.
            connection.sendall(f"GET {INFO} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.recv(9) == b"HTTP/1.1 "
            time.sleep(0.3)
            connection.sendall(b"GET / HT")
            while connection.recv(10000):
                pass


def test_a_client_that_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(LimitedProtocol, "stalled_seconds", 0.3)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "zeros.bin").write_bytes(bytes(64 << 20))
    with casstore.open(tmp_path / "store", create=True, durability="none") as store:
        store.add(tmp_path / "m", ref="models/m")
        with hub_server(store) as app, connected(app) as connection:
            connection.sendall(b"GET /m/resolve/main/zeros.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.recv(1)
            deadline = time.monotonic() + 10
            while app.server.server_state.connections and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not app.server.server_state.connections
            while app.context.pieces.clients and time.monotonic() < deadline:
                time.sleep(0.02)
            assert app.context.pieces.clients == 0


def test_more_clients_than_there_are_places(store):
    with hub_server(store, max_clients=3) as app, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connected(app))
        time.sleep(0.1)
        assert raw(app, "GET", INFO).status == 503
        stack.close()
        time.sleep(0.1)
        assert raw(app, "GET", INFO).status == 200


def test_a_header_without_end_and_a_body_without_end(served):
    with connected(served) as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(200):
            connection.sendall(b"X-Filler: " + b"x" * 1000 + b"\r\n")
        assert connection.recv(100).split()[1] == b"400"
    body = b"paths=" + b"x" * (5 << 20)
    with contextlib.suppress(OSError):
        answer = raw(served, "POST", f"{INFO}/paths-info/main", body=body)
        assert answer.status == 413


def test_a_store_that_is_away_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("casstore.integrations.hub.context._PATIENCE", 0.1)
    path = "/m/resolve/main/config.json"
    write_model(tmp_path / "m", rows=8)
    with casstore.open(tmp_path / "site" / "store", create=True, durability="none") as store:
        store.add(tmp_path / "m", ref="models/m")
    with contextlib.ExitStack() as stack:
        url, _ = stack.enter_context(web_server(tmp_path / "site"))
        proxy = stack.enter_context(proxied(urlsplit(url).port))
        store = stack.enter_context(casstore.open(f"{proxy.url}/store", read_only=True))
        app = stack.enter_context(hub_server(store, ref_seconds=0.0))
        assert raw(app, "GET", path).status == 200
        proxy.fault = lambda _: "drop"
        for _ in range(10):  # more than there are threads
            answer = raw(app, "GET", path)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert "X-Error-Code" not in answer.headers
        proxy.fault = None
        deadline = time.monotonic() + 20
        while raw(app, "GET", path).status != 200:
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("name", "reachable"),
    [
        ("minilm", True),
        ("org/minilm", True),
        ("models/minilm", True),
        ("refs", True),
        ("a" * 96, True),
        ("a" * 97, False),
        ("deep/er/name", False),
        ("org/refs", False),
        ("org/resolve", False),
        ("datasets/name", False),
        ("api", False),
        ("a--b", False),
        ("a..b", False),
        (".hidden", False),
        ("end-", False),
        ("x.git", False),
        ("ünï", False),
        ("a b", False),
    ],
)
def test_names_that_clients_can_ask_for(name, reachable):
    assert is_reachable(name) is reachable
