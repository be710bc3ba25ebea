"""Who may ask: the Host header, and the token, if the server was started with one."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.digest import digest
from casstore.errors import ConfigError
from casstore.integrations.hub.errors import HubError

if TYPE_CHECKING:
    import os

    from starlette.datastructures import Headers

__all__ = ["AccessRules", "read_tokens"]

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_SHORTEST = 16
_REALM = 'Basic realm="casstore", charset="UTF-8"'


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What a request must bring: a Host that is this server, and one of the tokens, if there are any.

    A web page of somebody else can point a name of theirs at 127.0.0.1, and would then read what a browser there can
    read. Its name is in the Host header, so other names than the server's own are refused. A number cannot be pointed
    elsewhere: with `any_number`, every IP address is accepted. Of tokens only their BLAKE3 is kept.
    """

    names: frozenset[str] = frozenset()
    any_number: bool = False
    tokens: tuple[bytes, ...] = ()

    def check_host(self, headers: Headers) -> None:
        """Raise HubError unless a request is meant for this server."""
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else ""
        if name in _LOCAL_NAMES or name in self.names or (self.any_number and _is_number(name)):
            return
        raise HubError(
            421, f"This server does not go by the name {name!r}: start it with --allow-host to let it."
        )

    def check_token(self, headers: Headers) -> bool:
        """Say whether a request brought a token; raise HubError if it had to, and brought none or another.

        A browser sends it as the password of any user. Every token is compared, each in constant time.
        """
        if not self.tokens:
            return False
        given = _credentials(headers.get("authorization", ""))
        if given is None:
            # As the Hub answers those whom it does not know: clients then say that a token may be missing.
            raise HubError(
                401,
                "This server asks for a token.",
                code="RepoNotFound",
                headers={"WWW-Authenticate": _REALM},
            )
        matches = [hmac.compare_digest(digest(given), token) for token in self.tokens]
        if not any(matches):
            raise HubError(
                401,
                "Invalid credentials in Authorization header",
                headers={"WWW-Authenticate": _REALM},
            )
        return True

    def caller(self, headers: Headers) -> str | None:
        """Return the token that a caller brought for another hub; none where this server asks for tokens of its own."""
        header = headers.get("authorization", "")
        return None if self.tokens or not header.lower().startswith("bearer ") else header[7:].strip() or None


def read_tokens(path: str | os.PathLike[str]) -> tuple[bytes, ...]:
    """Return the BLAKE3 of each token in a file, one on a line; empty lines and those that begin with # do not count.

    Raises ConfigError for a file without any, for a token that is short enough to be guessed, and OSError.
    """
    with open(path, "rb") as file:
        lines = [line.strip() for line in file.read(1 << 20).splitlines()]
    tokens = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not tokens:
        raise ConfigError(f"{path} has no token: write one on a line, of {_SHORTEST} characters or more.")
    if any(len(token) < _SHORTEST for token in tokens):
        raise ConfigError(f"A token in {path} has fewer than {_SHORTEST} characters, and could be guessed.")
    return tuple(digest(token) for token in tokens)


def _credentials(header: str) -> bytes | None:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return None  # Not a token: it is answered like a request without one.
    return None


def _host_name(host: str) -> str:
    """Return the name or number in a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False  # A name, which somebody may point anywhere.
    return True
