"""Checks every pack of a store."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from casstore.concurrency.workers import TaskGroup
from casstore.errors import FormatError, MissingObject, ObjectNotFound, UnsupportedVersion
from casstore.format import marks
from casstore.objects import pack_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fsspec import Callback

    from casstore.backend.base import Entry
    from casstore.objects import Footer
    from casstore.ops.check.report import Progress
    from casstore.store.model_store import ModelStore

_DAMAGED = (
    "Restore it from another copy; or run `casstore quarantine REF` for each model that is in it, then add the model "
    "again, or push it here with --overwrite from a store that has it."
)
_APART = "It is set apart, and nothing new relies on it. Once this check names no model, move it and {note} out of the store."


def check_packs(
    store: ModelStore, packs: list[Entry], progress: Progress, *, read_data: bool, callback: Callback | None
) -> dict[bytes, Footer]:
    """Check every pack; return the footers of those that are whole."""
    footers: dict[bytes, Footer] = {}
    apart = store.objects.quarantined()

    def one(entry: Entry) -> Footer:
        pack_id = pack_id_of(entry.key)
        try:
            footer = store.objects.check_pack(pack_id, size=entry.size, read_data=read_data)
        except UnsupportedVersion:
            raise
        except FormatError as error:
            advice = _APART.format(note=marks.quarantine_key(pack_id)) if pack_id in apart else _DAMAGED
            raise FormatError(f"{error} {advice}") from error
        if read_data:
            store.objects.verify(store.objects.located_in(pack_id, footer), range(len(footer.rows)))
        return footer

    with TaskGroup() as tasks:
        for entry, task in [(entry, tasks.submit(one, entry)) for entry in packs]:
            progress.packs += 1

            def take(entry: Entry = entry, footer: Callable[[], Footer] = task.result) -> None:
                # Invariant 5: a pack that went since the listing does not exist; a model that lacks it is named.
                with contextlib.suppress(ObjectNotFound), _unless_it_went(store, entry):
                    footers[pack_id_of(entry.key)] = footer()
                    progress.frames += len(footers[pack_id_of(entry.key)].rows)

            progress.attempt(entry.key, take)
            progress.bytes_read += entry.size if read_data else 0
            if callback is not None:
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
