"""Packs as a collector sees them: listed, read by their own footers, copied out of, and forgotten by the index."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.buffers import new_buffer
from casstore.concurrency.fan_out import ask_all
from casstore.errors import BackendError, FormatError, IntegrityError, ObjectNotFound
from casstore.format import pack as pack_format
from casstore.format.frame import header_sizes
from casstore.format.rows import ROW, BaseLists, Kind
from casstore.objects.collection.table import FrameTable, PackColumns, id_keys
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.footers import read_footer
from casstore.objects.index.located import Located
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX, is_foreign, pack_id_of, pack_key
from casstore.objects.publishing.pack_writer import EncodedFrames, PackWriter, encode_objects
from casstore.objects.reading.frames import verify_frames
from casstore.objects.reading.ranges import Range, frame_sizes, plan_ranges
from casstore.objects.reading.salvage import find_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from casstore.backend.base import Backend, Entry
    from casstore.format.pack import Footer
    from casstore.format.rows import Rows
    from casstore.machine.copies import Copies
    from casstore.objects.collection.table import Positions
    from casstore.objects.index.index import Index

_BATCH = 512
_PACK_OVERHEAD = pack_format.HEADER_SIZE + BaseLists.empty().size + pack_format.TRAILER_SIZE


@dataclass(slots=True)
class Unreadable:
    """A pack whose footer cannot be read, so that nobody knows what it holds."""

    pack: bytes
    error: FormatError


class ListedPacks:
    """The packs of a store as the last listing showed them, and their frames. For one thread."""

    def __init__(
        self,
        backend: Backend,
        index: Index,
        read: Callable[[bytes], bytes],
        *,
        bases_of: Callable[[Located, Sequence[int]], Mapping[bytes, memoryview]],
        copies: Copies,
        by_index: bool = False,
    ) -> None:
        """`read` returns an object's plain bytes, `bases_of` those of all bases that frames name, by id.

        `copies` is where this machine keeps footers. With `by_index`, what the index says of a pack is believed, which is
        quick and enough for whoever deletes nothing.
        """
        self._by_index = by_index
        self._backend = backend
        self._index = index
        self._read = read
        self._bases_of = bases_of
        self._numbers: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._entries: dict[int, Entry] = {}
        self._uncovered = False
        self._copies = copies
        self.table = FrameTable()
        self.unreadable: dict[int, Unreadable] = {}

    def read(self) -> None:
        """List all packs, and read the footers of those that are new (invariant 5: what is deleted never rests on the index)."""
        backend = self._backend
        listed: dict[int, Entry] = {}
        for entry in backend.list(PACK_PREFIX):
            if not is_foreign(entry.key):
                listed[self.number_of(pack_id_of(entry.key))] = entry
        before = self._entries
        changed = {
            number for number in listed if number in before and listed[number].size != before[number].size
        }
        fresh = [
            number for number in listed if number not in before or number in changed | self.unreadable.keys()
        ]
        gone = before.keys() - listed.keys() | changed
        added: list[PackColumns] = []
        if self._by_index:
            fresh = self._indexed(fresh, listed, added)
        for start in range(0, len(fresh), _BATCH):
            batch = fresh[start : start + _BATCH]
            for number, answer in zip(
                batch,
                ask_all(lambda number: self._footer(listed[number]), batch, at_once=backend.is_remote),
                strict=True,
            ):
                self.unreadable.pop(number, None)
                if answer is None:
                    del listed[number]
                elif isinstance(answer, FormatError):
                    self.unreadable[number] = Unreadable(self._ids[number], answer)
                else:
                    added.append(_columns(number, answer.rows, answer.bases))
        self._entries = listed
        self.unreadable = {number: item for number, item in self.unreadable.items() if number in listed}
        self.table.replace(added, frozenset(gone))
        self._copies.prune({self._ids[number].hex() for number in listed})

    def _indexed(
        self, numbers: list[int], listed: Mapping[int, Entry], added: list[PackColumns]
    ) -> list[int]:
        """Append the frames that the index names in packs of the right size; return the other packs."""
        index = self._index
        index.refresh()
        right = [
            number
            for number in numbers
            if index.pack_size(index.number_of(self._ids[number])) == listed[number].size
        ]
        found = np.zeros(len(right), np.bool_)
        known = np.array(right, np.uint32)
        for rows, lists in index.frames_of([self._ids[number] for number in right]):
            found[rows["pack"]] = True
            added.append(_columns(known[rows["pack"]], rows, lists))
        indexed = set(known[found].tolist())
        for number in indexed:
            self.unreadable.pop(number, None)
        return [number for number in numbers if number not in indexed]

    def _footer(self, entry: Entry) -> Footer | FormatError | None:
        name = entry.key.rpartition("/")[2]
        tail = self._copies.get(name)
        if tail is not None:
            # A copy that is damaged, or of another size, is not used.
            with contextlib.suppress(FormatError):
                trailer = pack_format.decode_trailer(tail, pack_size=entry.size, key=entry.key)
                return pack_format.decode_footer(tail[: -pack_format.TRAILER_SIZE], trailer, key=entry.key)
        try:
            footer = read_footer(self._backend, pack_id_of(entry.key), size=entry.size)
        except ObjectNotFound:
            return None  # Invariant 5: a pack that went since the listing does not exist.
        except FormatError as error:
            return error  # Invariant 8: whoever decides knows that this pack may hold anything.
        self._copies.put(name, pack_format.encode_footer(footer, begin=footer.begin))
        return footer

    def number_of(self, pack: bytes) -> int:
        """Return the number that stands for a pack, listed or not."""
        number = self._numbers.setdefault(pack, len(self._ids))
        if number == len(self._ids):
            self._ids.append(pack)
        return number

    def id_of(self, number: int) -> bytes:
        """Return the pack that a number means."""
        return self._ids[number]

    def numbers(self) -> list[int]:
        """Return the packs that are listed."""
        return list(self._entries)

    def is_listed(self, pack: bytes) -> bool:
        """Say whether the last listing showed a pack."""
        return self._numbers.get(pack) in self._entries

    def size(self, number: int) -> int:
        """Return the bytes of a listed pack."""
        return self._entries[number].size

    def modified(self, number: int) -> float:
        """Return when a listed pack was written, by the storage's clock, in POSIX seconds."""
        return self._entries[number].modified

    def mask(self, numbers: Collection[int]) -> NDArray[np.bool_]:
        """Return a mask over all numbers that is true for these."""
        found = np.zeros(len(self._ids), np.bool_)
        found[list(numbers)] = True
        return found

    def salvageable(self, numbers: Collection[int]) -> NDArray[np.bool_]:
        """Say of each object in the table whether those of these packs whose footer cannot be read may have a frame of it."""
        found = np.zeros(len(self.table.live), np.bool_)
        for number in self.unreadable.keys() & set(numbers):
            # Invariant 5: a pack that is gone holds nothing.
            with contextlib.suppress(ObjectNotFound):
                rows = find_frames(self._backend, self._ids[number]).rows
                objects = self.table.find(id_keys(np.ascontiguousarray(rows["id"]).tobytes()))
                found[objects[objects >= 0]] = True
        return found

    # ---- reading and copying frames

    def verify(self, rows: Positions) -> list[bytes]:
        """Read the frames of these rows and decode them; note which do and which do not, and name the packs of the latter."""
        damaged: list[bytes] = []
        for number, here in self._by_pack(rows):
            try:
                located, positions = self._locate(number, here)
                frames = dict(zip(positions, here.tolist(), strict=True))
                for part in plan_ranges(located, positions):
                    group = list(part.frames)
                    whole = self._decodes(located, part)
                    good = np.array([frames[at] for at in whole], np.int64)
                    bad = np.array([frames[at] for at in group if at not in whole], np.int64)
                    self.table.prove(good)
                    self.table.condemn(bad)
                    if bad.size:
                        damaged.append(self._ids[number])
            except (ObjectNotFound, FormatError):  # noqa: PERF203  # reading costs far more
                # Invariant 9: what cannot be read is no copy.
                self.table.condemn(here)
                damaged.append(self._ids[number])
        return damaged

    def _decodes(self, located: Located, part: Range) -> list[int]:
        try:
            self._fetch(located, part)
        except IntegrityError:
            # Invariant 9: one by one, so that each good frame counts.
            if len(part.frames) == 1:
                return []
            alone = [item for at in part.frames for item in plan_ranges(located, [at])]
            return [at for item in alone for at in self._decodes(located, item)]
        return list(part.frames)

    def copy(self, rows: Positions, as_stored: NDArray[np.bool_]) -> list[bytes]:
        """Write the objects of these rows to fresh packs with a segment, verified; return those packs.

        Deltas that are not to stay `as_stored` are encoded without bases. Raises IntegrityError, naming the pack, for a frame that is damaged; then
        nothing that was written has a segment.
        """
        if not rows.size:
            return []
        with PackWriter(self._backend) as writer:
            for number, here in self._by_pack(rows[as_stored]):
                located, positions = self._locate(number, here)
                for part in plan_ranges(located, positions):
                    writer.append(self._fetch(located, part))
            for number, here in self._by_pack(rows[~as_stored]):
                located, positions = self._locate(number, here)
                for at in positions:
                    object_id = located.rows["id"][at].tobytes()
                    plain = self._read(object_id)
                    writer.append(encode_objects(Kind(int(located.rows["kind"][at])), {object_id: plain}))
            written = writer.finish()
        self._index.publish([(item.pack_id, item.footer) for item in written])
        return [item.pack_id for item in written]

    def _by_pack(self, rows: Positions) -> list[tuple[int, Positions]]:
        packs = self.table.packs[rows]
        order = np.argsort(packs, kind="stable")
        edges = np.flatnonzero(np.diff(packs[order])) + 1
        return [(int(self.table.packs[part[0]]), part) for part in np.split(rows[order], edges) if part.size]

    def _locate(self, number: int, rows: Positions) -> tuple[Located, list[int]]:
        """Return a pack's own directory, and where in it the objects of rows of this pack are."""
        entry = self._entries[number]
        footer = read_footer(self._backend, self._ids[number], size=entry.size)
        directory = footer.rows.copy()
        directory["pack"] = self._index.number_of(self._ids[number])
        located = Located(directory, np.zeros(len(directory), np.int32), (footer.bases,))
        keys = id_keys(np.ascontiguousarray(directory["id"]).tobytes())
        ranks = directory["rank"].tolist()
        places = {
            (key, rank): at
            for at, (key, rank) in enumerate(zip(map(tuple, keys.tolist()), ranks, strict=True))
        }
        wanted = zip(
            map(tuple, self.table.row_keys(rows).tolist()), self.table.ranks(rows).tolist(), strict=True
        )
        try:
            return located, [places[item] for item in wanted]
        except KeyError:
            # Invariant 5: the pack itself decides, not what this machine kept of it.
            raise FormatError(f"{entry.key} does not hold what its footer said before.") from None

    def _fetch(self, located: Located, part: Range) -> EncodedFrames:
        """Read neighbouring frames, and prove that each decodes to its object (invariant 9)."""
        key = pack_key(self._index.pack_id(part.pack))
        data = new_buffer(part.end - part.begin)
        done = 0
        while done < len(data):
            with bad_file_is_damage(self._backend):
                count = self._backend.read_into(key, data[done:], start=part.begin + done)
            if count == 0:
                raise FormatError(f"{key} is truncated.")
            done += count  # A server may stop early without an error.
        bases = self._bases_of(located, part.frames)
        headers = verify_frames(located, part, data, bases=bases, key=key)
        sizes = frame_sizes(located, np.array(part.frames, np.int64)).tolist()
        at = 0
        for position, length in zip(part.frames, sizes, strict=True):
            start = int(located.rows["offset"][position]) - part.begin
            if start != at:
                data[at : at + length] = data[start : start + length]
            at += length
        return EncodedFrames(headers, data[:at])

    def confirm(self, numbers: Sequence[int]) -> dict[int, str]:
        """Read the footers of packs that are about to go from the packs themselves; say what differs from the table."""
        rows = dict(self._by_pack(np.flatnonzero(self.mask(numbers)[self.table.packs])))
        none = np.zeros(0, np.int64)
        answers = ask_all(
            lambda number: self._difference(number, rows.get(number, none)),
            numbers,
            at_once=self._backend.is_remote,
        )
        return {number: answer for number, answer in zip(numbers, answers, strict=True) if answer}

    def _difference(self, number: int, rows: Positions) -> str | None:
        entry = self._entries[number]
        try:
            footer = read_footer(self._backend, self._ids[number], size=entry.size)
        except ObjectNotFound:
            return None  # Another collector deleted it first, so this one deleted nothing.
        except FormatError as error:
            # The next collection must not take the copy of the footer for what is in the pack.
            self._copies.put(entry.key.rpartition("/")[2], b"")
            return str(error)  # Invariant 8: whatever it holds, it stays.
        held = np.sort(id_keys(np.ascontiguousarray(footer.rows["id"]).tobytes()).view("V16"), axis=0)
        known = np.sort(np.ascontiguousarray(self.table.row_keys(rows)).view("V16"), axis=0)
        return (
            None
            if np.array_equal(held, known)
            else f"{entry.key} does not hold what this machine kept of it."
        )

    def make_durable(self, numbers: set[int]) -> None:
        """Make durable that these packs, written by anyone, are where the listing showed them (invariant 2)."""
        self._backend.make_durable(pack_key(self._ids[number]) for number in sorted(numbers))

    def delete(self, numbers: Sequence[int]) -> None:
        """Delete packs of which nothing is needed any more."""
        # Invariant 5: whoever calls this has confirmed from footers what survives.
        self._backend.delete_many([pack_key(self._ids[number]) for number in numbers])

    def make_room(self) -> bool:
        """Delete the smallest index segment, for the bytes of a tombstone; say whether there was one."""
        backend = self._backend
        segments = [
            (entry.size, entry.key) for entry in backend.list(INDEX_PREFIX) if not is_foreign(entry.key)
        ]
        if not segments:
            return False
        # Invariant 5: a hint. The packs that it covered are read by their footers until `forget` covers them again.
        backend.delete(min(segments)[1])
        self._uncovered = True
        return True

    def forget(self, packs: Sequence[bytes], note: Callable[[str], None]) -> None:
        """Publish an index without packs that are gone."""
        index = self._index
        # Invariant 13: rows about packs that are gone mean nothing, so this only makes look-ups cheaper.
        try:
            index.retire(packs)
            if self._uncovered:
                index.read_uncovered()
                index.keep_house()
        except (IntegrityError, BackendError) as error:
            note(f"The index still lists packs that are gone, which is harmless: {error}")

    def exists(self, pack: bytes) -> bool:
        """Ask for one pack, whatever the listing showed."""
        with contextlib.suppress(ObjectNotFound):
            self._backend.stat(pack_key(pack))
            return True
        return False


def _columns(number: int | NDArray[np.uint32], rows: Rows, bases: BaseLists) -> PackColumns:
    counts = np.diff(bases.offsets.astype(np.int64), prepend=0)
    heads = header_sizes(counts[rows["bases"]])
    return PackColumns(
        number=number,
        leads=rows["id"][:, 0].astype(np.uint64),
        tails=rows["id"][:, 1].astype(np.uint64),
        sizes=(heads + rows["stored"]).astype(np.uint32),
        ranks=rows["rank"].astype(np.uint8),
        lists=rows["bases"].astype(np.uint32),
        offsets=bases.offsets.astype(np.int64),
        bases=id_keys(bases.ids),
    )


def pack_overhead(frames: int) -> int:
    """Return the bytes of a pack beside its frames, if none of them is a delta."""
    return _PACK_OVERHEAD + frames * ROW.itemsize
