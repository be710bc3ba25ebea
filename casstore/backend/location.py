"""Parses a store's URL or path. Pure: looks at text only."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from casstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_CHAINED = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*::")
_ESCAPED = re.compile(r"::|[%\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_IN_BRACKETS = re.compile(r"\[[^\]]*\]")  # an IPv6 address
# In these the part before "@" names a container, as in abfs://container@account.dfs.core.windows.net/path.
_CONTAINER_BEFORE_AT = frozenset({"abfs", "abfss", "az", "adl"})
# Protocols that fsspec lays over another place, or makes up: none keeps written files as they are, and some lead
# back to the store itself.
_NOT_STORAGE = frozenset(
    {
        "async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "cas", "data", "dir", "filecache",
        "generic", "libarchive", "reference", "simplecache", "tar", "zip",
    }
)  # fmt: skip

# Azure's clouds by name: credentials are sent to the host, so it must be one of Azure's.
_AZURE_PUBLIC = "core.windows.net"
_AZURE_HOST = re.compile(
    r"([a-z0-9]{3,24})\.(?:blob|dfs)\.(core\.(?:windows\.net|usgovcloudapi\.net|chinacloudapi\.cn))",
    re.IGNORECASE,
)
_AZURE_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_AZURE_CONTAINER = re.compile(r"\$?[a-z0-9](?:-?[a-z0-9]){1,62}")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a store is: `target` is a path, the name of a memory store, or a URL for fsspec.

    `options` are storage options that the text implies.
    """

    kind: Literal["local", "memory", "fsspec"]
    target: str
    options: Mapping[str, str] = field(default_factory=dict)


def parse_location(url_or_path: str | os.PathLike[str]) -> Location:
    """Parse a local path, the name of a memory store, or an fsspec URL.

    Raises ConfigError for URLs with user info, with a query, or chained with "::"; a secret in them is not
    repeated in the message. Raises it also for protocols that keep nothing themselves, `cas://` among them.
    """
    text = os.fspath(url_or_path)
    if not text or "\0" in text:
        raise ConfigError("A store needs a path or a URL; this one is empty or has a NUL character.")
    is_path = not isinstance(url_or_path, str) or text.startswith(("/", "."))
    if is_path or ("://" not in text and _CHAINED.match(text) is None):
        return Location("local", text)
    match = _SCHEME.match(text)
    if match is None:
        raise ConfigError(
            "This is neither a path nor a URL that can hold a store. Chained URLs ('::') cannot: name the "
            "storage itself. A path with '://' or '::' in it starts with '/' or './'."
        )
    scheme = match[1].lower()
    rest = text[match.end() :]
    if scheme in _NOT_STORAGE:
        raise ConfigError(
            f"{scheme}:// cannot hold a store"
            + (
                ": it shows what is in one. Give"
                if scheme == "cas"
                else ", it only shows another place. Give"
            )
            + " the store's own path or URL."
        )
    _refuse_secrets(scheme, rest)
    if "::" in _IN_BRACKETS.sub("", rest):
        raise ConfigError(
            f"{scheme}:// URLs that are chained ('::') cannot hold a store: name the storage itself."
        )
    if scheme in ("file", "local"):
        return Location("local", _local_path(scheme, rest))
    if scheme == "memory":
        return Location("memory", rest.strip("/"))
    if scheme == "https" and _AZURE_HOST.fullmatch(rest.split("/", 1)[0]):
        return Location("fsspec", *azure_location(text))
    return Location("fsspec", f"{scheme}://{rest}")


def file_url(path: str) -> str:
    """Return the URL of an absolute path, which `parse_location` reads back; names of any bytes have one.

    Only what it must escape is escaped, so that people recognise their folders.
    """

    def escape(match: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))

    return "file://" + _ESCAPED.sub(escape, path)


def azure_location(account_or_url: str, container: str | None = None) -> tuple[str, dict[str, str]]:
    """Return the fsspec URL and the storage options of a container of Azure Blob Storage.

    `account_or_url` is an account's name, or https://ACCOUNT.blob.core.windows.net/CONTAINER with or without
    a path below it; a `container` given beside a URL must be the one in it. Without a key among the storage
    options adlfs uses the environment and DefaultAzureCredential. Raises ConfigError for anything else.
    """
    account, suffix, path = account_or_url, _AZURE_PUBLIC, container or ""
    if "://" in account_or_url:
        host, _, below = account_or_url.partition("://")[2].partition("/")
        match = _AZURE_HOST.fullmatch(host)
        below = unquote(below).strip("/")
        if match is None or not account_or_url.lower().startswith("https://") or "?" in below:
            raise ConfigError(
                "This URL names no container of Azure Blob Storage: write "
                "https://ACCOUNT.blob.core.windows.net/CONTAINER, without a query."
            )
        if container and below and below.split("/", 1)[0] != container:
            raise ConfigError(f"The URL names another container than {container!r}: give one of them.")
        account, suffix, path = match[1].lower(), match[2].lower(), below or path
    name, _, folder = path.partition("/")
    if not _AZURE_ACCOUNT.fullmatch(account):
        raise ConfigError(
            f"{account!r} cannot be a storage account of Azure: those have 3 to 24 lower-case letters and digits."
        )
    if not 3 <= len(name) <= 63 or not _AZURE_CONTAINER.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a container of Azure Blob Storage: those have 3 to 63 lower-case letters, digits and "
            "single hyphens."
        )
    # The account is part of the URL, since this machine identifies a store by its URL.
    url = f"abfs://{name}@{account}.dfs.{suffix}" + (f"/{folder}" if folder else "")
    if suffix == _AZURE_PUBLIC:
        return url, {}
    return url, {"account_name": account, "account_host": f"{account}.blob.{suffix}"}


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
    path = unquote("/" + path, errors="surrogateescape")
    if "\0" in path:
        raise ConfigError("A store needs a path without NUL characters.")
    return path
