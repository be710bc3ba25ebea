"""Which packs are there, with their full size, in as few round trips as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.concurrency.fan_out import ASKERS, ask_all
from casstore.errors import FormatError, ObjectNotFound
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.keys import PACK_PREFIX, pack_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casstore.backend.base import Backend
    from casstore.objects.index.index import Index, Located

_PAGE = 1000
"""Names that one request of a listing returns, where a listing spans all folders."""

_FOLDERS = 256
"""Folders of packs, each of which is a request where a listing goes folder by folder."""


def has_pack(backend: Backend, index: Index, pack_id: bytes) -> bool:
    """Say whether a pack is there with exactly the size that the index states; a truncated one counts as absent."""
    size = index.pack_size(index.number_of(pack_id))
    if size is None:
        return False  # Invariant 5: neither a segment nor its own footer says what size it must have.
    try:
        with bad_file_is_damage(backend):
            return backend.stat(pack_key(pack_id)).size == size
    except (ObjectNotFound, FormatError):
        return False  # Invariant 5: an entry whose pack is gone does not exist.


def have_packs(backend: Backend, index: Index, packs: Sequence[bytes]) -> list[bool]:
    """Say of each pack whether it is there, as `has_pack` does, by one listing where that is cheaper."""
    if not backend.is_remote:
        return [has_pack(backend, index, pack) for pack in packs]
    if not _is_listing_cheaper(len(packs), index.pack_count, flat=backend.lists_flat):
        return ask_all(lambda pack: has_pack(backend, index, pack), packs)
    listed = {entry.key: entry.size for entry in backend.list(PACK_PREFIX)}
    return [_is_whole(index, pack, listed.get(pack_key(pack))) for pack in packs]


class PresentPacks:
    """Says of packs, by number, whether they are there and not `condemned`; each is asked for once."""

    def __init__(self, backend: Backend, index: Index, *, condemned: frozenset[bytes] = frozenset()) -> None:
        self._backend = backend
        self._index = index
        self._condemned = condemned
        self._there: dict[int, bool] = {}

    def locate(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find frames in packs that can be relied on, asking for all packs in question at once if the store is far."""
        if self._backend.is_remote:
            located = self._index.locate(ids)
            self._ask(sorted(set(located.rows["pack"][located.found].tolist()) - self._there.keys()))
        return self._index.locate(ids, usable=self._counts)

    def _counts(self, number: int) -> bool:
        if number not in self._there:
            self._ask([number])
        return self._there[number]

    def _ask(self, numbers: list[int]) -> None:
        packs = [self._index.pack_id(number) for number in numbers]
        there = have_packs(self._backend, self._index, packs)
        for number, pack, found in zip(numbers, packs, there, strict=True):
            self._there[number] = found and pack not in self._condemned


def _is_whole(index: Index, pack_id: bytes, listed: int | None) -> bool:
    return listed is not None and listed == index.pack_size(index.number_of(pack_id))


def _is_listing_cheaper(asked: int, known: int, *, flat: bool) -> bool:
    """Compare round trips: single requests go out many at once, the pages of a listing one after the other."""
    return asked / ASKERS > known / _PAGE + (1 if flat else _FOLDERS)
