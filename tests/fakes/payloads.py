"""Codecs as tests ask them: one chunk at a time, and batches as lists."""

from __future__ import annotations

from casstore.codecs import decode_batch, encode_each


def encode_batch(block, cuts, hints, **options):
    """Return what `encode_each` yields."""
    return list(encode_each(block, cuts, hints, **options))


def decode_into(encoding, payload, out):
    """Write the plain bytes of one payload over the whole of `out`."""
    target = memoryview(out).cast("B")
    decode_batch([(encoding, payload)], [len(target)], target)


def decode(encoding, payload, raw_length):
    """Return the plain bytes of one payload."""
    out = bytearray(raw_length)
    decode_into(encoding, payload, out)
    return bytes(out)
