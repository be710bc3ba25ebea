"""Runs the server: a socket, uvicorn, and the limits that keep one client from taking everything."""

from __future__ import annotations

import ipaddress
import resource
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import uvicorn

from casstore.errors import ConfigError
from casstore.integrations.hub.access import AccessRules
from casstore.integrations.hub.protocol import LimitedProtocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.integrations.hub.app import HubApp

__all__ = ["MAX_CLIENTS", "address_url", "bind", "rules_for", "run"]

MAX_CLIENTS = 1000
"""Connections at a time; more are told to come again (503)."""

_FILES = 256
_KEEP_ALIVE = 30
_LAST_ANSWERS = 10


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 takes a free one. Raises ConfigError, saying why not."""
    with ExitStack() as failed:
        try:
            family, kind, number, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = failed.enter_context(socket.socket(family, kind, number))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_CLIENTS)
        except OSError as error:
            raise ConfigError(
                f"Cannot listen at {host} port {port}: {error.strerror or error}. Choose another --host or --port."
            ) from error
        failed.pop_all()
    return listener


def address_url(listener: socket.socket) -> str:
    """Return the URL at which a socket on this machine is reached."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def rules_for(host: str, *, allowed: Sequence[str], tokens: tuple[bytes, ...]) -> AccessRules:
    """Return who may ask a server that listens at `host`: whoever uses a name of this machine, or one of `allowed`."""
    try:
        number = ipaddress.ip_address(host)
        is_local, is_number = number.is_loopback, True
    except ValueError:
        is_local, is_number = host == "localhost", False
    names = {name.lower() for name in allowed} | {host.lower()}
    if not is_local:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return AccessRules(frozenset(names), any_number=is_number and not is_local, tokens=tokens)


def make_server(app: HubApp, *, max_clients: int = MAX_CLIENTS) -> uvicorn.Server:
    """Return uvicorn, set up for an app; it is run with a socket of `bind`."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            # uvicorn counts the connection that asks, and refuses from this number on.
            limit_concurrency=max_clients + 1,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_LAST_ANSWERS,
        )
    )


def run(app: HubApp, listener: socket.socket, *, max_clients: int = MAX_CLIENTS) -> None:
    """Serve until a signal ends it, then finish the answers under way, for a while."""
    _allow_files(2 * max_clients + _FILES)
    make_server(app, max_clients=max_clients).run(sockets=[listener])


def _allow_files(wanted: int) -> None:
    """Let this process open so many files and connections, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        # Where it may not, clients beyond the limit wait for a place.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
