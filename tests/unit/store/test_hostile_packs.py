"""Frames, packs and index segments that an attacker wrote: right bytes or an error, in bounded memory."""

from __future__ import annotations

import itertools
import re
import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import zstandard
from fakes.forge import assert_refused
from fakes.stores import assert_clean

from casstore import IntegrityError
from casstore.codecs import Encoding
from casstore.digest import digest
from casstore.errors import FormatError, MissingObject, UnsupportedVersion
from casstore.format import index, layout, pack
from casstore.format.rows import ROW, BaseLists, Kind
from casstore.objects.keys import pack_key
from casstore.ops.check import check

MIB = 1 << 20


def zstd_frame(stated, blocks):
    """A zstd frame whose header states a size, and RLE blocks of 128 KiB each that say otherwise."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0xA0]) + struct.pack("<I", stated)
    body = bytearray()
    for at in range(blocks):
        body += ((1 << 17) << 3 | 1 << 1 | (at == blocks - 1)).to_bytes(3, "little") + b"A"
    return head + bytes(body)


def planes_frame(raw, run):
    return struct.pack("<BBHHBB", 1, 0, 2, 0, 1, 0) + struct.pack("<HBBI", 2, 1, 0, len(run)) + run


GOOD_ZSTD = zstandard.ZstdCompressor().compress(b"A" * MIB)
NO_SIZE = zstandard.ZstdCompressor(write_content_size=False).compress(b"A" * MIB)
BOMBS = [
    (Encoding.ZSTD, zstd_frame(MIB, 8 * 1000), MIB),
    (Encoding.ZSTD, zstd_frame(MIB, 4), MIB),
    (Encoding.ZSTD, zstd_frame(0xFFFFFFFF, 8), MIB),
    (Encoding.ZSTD, zstd_frame(0xFFFFFFFF, 8), 4),
    (Encoding.ZSTD, GOOD_ZSTD + GOOD_ZSTD, MIB),
    (Encoding.ZSTD, GOOD_ZSTD + b"\x50\x2a\x4d\x18\x04\0\0\0skip", MIB),
    (Encoding.ZSTD, NO_SIZE, MIB),
    (Encoding.ZSTD, b"", MIB),
    (Encoding.ZSTD, GOOD_ZSTD, 0),
    (Encoding.ZSTD, GOOD_ZSTD, MIB - 1),
    (Encoding.ZSTD, GOOD_ZSTD[:-1], MIB),
    (Encoding.PLANES, planes_frame(MIB, zstd_frame(MIB, 8 * 1000)), MIB),
    (Encoding.PLANES, planes_frame(MIB, zstd_frame(0xFFFFFFFF, 8)), MIB),
    (Encoding.PLANES, planes_frame(MIB, GOOD_ZSTD[:-2]), MIB),
    (Encoding.PLANES, planes_frame(MIB, NO_SIZE), MIB),
    (Encoding.PLANES, b"", MIB),
    (Encoding.PLANES, b"\x01", 0),
    (Encoding.RAW, b"A", MIB),
    (Encoding.RAW, b"A" * 100, 1),
    (Encoding.DELTA, b"A" * 100, 100),
    (77, b"A" * 100, 100),
]


def test_the_bombs_would_be_read_were_they_harmless(forge):
    for encoding, payload in (
        (Encoding.ZSTD, zstd_frame(MIB, 8)),
        (Encoding.PLANES, planes_frame(MIB, GOOD_ZSTD)),
    ):
        object_id = forge.frame(Kind.CHUNK, b"A" * MIB, encoding=encoding, payload=payload)
        forge.flush()
        with forge.opened() as store:
            assert store.objects.read(object_id) == b"A" * MIB
            assert_clean(store)


@pytest.mark.parametrize(("encoding", "payload", "raw"), BOMBS)
@pytest.mark.parametrize("kind", [Kind.CHUNK, Kind.LAYOUT, Kind.MANIFEST])
def test_payloads_that_are_bombs_or_rubbish(forge, encoding, payload, raw, kind):
    object_id = forge.frame(kind, b"A" * raw, encoding=encoding, payload=payload)
    forge.flush()
    with forge.opened() as store:
        tracemalloc.start()
        try:
            with pytest.raises(IntegrityError, match="packs/"):
                store.objects.read(object_id)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * MIB
        assert not check(store, read_data=True).ok


@pytest.mark.parametrize("encoding", [9, 255])
@pytest.mark.parametrize("kind", list(Kind))
def test_an_encoding_from_the_future_is_not_damage(forge, encoding, kind):
    object_id = forge.frame(kind, b"plain", encoding=encoding)
    forge.flush()
    with forge.opened() as store:
        with pytest.raises(UnsupportedVersion, match=r"packs/.*[Uu]pgrade"):
            store.objects.read(object_id)
        [problem] = check(store, read_data=True).problems
    assert "pgrade" in problem.message


@pytest.mark.parametrize("plain", [b"", b"evil", b"A" * 100_000])
def test_frames_that_hold_other_bytes_than_their_name_says(forge, outside, plain):
    forge.frame(Kind.CHUNK, plain, object_id=digest(b"good"), raw=len(plain))
    cut = layout.encode(layout.Layout(digest(b"good"), 4, digest(b"good"), np.array([4], "<u4")))
    ref = forge.model([["f.bin", 4, digest(b"good")]], [forge.frame(Kind.LAYOUT, cut)])
    assert_refused(forge, ref, outside / "out")


def test_frames_that_claim_to_be_longer_than_the_format_allows(forge):
    for kind, limit in ((Kind.CHUNK, MIB), (Kind.LAYOUT, 1 << 28)):
        for changes in (
            {"raw": limit + 1},
            {"raw": 0xFFFFFFFF},
            {"stored": limit + 1},
            {"stored": 0xFFFFFFFF},
        ):
            object_id = forge.frame(kind, b"x", **changes)
            forge.flush(cover=False)
            with forge.opened() as store:
                with pytest.raises(FormatError, match="packs/"):
                    store.objects.read(object_id)
                report = check(store)
                assert not report.ok
            for entry in list(forge.store.backend.list("packs/")):
                forge.store.backend.delete(entry.key)


# A look-up table of frames, of which every field may lie: those that a pack's own footer can contradict.
LIES = [
    ("offset", 1 << 63),
    ("offset", (1 << 64) - 1),
    ("offset", (1 << 63) - 1),
    ("offset", 1 << 40),
    ("offset", 0),
    ("offset", 33),
    ("stored", 0),
    ("stored", 3),
    ("stored", 0xFFFFFFFF),
    ("stored", 1 << 20),
    ("raw", 0),
    ("raw", 3),
    ("raw", 0xFFFFFFFF),
    ("raw", 1 << 20),
    ("kind", 0),
    ("kind", 5),
    ("kind", 2),
    ("encoding", 1),
    ("encoding", 200),
    ("rank", 1),
    ("rank", 9),
    ("bases", 1),
    ("bases", 0xFFFFFFFF),
    ("pack", 1),
    ("pack", 0xFFFFFFFF),
    ("reserved", 1),
]


@pytest.mark.parametrize(("field", "value"), LIES)
def test_a_segment_that_lies_about_a_frame(forge, field, value):
    """Right bytes or an error that names a file, never anything else; `check` sees the lie."""
    object_id = forge.frame(Kind.CHUNK, b"evil")
    pack_id, rows = forge.flush(cover=False)
    lying = rows.copy()
    lying[field] = value
    forge.segment(lying, [pack_id])
    with forge.opened() as store:
        try:
            plain = store.objects.read(object_id)
        except IntegrityError as caught:
            plain, message = None, str(caught)
        assert plain == b"evil" or (plain is None and ("packs/" in message or "index/" in message))
        assert not check(store).ok


def test_a_segment_that_gives_an_object_another_name(forge):
    forge.frame(Kind.CHUNK, b"evil")
    pack_id, rows = forge.flush(cover=False)
    lying = rows.copy()
    lying["id"] = np.frombuffer(digest(b"good"), ">u8")
    forge.segment(lying, [pack_id])
    with forge.opened() as store:
        with pytest.raises(IntegrityError, match="packs/"):
            store.objects.read(digest(b"good"))
        assert not check(store).ok


def test_a_segment_that_covers_a_pack_and_hides_its_frames(forge):
    object_id = forge.frame(Kind.CHUNK, b"evil")
    pack_id, rows = forge.flush(cover=False)
    forge.segment(rows[:0], [pack_id])
    with forge.opened() as store:
        with pytest.raises(MissingObject, match=object_id.hex()):
            store.objects.read(object_id)
        assert not check(store).ok


def test_a_segment_whose_rows_are_out_of_order(forge):
    """Its checksums are right, so only a reader that knows the order can tell that objects are hidden."""
    ids = [forge.frame(Kind.CHUNK, b"%d" % number) for number in range(300)]
    pack_id, rows = forge.flush(cover=False)
    size = forge.store.backend.stat(pack_key(pack_id)).size
    honest = index.encode(rows, BaseLists.empty(), {pack_id: size})
    shape = index.decode_shape(honest, key="k")
    body = np.frombuffer(honest[shape.rows_begin : shape.bases_begin], ROW)
    fanout = np.frombuffer(honest[104 : 104 + 4 * (shape.buckets + 1)], "<u4")
    shuffled = np.concatenate([body[a:b][::-1] for a, b in itertools.pairwise(fanout)], dtype=ROW)
    checks = b"".join(digest(shuffled[a:b].tobytes())[:8] for a, b in itertools.pairwise(fanout))
    head = struct.Struct("<8sHBBIQII32s")
    counts = (b"cassindx", 1, shape.bits, 0, 1, len(rows), shape.lists, shape.list_ids)
    tables = pack_id + struct.pack("<Q", size) + fanout.tobytes() + checks
    tables += honest[shape.head_size - 8 * shape.blocks : shape.head_size]
    sealed = head.pack(*counts, digest(head.pack(*counts, bytes(32)) + tables))
    keys = index.decode_head(honest, shape, key="k").key_of(shuffled["id"].astype(np.uint64))
    rest = shuffled.tobytes() + honest[shape.bases_begin :]
    forge.put_segment(sealed + tables + keys.astype("<u4").tobytes() + rest)
    with forge.opened() as store:
        [problem] = check(store).problems
        assert "is not in order" in problem.message
        for object_id in ids[:20]:
            with suppress(MissingObject):
                assert digest(store.objects.read(object_id)) == object_id


@pytest.mark.parametrize("field", ["id", "offset", "stored", "raw", "kind", "rank", "bases"])
def test_a_footer_that_lies_about_its_frames(forge, field):
    object_id = forge.frame(Kind.CHUNK, b"evil")
    other = forge.frame(Kind.CHUNK, b"more")

    def lie(rows):
        rows[field][0] = rows[field][0] + 1

    forge.flush(cover=False, change_rows=lie)
    with forge.opened() as store:
        for wanted in (object_id, other):
            with suppress(IntegrityError):  # a frame that is told truly may be read
                assert digest(store.objects.read(wanted)) == wanted
        assert not check(store, read_data=True).ok


def test_packs_that_are_only_numbers(forge):
    """A trailer may point anywhere."""
    for begin, rows, size in (
        (1 << 63, 0, 500),
        (32, 1 << 60, 500),
        ((1 << 64) - 1, 0, 500),
        (0, 0, 500),
        (32, 0, 500),
    ):
        trailer = struct.pack("<QQ32sQ8s", begin, rows, digest(b""), 0, b"packcass")
        blob = pack.encode_header(bytes(16)) + bytes(size) + trailer
        pack_id = digest(blob)
        forge.store.backend.put(pack_key(pack_id), [blob])
        with forge.opened() as store:
            with pytest.raises(FormatError, match="packs/"):
                store.objects.read(digest(b"anything"))
            assert not check(store).ok
        forge.store.backend.delete(pack_key(pack_id))


@pytest.mark.parametrize(
    "count", [(32, 0, 0), (33, 0, 0), (0, 0xFFFFFFFF, 0), (0, 0, 1 << 33), (0, 0, 0xFFFFFFFF)]
)
def test_segments_that_are_only_numbers(forge, count, caplog):
    bits, packs, rows = count
    data = struct.pack("<8sHBBIQII32s", b"cassindx", 1, bits, 0, packs, rows, 0, 0, bytes(32)) + bytes(500)
    forge.put_segment(data)
    with forge.opened() as store:
        with pytest.raises(MissingObject):
            store.objects.read(digest(b"anything"))
        assert not check(store).ok
    assert re.search(r"index/.*Remove that file", caplog.text)
