"""Finds leftovers of interrupted and deleted work in a store: harmless, but they take space until a collector removes them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import IntegrityError
from casstore.ops.holdings import survey

if TYPE_CHECKING:
    from casstore.ops.holdings import Holdings
    from casstore.store.model_store import ModelStore

_log = logging.getLogger("casstore")


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Temporary files of writers, and packs that no ref needs: how many, and their bytes.

    Work that is in progress has both, too. Unless `complete`, something that cannot be read hides what is needed,
    and then no pack is counted.
    """

    temporaries: int
    bytes_temporaries: int
    packs: int
    bytes_packs: int
    complete: bool = True

    def __bool__(self) -> bool:
        return bool(self.temporaries or self.packs)


def find_leftovers(store: ModelStore) -> Leftovers:
    """Find leftovers; reads what describes all models. Raises BackendError if the store cannot be listed."""
    try:
        return leftovers_in(store, survey(store, strict=True))
    except IntegrityError as error:
        # Invariant 8: no pack counts as unused while anything that may need it cannot be read.
        _log.debug("Leftovers are not known: %s", error)
        return leftovers_in(store, None)


def leftovers_in(store: ModelStore, holdings: Holdings | None) -> Leftovers:
    """Return the leftovers of a store whose refs hold this; None if that is not known."""
    temporaries = [entry.size for entry in store.backend.list_temporaries()]
    complete = holdings is not None and holdings.is_complete
    unneeded = holdings.unneeded_packs() if holdings is not None and complete else []
    sizes = [holdings.packs.size(number) for number in unneeded] if holdings is not None else []
    return Leftovers(len(temporaries), sum(temporaries), len(sizes), sum(sizes), complete)
