"""How chunks are stored: raw, zstd, planes, delta. Pure functions on buffers; README.md beside this file says more."""

from __future__ import annotations

from casstore.codecs.batch import decode_batch, decodes_to, encode_each, share_of_plain
from casstore.codecs.delta import Delta, DeltaInput, decode_deltas, encode_delta, encode_deltas
from casstore.codecs.encoding import MAX_STRIDE, ElementHint, Encoded, Encoding
from casstore.codecs.kernels import equal

__all__ = [
    "MAX_STRIDE",
    "Delta",
    "DeltaInput",
    "ElementHint",
    "Encoded",
    "Encoding",
    "decode_batch",
    "decode_deltas",
    "decodes_to",
    "encode_delta",
    "encode_deltas",
    "encode_each",
    "equal",
    "share_of_plain",
]
