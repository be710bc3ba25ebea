"""Reads objects that a store has lost, or has damaged only, from other stores that have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from casstore.digest import digest
from casstore.errors import IntegrityError, MissingObject, ObjectNotFound, UnsupportedVersion
from casstore.format.rows import ROW
from casstore.objects.index.index import ids_at
from casstore.objects.index.located import Located
from casstore.objects.object_store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casstore.backend.base import Backend
    from casstore.errors import CasstoreError
    from casstore.objects.reading.base_cache import BaseCache
    from casstore.objects.reading.chunk_cache import ChunkCache

_ELSEWHERE = np.uint32(0xFFFFFFFE)
"""In the `pack` field of a located row: no pack of this store has the object, and another store does."""


class OtherCopies(Protocol):
    """Where else objects may be. Safe in threads; it raises nothing of what fails there."""

    def lengths(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Return the plain lengths of those of these objects that are there."""

    def read(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the plain bytes of those of these objects that can be read there."""

    def answer(self) -> str:
        """Say who was asked, and what came of it; "" if there is nobody to ask."""


class ReadThrough(ObjectStore):
    """The objects of a store for those who only read: what cannot be read there is read from `others`.

    They are asked only about objects that are proved to be absent or damaged here, once all else was tried, and what they
    return is hashed as everything is (invariant 4). Nothing is written. Unless `wanted` says that somebody still needs the
    objects, they are not asked.
    """

    def __init__(
        self,
        objects: ObjectStore,
        backend: Backend,
        others: OtherCopies,
        *,
        chunks: ChunkCache | None = None,
        chunk_cache: int = 0,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`chunks` is the cache to share, else one of `chunk_cache` bytes is made where the store is far away."""
        super().__init__(backend, index=objects._index, chunks=chunks, chunk_cache=chunk_cache)  # noqa: SLF001 - the same store
        self._others = others
        self._wanted = wanted

    def locate(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find every object, here or elsewhere; raise MissingObject, or the damage that hides one."""
        try:
            return super().locate(ids)
        except UnsupportedVersion:
            raise
        except IntegrityError as error:
            # Invariant 11: raised below, unless another store has all that is missing.
            located = self._index.locate(ids)
            lacking = np.flatnonzero(~located.found).tolist()
            names = ids_at(ids, lacking)
            lengths = self._others.lengths(names) if self._wanted() else {}
            if not all(name in lengths for name in names):
                raise self._told(error) from error
        rows = np.zeros(len(names), ROW)
        rows["id"] = np.frombuffer(b"".join(names), ">u8").reshape(-1, 4)
        rows["pack"] = _ELSEWHERE
        # The stored length is not known; reads are planned by this one.
        rows["raw"] = rows["stored"] = [lengths[name] for name in names]
        return located.replaced(lacking, Located(rows, np.zeros(len(names), np.int32), ()))

    def _fill(
        self,
        located: Located,
        pending: dict[int, tuple[int, int]],
        buffer: memoryview,
        *,
        verify: bool,
        cache: BaseCache | None = None,
        below: dict[int, int] | None = None,
    ) -> None:
        away = [at for at in pending if located.rows["pack"][at] == _ELSEWHERE]
        if away:
            ids = located.ids(away)
            missing = MissingObject(f"No pack of {self._backend.url} holds the object {ids[0].hex()}.")
            spans = [pending.pop(at) for at in away]
            self._take(ids, [buffer[begin:end] for begin, end in spans], missing)
        try:
            super()._fill(located, pending, buffer, verify=verify, cache=cache, below=below)
        except UnsupportedVersion:
            raise
        except (IntegrityError, ObjectNotFound) as error:
            if not self._wanted():
                raise
            # Invariant 11: the damage is raised by `_take`, unless another store has what is damaged here.
            for object_id, (begin, end) in zip(located.ids(list(pending)), pending.values(), strict=True):
                self._fill_one(object_id, buffer[begin:end], error)

    def _fill_one(self, object_id: bytes, out: memoryview, error: CasstoreError) -> None:
        """Read one object from whoever has it; raise `error`, if that is the reason why there is no other way."""
        try:
            located = super().locate([object_id])
            super()._fill(located, {0: (0, len(out))}, out, verify=True)
        except (IntegrityError, ObjectNotFound) as own:
            # Invariant 11: as above.
            self._take([object_id], [out], own if isinstance(own, IntegrityError) else error)

    def _take(self, ids: Sequence[bytes], places: Sequence[memoryview], error: CasstoreError) -> None:
        """Copy objects that other stores have to their places; raise `error` if one is not there."""
        found = self._others.read(ids)
        for object_id, out in zip(ids, places, strict=True):
            plain = found.get(object_id)
            # Invariant 4: whoever returned it, it is what its id says.
            if plain is None or len(plain) != len(out) or digest(plain) != object_id:
                raise self._told(error) from error
            out[:] = plain

    def _told(self, error: CasstoreError) -> CasstoreError:
        """Return an error that also says what other stores answered."""
        answer = self._others.answer()
        if answer and answer not in str(error):
            error.args = (f"{error} {answer}",)
        return error
