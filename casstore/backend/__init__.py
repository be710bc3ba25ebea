"""Where a store's bytes live: a local directory, memory, or any fsspec file system.

README.md gives the rules that every backend keeps, with their reasons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from casstore.backend.base import Backend, BlobWriter, Durability, Entry, validate_key
from casstore.backend.local.backend import LocalBackend
from casstore.backend.location import parse_location
from casstore.backend.memory import MemoryBackend
from casstore.backend.retry import RetryingBackend, RetryPolicy, retry
from casstore.backend.wrapper import BackendWrapper, ReadonlyBackend
from casstore.errors import ConfigError

if TYPE_CHECKING:
    import os

__all__ = [
    "Backend",
    "BackendWrapper",
    "BlobWriter",
    "Durability",
    "Entry",
    "LocalBackend",
    "MemoryBackend",
    "ReadonlyBackend",
    "RetryPolicy",
    "RetryingBackend",
    "open_backend",
    "validate_key",
]

OPENING = RetryPolicy(deadline=10)
"""Shorter than for what follows, because the user is waiting and may have mistyped the host."""


def open_backend(
    url_or_path: str | os.PathLike[str],
    *,
    create: bool = False,
    read_only: bool = False,
    durability: Durability = "full",
    shared: Literal["group"] | None = None,
    opening: RetryPolicy | None = None,
    **storage_options: Any,
) -> Backend:
    """Open the backend that a path or URL names.

    A path or file:// is a local directory; memory://NAME is this process's store of that name; any other URL
    goes to fsspec with `storage_options`, wrapped so that throttling and outages are retried. The https:// URL
    of a container of Azure Blob Storage means that container; any other web server is read-only. `create` makes
    what is missing; `read_only` refuses every write and makes nothing. `durability` and `shared` matter to
    local directories only. `opening` is how long a storage that has not answered yet is tried, by default OPENING. Raises ConfigError for what cannot be opened as given.
    """
    if durability not in ("full", "none"):
        raise ConfigError(f"durability is {durability!r}: use 'full', or 'none' for a throw-away store.")
    if "readonly" in storage_options:
        # fsspec would ignore it, and the store would be open for writing.
        raise ConfigError("There is no option readonly: use read_only=True.")
    if shared not in (None, "group"):
        raise ConfigError(f"shared is {shared!r}: use None or 'group'.")
    if read_only and create:
        raise ConfigError(
            "A store cannot be made with read_only=True: make it first, then open it read-only."
        )
    location = parse_location(url_or_path)
    if storage_options and location.kind != "fsspec":
        names = ", ".join(sorted(storage_options))
        raise ConfigError(f"Storage options ({names}) are for fsspec URLs; a {location.kind} store has none.")
    backend: Backend
    if location.kind == "local":
        backend = LocalBackend(location.target, create=create, durability=durability, shared=shared)
    elif location.kind == "memory":
        backend = MemoryBackend(location.target)
    else:
        # fsspec costs tens of milliseconds to import, its client libraries more: `import casstore` and
        # stores on this machine do not need them.
        from casstore.backend.fsspec.backend import FsspecBackend  # noqa: PLC0415
        from casstore.backend.fsspec.drivers import driver_for  # noqa: PLC0415

        if driver_for(location.target.partition("://")[0]).is_read_only and not read_only:
            raise ConfigError(f"{location.target} can only be read from: open it with read_only=True.")
        options = {**location.options, **storage_options}
        patience = opening or OPENING
        backend = RetryingBackend(
            retry(lambda: FsspecBackend(location.target, create=create, storage_options=options), patience),
            opening=patience,
        )
    return ReadonlyBackend(backend) if read_only else backend
