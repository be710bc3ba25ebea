"""Classifies the keys of a store by their form alone."""

from __future__ import annotations

from enum import Enum, auto

from casstore.digest import is_hex
from casstore.errors import FormatError
from casstore.format import marks, names
from casstore.objects import INDEX_PREFIX, PACK_PREFIX, pack_id_of
from casstore.refs.keys import is_record

_GC_FILES = ("gc/lockless", "gc/probe-", marks.PRIVATE_KEY)


class Place(Enum):
    """The kinds of files in a store; casstore never writes FOREIGN ones."""

    FORMAT = auto()
    PACK = auto()
    SEGMENT = auto()
    RECORD = auto()
    TOMBSTONE = auto()
    COLLECTOR = auto()
    QUARANTINE = auto()
    FOREIGN = auto()


def place_of(key: str) -> Place:
    """Classify a key. A file among the tombstones counts as one until it is read."""
    if key == marks.FORMAT_KEY:
        return Place.FORMAT
    if key.startswith(names.PREFIX):
        return Place.RECORD if is_record(key) else Place.FOREIGN
    if key.startswith(PACK_PREFIX):
        return Place.PACK if _is_pack(key) else Place.FOREIGN
    if key.startswith(INDEX_PREFIX):
        return Place.SEGMENT if is_hex(key.removeprefix(INDEX_PREFIX)) else Place.FOREIGN
    if key.startswith(marks.TOMBSTONE_PREFIX):
        return Place.TOMBSTONE
    if key.startswith(_GC_FILES):
        return Place.COLLECTOR
    return Place.QUARANTINE if marks.is_quarantine(key) else Place.FOREIGN


def _is_pack(key: str) -> bool:
    try:
        pack_id_of(key)
    except FormatError:
        return False  # Not a pack: reported as a foreign file.
    return True
