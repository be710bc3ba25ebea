"""Codecs as tests ask them: one chunk at a time, and batches as lists."""

from __future__ import annotations

from casstore.codecs import Delta, Encoding, decode_batch, decode_deltas, encode_each


def encode_batch(block, cuts, hints, **options):
    """Return what `encode_each` yields."""
    return list(encode_each(block, cuts, hints, **options))


def decode_into(encoding, payload, out, bases=()):
    """Write the plain bytes of one payload over the whole of `out`; `bases` are those of a delta."""
    target = memoryview(out).cast("B")
    if bases and encoding == Encoding.DELTA:
        decode_deltas([Delta(payload, bases)], [len(target)], target)
    else:
        decode_batch([(encoding, payload)], [len(target)], target)


def decode(encoding, payload, raw_length, bases=()):
    """Return the plain bytes of one payload; `bases` are those of a delta."""
    out = bytearray(raw_length)
    decode_into(encoding, payload, out, bases)
    return bytes(out)
