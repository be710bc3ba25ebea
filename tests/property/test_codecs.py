"""Every encoding gives back what went in, and nothing but FormatError for bytes that are none of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
import zstandard
from fakes.payloads import decode, decode_into, encode_batch
from fakes.weights import WEIGHTS, weights
from hypothesis import given
from hypothesis import strategies as st

from casstore.codecs import MAX_STRIDE, ElementHint, Encoding, decode_batch, decodes_to
from casstore.errors import FormatError, UnsupportedVersion

GUARD = 0xA5


def hints():
    wild = st.builds(ElementHint, st.integers(-2, MAX_STRIDE + 9), st.integers(-5, 2 * MAX_STRIDE))
    usual = st.builds(ElementHint, st.sampled_from([1, 2, 4, 8, 18, 34, 144]), st.integers(0, 40))
    return st.none() | usual | wild


@st.composite
def plain_bytes(draw):
    """Bytes with the features that the codecs look for: repeats, constant columns, skewed columns, noise."""
    kind = draw(st.sampled_from(["any", "columns", "repeats", "constant"]))
    size = draw(st.integers(0, 6000))
    if kind == "any":
        return draw(st.binary(max_size=400))
    if kind == "constant":
        return bytes([draw(st.integers(0, 255))]) * size
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "repeats":
        unit = rng.integers(0, 256, draw(st.integers(1, 40)), dtype=np.uint8).tobytes()
        return (unit * (size // len(unit) + 1))[:size]
    stride = draw(st.sampled_from([2, 4, 8, 12, 18, 34]))
    spreads = rng.choice([1, 5, 90, 256], stride)
    rows = rng.integers(0, spreads, (size // stride + 1, stride)).astype(np.uint8)
    return rows.tobytes()[:size]


def decode_guarded(encoding, payload, length):
    """Decode into the middle of a larger buffer, and prove that its surroundings are left alone."""
    memory = bytearray([GUARD]) * (length + 64)
    decode_into(encoding, payload, memoryview(memory)[32 : 32 + length])
    assert memory[:32] == memory[32 + length :] == bytearray([GUARD]) * 32
    return bytes(memory[32 : 32 + length])


def encode_one(plain, hint):
    (encoded,) = encode_batch(plain, [(0, len(plain))], [hint])
    return encoded


@given(plain=plain_bytes(), hint=hints())
def test_arbitrary_bytes_come_back_whatever_the_hint(plain, hint):
    encoded = encode_one(plain, hint)
    assert len(encoded.payload) <= len(plain)
    assert decode_guarded(encoded.encoding, encoded.payload, len(plain)) == plain
    assert decode(encoded.encoding, encoded.payload, len(plain)) == plain


@pytest.mark.parametrize("kind", WEIGHTS)
@given(seed=st.integers(0, 5), begin=st.integers(0, 300), size=st.integers(1, 70_000), right=st.booleans())
def test_weights_come_back_whatever_the_offset(kind, seed, begin, size, right):
    data, width = weights(kind, seed)
    plain = data[begin : begin + size]
    encoded = encode_one(plain, ElementHint(width, -begin % width) if right else None)
    assert len(encoded.payload) <= len(plain)
    assert decode_guarded(encoded.encoding, encoded.payload, len(plain)) == plain


@given(plain=plain_bytes(), hint=hints(), data=st.data())
def test_batches_come_back_and_are_the_same_every_time(plain, hint, data):
    edges = sorted([*data.draw(st.lists(st.integers(0, len(plain)), max_size=6)), 0, len(plain)])
    cuts = [(begin, end - begin) for begin, end in itertools.pairwise(edges)]
    if data.draw(st.booleans()):
        cuts = data.draw(st.permutations(cuts))
    # Like hints for some of the chunks, so that they share a choice of encoding, and none or others between.
    hints = [
        data.draw(st.sampled_from([hint, None, hint and ElementHint(hint.width, hint.phase - offset)]))
        for offset, _ in cuts
    ]
    batch = encode_batch(plain, cuts, hints)
    for (offset, length), encoded in zip(cuts, batch, strict=True):
        assert len(encoded.payload) <= length
        decoded = decode_guarded(encoded.encoding, encoded.payload, length)
        assert decoded == plain[offset : offset + length]
    again = encode_batch(plain, cuts, hints)
    assert [(e.encoding, bytes(e.payload)) for e in again] == [(e.encoding, bytes(e.payload)) for e in batch]


@pytest.mark.parametrize("kind", WEIGHTS)
@given(seed=st.integers(0, 5), phase=st.integers(0, 3), data=st.data())
def test_many_payloads_decode_at_once_as_they_do_alone(kind, seed, phase, data):
    """Whole elements in adjacent chunks are put together at once; odd edges and other encodings stand between."""
    plain, width = weights(kind, seed)
    plain = plain[phase : phase + data.draw(st.integers(1, 30_000))]
    inner = data.draw(st.lists(st.integers(0, len(plain)), max_size=6))
    if data.draw(st.booleans()):
        inner = [(at - phase) // width * width + -phase % width for at in inner]
    edges = sorted({0, len(plain), *(at for at in inner if 0 <= at <= len(plain))})
    cuts = [(begin, end - begin) for begin, end in itertools.pairwise(edges)]
    hints = [ElementHint(width, (-phase - begin) % width) for begin, _ in cuts]
    memory = memoryview(bytearray(len(plain) + 7 * len(cuts)))
    encoded = encode_batch(plain, cuts, hints, out=memory, lead=7)
    alone = [
        decode(item.encoding, item.payload, length) for item, (_, length) in zip(encoded, cuts, strict=True)
    ]
    assert b"".join(alone) == plain
    out = bytearray(len(plain))
    payloads, lengths = [(item.encoding, item.payload) for item in encoded], [length for _, length in cuts]
    decode_batch(payloads, lengths, out)
    assert bytes(out) == plain
    assert decodes_to(payloads, lengths, out)
    out[data.draw(st.integers(0, len(out) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not decodes_to(payloads, lengths, out)


def test_memory_that_is_too_short_for_payloads_is_refused():
    with pytest.raises(ValueError, match="cannot take payloads"):
        encode_batch(bytes(100), [(0, 100)], [None], out=memoryview(bytearray(106)), lead=7)


def test_payloads_outlive_the_block_they_came_from():
    data, width = weights("fp32", 0)
    block = bytearray(data[:100_000] + os.urandom(5000))
    kept = bytes(block)
    cuts = [(0, 100_000), (100_000, 5000)]
    batch = encode_batch(block, cuts, [ElementHint(width), None])
    block[:] = bytes(len(block))
    for (offset, length), encoded in zip(cuts, batch, strict=True):
        assert decode(encoded.encoding, encoded.payload, length) == kept[offset : offset + length]


@pytest.mark.parametrize("cut", [(-1, 2), (0, 11), (10, 1), (4, -1)])
def test_cuts_outside_the_block_are_refused(cut):
    with pytest.raises(ValueError, match="outside its block"):
        encode_batch(b"0123456789", [cut], [None])


def valid_payloads():
    kinds = {
        "raw": encode_one(os.urandom(3000), None),
        "zstd": encode_one(b"some text, again and again. " * 100, None),
    }
    found = [
        (encoded.encoding, bytes(encoded.payload), size)
        for encoded, size in zip(kinds.values(), (3000, 2800), strict=True)
    ]
    for kind in WEIGHTS:
        data, width = weights(kind, 1)
        for phase in (0, 1):
            encoded = encode_one(data[phase:9000], ElementHint(width, -phase % width))
            found.append((encoded.encoding, bytes(encoded.payload), 9000 - phase))
    assert {encoding for encoding, _, _ in found} == {Encoding.RAW, Encoding.ZSTD, Encoding.PLANES}
    return found


PAYLOADS = valid_payloads()


@given(payload=st.sampled_from(PAYLOADS), data=st.data())
def test_damaged_payloads_raise_format_error_or_decode(payload, data):
    encoding, stored, length = payload
    damaged = bytearray(stored)
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of the damage goes where the structure is.
        reach = data.draw(st.sampled_from([8, 64, len(damaged)]))
        at = data.draw(st.integers(0, min(reach, len(damaged)) - 1))
        kind = data.draw(st.sampled_from(["set", "flip", "cut", "insert"]))
        if kind == "set":
            damaged[at] = data.draw(st.integers(0, 255))
        elif kind == "flip":
            damaged[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del damaged[at : at + data.draw(st.integers(1, 9))]
        else:
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        if not damaged:
            break
    length = data.draw(st.sampled_from([length, length, length - 1, length + 1, 0, 3 * length]))
    try:
        plain = decode_guarded(encoding, bytes(damaged), length)
    except FormatError:
        with pytest.raises(FormatError):
            decodes_to([(encoding, bytes(damaged))], [length], bytes(length))
        return
    assert len(plain) == length
    assert decodes_to([(encoding, bytes(damaged))], [length], plain)


@given(encoding=st.integers(-1, 300), payload=st.binary(max_size=300), length=st.integers(0, 5000))
def test_arbitrary_payloads_raise_format_error_or_decode(encoding, payload, length):
    with contextlib.suppress(FormatError):
        assert len(decode_guarded(encoding, payload, length)) == length


def table(*, version=1, flags=0, stride=4, phase=0, count=None, reserved=0, runs, body):
    """Build a planes payload by hand."""
    head = struct.pack(
        "<BBHHBB", version, flags, stride, phase, len(runs) if count is None else count, reserved
    )
    return head + b"".join(struct.pack("<HBBI", *run) for run in runs) + body


GOOD = {"runs": [(2, 0, 0, 6), (1, 0, 0, 3), (1, 2, 0, 1)], "body": b"aabbcc" + b"def" + b"z"}


def test_the_payload_that_the_bad_ones_are_made_from_is_good():
    assert decode(Encoding.PLANES, table(**GOOD), 12) == b"aadzbbezccfz"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": 2}, UnsupportedVersion),
        ({"flags": 2}, UnsupportedVersion),
        ({"reserved": 1}, UnsupportedVersion),
        ({"runs": [(2, 3, 0, 6), *GOOD["runs"][1:]]}, UnsupportedVersion),
        ({"runs": [(2, 0, 1, 6), *GOOD["runs"][1:]]}, UnsupportedVersion),
        ({"stride": 0}, FormatError),
        ({"stride": 1, "runs": [(1, 0, 0, 12)], "body": bytes(12)}, FormatError),
        ({"stride": 513}, FormatError),
        ({"stride": 3}, FormatError),
        ({"phase": 4}, FormatError),
        ({"phase": 1}, FormatError),
        ({"count": 0}, FormatError),
        ({"count": 2}, FormatError),
        ({"count": 255}, FormatError),
        ({"runs": [(2, 0, 0, 5), *GOOD["runs"][1:]]}, FormatError),
        ({"runs": [(0, 0, 0, 0), *GOOD["runs"]]}, FormatError),
        ({"runs": [*GOOD["runs"][:2], (1, 2, 0, 3)], "body": GOOD["body"] + b"zz"}, FormatError),
        ({"runs": [*GOOD["runs"][:2], (1, 1, 0, 2**32 - 1)]}, FormatError),
        ({"runs": [*GOOD["runs"][:2], (1, 1, 0, 1)]}, FormatError),
        ({"flags": 1, "runs": [(1, 2, 0, 1), (1, 2, 0, 1), (2, 2, 0, 2)], "body": b"abcd"}, FormatError),
        ({"flags": 1, "stride": 3, "runs": [(1, 2, 0, 1)] * 3, "body": b"abc"}, FormatError),
        ({"phase": 4, "runs": [(4, 0, 0, 8)], "body": bytes(12)}, FormatError),
        ({"stride": 16, "runs": [(16, 0, 0, 0)], "body": bytes(12)}, FormatError),
        ({"runs": [(1, 2, 0, 1)], "body": b"z"}, FormatError),
        ({"runs": [(5, 2, 0, 5)], "body": b"zzzzz"}, FormatError),
        ({"body": GOOD["body"] + b"."}, FormatError),
        ({"body": GOOD["body"][:-1]}, FormatError),
    ],
)
def test_wrong_headers_are_refused(changes, error):
    with pytest.raises(FormatError) as caught:
        decode(Encoding.PLANES, table(**{**GOOD, **changes}), 12)
    assert type(caught.value) is error


FRAME = zstandard.ZstdCompressor(level=3).compress(b"plain bytes " * 50)
UNSIZED = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(b"plain bytes " * 50)
WIDE = zstandard.ZstdCompressor(
    compression_params=zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
).compressobj(size=600)
WIDE = WIDE.compress(b"plain bytes " * 50) + WIDE.flush()
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 600) + bytes(600)


@pytest.mark.parametrize(
    "payload",
    [
        FRAME[:-1],
        FRAME + b"\0",
        FRAME + FRAME,
        SKIPPABLE,
        SKIPPABLE + FRAME,
        FRAME + SKIPPABLE,
        UNSIZED,
        b"",
        FRAME[:5],
        FRAME[4:],
        zstandard.ZstdCompressor(level=3).compress(b"plain bytes " * 50 + b"!"),
    ],
)
def test_anything_but_one_frame_of_the_stated_size_is_refused(payload):
    with pytest.raises(FormatError):
        decode(Encoding.ZSTD, payload, 600)
    decode(Encoding.ZSTD, FRAME, 600)


def test_a_frame_of_nothing_is_refused():
    empty = zstandard.ZstdCompressor(level=3).compress(b"")
    for payload in (empty, empty + b"hidden"):
        with pytest.raises(FormatError):
            decode(Encoding.ZSTD, payload, 0)
    assert decode(Encoding.RAW, b"", 0) == b""


def frame_header(*, size, window=None, dictionary=None):
    """Build a zstd frame header (RFC 8878 §3.1.1.1) followed by one RLE block of `size` bytes."""
    single = window is None
    descriptor = (2 << 6) | (single << 5) | (3 if dictionary is not None else 0)
    head = b"\x28\xb5\x2f\xfd" + bytes([descriptor])
    if not single:
        head += bytes([window << 3])
    if dictionary is not None:
        head += struct.pack("<I", dictionary)
    head += struct.pack("<I", size)
    return head + struct.pack("<I", (min(size, 1 << 17) << 3) | 2 | 1)[:3] + b"x"


def test_dictionaries_and_huge_windows_are_refused():
    assert decode(Encoding.ZSTD, frame_header(size=900), 900) == b"x" * 900
    assert decode(Encoding.ZSTD, frame_header(size=900, window=13), 900) == b"x" * 900
    for payload in (frame_header(size=900, window=14), frame_header(size=900, dictionary=7)):
        with pytest.raises(FormatError, match=r"window|dictionary"):
            decode(Encoding.ZSTD, payload, 900)


def test_a_skippable_frame_is_not_taken_for_data():
    with pytest.raises(FormatError, match="magic"):
        decode(Encoding.ZSTD, SKIPPABLE, 600)


@pytest.mark.parametrize("window", [None, 13])
def test_nothing_is_allocated_for_sizes_that_do_not_fit(window):
    huge = frame_header(size=2**31, window=window)
    planes = table(runs=[(4, 1, 0, len(huge))], body=huge)
    tracemalloc.start()
    try:
        for encoding, payload in ((Encoding.ZSTD, huge), (Encoding.PLANES, planes), (Encoding.RAW, huge)):
            with pytest.raises(FormatError):
                decode_into(encoding, payload, bytearray(1 << 16))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_delta_without_bases_is_refused():
    with pytest.raises(FormatError, match="delta"):
        decode(Encoding.DELTA, b"x", 1)


def test_unknown_encodings_ask_for_an_upgrade():
    for encoding in (4, 200):
        with pytest.raises(UnsupportedVersion, match=r"[Uu]pgrade"):
            decode(encoding, b"x", 1)


def test_threads_and_forked_children_work_with_contexts_of_their_own():
    data, width = weights("fp32", 2)
    cuts = [(at, 50_000) for at in range(0, 200_000, 50_000)]
    expected = [bytes(e.payload) for e in encode_batch(data, cuts, [ElementHint(width)] * 4)]
    wrong = []

    def work():
        for _ in range(10):
            batch = encode_batch(data, cuts, [ElementHint(width)] * 4)
            for (offset, length), encoded, payload in zip(cuts, batch, expected, strict=True):
                plain = decode(encoded.encoding, encoded.payload, length)
                if encoded.payload != payload or plain != data[offset : offset + length]:
                    wrong.append(offset)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    with warnings.catch_warnings():
        # Python 3.12 warns when a process with threads forks; numpy keeps some of its own.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            wrong.append(None)
            work()
            wrong.pop()
        finally:
            os._exit(1 if wrong else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
