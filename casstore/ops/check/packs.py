"""Checks every pack of a store."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from casstore.concurrency.workers import TaskGroup
from casstore.errors import FormatError, IntegrityError, MissingObject, ObjectNotFound, UnsupportedVersion
from casstore.format import marks
from casstore.objects import pack_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fsspec import Callback

    from casstore.backend.base import Entry
    from casstore.objects import Footer
    from casstore.ops.check.reading import Reading
    from casstore.ops.check.report import Progress
    from casstore.store.model_store import ModelStore

_DAMAGED = (
    "Restore it from another copy, or run `casstore repair`. Without another copy, run `casstore quarantine REF` for each "
    "model that is in it, then add the model again."
)
_APART = "It is quarantined by {note}, and nothing new relies on it. Once this check names no ref, `casstore gc` removes it."


def check_packs(
    store: ModelStore,
    packs: list[Entry],
    progress: Progress,
    *,
    reading: Reading,
    pace: Callable[[int], None],
    callback: Callback | None,
) -> dict[bytes, Footer]:
    """Check every pack, and read those that are chosen; return the footers of those that are whole.

    `pace` is told how many bytes are read next, and may wait; `callback` counts the bytes of packs that are done.
    """
    footers: dict[bytes, Footer] = {}
    apart = store.objects.quarantined()

    def one(entry: Entry) -> Footer:
        pack_id = pack_id_of(entry.key)
        if pack_id not in reading.chosen:
            return _check(store, entry, apart, read_data=False, pace=pace)
        try:
            footer = _check(store, entry, apart, read_data=True, pace=pace)
        except IntegrityError:
            # Invariant 8: raised for the report; it only must not be taken for a pack that was found good.
            reading.note(pack_id, good=False)
            raise
        reading.note(pack_id, good=True)
        return footer

    with TaskGroup() as tasks:
        for entry, task in [(entry, tasks.submit(one, entry)) for entry in packs]:
            progress.packs += 1

            def take(entry: Entry = entry, footer: Callable[[], Footer] = task.result) -> None:
                # Invariant 5: a pack that went since the listing does not exist; a model that lacks it is named.
                with contextlib.suppress(ObjectNotFound), _unless_it_went(store, entry):
                    footers[pack_id_of(entry.key)] = footer()
                    progress.frames += len(footers[pack_id_of(entry.key)].rows)

            progress.attempt(entry.key, take, apart=pack_id_of(entry.key) in apart)
            chosen = pack_id_of(entry.key) in reading.chosen
            progress.bytes_read += entry.size if chosen else 0
            if callback is not None and (chosen or not reading.chosen):
                callback.relative_update(entry.size)
    return footers


@contextlib.contextmanager
def _unless_it_went(store: ModelStore, entry: Entry) -> Iterator[None]:
    """Raise ObjectNotFound where a pack went while its frames were read: then its objects are elsewhere, or not needed."""
    try:
        yield
    except MissingObject:
        store.backend.stat(entry.key)
        raise


def _check(
    store: ModelStore, entry: Entry, apart: frozenset[bytes], *, read_data: bool, pace: Callable[[int], None]
) -> Footer:
    """Check one pack; the error for a damaged one says what to do."""
    pack_id = pack_id_of(entry.key)
    try:
        if read_data:
            return store.objects.read_whole(pack_id, size=entry.size, pace=pace)
        return store.objects.check_pack(pack_id, size=entry.size)
    except UnsupportedVersion:
        raise
    except FormatError as error:
        advice = _APART.format(note=marks.quarantine_key(pack_id)) if pack_id in apart else _DAMAGED
        raise FormatError(f"{error} {advice}") from error
