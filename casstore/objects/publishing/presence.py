"""Which packs can be relied on: those that are there with their full size and that nobody has condemned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.concurrency.fan_out import ASKERS, ask_all
from casstore.errors import FormatError, ObjectNotFound
from casstore.format import marks
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.keys import PACK_PREFIX, pack_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from casstore.backend.base import Backend
    from casstore.objects.index.index import Index
    from casstore.objects.index.located import Located

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
    if not _is_listing_cheaper(len(packs), len(index.packs), flat=backend.lists_flat):
        return ask_all(lambda pack: has_pack(backend, index, pack), packs)
    listed = {entry.key: entry.size for entry in backend.list(PACK_PREFIX)}
    return [_is_whole(index, pack, listed.get(pack_key(pack))) for pack in packs]


class PresentPacks:
    """Finds objects in packs that are there and not condemned. Each pack is asked for once, until `forget`.

    `condemned` judges packs by their number.
    """

    def __init__(self, backend: Backend, index: Index, *, condemned: Callable[[int], bool]) -> None:
        self._backend = backend
        self._index = index
        self._condemned = condemned
        self._usable: dict[int, bool] = {}

    def locate(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find objects in packs that can be relied on; all packs in question are asked for at once if the store is far."""
        if self._backend.is_remote:
            located = self._index.locate(ids)
            self.ask(set(located.rows["pack"][located.found].tolist()) - self._usable.keys())
        return self._index.locate(ids, usable=self.is_usable)

    def is_usable(self, number: int) -> bool:
        """Say whether a pack can be relied on."""
        if number not in self._usable:
            self.ask([number])
        return self._usable[number]

    def ask(self, numbers: Iterable[int]) -> None:
        """Look at packs, whatever was known of them."""
        asked = sorted(numbers)
        kept = [number for number in asked if not self._condemned(number)]
        there = self._have([self._index.pack_id(number) for number in kept])
        # In one step: another thread may look at these packs meanwhile.
        self._usable.update(dict.fromkeys(asked, False) | dict(zip(kept, there, strict=True)))

    def forget(self) -> None:
        """Ask for every pack again."""
        self._usable.clear()

    def _have(self, packs: Sequence[bytes]) -> list[bool]:
        return have_packs(self._backend, self._index, packs)


def read_quarantine(backend: Backend) -> frozenset[bytes]:
    """Return the packs that were found damaged: nothing new may depend on them (invariant 9)."""
    # A foreign file here says nothing about any pack; `check` reports it.
    keys = (key for key in backend.list_keys(marks.QUARANTINE_PREFIX) if marks.is_quarantine(key))
    return frozenset(map(marks.quarantined_pack, keys))


def read_tombstones(backend: Backend) -> frozenset[bytes]:
    """Return the packs that any collector means to delete; any failure to read one is an error."""
    condemned: set[bytes] = set()
    for entry in backend.list(marks.TOMBSTONE_PREFIX):
        try:
            data = backend.read(entry.key)
        except ObjectNotFound:
            continue  # A collector has finished with it since the listing; the packs that it deleted are seen as absent.
        if marks.may_be_tombstone(entry.key, data):
            condemned.update(marks.decode_tombstone(data, key=entry.key).packs)
    return frozenset(condemned)


def _is_whole(index: Index, pack_id: bytes, listed: int | None) -> bool:
    return listed is not None and listed == index.pack_size(index.number_of(pack_id))


def _is_listing_cheaper(asked: int, known: int, *, flat: bool) -> bool:
    """Compare round trips: single requests go out many at once, the pages of a listing one after the other."""
    return asked / ASKERS > known / _PAGE + (1 if flat else _FOLDERS)
