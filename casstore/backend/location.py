"""What kind of place a store's URL or path names. Pure: looks at text only."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from casstore.errors import ConfigError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_IN_BRACKETS = re.compile(r"\[[^\]]*\]")  # an IPv6 address
# In these the part before "@" names a container, as in abfs://container@account.dfs.core.windows.net/path.
_CONTAINER_BEFORE_AT = frozenset({"abfs", "abfss", "az", "adl"})


@dataclass(frozen=True, slots=True)
class Location:
    """Where a store is: `target` is a path, the name of a memory store, or a URL for fsspec."""

    kind: Literal["local", "memory", "fsspec"]
    target: str


def parse_location(url_or_path: str | os.PathLike[str]) -> Location:
    """Tell local paths, memory stores and fsspec URLs apart.

    Raises ConfigError for URLs with user info, with a query, or chained with "::"; a secret in them is not
    repeated in the message.
    """
    text = os.fspath(url_or_path)
    if not text or "\0" in text:
        raise ConfigError("A store needs a path or a URL; this one is empty or has a NUL character.")
    if not isinstance(url_or_path, str) or "://" not in text or text.startswith(("/", ".")):
        return Location("local", text)
    match = _SCHEME.match(text)
    if match is None:
        raise ConfigError(
            "This is neither a path nor a URL that can hold a store. Chained URLs ('::') cannot: name the "
            "storage itself. A path with '://' in it starts with '/' or './'."
        )
    scheme = match[1].lower()
    rest = text[match.end() :]
    _refuse_secrets(scheme, rest)
    if "::" in _IN_BRACKETS.sub("", rest):
        raise ConfigError(
            f"{scheme}:// URLs that are chained ('::') cannot hold a store: name the storage itself."
        )
    if scheme in ("file", "local"):
        return Location("local", _local_path(scheme, rest))
    if scheme == "memory":
        return Location("memory", rest.strip("/"))
    return Location("fsspec", f"{scheme}://{rest}")


def _refuse_secrets(scheme: str, rest: str) -> None:
    host = rest.split("/", 1)[0]
    user, at, _ = host.rpartition("@")
    port = host.rpartition(":")[2] if not at and ":" in host and not host.endswith("]") else ""
    # A secret key may hold a slash, which ends the host early and leaves "user:se" behind.
    hidden = "@" in rest and bool(port) and not port.isdigit()
    if hidden or (at and (":" in user or scheme not in _CONTAINER_BEFORE_AT)):
        raise ConfigError(
            f"This {scheme}:// URL has a user name or a secret in it, which would end up in logs and shell "
            "histories. Leave it out: use the service's own credentials file or environment variables, or "
            "pass storage options."
        )
    if "?" in rest and scheme not in ("file", "local"):
        raise ConfigError(
            f"This {scheme}:// URL has a query ('?…'), which may carry a token. Leave it out and pass storage "
            "options instead."
        )


def _local_path(scheme: str, rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ConfigError(
            f"{scheme}://{rest} is not a local path: write {scheme}:///absolute/path, with three slashes."
        )
    path = unquote("/" + path)
    if "\0" in path:
        raise ConfigError("A store needs a path without NUL characters.")
    return path
