"""Says whether the store holds a model, so that its files on this machine may be deleted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from casstore.errors import CasstoreError, RefNotFound

if TYPE_CHECKING:
    from casstore.cache.placements.placement import Placement
    from casstore.store.model_store import ModelStore

_log = logging.getLogger("casstore.cache")


def is_stored(store: ModelStore, placement: Placement) -> bool:
    """Say whether every object of a model is in packs that are there and not damaged, or the model was deleted.

    False for a model of another store, one that was lost: its files may be the only copy.
    """
    what = f"the model {placement.content}"
    try:
        record = store.resolve(placement.content).record
        # Invariant 9: nothing relies on a quarantined pack.
        lacking = store.objects.missing(store.objects_of(record), condemned=store.objects.quarantined())
    except RefNotFound:
        # A store never loses a ref, so its owner or a collector deleted it.
        return placement.store == store.store_id
    except (CasstoreError, OSError) as error:
        # Invariant 8: what could not be looked at does not justify deleting anything.
        _log.warning("The files of %s stay, since the store could not be asked for it: %s", what, error)
        return False
    if lacking:
        _log.warning("The files of %s stay, since the store lacks %d objects of it.", what, len(lacking))
    return not lacking
