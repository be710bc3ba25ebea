"""Publishing: the one way in which anything becomes part of a store (design §8).

1. packs, then the index segment, both durable (invariant 3);
2. read tombstones, then check every pack that the record depends on; copy what is missing or condemned;
3. put the record;
4. read tombstones and check the packs once more, mend if needed, and only then return.

A delta depends on the packs of its bases as on its own (invariant 7): a missing base is copied, or else the delta is
written again without bases.

Step 4 makes an acknowledged record safe beside any collector, whatever clocks and pauses do;
step 2 keeps a record from pointing at missing packs in the meantime.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.fan_out import ask_all
from casstore.digest import DIGEST_SIZE
from casstore.errors import (
    CasstoreError,
    ConflictError,
    FormatError,
    IntegrityError,
    MissingObject,
    ObjectNotFound,
    RefConflict,
    add_note,
)
from casstore.format import marks
from casstore.format.rows import Kind, row_ids
from casstore.objects.bases import Copy, resolve
from casstore.objects.keys import pack_key
from casstore.objects.pack_writer import PACK_TARGET, PackWriter, encode_objects
from casstore.objects.presence import has_pack, have_packs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from casstore.backend.base import Backend
    from casstore.format.record import Record
    from casstore.format.rows import Rows
    from casstore.objects.bases import Resolved
    from casstore.objects.index.index import Index, Located
    from casstore.objects.pack_writer import EncodedFrames, WrittenPack
    from casstore.objects.reader import ObjectReader

    Supply = Callable[[set[bytes]], Iterator[EncodedFrames]]
    """Makes frames again, from the source, for those of the given object ids that it can."""

MAX_ROUNDS = 16
"""Times that packs may vanish during one publish before it gives up."""

MAX_HINTS = 32

_COPIED = 8 << 20
"""Plain bytes of condemned objects that are read and written again at once."""

_WORTH_LOOKING = PACK_TARGET // 2
"""Number of new bytes from which a publish looks for packs without a segment.

A publish that is killed before its first full pack leaves none, and a listing is cheap compared with writing so much.
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
        put_record: Callable[[Record], Record],
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
        self._is_far = backend.is_remote
        self._index = index
        self._reader = reader
        self._put_record = put_record
        self._exit = contextlib.ExitStack()
        self._condemned: frozenset[bytes] = frozenset()
        self._damaged: frozenset[bytes] = frozenset()
        self._usable: dict[int, bool] = {}
        self._own: set[bytes] = set()
        self._depends: dict[bytes, list[bytes]] = {}
        self._deltas: set[bytes] = set()
        self._own_deltas: dict[bytes, Copy] = {}
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
            self._damaged, condemned, _ = ask_all(
                lambda look: look(self._backend),
                [read_quarantine, read_tombstones, self._refresh],
                at_once=self._is_far,
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

        An object in a pack that is gone, truncated or condemned counts as unknown, and so does a delta that
        lacks a base: it is written again.
        """
        resolved = self._resolve(ids)
        found = resolved.found
        self._depend(np.ascontiguousarray(resolved.located.rows[found]))
        self._lean_on(resolved.needed)
        self._deltas.update(resolved.deltas)
        for at in np.flatnonzero(~found).tolist():
            found[at] = ids[at] in self._own
        return found

    def ranks(self, ids: Sequence[bytes]) -> list[int | None]:
        """Return the rank of the frame of each object that the record may depend on; None where there is none."""
        resolved = self._resolve(ids)
        ranks: list[int | None] = resolved.located.rows["rank"].tolist()
        for at in np.flatnonzero(~resolved.found).tolist():
            copy = self._written(ids[at])
            ranks[at] = None if copy is None else copy.rank
        return ranks

    def require(self, ids: Sequence[bytes]) -> None:
        """Depend on objects that must be in the store; raise MissingObject if one is not."""
        self._mend(list(ids), lambda _missing: iter(()))

    def covers(self, ids: Sequence[bytes]) -> bool:
        """Depend on everything that an existing record needs; say whether all of it is there.

        May be called while a record is made: objects copied out of condemned packs are published at once.
        """
        try:
            self.require(ids)
        except MissingObject:
            return False  # Invariant 7: that record must not stand for what was just added.
        self._flush()
        return True

    def write(self, frames: EncodedFrames) -> None:
        """Append verified frames to this publish's packs.

        Bases must be known, or be written by this publish before it commits, with a lower rank: the object is
        made again otherwise, from the same source as objects that vanish.
        """
        self._own.update(header.object_id for header in frames.headers)
        deltas = {item.object_id: Copy(item.rank, item.bases) for item in frames.headers if item.bases}
        if deltas:
            self._own_deltas.update(deltas)
            self._deltas.update(deltas)
            bases = self._resolve(sorted({base for copy in deltas.values() for base in copy.bases}))
            self._lean_on(bases.located.rows[bases.found])
            self._lean_on(bases.needed)
        self.bytes_stored += len(frames.data)
        self._writer.append(frames)
        if self._is_far:
            self.keep_finished()

    def write_objects(self, kind: Kind, objects: Mapping[bytes, bytes]) -> None:
        """Store small objects, plain bytes by id, unless they are there already.

        Raises ConfigError for one that a reader would refuse.
        """
        ids = list(objects)
        new = [ids[at] for at in self.claim(ids)]
        if new:
            self.write(encode_objects(kind, {object_id: objects[object_id] for object_id in new}))

    def commit(self, make_record: Callable[[tuple[bytes, ...]], Record], supply: Supply) -> Record:
        """Make everything durable, put the record, and return the one that counts once it is safe for good.

        `make_record` gets the packs that cover the record, as hints; a record that is in the store already
        is not written again. Raises MissingObject if something vanished that `supply` cannot make again.
        """
        hints = self._prepare(supply)
        record = self._put_record(make_record(hints))
        self._finish(supply)
        return record

    def commit_all(
        self, drafts: Sequence[Callable[[], Record]], supply: Supply
    ) -> list[Record | RefConflict]:
        """Commit several records with one pair of checks; return them in order.

        Each of `drafts` makes one record, on any thread. A record that a conflict prevents is replaced by its RefConflict
        in the result; any other error is raised, and then none of the records is acknowledged.
        """
        self._prepare(supply)

        def put(draft: Callable[[], Record]) -> Record | RefConflict:
            try:
                return self._put_record(draft())
            except RefConflict as conflict:
                return conflict  # Design §9: the caller reports it; the other refs are not concerned.

        results = ask_all(put, drafts)
        self._finish(supply)
        return results

    def keep_finished(self) -> None:
        """Publish an index segment over packs that are durable already, in the background.

        What is kept so outlives this publish, whatever ends it: a later one needs only the rest. `write` does it
        for a store that is far away, where packs take long and their footers cost round trips.
        """
        self._finished += self._writer.take_finished()
        if self._finished and (self._keeping is None or self._keeping.done()):
            self._wait_for_keeping()
            self._keeping = self._keeper.submit(self._cover, self._finished)
            self._finished = []

    def recall(self, size: int) -> bool:
        """Read the footers of packs that were left without a segment; say whether there are any.

        Somebody who was killed while he added this, perhaps. They are looked for only where `size`, the bytes
        that may have to be written, is so much that the look costs little beside it. They have a segment when
        this publish ends.
        """
        if size < _WORTH_LOOKING:
            return False
        try:
            return self._index.read_uncovered()
        except FormatError:
            return False  # Invariant 5: objects that only a damaged pack holds are written again; check reports the pack.

    def _keep_written(self, error: BaseException) -> None:
        """Make the packs of this attempt usable for the next one: packs without a record do no harm (invariant 3).

        A store that is far away may be what fails, and its packs were made known as they were finished.
        """
        if not self._is_far:
            self._finished += self._writer.rescue()
            try:
                self._wait_for_keeping()
                self._cover(self._finished)
            except CasstoreError as failure:
                # Invariant 13: only `error` is raised. Without a segment, the packs' footers are read (invariant 5).
                _log.debug("No index segment covers what was written: %s", failure)
        if self.bytes_written:
            add_note(
                error,
                f"The {self.bytes_written / 2**20:.1f} MiB of packs written so far are kept: "
                "the next attempt only writes the rest.",
            )

    def _wait_for_keeping(self) -> None:
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.result()

    def _prepare(self, supply: Supply) -> tuple[bytes, ...]:
        self._flush()
        self._secure(supply)
        self._settle()
        # A collector that believes itself alone must be able to see our marker before our record is there.
        self._backend.await_marker()
        return tuple(sorted(self._depends)[:MAX_HINTS])

    def _finish(self, supply: Supply) -> None:
        self._secure(supply)
        self._settle()
        # Invariant 13: the records are safe by now, and upkeep must not fail the publish.
        self._index.keep_house()

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
            kept = [
                pack for pack in self._depends if not self._is_condemned(pack, self._index.number_of(pack))
            ]
            there = dict(zip(kept, self._have_packs(kept), strict=True))
            self._usable.update((self._index.number_of(pack), found) for pack, found in there.items())
            lost = [pack for pack in self._depends if not there.get(pack, False)]
            if lost:
                self._index.refresh()
            joined = b"".join(part for pack in lost for part in self._depends.pop(pack))
            ids = [joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)]
            ids += self._without_bases()
            if ids:
                self._mend(ids, supply)
                self._flush()
            elif not lost:
                return
        raise ConflictError(
            f"Packs vanished or were truncated {MAX_ROUNDS} times during this publish. Try again later, "
            "and find out what else writes to this store."
        )

    def _without_bases(self) -> list[bytes]:
        """Return the deltas, own ones included, that no longer decode; depend on what the others need."""
        if not self._deltas:
            return []
        deltas, self._deltas = sorted(self._deltas), set()
        self._own.difference_update(deltas)
        self._own_deltas.clear()
        return sorted(self._unknown(deltas))

    def _settle(self) -> None:
        """Make durable what other writers may have just published, before we rely on it (invariant 2)."""
        fresh = sorted(self._depends.keys() - self._settled)
        if fresh:
            self._backend.settle(pack_key(pack) for pack in fresh)
            self._settled.update(fresh)

    def _mend(self, ids: list[bytes], supply: Supply) -> None:
        """Depend on other copies of these objects, or write them again into a fresh pack."""
        self._own.difference_update(ids)
        damage: FormatError | None = None
        missing = self._unknown(ids)
        if missing:
            try:
                uncovered = self._index.read_uncovered()
            except FormatError as error:
                # Invariant 13: a damaged pack counts as absent; the source may still have its objects.
                damage, uncovered = error, False
            if uncovered:
                # Invariant 5: segments are hints, so an object that they do not name may still lie in a pack.
                missing = self._unknown(sorted(missing))
        if missing:
            self._copy_condemned(sorted(missing))
            missing = self._unknown(sorted(missing))
        if missing:
            for frames in supply(missing):
                self.write(frames)
                missing.difference_update(header.object_id for header in frames.headers)
        if missing:
            raise MissingObject(
                f"{len(missing)} objects of this model are gone from the store or damaged, "
                f"{min(missing).hex()} among them. "
                "Add the model again from its files."
            ) from damage

    def _unknown(self, ids: list[bytes]) -> set[bytes]:
        return {object_id for object_id, known in zip(ids, self.known(ids), strict=True) if not known}

    def _copy_condemned(self, ids: list[bytes]) -> None:
        """Copy objects, and bases that objects lack, out of packs that a collector will delete."""
        resolved = self._resolve(ids)
        absent = {ids[at] for at in np.flatnonzero(~resolved.located.found).tolist()}
        wanted = sorted((absent | resolved.stranded) - self._own)
        located = self._index.locate(wanted)
        present = np.flatnonzero(located.found).tolist()
        for kind in Kind:
            batch: list[bytes] = []
            size = 0
            for at in present:
                if located.rows["kind"][at] == kind:
                    batch.append(wanted[at])
                    size += int(located.rows["raw"][at])
                    if size >= _COPIED:
                        self._copy(kind, batch)
                        batch, size = [], 0
            self._copy(kind, batch)

    def _copy(self, kind: Kind, ids: list[bytes]) -> None:
        """Write those of these objects that can be read: a batch with damage is split in halves."""
        if not ids:
            return
        try:
            plain = self._reader.read_many(ids)
        except (IntegrityError, ObjectNotFound):
            # Invariant 5: the pack went in the meantime, or it is damaged, so the source must supply it.
            half = len(ids) // 2
            if half:
                self._copy(kind, ids[:half])
                self._copy(kind, ids[half:])
            return
        self.write(encode_objects(kind, dict(zip(ids, plain, strict=True))))

    def _resolve(self, ids: Sequence[bytes]) -> Resolved:
        return resolve(self._locate, ids, written=self._written)

    def _locate(self, ids: Sequence[bytes] | bytes) -> Located:
        self._look_ahead(ids)
        return self._index.locate(ids, usable=self._is_usable)

    def _written(self, object_id: bytes) -> Copy | None:
        """Return rank and bases of the frame that this publish writes for an object, None if it writes none."""
        return self._own_deltas.get(object_id) or (Copy(0, ()) if object_id in self._own else None)

    def _lean_on(self, bases: Rows) -> None:
        """Depend on the packs of bases, but not on the bases themselves: a delta that lacks one can be rewritten."""
        for number in np.unique(bases["pack"]).tolist():
            self._depends.setdefault(self._index.pack_id(number), [])

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
            usable = self._usable[number] = not self._is_condemned(pack, number) and self._has_pack(pack)
        return usable

    def _is_condemned(self, pack: bytes, number: int) -> bool:
        """Say whether nothing new may rely on a pack: a collector will delete it, or it is damaged."""
        return pack in self._condemned or self._index.is_avoided(number)

    def _look_ahead(self, ids: Sequence[bytes] | bytes) -> None:
        """Ask for many packs at once rather than one by one as the index meets them."""
        if not self._is_far:
            return  # A local answer takes microseconds, less than working out what to ask for.
        located = self._index.locate(ids)
        numbers = set(located.rows["pack"][located.found].tolist())
        asked = [
            number
            for number in sorted(numbers - self._usable.keys())
            if not self._is_condemned(self._index.pack_id(number), number)
        ]
        packs = [self._index.pack_id(number) for number in asked]
        self._usable.update(zip(asked, self._have_packs(packs), strict=True))

    def _have_packs(self, packs: Sequence[bytes]) -> list[bool]:
        return have_packs(self._backend, self._index, packs)

    def _refresh(self, _: Backend) -> frozenset[bytes]:
        self._index.refresh()
        return frozenset()

    def _has_pack(self, pack_id: bytes) -> bool:
        return has_pack(self._backend, self._index, pack_id)


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
