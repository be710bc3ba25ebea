"""How chunks are stored: raw, zstd, planes, delta. Pure functions on buffers; README.md beside this file says more.

Deltas are imported on first use: many commands meet none, and start faster without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from casstore.codecs.batch import decode_batch, decodes_to, encode_each, share_of_plain
from casstore.codecs.encoding import MAX_STRIDE, ElementHint, Encoded, Encoding
from casstore.codecs.kernels import equal

if TYPE_CHECKING:
    from casstore.codecs.delta import Delta, DeltaInput, decode_deltas, encode_delta, encode_deltas

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

if not TYPE_CHECKING:  # A type checker would take every name for one that is here.
    _OF_DELTAS = frozenset({"Delta", "DeltaInput", "decode_deltas", "encode_delta", "encode_deltas"})

    def __getattr__(name: str) -> Any:
        if name not in _OF_DELTAS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module("casstore.codecs.delta"), name)
        return value
