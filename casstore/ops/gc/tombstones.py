"""Tombstones: what collectors mean to delete. Nobody may rely again on a pack that one names (design §8)."""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casstore.concurrency.fan_out import ask_all
from casstore.errors import BackendUnavailable, ObjectNotFound
from casstore.format import marks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casstore.backend.base import Backend, Entry


@dataclass(frozen=True, slots=True)
class ListedTombstone:
    """A tombstone: its key, its size, when it was written by the storage's clock, and the packs that it names."""

    key: str
    size: int
    written: float
    packs: frozenset[bytes]


def write_tombstone(backend: Backend, packs: Iterable[bytes]) -> str:
    """Condemn packs for good; return the tombstone's key."""
    key = f"{marks.TOMBSTONE_PREFIX}{uuid.uuid4()}"
    backend.put(key, [marks.encode_tombstone(marks.Tombstone(tuple(sorted(packs)), time.time_ns()))])
    return key


def list_tombstones(backend: Backend, *, own: Sequence[str] = ()) -> list[ListedTombstone]:
    """Read all tombstones; any that cannot be read is an error (invariant 8), and so is a listing without our `own`."""

    def one(entry: Entry) -> ListedTombstone | None:
        try:
            data = backend.read(entry.key)
        except ObjectNotFound:
            return None  # Another collector has finished with it: every pack that it named is gone.
        if not marks.may_be_tombstone(entry.key, data):
            return None
        packs = frozenset(marks.decode_tombstone(data, key=entry.key).packs)
        # A storage without a clock cannot show that a tombstone is old.
        written = math.inf if math.isnan(entry.modified) else entry.modified
        return ListedTombstone(entry.key, entry.size, written, packs)

    entries = list(backend.list(marks.TOMBSTONE_PREFIX))
    unseen = set(own) - {entry.key for entry in entries}
    if unseen:
        raise BackendUnavailable(
            f"{backend.url} does not list {min(unseen)}, which was just written. Nothing was deleted: try again later."
        )
    return [item for item in ask_all(one, entries, at_once=backend.is_remote) if item is not None]
