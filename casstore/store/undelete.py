"""Undelete: a deleted ref gets its last value again, as long as no collector has freed what that needs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from casstore.errors import ConfigError, ConflictError, MissingObject, ObjectNotFound
from casstore.refs.refs import Refs, not_found
from casstore.store.resolve import find_name

if TYPE_CHECKING:
    from casstore.format.record import Record
    from casstore.store.model_store import ModelStore


def undelete(store: ModelStore, ref: str) -> Record:
    """Write the newest earlier value of a deleted ref again, and return its record once all that it needs is safe.

    `ref` may leave out `models/` or `tags/`. Raises RefNotFound if there never was such a ref, ConfigError if it is not
    deleted, MissingObject if gc has freed what it named, ConflictError if somebody writes it at the same time.
    """
    refs = Refs(store.backend, store.machine)
    name = find_name(refs, ref, deleted=True)
    records = store.history(name)
    if not records:
        raise not_found(name)
    if records[-1].target is not None:
        raise ConfigError(f"{name} is not deleted.")
    earlier = next((record for record in reversed(records) if record.target is not None), None)
    if earlier is None:
        raise MissingObject(_freed(name))
    record = _write(store, refs, earlier)
    if record.target != earlier.target:
        raise ConflictError(f"{name} was written by someone else just now, and has that value.")
    return record


def _write(store: ModelStore, refs: Refs, earlier: Record) -> Record:
    # Whatever somebody else has written meanwhile stays.
    draft = partial(refs.draft_copy, earlier, unless=lambda _: True)
    if earlier.manifest is None:
        # The record needs no pack, so there is nothing that a collector could have freed.
        with store.backend.publish_lock():
            return refs.put(draft())
    try:
        with store.objects.publication(refs.put) as publication:
            publication.require(store.objects_of(earlier))
            return publication.commit(draft, lambda _: iter(()))
    except (MissingObject, ObjectNotFound) as error:
        # Invariant 5: what no pack holds does not exist, whatever this process remembers of it.
        raise MissingObject(_freed(earlier.name)) from error


def _freed(name: str) -> str:
    return f"{name} cannot be undeleted: gc has freed what it named already. Add it again from its files."
