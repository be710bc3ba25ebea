"""Checks the store's small files, and finds foreign files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.digest import is_hex
from casstore.errors import BackendError, FormatError
from casstore.format import marks, names
from casstore.format import record as record_format
from casstore.objects import PACK_PREFIX, pack_key
from casstore.ops.check.places import Place, place_of
from casstore.ops.check.report import Problem
from casstore.store.private import check_mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.backend.base import Backend
    from casstore.ops.check.report import Progress

_LARGEST_RECORD = 1 << 20

_IRREPLACEABLE = frozenset({Place.PACK, Place.RECORD, Place.QUARANTINE})


def check_marks(backend: Backend, placed: Sequence[tuple[Place, str]], progress: Progress) -> None:
    """Check the identity of a store, the mark of a private one, tombstones and notes on damaged packs."""

    def identity() -> None:
        marks.decode_format(backend.read(marks.FORMAT_KEY))

    def tombstone(key: str) -> None:
        data = backend.read(key)
        if marks.may_be_tombstone(key, data):
            marks.decode_tombstone(data, key=key)
        else:
            progress.note_foreign(key)

    def quarantine(key: str) -> None:
        marks.decode_quarantine(backend.read(key), key=key)

    def private() -> None:
        said = check_mark(backend)
        if said:
            progress.notes.append(Problem(marks.PRIVATE_KEY, said))

    progress.attempt(marks.FORMAT_KEY, identity)
    for place, key in placed:
        if place is Place.TOMBSTONE:
            progress.attempt(key, lambda key=key: tombstone(key))  # type: ignore[misc]
        elif place is Place.QUARANTINE:
            progress.attempt(key, lambda key=key: quarantine(key))  # type: ignore[misc]
        elif key == marks.PRIVATE_KEY:
            progress.attempt(key, private)


def check_foreign(backend: Backend, placed: Sequence[tuple[Place, str]], progress: Progress) -> None:
    """Note files that casstore never writes; a file of casstore's that somebody moved is a problem."""
    listed = {key for _, key in placed}
    for place, key in placed:
        if place is not Place.FOREIGN:
            continue
        belongs = _own_place(backend, key)
        if _is_in_the_way(key.rpartition("/")[0], progress):
            continue
        if belongs is not None and belongs not in listed:
            progress.problems.append(
                Problem(key, f"{key} is not in its place, so it is not found: move it to {belongs}.")
            )
        else:
            progress.note_foreign(key)

    def others() -> None:
        for path in backend.list_foreign():
            if not _is_in_the_way(path, progress):
                progress.note_foreign(path)

    progress.attempt(backend.url, others)


def _is_in_the_way(path: str, progress: Progress) -> bool:
    """Say whether a directory or a pipe has the name of a file that nothing else in the store can replace."""
    if place_of(path) not in _IRREPLACEABLE:
        return False
    message = f"{path} is no plain file: move it aside, and restore the file from another copy."
    progress.problems.append(Problem(path, message))
    return True


def _own_place(backend: Backend, key: str) -> str | None:
    """Return the key that a misplaced pack or record should have; None for what is neither."""
    if key.startswith(PACK_PREFIX):
        name = key.rpartition("/")[2]
        return pack_key(bytes.fromhex(name)) if is_hex(name) else None
    if not key.startswith(names.PREFIX):
        return None
    try:
        data = backend.read(key, length=_LARGEST_RECORD)
        return record_format.decode_anywhere(data, key=key).key
    except (FormatError, BackendError):
        return None  # Not a record, or an unreadable one, so it cannot be put back.
