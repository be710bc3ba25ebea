"""The entry point to the objects of a store: where they lie, how they are read, verified and published."""

from __future__ import annotations

from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.buffers import BLOCK, new_buffer, shared_buffer
from casstore.concurrency.fan_out import ask_all
from casstore.errors import IntegrityError, MissingObject, ObjectNotFound
from casstore.format.rows import row_ids
from casstore.objects.bases import Copy, resolve
from casstore.objects.collection.packs import ListedPacks
from casstore.objects.index.index import Index
from casstore.objects.publishing.delta_writer import Base
from casstore.objects.publishing.presence import PresentPacks
from casstore.objects.publishing.publication import Publication
from casstore.objects.reading.base_levels import KnownBases
from casstore.objects.reading.chunk_cache import CHUNK_CACHE, ChunkCache
from casstore.objects.reading.ranges import batches, plan_ranges
from casstore.objects.stored_packs import StoredPacks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Sequence

    from casstore.backend.base import Backend
    from casstore.errors import CasstoreError
    from casstore.format.record import Record
    from casstore.machine.copies import Copies
    from casstore.objects.bases import Locate, Resolved
    from casstore.objects.index.located import Located
    from casstore.objects.reading.base_cache import BaseCache


class ObjectStore(StoredPacks):
    """Finds, reads, verifies and publishes the objects of one store; safe in threads and after a fork.

    No byte is returned before its object was hashed and compared with the id (invariant 4). `chunks` is the cache
    through which chunks of a store that is a network away are read, None for one on this machine.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        index_copies: str | None = None,
        chunk_cache: int = CHUNK_CACHE,
        index: Index | None = None,
        chunks: ChunkCache | None = None,
    ) -> None:
        """`index_copies` is where this machine keeps index segments of a remote store, None for nowhere.

        `chunk_cache` is the limit of `chunks` in plain bytes. `index` and `chunks` are those in use already.
        """
        super().__init__(backend, Index(backend, copies=index_copies) if index is None else index)
        self._is_far = backend.is_remote
        self._durable: set[bytes] = set()
        self.chunks = chunks or (ChunkCache(self, limit=chunk_cache) if self._is_far else None)

    def close(self) -> None:
        """Drop what is cached, and wait for requests that are under way."""
        if self.chunks is not None:
            self.chunks.close()

    # ---- where objects lie

    def expect(self, packs: Sequence[bytes]) -> None:
        """Take a record's hint that these packs hold what is read next (`Index.read_hinted`)."""
        self._index.read_hinted(packs)

    def refresh(self) -> None:
        """See what others have published since."""
        self._index.refresh()

    def locate(self, ids: Sequence[bytes] | bytes) -> Located:
        """Find every object, looking harder as needed; raise MissingObject for one that no pack holds."""
        return self._index.locate_all(ids)

    def find(
        self,
        ids: Sequence[bytes] | bytes,
        *,
        usable: Callable[[bytes], bool] | None = None,
        load: bool = True,
    ) -> Located:
        """Find objects as far as the index knows them, in packs that are `usable`; reads no pack.

        Without `load`, segments that were not fetched yet stay unfetched where hints name packs (see `expect`).
        """
        if usable is None:
            return self._index.locate(ids) if load else self._index.locate_hinted(ids)
        return self._index.locate(ids, usable=lambda number: usable(self._index.pack_id(number)))

    def resolve(
        self,
        ids: Sequence[bytes],
        *,
        usable: Callable[[bytes], bool] | None = None,
        known: Container[bytes] = (),
    ) -> Resolved:
        """Find objects as `find` does, and say which of them decode with the bases that are found likewise.

        `known` are objects that serve as bases wherever they are.
        """
        return resolve(
            lambda wanted: self.find(wanted, usable=usable),
            ids,
            written=lambda object_id: Copy(0, ()) if object_id in known else None,
        )

    def with_bases(self, ids: Sequence[bytes]) -> list[bytes]:
        """Return these objects, and all bases of those that are deltas (invariant 7)."""
        resolved = self.resolve(ids)
        bases = {*row_ids(resolved.needed), *resolved.stranded}
        return [*ids, *sorted(bases.difference(ids))]

    def missing(self, ids: Iterable[bytes], *, condemned: frozenset[bytes] | None = None) -> set[bytes]:
        """Return the objects that are in no pack that the index knows, or are deltas without their bases.

        With `condemned`, packs are asked for: those do not count, nor do missing or truncated ones.
        """
        asked = list(ids)
        locate: Locate = self._index.locate
        if condemned is not None:
            present = PresentPacks(
                self._backend, self._index, condemned=lambda n: self._index.pack_id(n) in condemned
            )
            locate = present.locate
        return {asked[at] for at in np.flatnonzero(~resolve(locate, asked).found).tolist()}

    def absent(self, ids: Sequence[bytes]) -> dict[bytes, CasstoreError]:
        """Return the objects that no pack holds, however hard one looks, each with the reason."""
        if not ids:
            return {}  # An empty question must not fetch the index.
        try:
            self.locate(ids)
        except IntegrityError:
            # Invariant 11: keep the reason for each of these; a damaged pack may have held them.
            found = self._index.locate(ids).found.tolist()
        else:
            return {}
        return {
            object_id: MissingObject(
                f"No pack of {self._backend.url} holds the object {object_id.hex()}. Add the model again, or copy it "
                "from a store that has it."
            )
            for object_id, there in zip(ids, found, strict=True)
            if not there
        }

    def packs_of(self, located: Located) -> dict[bytes, list[int]]:
        """Return by pack id the positions of the objects that lie in it."""
        return {self._index.pack_id(number): at.tolist() for number, at in located.by_pack()}

    # ---- reading

    def read(self, object_id: bytes) -> bytes:
        """Return the verified plain bytes of one object; raises MissingObject or another IntegrityError."""
        return self.read_many([object_id])[0]

    def read_many(self, ids: Sequence[bytes]) -> list[bytes]:
        """Return the verified plain bytes of several objects, in order."""
        located = self.locate(ids)
        if not self._is_far:
            return self._read_group(located, list(range(len(ids))))
        groups = [list(item.frames) for item in plan_ranges(located, range(len(ids)))]
        parts = ask_all(lambda group: self._read_group(located, group), groups)
        plain = dict(zip(chain.from_iterable(groups), chain.from_iterable(parts), strict=True))
        return [plain[at] for at in range(len(ids))]

    def read_there(self, ids: Collection[bytes]) -> dict[bytes, memoryview]:
        """Return the plain bytes, by id, of those objects that the index knows and that can be read."""
        return self._reader.read_there(ids)

    def read_bases(self, ids: Sequence[bytes], *, lent: bool = False) -> list[Base]:
        """Return objects as `encode_delta` needs them. Raises MissingObject or another IntegrityError.

        With `lent`, for those who soon drop all of them, they are in blocks of memory, and one object holds all of its block.
        """
        located = self.locate(ids)
        lengths, ranks = located.rows["raw"].tolist(), located.rows["rank"].tolist()
        parts: list[bytes | memoryview] = []
        below: dict[int, int] = {}
        if self._is_far:
            parts += self.read_many(ids)
        else:
            new = shared_buffer if lent else new_buffer
            for group in batches(lengths, BLOCK):
                edges = [0, *accumulate(lengths[group.start : group.stop])]
                buffer = new(edges[-1])
                places = dict(zip(group, pairwise(edges), strict=True))
                self._fill(located, places, buffer, verify=True, below=below)
                parts += [buffer[begin:end].toreadonly() for begin, end in pairwise(edges)]
        left = [at for at, rank in enumerate(ranks) if rank and at not in below]
        if left:
            # Anew: where something was read from another copy, that is what is located now.
            again = self.locate([ids[at] for at in left])
            sizes = self._reader.sizes_of_bases(again, range(len(left)))
            below.update((left[at], size) for at, size in sizes.items())
        return [
            Base(ids[at], part, rank, below.get(at, 0))
            for at, (part, rank) in enumerate(zip(parts, ranks, strict=True))
        ]

    def read_present(self, ids: Sequence[bytes]) -> tuple[dict[bytes, bytes], dict[bytes, CasstoreError]]:
        """Return the plain bytes of those objects that can be read, by id, and why the others cannot.

        All are read at once if they are whole; else by halves, so that a few bad ones among many cost little.
        Raises BackendError for a store that fails (invariant 8).
        """
        if not ids:
            return {}, {}
        try:
            return dict(zip(ids, self.read_many(ids), strict=True)), {}
        except (IntegrityError, ObjectNotFound) as error:
            # Invariant 11: no error is lost: once a single object is left, the error is returned for it.
            if len(ids) == 1:
                return {}, {ids[0]: error}
        middle = len(ids) // 2
        found, damaged = self.read_present(ids[:middle])
        more, others = self.read_present(ids[middle:])
        return {**found, **more}, {**damaged, **others}

    def fill(
        self,
        located: Located,
        wanted: Sequence[int],
        buffer: memoryview,
        edges: Sequence[int],
        *,
        verify: bool = True,
        cache: BaseCache | None = None,
    ) -> None:
        """Decode the objects at positions `wanted` of `located` into `buffer` (`ObjectReader.fill`)."""
        pending = dict(zip(wanted, pairwise(edges), strict=True))
        self._fill(located, pending, buffer, verify=verify, cache=cache)

    def know_bases(self, located: Located, positions: Sequence[int], cache: BaseCache) -> None:
        """Look up at once where the bases of objects are that are read with `cache` next, a few thousand at most."""
        cache.known = KnownBases(self._index, located, positions)

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
        self._reader.fill(located, pending, buffer, verify=verify, cache=cache, below=below)

    def verify(self, located: Located, wanted: Sequence[int]) -> None:
        """Read objects where `located` says, and nowhere else; raises ObjectNotFound or an IntegrityError.

        Deltas that lack a base are left out: they count as absent, not as damaged (invariant 7).
        """
        self._reader.verify(located, wanted)

    def _read_group(self, located: Located, group: Sequence[int]) -> list[bytes]:
        edges = [0, *accumulate(located.rows["raw"][group].tolist())]
        buffer = new_buffer(edges[-1])
        self.fill(located, group, buffer, edges)
        return [bytes(buffer[begin:end]) for begin, end in pairwise(edges)]

    # ---- packs

    def listed_packs(self, *, copies: Copies, by_index: bool = False) -> ListedPacks:
        """Return the packs of this store for a collector; `copies` is where this machine keeps their footers.

        With `by_index`, the index is believed, for those who only measure.
        """
        return ListedPacks(
            self._backend,
            self._index,
            self.read,
            bases_of=self._reader.bases_of,
            copies=copies,
            by_index=by_index,
        )

    # ---- publishing

    def publication(
        self,
        put_record: Callable[[Record], Record],
        *,
        pack_target: int | None = None,
    ) -> Publication:
        """Return a publish, to be used as a context manager; `put_record` writes a record that is drafted.

        `pack_target` is the size in bytes at which a pack is closed, None for what suits the backend.
        """
        return Publication(
            backend=self._backend,
            index=self._index,
            read_present=self.read_present,
            put_record=put_record,
            durable=self._durable,
            pack_target=pack_target,
        )
