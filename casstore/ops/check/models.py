"""Checks what refs need, beside collectors: packs that they delete and objects that they move are no damage."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

from casstore.errors import FormatError, ObjectNotFound
from casstore.objects import PACK_PREFIX, pack_id_of
from casstore.ops.check.records import check_models, check_records
from casstore.ops.check.report import Progress

if TYPE_CHECKING:
    from collections.abc import Collection

    from casstore.backend.base import Entry
    from casstore.format.record import Record
    from casstore.objects import Footer
    from casstore.store.model_store import ModelStore

_LOOKS = 5


def check_what_refs_need(
    store: ModelStore,
    records: dict[str, list[Record]],
    packs: Collection[Entry],
    footers: dict[bytes, Footer],
    progress: Progress,
) -> None:
    """Check that every model is whole in the `packs` that were listed after `records` were read.

    If something is missing and packs came or went since, look again: `footers` are brought up to date.
    """
    listed = {pack_id_of(entry.key) for entry in packs}
    for look in itertools.count(1):
        problems, models = len(progress.problems), progress.models
        check_models(store, records, footers, progress)
        if len(progress.problems) == problems or look == _LOOKS or _list(store).keys() == listed:
            return
        del progress.problems[problems:]
        progress.models = models
        # In the reverse order of writing (invariant 3); what is wrong with records was reported before.
        records = check_records(store.backend, Progress())
        found = _list(store)
        for pack, size in found.items():
            if pack not in listed:
                # Invariant 5: a pack that went since the listing does not exist; a damaged one is reported by the next check,
                # and here if a model needs it.
                with contextlib.suppress(ObjectNotFound, FormatError):
                    footers[pack] = store.objects.check_pack(pack, size=size)
        for pack in footers.keys() - found.keys():
            del footers[pack]
        listed = set(found)


def _list(store: ModelStore) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for entry in store.backend.list(PACK_PREFIX):
        with contextlib.suppress(FormatError):  # Not a pack: it is reported as foreign.
            found[pack_id_of(entry.key)] = entry.size
    return found
