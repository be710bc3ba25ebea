"""The `format` file: what makes a place a store."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from casstore.errors import ConfigError, FormatError, NoStore, ObjectExists, ObjectNotFound
from casstore.format import marks

if TYPE_CHECKING:
    from casstore.backend.base import Backend


def identify(backend: Backend, *, create: bool) -> marks.StoreFormat:
    """Return the identity of the store at `backend`; with `create`, make it if there is none.

    Raises ConfigError for a place that is no store, or that is to become one and holds other things.
    """
    identity = _read_format(backend) or (create_format(backend) if create else None)
    if identity is None:
        raise NoStore(f"{backend.url} is not a casstore store. `casstore init` makes one.")
    return identity


def _read_format(backend: Backend) -> marks.StoreFormat | None:
    try:
        return marks.decode_format(backend.read(marks.FORMAT_KEY))
    except ObjectNotFound:
        return None  # Not a store yet; whether that is an error is for the caller to say.
    except FormatError as error:
        # Design §12: of two stores that a command opens, the message says which.
        raise type(error)(f"{backend.url}: {error}") from error


def create_format(backend: Backend) -> marks.StoreFormat:
    """Make an empty place a store, with an id of its own unless someone else was first."""
    if next(iter(backend.list("")), None) is not None:
        raise ConfigError(f"{backend.url} holds other things. Give an empty place for a new store.")
    created = marks.StoreFormat(os.urandom(marks.STORE_ID_SIZE))
    with contextlib.suppress(ObjectExists):  # Invariant 1: who made it first made the store.
        backend.put(marks.FORMAT_KEY, [marks.encode_format(created)])
    found = _read_format(backend)
    assert found is not None
    return found
