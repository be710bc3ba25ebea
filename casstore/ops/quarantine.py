"""Finding which packs a model cannot be read from, and setting them apart so that it can be stored anew."""

from __future__ import annotations

import contextlib
import time
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from casstore.errors import IntegrityError, ObjectExists, UnsupportedVersion
from casstore.format import marks
from casstore.store.buffers import new_buffer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casstore.format.record import Record
    from casstore.store.index import Located
    from casstore.store.store import Store

_BATCH_BYTES = 8 << 20


def quarantine_damaged(store: Store, record: Record) -> dict[str, str]:
    """Read everything that a record depends on; leave a note on each damaged pack; return why, by pack id.

    Packs with a note stay, and what is whole in them is still read, but nothing new relies on them: adding
    the model again writes what they hold into fresh packs. Raises BackendError if the store cannot be read
    or written.
    """
    found: dict[bytes, str] = {}
    try:
        ids = store.objects_of(record)
    except IntegrityError:
        # Invariant 4: the description itself is damaged, so it is all that can be looked at.
        ids = [record.manifest] if record.manifest is not None else []
        ids += [record.target] if record.target is not None else []
    located = store.index.locate(ids)
    for number, positions in _by_pack(located):
        pack = store.index.pack_id(number)
        for group in _batches(located, positions):
            edges = [0, *accumulate(int(located.rows["raw"][at]) for at in group)]
            try:
                store.objects.fill(located, group, new_buffer(edges[-1]), edges, elsewhere=False)
            except UnsupportedVersion:
                break  # Written by a newer casstore: no damage (design §3).
            except IntegrityError as error:
                # Invariant 9: what does not verify is set apart, never copied or relied on.
                found[pack] = str(error)
                break
    for pack, reason in found.items():
        note = marks.Quarantine(pack, reason, time.time_ns())
        store.index.avoid_pack(store.index.number_of(pack))
        # Invariant 1: someone may have found it before us, and nothing is overwritten.
        with contextlib.suppress(ObjectExists):
            store.backend.put(marks.quarantine_key(pack), [marks.encode_quarantine(note)])
    return {pack.hex(): reason for pack, reason in found.items()}


def _by_pack(located: Located) -> Iterator[tuple[int, list[int]]]:
    present = np.flatnonzero(located.found)
    packs = located.rows["pack"][present]
    for number in np.unique(packs).tolist():
        yield number, present[packs == number].tolist()


def _batches(located: Located, positions: Sequence[int]) -> Iterator[list[int]]:
    group: list[int] = []
    size = 0
    for at in positions:
        raw = int(located.rows["raw"][at])
        if group and size + raw > _BATCH_BYTES:
            yield group
            group, size = [], 0
        group.append(at)
        size += raw
    if group:
        yield group
