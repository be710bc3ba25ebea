"""The `format` file, which makes a directory or bucket a store."""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Any

from casstore.backend import open_backend
from casstore.backend.base import LOCKLESS
from casstore.errors import (
    ConfigError,
    FormatError,
    ObjectExists,
    ObjectNotFound,
    StoreNotFound,
    UnsupportedVersion,
)
from casstore.format import marks, names
from casstore.objects import PACK_PREFIX

if TYPE_CHECKING:
    from casstore.backend.base import Backend


_NOT_IN_THE_WAY = frozenset(
    {
        LOCKLESS,  # left by somebody who began to make a store here
        # What systems leave at the root of a volume under names that keys may have (others are never listed).
        "aquota.group", "aquota.user", "desktop.ini", "quota.group", "quota.user", "thumbs.db",
    }
)  # fmt: skip

_NEW_FORMAT = "copy the `format` file of a new, empty store there: it holds nothing but a store's id"


def identify(backend: Backend, *, create: bool) -> marks.StoreFormat:
    """Return the identity of the store at `backend`; with `create`, make it if there is none.

    Raises StoreNotFound for a place that is no store, ConfigError for one that is to become one and holds other things.
    """
    identity = _read_format(backend) or (create_format(backend) if create else None)
    if identity is None:
        raise StoreNotFound(
            f"{backend.url} is not a casstore store. `casstore init {shlex.quote(backend.url)}` makes one in a place that is empty."
        )
    return identity


def store_exists(url_or_path: str | os.PathLike[str], **storage_options: Any) -> bool:
    """Say whether there is a store at a path or URL; nothing is made, whatever the answer.

    Raises BackendError for a place that is out of reach. A mount point whose disk is not mounted is an empty folder,
    hence no store: make one there only if the caller asked for it.
    """
    try:
        backend = open_backend(url_or_path, read_only=True, **storage_options)
    except StoreNotFound:
        return False  # Invariant 8: the file is certainly absent; an outage raises another error.
    with backend:
        return _read_format(backend) is not None


def _read_format(backend: Backend) -> marks.StoreFormat | None:
    try:
        return marks.decode_format(backend.read(marks.FORMAT_KEY))
    except ObjectNotFound:
        return None  # Not a store yet; whether that is an error is for the caller to say.
    except FormatError as error:
        # Design §12: of two stores that a command opens, the message says which.
        way_back = "" if isinstance(error, UnsupportedVersion) else f" Or {_NEW_FORMAT}."
        raise type(error)(f"{backend.url}: {error}{way_back}") from error


def create_format(backend: Backend) -> marks.StoreFormat:
    """Make an empty place a store, with an id of its own unless someone else was first."""
    there = [entry.key for entry in backend.list("") if entry.key not in _NOT_IN_THE_WAY]
    made = _read_format(backend) if there else None
    if made is not None:
        return made  # Another writer made the store before this listing, and may have filled it.
    if any(key.startswith((PACK_PREFIX, names.PREFIX)) for key in there):
        raise ConfigError(
            f"{backend.url} holds what looks like a store without its `format` file. Restore that file from another "
            f"copy, or {_NEW_FORMAT}. Give an empty directory or prefix for a new store."
        )
    if there:
        raise ConfigError(f"{backend.url} is not empty. Give an empty directory or prefix for a new store.")
    created = marks.StoreFormat(os.urandom(marks.STORE_ID_SIZE))
    # A writer that cannot lock leaves its marker before there is a store, hence before any collector: then nobody needs to wait later.
    with backend.publish_lock(), contextlib.suppress(ObjectExists):
        # Invariant 1: another writer made the store first, and it stays.
        backend.put(marks.FORMAT_KEY, [marks.encode_format(created)])
    found = _read_format(backend)
    assert found is not None
    return found
