"""Finds leftovers of interrupted and deleted work in a store: harmless, but they take space until a collector removes them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.errors import FormatError, IntegrityError
from casstore.objects.keys import PACK_PREFIX, pack_id_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casstore.format.record import Record
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
    """Find leftovers. Quick if there are none; else it reads the layouts of all models.

    Raises BackendError if the store cannot be listed.
    """
    temporaries = [entry.size for entry in store.backend.list_temporaries()]
    # In the order of writing (invariant 3): a record that appears meanwhile is seen, and its packs with it.
    unused: dict[bytes, int] = {}
    for entry in store.backend.list(PACK_PREFIX):
        try:
            unused[pack_id_of(entry.key)] = entry.size
        except FormatError:  # noqa: PERF203  # one string comparison each: the handler costs nothing beside it
            continue  # Not a pack; check reports it.
    complete = True
    try:
        _take_used(store, store.refs(strict=True).values(), unused)
    except IntegrityError as error:
        # Invariant 8: no pack counts as unused while anything that may need it cannot be read.
        _log.debug("Leftovers are not known: %s", error)
        complete, unused = False, {}
    return Leftovers(len(temporaries), sum(temporaries), len(unused), sum(unused.values()), complete)


def _take_used(store: ModelStore, records: Iterable[Record], unused: dict[bytes, int]) -> None:
    """Remove from `unused` every pack that a record needs, by its own hints or by its objects."""
    listed = list(records)
    for record in listed:
        for pack in record.packs:
            unused.pop(pack, None)
    done: set[bytes] = set()
    for record in listed:
        if not unused:
            return
        if record.manifest is not None and record.manifest not in done:
            done.add(record.manifest)
            located = store.index.locate(store.objects_of(record))  # with the bases of deltas (invariant 7)
            for number in set(located.rows["pack"][located.found].tolist()):
                unused.pop(store.index.pack_id(number), None)
