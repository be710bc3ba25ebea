"""Which of the keys below `refs/` are records, and which of these are a ref's newest."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casstore.errors import FormatError
from casstore.format import names

if TYPE_CHECKING:
    from collections.abc import Iterable

_SEQ_DIGITS = 16
_TAIL = re.compile(f"[0-9a-f]{{{_SEQ_DIGITS}}}(?:\\.[0-9a-f]{{{2 * names.WRITE_ID_SIZE}}})?")
_FOLDER = re.compile(f"{names.PREFIX}(?:{'|'.join(names.NAMESPACES)})/[0-9a-f]{{2}}/")


def folder_of(key: str) -> str | None:
    """Return the folder of records that a key lies in, however deep; None where records never are."""
    match = _FOLDER.match(key)
    return match[0] if match else None


def is_unique(key: str) -> bool:
    """Say whether a record's key names one write for good; a tag's key can recur once the record was trimmed or lost."""
    return key[-_SEQ_DIGITS - 1 : -_SEQ_DIGITS] != "@"


def is_record(key: str) -> bool:
    """Say whether a record can have this key: other programs leave files in a store's folders, too."""
    try:
        names.parse_key(key)
    except FormatError:
        return False  # Not a record, whatever is in it: `check` reports it.
    return True


def records_by_ref(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of the records of each ref, by their common prefix; other keys are left out."""
    found: dict[str, list[str]] = {}
    foreign: set[str] = set()
    for key in keys:
        place, _, tail = key.rpartition("@")
        if _TAIL.fullmatch(tail) is None:
            continue
        known = found.get(place)
        if known is not None:
            known.append(key)
        elif place not in foreign:
            if is_record(key):
                found[place] = [key]
            else:
                foreign.add(place)
    return found


def newest_of(keys: list[str]) -> list[str]:
    """Return those of one ref's keys that have the highest number."""
    if len(keys) == 1:
        return keys
    highest = max(map(number_of, keys))
    return [key for key in keys if number_of(key) == highest]


def newest_keys(keys: Iterable[str]) -> list[list[str]]:
    """Return the keys with the highest number of each ref."""
    return [newest_of(group) for group in records_by_ref(keys).values()]


def number_of(key: str) -> int:
    """Return the number in a record's key."""
    tail = key.rpartition("@")[2]
    return int(tail[:_SEQ_DIGITS], 16)


def write_id_of(key: str) -> str:
    """Return the write id in the key of a record that is not exclusive."""
    return key[-2 * names.WRITE_ID_SIZE :]
