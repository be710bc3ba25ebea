"""Publishing: the one way in which anything becomes part of a store (design §8).

1. packs, then the index segment, both durable (invariant 3);
2. read tombstones, then check every pack that the record depends on; copy what is missing or condemned;
3. put the record;
4. read tombstones and check the packs once more, mend if needed, and only then return.

Step 4 makes an acknowledged record safe beside any collector, whatever clocks and pauses do;
step 2 keeps a record from pointing at missing packs in the meantime.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.fan_out import ask_all
from casstore.concurrency.workers import SerialThread
from casstore.errors import (
    CasstoreError,
    ConflictError,
    FormatError,
    MissingObject,
    RefConflict,
    add_note,
)
from casstore.format.rows import Kind, row_ids
from casstore.objects.publishing.dependencies import Dependencies
from casstore.objects.publishing.pack_writer import (
    PACK_TARGET,
    PackWriter,
    check_object,
    encode_checked,
    encode_objects,
)
from casstore.objects.publishing.presence import read_quarantine, read_tombstones
from casstore.objects.reading.ranges import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from typing_extensions import Self

    from casstore.backend.base import Backend
    from casstore.format.record import Record
    from casstore.objects.index.index import Index
    from casstore.objects.publishing.pack_writer import EncodedFrames, WrittenPack

    Supply = Callable[[set[bytes]], Iterator[EncodedFrames]]
    """Makes frames again, from the source, for those of the given object ids that it can."""

MAX_ROUNDS = 16
"""Times that packs may vanish during one publish before it gives up."""

_COPIED = 8 << 20
"""Plain bytes of condemned objects that are read and written again at once."""

_TOGETHER = 1 << 20
"""Plain bytes of small objects that are written together, the last ones with the tree and the manifest of a model."""

_WORTH_LOOKING = PACK_TARGET // 2
"""Number of new bytes from which a publish looks for packs without a segment.

A publish that is killed before its first full pack leaves none, and a listing is cheap compared with writing so much.
"""

_log = logging.getLogger("casstore")


class Publication(Dependencies):
    """One publish, from its first look-up to its acknowledged record. A context manager, for one thread."""

    def __init__(
        self,
        *,
        backend: Backend,
        index: Index,
        read_present: Callable[[Sequence[bytes]], tuple[dict[bytes, bytes], dict[bytes, CasstoreError]]],
        put_record: Callable[[Record], Record],
        durable: set[bytes] | None = None,
        pack_target: int | None = None,
    ) -> None:
        """`pack_target` is the size in bytes at which a pack is closed, None for what suits the backend."""
        super().__init__(backend, index, set() if durable is None else durable)
        self._is_far = backend.is_remote
        self._read_present = read_present
        self._put_record = put_record
        self._pack_target = pack_target
        self._exit = contextlib.ExitStack()
        self._finished: list[WrittenPack] = []
        self._keeping: Future[None] | None = None
        self._small: dict[bytes, tuple[Kind, bytes]] = {}
        self._small_size = 0
        self.bytes_stored = 0
        self.packs_written = 0
        self.segments_written = 0
        self.bytes_written = 0

    def __enter__(self) -> Self:
        # On a local file system gc takes this lock exclusively and deletes at once (design §8).
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._backend.publish_lock())
            self._backend.remove_abandoned()
            self._backend.keep_spare_room()
            self._damaged, condemned, _ = ask_all(
                lambda look: look(self._backend),
                [read_quarantine, read_tombstones, self._refresh],
                at_once=self._backend.is_remote,
            )
            self._condemned = condemned | self._damaged
            self._keeper = stack.enter_context(SerialThread())
            self._writer = stack.enter_context(PackWriter(self._backend, target=self._pack_target))
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
        unknown = range(len(ids)) if self._index.lacks(ids) else np.flatnonzero(~self.known(ids)).tolist()
        for at in unknown:
            if ids[at] not in self._own:
                self._own.add(ids[at])
                wanted.append(at)
        return wanted

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
        self._writes(frames)
        self.bytes_stored += len(frames.data)
        self._writer.append(frames)
        if self._is_far:
            self.keep_finished()

    def write_objects(self, kind: Kind, objects: Mapping[bytes, bytes]) -> None:
        """Store small objects, plain bytes by id, unless they are there already; before the record at the latest.

        Raises ConfigError for one that a reader would refuse.
        """
        for object_id, plain in objects.items():
            check_object(kind, plain)
            self._small[object_id] = kind, plain
            self._small_size += len(plain)
        if self._small_size >= _TOGETHER:
            self._write_small()

    def _write_small(self) -> None:
        """Write the small objects that wait: one look-up for all."""
        small, self._small, self._small_size = self._small, {}, 0
        ids = list(small)
        new = [ids[at] for at in self.claim(ids)] if ids else []
        for kind in dict.fromkeys(small[object_id][0] for object_id in new):
            self.write(encode_checked(kind, {item: small[item][1] for item in new if small[item][0] is kind}))

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
        self._make_durable()
        # A collector that believes itself alone must be able to see our marker before our record is there.
        self._backend.await_marker()
        return self._hints()

    def _finish(self, supply: Supply) -> None:
        self._secure(supply)
        self._make_durable()
        # Invariant 13: the records are safe by now, and upkeep must not fail the publish.
        self._index.keep_house()

    def _flush(self) -> None:
        self._write_small()
        # The segment's bytes become durable beside the last packs' on this machine; over a network they are no file yet.
        written = self._writer.finish() if self._is_far else self._writer.seal()
        self._wait_for_keeping()
        self._cover(self._finished + written, after=None if self._is_far else self._writer.finish)
        self._finished = []

    def _cover(self, written: Sequence[WrittenPack], *, after: Callable[[], object] | None = None) -> None:
        """Publish a segment over new packs, and depend on them; runs beside `write` and `known`, and no check.

        `after` waits until they are durable (invariant 3).
        """
        if not written:
            return
        self._index.publish([(item.pack_id, item.footer) for item in written], after=after)
        self.segments_written += 1
        for item in written:
            self._depends.setdefault(item.pack_id, []).append(b"".join(row_ids(item.footer.rows)))
            self._durable.add(item.pack_id)
            self.packs_written += 1
            self.bytes_written += item.size

    def _secure(self, supply: Supply) -> None:
        """Make sure that each pack depended on is there and not condemned, mending what is not."""
        for _ in range(MAX_ROUNDS):
            lost, ids = self._check_packs()
            if ids:
                self._mend(ids, supply)
                self._flush()
            elif not lost:
                return
        raise ConflictError(
            f"Packs vanished or were truncated {MAX_ROUNDS} times during this publish. Try again later, "
            "and find out what else writes to this store."
        )

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

    def _copy_condemned(self, ids: list[bytes]) -> None:
        """Copy objects, and bases that objects lack, out of packs that a collector will delete."""
        resolved = self._resolve(ids)
        absent = {ids[at] for at in np.flatnonzero(~resolved.located.found).tolist()}
        wanted = sorted((absent | resolved.stranded) - self._own)
        located = self._index.locate(wanted)
        for kind in Kind:
            chosen = np.flatnonzero(located.found & (located.rows["kind"] == kind))
            for batch in batches(located.rows["raw"][chosen].tolist(), _COPIED):
                # Invariant 5: what is in packs that went in the meantime, or is damaged, the source must supply.
                plain, _ = self._read_present(located.ids(chosen[batch.start : batch.stop].tolist()))
                if plain:
                    self.write(encode_objects(kind, plain))

    def _refresh(self, _: Backend) -> frozenset[bytes]:
        self._index.refresh()
        return frozenset()
