"""Checks what refs need, beside collectors: packs that they delete and objects that they move are no damage."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from casstore.errors import FormatError, ObjectNotFound
from casstore.machine.state import MachineState
from casstore.objects import PACK_PREFIX, pack_id_of
from casstore.ops.check.records import check_models, place_of_ref
from casstore.refs.refs import Refs

if TYPE_CHECKING:
    from collections.abc import Collection

    from casstore.backend.base import Entry
    from casstore.format.record import Record
    from casstore.objects import Footer
    from casstore.ops.check.report import Progress
    from casstore.store.model_store import ModelStore

_LOOKS = 10


def check_what_refs_need(
    store: ModelStore,
    records: dict[str, list[Record]],
    packs: Collection[Entry],
    footers: dict[bytes, Footer],
    progress: Progress,
) -> None:
    """Check that every model is whole in the `packs` that were listed after `records` were read.

    Those that are not are looked at again if packs came or went since, or their refs changed: `footers` are brought up to
    date.
    """
    first = len(progress.problems)
    check_models(store, records, footers, progress)
    listed, models = {pack_id_of(entry.key) for entry in packs}, progress.models
    for _ in range(_LOOKS):
        lacking = {problem.key for problem in progress.problems[first:]}
        if not lacking:
            break
        # In the reverse order of writing (invariant 3).
        current = {name: _current(store, name) for name in records if place_of_ref(name) in lacking}
        before, listed = listed, _update(store, footers, listed)
        if listed == before and all(_same(records[name], heads) for name, heads in current.items()):
            break
        records = current
        del progress.problems[first:]
        check_models(store, records, footers, progress)
    progress.models = models


def _current(store: ModelStore, name: str) -> list[Record]:
    """Return the newest records of a ref that name objects in packs."""
    heads = Refs(store.backend, MachineState(None)).heads(name).records
    return [record for record in heads if record.target is not None and record.inline is None]


def _same(one: list[Record], other: list[Record]) -> bool:
    return {record.write_id for record in one} == {record.write_id for record in other}


def _update(store: ModelStore, footers: dict[bytes, Footer], listed: set[bytes]) -> set[bytes]:
    """Read the footers of packs that came since, and drop those of packs that went; return what is listed now."""
    found = _list(store)
    for pack, size in found.items():
        if pack not in listed:
            # Invariant 5: a pack that went since the listing does not exist. A damaged one is reported by the next check,
            # and by this one if a model needs it.
            with contextlib.suppress(ObjectNotFound, FormatError):
                footers[pack] = store.objects.check_pack(pack, size=size)
    for pack in footers.keys() - found.keys():
        del footers[pack]
    return set(found)


def _list(store: ModelStore) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for entry in store.backend.list(PACK_PREFIX):
        with contextlib.suppress(FormatError):  # Not a pack: it is reported as foreign.
            found[pack_id_of(entry.key)] = entry.size
    return found
