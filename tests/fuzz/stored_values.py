"""Fuzz targets for every stored value: any bytes decode to a value that encodes to them again, or are refused.

Each returns something true if its input was accepted, in any form.
What has a checksum is tried as it is and with the right checksum, or hardly any input would reach what lies behind it.
"""

from __future__ import annotations

import importlib.resources
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
from fakes.payloads import decode as decode_payload

from casstore.codecs import Encoding
from casstore.codecs.delta import (
    LITERALS,
    Extent,
    Order,
    Residual,
    cast,
    encode_delta,
    gguf,
    mean,
    quantise,
    same,
    transpose,
)
from casstore.digest import DIGEST_SIZE, digest
from casstore.errors import FormatError
from casstore.format import envelope, frame, index, layout, manifest, marks, names, pack, record, rows, run

README = importlib.resources.files("casstore.format").joinpath("README.md").read_text("utf-8")
VECTORS = {
    name: bytes.fromhex(body) for name, body in re.findall(r"```vector ([a-z-]+)\n([0-9a-f\s]*)```", README)
}
KEY = "some/key"


def _attempt(decode, *arguments, **named):
    """Return the value, or None for bytes that are refused (UnsupportedVersion is a FormatError)."""
    try:
        return decode(*arguments, **named)
    except FormatError:
        return None


def _round_trip(decode, encode, data):
    value = _attempt(decode, data)
    if value is not None:
        assert encode(value) == data
    return value


def fuzz_layout(data):
    found = _round_trip(layout.decode, layout.encode, data)
    if found is not None:
        assert found.offsets()[-1] == found.size
        assert len(list(found.spans)) == len(found.spans)
    return found


def fuzz_tree(data):
    return _round_trip(manifest.decode_tree, manifest.encode_tree, data)


def fuzz_manifest(data):
    model = _round_trip(manifest.decode_model, manifest.encode_model, data)
    return model or _attempt(run.decode_run, data) or _attempt(run.decode_evaluation, data)


def _with_envelope(magic, decode):
    def both(data):
        plain, sealed = _attempt(decode, data), _attempt(decode, envelope.seal(magic, data))
        return plain or sealed

    return both


def _decode_quarantine(data):
    return marks.decode_quarantine(data, key=marks.quarantine_key(digest(b"hello, chunk\n")))


fuzz_record = _with_envelope(record.MAGIC, lambda data: record.decode_anywhere(data, key=KEY))
_MARKS = (
    _with_envelope(VECTORS["format"][:8], marks.decode_format),
    _with_envelope(VECTORS["tombstone"][:8], lambda data: marks.decode_tombstone(data, key=KEY)),
    _with_envelope(VECTORS["quarantine"][:8], _decode_quarantine),
)


def fuzz_marks(data):
    found = [fuzz(data) for fuzz in _MARKS]
    return any(found)


def fuzz_names(data):
    key = data.decode("utf-8", "surrogateescape")
    parsed = _attempt(names.parse_key, key)
    if parsed is not None:
        assert names.record_key(parsed.name, seq=parsed.seq, write_id=parsed.write_id) == key
    return parsed


def fuzz_frame(data):
    plain = _attempt(frame.decode_header, data, key=KEY)
    # The checksum covers all fields and the bases, and stands in the header's last four bytes.
    count = data[7] if len(data) > 7 else 0
    end = frame.header_size(count)
    if len(data) >= end:
        head = data[: frame.HEADER_SIZE - 4]
        bases = data[frame.HEADER_SIZE : end]
        check = zlib.crc32(bases, zlib.crc32(head + bytes(4)))
        whole = head + struct.pack("<I", check) + bases
        header = _attempt(frame.decode_header, whole, key=KEY)
        if header is not None:
            assert frame.encode_header(header) == whole
    return plain


def read_footer(data):
    trailer = pack.decode_trailer(data[-pack.TRAILER_SIZE :], pack_size=len(data), key=KEY)
    body = data[trailer.begin : trailer.begin + trailer.size]
    footer = pack.decode_footer(body, trailer, key=KEY)
    assert footer.pack_size == len(data)
    assert data == data[: trailer.begin] + pack.encode_footer(footer, begin=trailer.begin)
    return footer


def fuzz_pack(data):
    _attempt(pack.check_header, data, key=KEY)
    _attempt(lambda: list(pack.scan_frames(data, key=KEY)))
    plain = _attempt(read_footer, data)
    if len(data) >= pack.TRAILER_SIZE:
        whole, tail = data[: -pack.TRAILER_SIZE], data[-pack.TRAILER_SIZE :]
        begin, count = struct.unpack_from("<QQ", tail)
        sealed = struct.pack("<QQ32sQ8s", begin, count, digest(whole[begin:]), 0, pack.END_MAGIC)
        _attempt(read_footer, whole + sealed)
    return plain


def read_segment(data):
    """Read all of a segment as `check` does."""
    shape = index.decode_shape(data, key=KEY)
    if shape.size != len(data):
        raise FormatError("length")
    head = index.decode_head(data, shape, key=KEY)
    bases = index.decode_bases(data[shape.bases_begin :], head, key=KEY)
    table = np.frombuffer(data[shape.rows_begin : shape.bases_begin], rows.ROW)
    buckets = [table[head.fanout[at] : head.fanout[at + 1]].tobytes() for at in range(shape.buckets)]
    head.check_buckets(np.arange(shape.buckets), buckets, key=KEY)
    head.check_keys(table, np.frombuffer(data[shape.head_size : shape.rows_begin], "<u4"), key=KEY)
    rows.check_rows(table, lists=len(bases), packs=len(head.packs), key=KEY)
    return index.encode(table, bases, dict(zip(head.packs, head.sizes, strict=True)))


def _sealed_segment(data):
    """Return the segment with the checksums that its contents should have, or None if it has no room for them."""
    shape = _attempt(index.decode_shape, data, key=KEY)
    if shape is None or shape.size != len(data):
        return None
    out = bytearray(data)
    fanout = np.frombuffer(data[shape.fanout_begin : shape.checks_begin], "<u4").tolist()
    table = data[shape.rows_begin : shape.bases_begin]
    size, at = rows.ROW.itemsize, shape.checks_begin
    lists = data[shape.bases_begin :]
    parts = [table[size * fanout[n] : size * fanout[n + 1]] for n in range(shape.buckets)]
    parts += [lists[n : n + index.BLOCK] for n in range(0, len(lists), index.BLOCK)]
    for part in parts:
        out[at : at + index.CHECK_SIZE] = digest(part)[: index.CHECK_SIZE]
        at += index.CHECK_SIZE
    head = index.HEADER_SIZE
    out[head - DIGEST_SIZE : head] = bytes(DIGEST_SIZE)
    out[head - DIGEST_SIZE : head] = digest(out[: shape.head_size])
    assert len(out) == len(data)
    return bytes(out)


def fuzz_index(data):
    plain = _attempt(read_segment, data)
    sealed = _sealed_segment(data)
    if sealed is not None:
        _attempt(read_segment, sealed)
    _attempt(rows.BaseLists.decode, data, key=KEY)
    return plain


def fuzz_payload(data):
    """The first byte is the encoding, the next three are the length of the plain bytes."""
    if len(data) < 4:
        return None
    length = int.from_bytes(data[1:4], "little") % (rows.MAX_CHUNK + 1)
    return _attempt(decode_payload, data[0] % 5, data[4:], length)


def _frames():
    return [VECTORS["pack"][at:] for at, _ in pack.scan_frames(VECTORS["pack"], key=KEY)]


def _payload_seeds():
    for name in sorted(VECTORS):
        if name.endswith("-plain") and not name.startswith("delta"):
            payload = name.removesuffix("-plain")
            encoding = Encoding.ZSTD if payload.startswith("zstd") else Encoding.PLANES
            yield bytes([encoding]) + len(VECTORS[name]).to_bytes(3, "little") + VECTORS[payload]


_BASE = bytes(range(256)) * 16


def fuzz_delta(data):
    """The first three bytes are the length of the plain bytes; there is one base."""
    if len(data) < 3:
        return None
    length = int.from_bytes(data[:3], "little") % (rows.MAX_CHUNK + 1)
    return _attempt(decode_payload, Encoding.DELTA, data[3:], length, [_BASE])


def _delta_seeds():
    near = np.frombuffer(_BASE, np.uint8) + np.arange(len(_BASE), dtype=np.uint8) % 3
    plain = _BASE[100:1100] + b"literal" * 40 + near.tobytes()
    exact = same(0, [Extent(0, 100, 1000)])
    missed = same(1000 + 7 * 40, [Extent(0, 0, len(_BASE))], Residual(Order.INTEGER, 1))
    for pieces in ([exact], [exact, missed]):
        yield len(plain).to_bytes(3, "little") + encode_delta(plain, [_BASE], pieces)
    operations = [
        cast(0, [Extent(0, 0, 4096)], source="F32", target="BF16", residual=Residual(Order.FLOAT, 2)),
        transpose(2048, [Extent(0, 0, 4096)], width=4, shape=(32, 32), permutation=(1, 0), first=9, count=90),
        quantise(3000, [Extent(0, 0, 512)], [Extent(LITERALS, 0, 4)], target="I8"),
        gguf(4000, [Extent(0, 0, 1024)], [Extent(LITERALS, 5, 21)], target="Q4_K"),
        mean(5000, [[Extent(0, 0, 512)], [Extent(0, 512, 1024)]]),
    ]
    pieces = [replace(piece, residual=piece.residual or Residual(Order.INTEGER, 1)) for piece in operations]
    yield len(near.tobytes() * 2).to_bytes(3, "little") + encode_delta(near.tobytes() * 2, [_BASE], pieces)


def _and_bodies(*chosen):
    """Return whole files, and what their envelopes hold."""
    whole = [VECTORS[name] for name in chosen]
    return [*whole, *(data[envelope.MAGIC_SIZE : -DIGEST_SIZE] for data in whole)]


TARGETS = {
    "pack": (fuzz_pack, [VECTORS["pack"]]),
    "frame": (fuzz_frame, _frames()),
    "index": (fuzz_index, [VECTORS["index"]]),
    "layout": (fuzz_layout, [VECTORS["layout"]]),
    "tree": (fuzz_tree, [VECTORS["tree"]]),
    "manifest": (fuzz_manifest, [VECTORS[name] for name in ("model", "run", "evaluation")]),
    "record": (fuzz_record, _and_bodies("record")),
    "marks": (fuzz_marks, _and_bodies("format", "tombstone", "quarantine")),
    "names": (
        fuzz_names,
        [
            names.record_key("tags/Best.v1", seq=2, write_id=None).encode(),
            names.record_key("models/é x", seq=1, write_id=bytes(16)).encode(),
        ],
    ),
    "payload": (fuzz_payload, list(_payload_seeds())),
    "delta": (fuzz_delta, list(_delta_seeds())),
}
