"""Checking the store's own small files, and finding what is not the store's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.format import marks, names
from casstore.ops.check.report import Problem
from casstore.store.keys import INDEX_PREFIX, PACK_PREFIX

if TYPE_CHECKING:
    from casstore.backend.base import Backend, Entry
    from casstore.ops.check.report import Progress

_GC_PREFIX = "gc/"


def check_others(backend: Backend, entries: list[Entry], progress: Progress) -> None:
    """Check the identity, tombstones and notes of a store, and note what does not belong to it."""
    known = (PACK_PREFIX, INDEX_PREFIX, names.PREFIX, _GC_PREFIX, marks.QUARANTINE_PREFIX)

    def identity() -> None:
        marks.decode_format(backend.read(marks.FORMAT_KEY))

    progress.attempt(marks.FORMAT_KEY, identity)
    for entry in entries:
        if entry.key.startswith(marks.TOMBSTONE_PREFIX):

            def tombstone(key: str = entry.key) -> None:
                marks.decode_tombstone(backend.read(key), key=key)

            progress.attempt(entry.key, tombstone)
        elif entry.key.startswith(marks.QUARANTINE_PREFIX):

            def quarantine(key: str = entry.key) -> None:
                marks.decode_quarantine(backend.read(key), key=key)

            progress.attempt(entry.key, quarantine)
        elif entry.key != marks.FORMAT_KEY and not entry.key.startswith(known):
            progress.problems.append(
                Problem(entry.key, f"{entry.key} does not belong to a store; move it out.")
            )
