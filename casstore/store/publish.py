"""Publishing: the one way in which anything becomes part of a store (design §8).

1. packs, then the index segment, both durable (invariant 3);
2. read tombstones, then check every pack that the record depends on; copy what is missing or condemned;
3. put the record;
4. read tombstones and check the packs once more, mend if needed, and only then return.

Step 4 is what makes an acknowledged record safe beside any collector, whatever clocks and pauses do;
step 2 keeps a record from pointing at nothing in the meantime.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import DIGEST_SIZE
from casstore.errors import (
    CasstoreError,
    ConflictError,
    IntegrityError,
    MissingObject,
    ObjectNotFound,
    RefConflict,
    add_note,
)
from casstore.format import marks
from casstore.format.rows import Kind, row_ids
from casstore.store.keys import pack_key
from casstore.store.packs import PACK_TARGET, PackWriter, encode_object, encode_objects
from casstore.store.round_trips import ask_all, ask_each, is_far

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from casstore.backend.base import Backend
    from casstore.format.record import Record
    from casstore.store.index import Index
    from casstore.store.objects import ObjectReader
    from casstore.store.packs import EncodedFrames, WrittenPack
    from casstore.store.refs import Refs

    Supply = Callable[[set[bytes]], Iterator[EncodedFrames]]
    """Makes frames again, from the source, for those of the given object ids that it can."""

MAX_ROUNDS = 16
"""Times that packs may vanish under one publish before it gives up."""

MAX_HINTS = 32

_WORTH_LOOKING = PACK_TARGET // 2
"""Bytes to write from which on packs without a segment are looked for.

Who writes less than a pack leaves none when killed, and a listing of many packs costs little beside so much.
"""

_log = logging.getLogger("casstore")


class Publication:
    """One publish, from its first look-up to its acknowledged record. A context manager, for one thread."""

    def __init__(
        self,
        *,
        backend: Backend,
        index: Index,
        reader: ObjectReader,
        refs: Refs,
        settled: set[bytes] | None = None,
        pack_target: int | None = None,
        uploads: int | None = None,
    ) -> None:
        """`pack_target` and `uploads` are the PackWriter's, for a link that is slower than the writer.

        `settled` are packs that are known to be durable where they are; it grows, and may be shared by publishes.
        """
        self._pack_target = pack_target
        self._uploads = uploads
        self._backend = backend
        self._is_far = is_far(backend)
        self._index = index
        self._reader = reader
        self._refs = refs
        self._exit = contextlib.ExitStack()
        self._condemned: frozenset[bytes] = frozenset()
        self._damaged: frozenset[bytes] = frozenset()
        self._usable: dict[int, bool] = {}
        self._own: set[bytes] = set()
        self._depends: dict[bytes, list[bytes]] = {}
        self._settled = set() if settled is None else settled
        self._finished: list[WrittenPack] = []
        self._keeping: Future[None] | None = None
        self.bytes_stored = 0
        self.packs_written = 0
        self.segments_written = 0
        self.bytes_written = 0

    def __enter__(self) -> Self:
        # On a local file system gc takes this lock exclusively and deletes at once (design §8).
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._backend.publish_lock())
            self._backend.remove_abandoned()
            self._damaged, condemned, _ = ask_each(
                self._backend,
                lambda look: look(self._backend),
                [read_quarantine, read_tombstones, self._refresh],
            )
            self._condemned = condemned | self._damaged
            self._keeper = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="casstore-keep"))
            target = {} if self._pack_target is None else {"target": self._pack_target}
            self._writer = stack.enter_context(PackWriter(self._backend, uploads=self._uploads, **target))
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._keep_written(error)
        finally:
            self._exit.close()

    def claim(self, ids: Sequence[bytes]) -> list[int]:
        """Return the positions of the objects that the caller must encode and write, each object once."""
        wanted: list[int] = []
        for at in np.flatnonzero(~self.known(ids)).tolist():
            if ids[at] not in self._own:
                self._own.add(ids[at])
                wanted.append(at)
        return wanted

    def known(self, ids: Sequence[bytes]) -> NDArray[np.bool_]:
        """Say which objects need not be written; the record will depend on the packs that hold those.

        An object in a pack that is gone or condemned counts as unknown: it is written again.
        """
        self._look_ahead(ids)
        located = self._index.locate(ids, usable=self._is_usable)
        found = located.found
        self._depend(np.ascontiguousarray(located.rows[found]))
        for at in np.flatnonzero(~found).tolist():
            found[at] = ids[at] in self._own
        return found

    def require(self, ids: Sequence[bytes]) -> None:
        """Depend on objects that must be in the store; raise MissingObject if one is not."""
        self._mend(list(ids), lambda _missing: iter(()))

    def write(self, frames: EncodedFrames) -> None:
        """Append verified frames to this publish's packs."""
        self._own.update(header.object_id for header in frames.headers)
        self.bytes_stored += len(frames.data)
        self._writer.append(frames)
        if self._is_far:
            self.keep_finished()

    def write_objects(self, kind: Kind, objects: Mapping[bytes, bytes]) -> None:
        """Store small objects, plain bytes by id, unless they are there already."""
        ids = list(objects)
        new = [ids[at] for at in self.claim(ids)]
        if new:
            self.write(encode_objects(kind, {object_id: objects[object_id] for object_id in new}))

    def commit(self, make_record: Callable[[tuple[bytes, ...]], Record], supply: Supply) -> None:
        """Make everything durable, put the record, and return when it is safe for good.

        `make_record` gets the packs that cover the record, as hints; a record that is in the store already
        is not written again. Raises MissingObject if something vanished that `supply` cannot make again.
        """
        hints = self._prepare(supply)
        self._refs.put(make_record(hints))
        self._finish(supply)

    def commit_all(
        self, drafts: Sequence[Callable[[], Record]], supply: Supply
    ) -> list[Record | RefConflict]:
        """Commit several records with one pair of checks; return them in order.

        Each of `drafts` makes one record, on any thread. A RefConflict takes the place of a record that it
        keeps from being written; any other error is raised, and then none of the records is acknowledged.
        """
        self._prepare(supply)

        def put(draft: Callable[[], Record]) -> Record | RefConflict:
            try:
                record = draft()
                self._refs.put(record)
            except RefConflict as conflict:
                return conflict  # Design §9: for the caller to show; the other refs are not concerned.
            return record

        results = ask_all(put, drafts)
        self._finish(supply)
        return results

    def keep_finished(self) -> None:
        """Make packs that are durable already known to everybody, soon and beside further work.

        What is kept so outlives this publish, whatever ends it: a later one needs only the rest. `write` does it
        for a store that is far away, where packs take long and their footers cost round trips.
        """
        self._finished += self._writer.take_finished()
        if self._finished and (self._keeping is None or self._keeping.done()):
            self._wait_for_keeping()
            self._keeping = self._keeper.submit(self._cover, self._finished)
            self._finished = []

    def recall(self, size: int) -> bool:
        """Get to know packs that someone left without a segment; say whether there are any.

        Somebody who was killed while he added this, perhaps. They are looked for only where `size`, the bytes
        that may have to be written, is so much that the look costs little beside it.
        """
        return size >= _WORTH_LOOKING and self._index.cover_uncovered()

    def _keep_written(self, error: BaseException) -> None:
        """Let the next attempt find what this one wrote: packs without a record do no harm (invariant 3).

        A store that is far away may be what fails, and its packs were made known as they were finished.
        """
        if not self._is_far:
            self._finished += self._writer.rescue()
            try:
                self._wait_for_keeping()
                self._cover(self._finished)
            except CasstoreError as failure:
                # Invariant 13: `error` is what is told. Without a segment, their footers are read (invariant 5).
                _log.debug("No index segment covers what was written: %s", failure)
        if self.bytes_written:
            add_note(
                error,
                f"What was written until then, {self.bytes_written / 2**20:.1f} MiB in packs, is kept: "
                "the next attempt needs only the rest.",
            )

    def _wait_for_keeping(self) -> None:
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.result()

    def _prepare(self, supply: Supply) -> tuple[bytes, ...]:
        self._flush()
        self._secure(supply)
        self._settle()
        return tuple(sorted(self._depends)[:MAX_HINTS])

    def _finish(self, supply: Supply) -> None:
        self._secure(supply)
        self._settle()

    def _flush(self) -> None:
        written = self._writer.finish()
        self._wait_for_keeping()
        self._cover(self._finished + written)
        self._finished = []

    def _cover(self, written: Sequence[WrittenPack]) -> None:
        """Publish a segment over new packs, and depend on them; runs beside `write` and `known`, and no check."""
        if not written:
            return
        self._index.publish([(item.pack_id, item.footer) for item in written])
        self.segments_written += 1
        for item in written:
            self._depends.setdefault(item.pack_id, []).append(b"".join(row_ids(item.footer.rows)))
            self._settled.add(item.pack_id)
            self.packs_written += 1
            self.bytes_written += item.size

    def _secure(self, supply: Supply) -> None:
        """Make sure that each pack depended on is there and not condemned, mending what is not."""
        for _ in range(MAX_ROUNDS):
            self._condemned = read_tombstones(self._backend) | self._damaged
            self._usable.clear()
            kept = [pack for pack in self._depends if pack not in self._condemned]
            there = dict(zip(kept, self._have_packs(kept), strict=True))
            lost = [pack for pack in self._depends if not there.get(pack, False)]
            if not lost:
                return
            self._index.refresh()
            joined = b"".join(part for pack in lost for part in self._depends.pop(pack))
            self._mend([joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)], supply)
            self._flush()
        raise ConflictError(f"Packs vanished {MAX_ROUNDS} times while this was published. Try again later.")

    def _settle(self) -> None:
        """Make durable what other writers may have published a moment ago, before we rely on it (invariant 2)."""
        fresh = sorted(self._depends.keys() - self._settled)
        if fresh:
            self._backend.settle(pack_key(pack) for pack in fresh)
            self._settled.update(fresh)

    def _mend(self, ids: list[bytes], supply: Supply) -> None:
        """Depend on other copies of these objects, or write them again into a fresh pack."""
        self._own.difference_update(ids)
        missing = self._unknown(ids)
        if missing and self._index.read_uncovered():
            # Invariant 5: segments are hints, so what they do not name may still lie in a pack.
            missing = self._unknown(sorted(missing))
        for object_id in sorted(missing):
            if self._copy_condemned(object_id):
                missing.discard(object_id)
        if missing:
            for frames in supply(missing):
                self.write(frames)
                missing.difference_update(header.object_id for header in frames.headers)
        if missing:
            raise MissingObject(
                f"{len(missing)} objects of this model are gone from the store, {min(missing).hex()} among them. "
                "Add the model again from its files."
            )

    def _unknown(self, ids: list[bytes]) -> set[bytes]:
        return {object_id for object_id, known in zip(ids, self.known(ids), strict=True) if not known}

    def _copy_condemned(self, object_id: bytes) -> bool:
        """Copy an object out of a pack that a collector will delete; say whether that was possible."""
        try:
            located = self._reader.locate([object_id])
            plain = self._reader.read(object_id)
        except (IntegrityError, ObjectNotFound):
            # Invariant 5: the pack went in the meantime, or it is damaged, so the source must supply it.
            return False
        self.write(encode_object(Kind(int(located.rows["kind"][0])), plain))
        return True

    def _depend(self, rows: NDArray[np.void]) -> None:
        if len(rows) == 0:
            return
        rows = rows[np.argsort(rows["pack"], kind="stable")]
        packs = rows["pack"]
        ends = np.flatnonzero(packs[1:] != packs[:-1]) + 1
        for ids in np.split(rows, ends):
            pack_id = self._index.pack_id(int(ids["pack"][0]))
            self._depends.setdefault(pack_id, []).append(ids["id"].tobytes())

    def _is_usable(self, number: int) -> bool:
        usable = self._usable.get(number)
        if usable is None:
            pack = self._index.pack_id(number)
            usable = self._usable[number] = pack not in self._condemned and self._has_pack(pack)
        return usable

    def _look_ahead(self, ids: Sequence[bytes]) -> None:
        """Ask for many packs at once rather than one by one as the index meets them."""
        if not self._is_far:
            return  # A local answer takes microseconds, less than looking up what to ask for.
        located = self._index.locate(ids)
        numbers = set(located.rows["pack"][located.found].tolist())
        asked = [
            number
            for number in sorted(numbers - self._usable.keys())
            if self._index.pack_id(number) not in self._condemned
        ]
        packs = [self._index.pack_id(number) for number in asked]
        self._usable.update(zip(asked, self._have_packs(packs), strict=True))

    def _have_packs(self, packs: Sequence[bytes]) -> list[bool]:
        return ask_each(self._backend, self._has_pack, packs)

    def _refresh(self, _: Backend) -> frozenset[bytes]:
        self._index.refresh()
        return frozenset()

    def _has_pack(self, pack_id: bytes) -> bool:
        return has_pack(self._backend, pack_id)


def has_pack(backend: Backend, pack_id: bytes) -> bool:
    """Say whether a pack is there; one that a server's crash left without a byte is not."""
    try:
        return backend.stat(pack_key(pack_id)).size > 0
    except ObjectNotFound:
        return False  # Invariant 5: an entry whose pack is gone does not exist.


def read_quarantine(backend: Backend) -> frozenset[bytes]:
    """Return the packs that were found damaged: nothing new may depend on them (invariant 9)."""
    return frozenset(marks.quarantined_pack(key) for key in backend.list_keys(marks.QUARANTINE_PREFIX))


def read_tombstones(backend: Backend) -> frozenset[bytes]:
    """Return the packs that any collector means to delete; any failure to read one is an error."""
    condemned: set[bytes] = set()
    for entry in backend.list(marks.TOMBSTONE_PREFIX):
        try:
            data = backend.read(entry.key)
        except ObjectNotFound:
            continue  # A collector has finished with it since the listing: what it deleted is gone, and seen so.
        condemned.update(marks.decode_tombstone(data, key=entry.key).packs)
    return frozenset(condemned)
