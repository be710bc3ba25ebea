"""The packs of a store and the segments over them, as work on whole stores takes them: frames as they are stored, checks, repair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.errors import FormatError
from casstore.objects.checking import check_pack, check_segment
from casstore.objects.damage import bad_file_is_damage
from casstore.objects.footers import read_footer
from casstore.objects.index.located import Located
from casstore.objects.keys import pack_key
from casstore.objects.publishing.presence import read_quarantine
from casstore.objects.reading.frames import decode_encoded, verify_frames
from casstore.objects.reading.reader import ObjectReader
from casstore.objects.reading.salvage import DamagedPacks
from casstore.objects.reading.whole_pack import read_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from casstore.backend.base import Backend
    from casstore.errors import IntegrityError
    from casstore.format.frame import FrameHeader
    from casstore.format.pack import Footer
    from casstore.format.rows import Rows
    from casstore.objects.index.index import Index
    from casstore.objects.publishing.pack_writer import EncodedFrames
    from casstore.objects.reading.ranges import Range
    from casstore.objects.reading.reader import ReadThere


def _at_once(_: int) -> None:
    """Wait for nothing."""


class StoredPacks:
    """Reads and checks the packs of one store, and publishes segments over them; safe in threads and after a fork."""

    def __init__(self, backend: Backend, index: Index) -> None:
        self._backend = backend
        self._index = index
        self._reader = ObjectReader(backend, index)

    # ---- frames as they are stored

    def fetch(self, part: Range, out: memoryview) -> None:
        """Read a range of a pack into the caller's buffer, which has its size, as it is stored.

        Raises ObjectNotFound if the pack is gone, FormatError if it ends before the range does.
        """
        key = pack_key(self._index.pack_id(part.pack))
        done = 0
        while done < len(out):
            with bad_file_is_damage(self._backend):
                count = self._backend.read_into(key, out[done:], start=part.begin + done)
            if count == 0:
                raise FormatError(f"{key} in {self._backend.url} is truncated.")
            done += count  # A server may stop early without an error: ask for the rest again.

    def verify_frames(
        self, located: Located, part: Range, fetched: memoryview, *, near: ReadThere | None = None
    ) -> list[FrameHeader]:
        """Prove that each frame of a fetched range decodes to its object (invariant 9); return their headers.

        `near` reads from another store, as `read_there` does, and is asked for the bases of deltas first.
        """
        bases = self._reader.bases_of(located, part.frames, near=near)
        key = pack_key(self._index.pack_id(part.pack))
        return verify_frames(located, part, fetched, bases=bases, key=key)

    # ---- packs

    def footer(self, pack: bytes) -> Footer:
        """Read and check the footer of a pack. Raises ObjectNotFound if it is gone, FormatError if it is damaged."""
        return read_footer(self._backend, pack)

    def check_pack(self, pack: bytes, *, size: int | None = None) -> Footer:
        """Check a pack apart from its frames and its hash; return its footer.

        `size` is what a listing has just said; without it, it is asked for, and must be the index's. Raises
        ObjectNotFound if the pack is gone, FormatError if it is damaged.
        """
        if size is None:
            with bad_file_is_damage(self._backend):
                size = self._backend.stat(pack_key(pack)).size
            expected = self._index.pack_size(self._index.number_of(pack))
            if size != expected:
                raise FormatError(f"{pack_key(pack)} has {size} bytes, and its index says {expected}.")
        return check_pack(self._backend, pack, size=size)

    def read_whole(self, pack: bytes, *, size: int, pace: Callable[[int], None] = _at_once) -> Footer:
        """Read every byte of a pack, and verify its hash, its form and each frame (`read_whole`); return its footer.

        `size` is what a listing has just said. `pace` is told how many bytes are read next, and may wait. Raises
        ObjectNotFound if the pack is gone, an IntegrityError if it is damaged.
        """
        return read_whole(self._backend, self._index, pack, size=size, pace=pace)

    def check_segment(self, key: str, footers: Mapping[bytes, Footer]) -> None:
        """Check an index segment, and that it agrees with the footers of packs; raise FormatError if it does not."""
        check_segment(self._backend, key, footers)

    def cover(self, packs: Sequence[tuple[bytes, Footer]]) -> None:
        """Write an index segment over packs, and use it from now on."""
        self._index.publish(packs)

    def located_in(self, pack: bytes, footer: Footer) -> Located:
        """Return where a pack's own footer says that its objects lie."""
        return Located.of_footer(footer, self._index.number_of(pack))

    def damaged_packs(self) -> DamagedPacks:
        """Return what reads the rest of damaged packs."""
        return DamagedPacks(self._backend)

    def decode(self, frames: EncodedFrames) -> dict[bytes, bytes]:
        """Return the plain bytes, by id, of verified frames that need no bases."""
        return decode_encoded(frames.headers, frames.data)

    def uncovered(self, packs: Sequence[bytes], *, without: Collection[str] = ()) -> list[bytes]:
        """Return those of these packs that no index segment of the store covers, leaving out segments `without`."""
        return self._index.uncovered(packs, without=without)

    def replace_segments(
        self, damaged: Mapping[str, IntegrityError], packs: Sequence[tuple[bytes, Footer]]
    ) -> None:
        """Remove `damaged` index segments, and publish segments over packs: all that these cover and that can be read."""
        self._index.replace(damaged, packs)

    def all_rows(self) -> Iterator[Rows]:
        """Yield the rows of all frames in the store, those of each pack once."""
        return self._index.all_rows()

    def look_for_packs(self) -> None:
        """Load new segments, and the footers of packs that none covers. Raises FormatError for a damaged pack."""
        self._index.refresh()
        self._index.read_uncovered()

    def quarantined(self) -> frozenset[bytes]:
        """Return the packs that were found damaged: nothing new may depend on them (invariant 9)."""
        return read_quarantine(self._backend)

    def note_gone(self, part: Range) -> None:
        """Treat a pack that was not there as gone."""
        self._index.forget_pack(part.pack)

    def avoid(self, pack: bytes) -> bool:
        """Prefer any other copy of what a damaged pack holds; say whether that is new."""
        return self._index.avoid_pack(self._index.number_of(pack))

    def pack_of(self, part: Range) -> bytes:
        """Return the id of the pack of a range."""
        return self._index.pack_id(part.pack)
