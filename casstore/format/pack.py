"""A pack: header, frames, footer, trailer. README.md, "Packs", gives every byte.

The directory comes last so that a pack is written in one pass; frames carry their own ids, so a pack
whose footer is torn is still readable by a forward scan.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casstore.digest import digest
from casstore.errors import FormatError, UnsupportedVersion
from casstore.format import frame
from casstore.format.rows import ROW, BaseLists, check_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Buffer

    from casstore.format.frame import FrameHeader
    from casstore.format.rows import Rows

MAGIC = b"casspack"
END_MAGIC = b"packcass"
VERSION = 1
NONCE_SIZE = 16

_HEADER = struct.Struct("<8sHHI16s")
_TRAILER = struct.Struct("<QQ32sQ8s")
HEADER_SIZE = _HEADER.size
TRAILER_SIZE = _TRAILER.size


@dataclass(frozen=True, slots=True)
class Footer:
    """A pack's directory: one row per frame in the order of the file, and the base lists they share."""

    rows: Rows
    bases: BaseLists

    @property
    def begin(self) -> int:
        """Where the footer starts in its pack: after the last frame."""
        if len(self.rows) == 0:
            return HEADER_SIZE
        last = self.rows[-1]
        head = frame.header_size(self.bases.length(int(last["bases"])))
        return int(last["offset"]) + head + int(last["stored"])

    @property
    def pack_size(self) -> int:
        """Bytes of the whole pack, which follow from the footer."""
        return self.begin + ROW.itemsize * len(self.rows) + self.bases.size + TRAILER_SIZE


@dataclass(frozen=True, slots=True)
class Trailer:
    """Where the footer lies: `begin` and `size` in bytes from the pack's start, `rows` its row count."""

    begin: int
    size: int
    rows: int
    check: bytes


def encode_header(nonce: bytes) -> bytes:
    """Return a pack's first 32 bytes; the 16 random bytes of `nonce` keep pack ids apart (invariant 6)."""
    if len(nonce) != NONCE_SIZE:
        raise FormatError(f"A pack nonce has {NONCE_SIZE} bytes, not {len(nonce)}.")
    return _HEADER.pack(MAGIC, VERSION, 0, 0, nonce)


def check_header(data: Buffer, *, key: str) -> None:
    """Raise FormatError unless `data` starts like a pack, UnsupportedVersion if a newer one."""
    view = memoryview(data)
    if len(view) < HEADER_SIZE:
        raise FormatError(f"{key} is truncated.")
    magic, version, flags, reserved, _nonce = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise FormatError(f"{key} is not a pack.")
    if version != VERSION or flags or reserved:
        raise UnsupportedVersion(f"{key} is a pack of version {version}; upgrade casstore to read it.")


def footer_rows(headers: Sequence[FrameHeader], offsets: Sequence[int]) -> Footer:
    """Build the directory of frames that start at `offsets`, in file order.

    Raises FormatError for frames that `decode_footer` would refuse.
    """
    rows = np.zeros(len(headers), ROW)
    if headers:
        ids = b"".join(header.object_id for header in headers)
        rows["id"] = np.frombuffer(ids, ">u8").reshape(-1, 4)
        rows["offset"] = offsets
        rows["stored"] = [header.stored for header in headers]
        rows["raw"] = [header.raw for header in headers]
        rows["kind"] = [header.kind for header in headers]
        rows["encoding"] = [header.encoding for header in headers]
        rows["rank"] = [header.rank for header in headers]
    numbers: dict[tuple[bytes, ...], int] = {}
    for at, header in enumerate(headers):
        if header.bases:
            rows["bases"][at] = numbers.setdefault(header.bases, len(numbers) + 1)
    check_rows(rows, lists=len(numbers), packs=1, key="An unfinished pack")
    return Footer(rows, BaseLists.of(list(numbers)))


def encode_footer(footer: Footer, *, begin: int) -> bytes:
    """Return footer and trailer of a pack whose frames end at byte `begin`."""
    body = footer.rows.tobytes() + footer.bases.encode()
    return body + _TRAILER.pack(begin, len(footer.rows), digest(body), 0, END_MAGIC)


def decode_trailer(tail: Buffer, *, pack_size: int, key: str) -> Trailer:
    """Read the last TRAILER_SIZE bytes of a pack of `pack_size` bytes."""
    view = memoryview(tail)
    if pack_size < HEADER_SIZE + TRAILER_SIZE or len(view) < TRAILER_SIZE:
        raise FormatError(f"{key} is truncated.")
    begin, rows, check, reserved, magic = _TRAILER.unpack(view[-TRAILER_SIZE:])
    size = pack_size - TRAILER_SIZE - begin
    if magic != END_MAGIC or reserved or begin < HEADER_SIZE or size < rows * ROW.itemsize:
        raise FormatError(f"{key} has no valid trailer: it is truncated or damaged.")
    return Trailer(begin=begin, size=size, rows=rows, check=check)


def decode_footer(body: Buffer, trailer: Trailer, *, key: str) -> Footer:
    """Read and check a footer; every frame it names lies inside the pack and none overlap."""
    view = memoryview(body)
    if len(view) != trailer.size or digest(view) != trailer.check:
        raise FormatError(f"The footer of {key} fails its checksum.")
    split = trailer.rows * ROW.itemsize
    rows = np.frombuffer(view[:split], ROW)
    bases = BaseLists.decode(view[split:], key=key)
    check_rows(rows, lists=len(bases), packs=1, key=key)
    counts = np.diff(bases.offsets.astype(np.int64), prepend=0)
    heads = frame.header_sizes(counts[rows["bases"]])
    starts = rows["offset"].astype(np.int64)
    ends = starts + heads + rows["stored"]
    expected = np.concatenate([[HEADER_SIZE], ends])
    if not (np.array_equal(starts, expected[:-1]) and expected[-1] == trailer.begin):
        raise FormatError(f"The footer of {key} does not describe its frames.")
    return Footer(rows, bases)


def scan_frames(data: Buffer, *, key: str) -> Iterator[tuple[int, FrameHeader]]:
    """Yield (offset, header) of the frames from the start of a pack up to the first invalid one.

    For a pack whose footer is torn; payloads are not checked here.
    """
    check_header(data, key=key)
    view = memoryview(data)
    at = HEADER_SIZE
    while at + frame.HEADER_SIZE <= len(view):
        try:
            header = frame.decode_header(view[at:], key=key)
        except FormatError:
            return  # Invariant 5: frames before the tear are still valid.
        end = at + header.size + header.stored
        if end > len(view):
            return
        yield at, header
        at = end


def find_frame(data: bytes, *, begin: int, key: str) -> tuple[int, FrameHeader] | None:
    """Return offset and header of the first frame in `data`, from byte `begin` on, whose header is intact; None if none is.

    For a pack that is damaged anywhere: what comes before such a header may be anything. Payloads are not checked here.
    """
    view = memoryview(data)
    while (begin := data.find(frame.MAGIC, begin)) >= 0:
        try:
            return begin, frame.decode_header(view[begin:], key=key)
        except FormatError:  # noqa: PERF203  # only where the bytes happen to be those of a header
            begin += 1  # Invariant 4: not a header, or a damaged one; the next one may be whole.
    return None
