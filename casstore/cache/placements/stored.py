"""Says whether the store holds a model, so that its files on this machine may be deleted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from casstore.errors import CasstoreError, RefNotFound

if TYPE_CHECKING:
    from casstore.cache.placements.placement import Placement
    from casstore.format.record import Record
    from casstore.store.model_store import ModelStore

_log = logging.getLogger("casstore.cache")


def is_stored(store: ModelStore, placement: Placement) -> bool:
    """Say whether every object of a model is in packs that are there and not damaged, or the model was deleted.

    Files of a model that nothing names, although nobody deleted it, may be the only copy: False.
    """
    name = f"models/{placement.name}"
    try:
        record = _record(store, name, placement.content)
        if record is None:
            # Its deletion is what its owner wanted; a store that was lost has no record of one.
            history = store.history(name) if placement.name else []
            return bool(history) and history[-1].target is None
        ids = store.objects_of(record)
        # Invariant 9: nothing relies on a quarantined pack.
        lacking = store.objects.missing(ids, condemned=store.objects.quarantined())
    except (CasstoreError, OSError) as error:
        # Invariant 8: what could not be looked at does not justify deleting anything.
        _log.warning("The files of %s stay, since the store could not be asked for it: %s", name, error)
        return False
    if lacking:
        _log.warning("The files of %s stay, since the store lacks %d objects of it.", name, len(lacking))
    return not lacking


def _record(store: ModelStore, name: str, content: str) -> Record | None:
    """Return a record that names this content: the ref's own, else that of any other ref."""
    record = store.record(name)
    if record is not None and record.target == bytes.fromhex(content):
        return record
    try:
        return store.resolve(content).record
    except RefNotFound:
        return None
