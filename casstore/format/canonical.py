"""Canonical msgpack: one value has one byte form, so that its BLAKE3 can be its identity.

Rules on top of https://github.com/msgpack/msgpack/blob/master/spec.md: map keys are strings in the order
of their UTF-8 bytes, integers, strings, binaries, arrays and maps take their shortest form, floats are
64-bit, ext types do not occur, nesting stops at 32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack

from casstore.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MAX_DEPTH", "decode", "encode"]

MAX_DEPTH = 32


def encode(value: Any) -> bytes:
    """Return the canonical bytes of `value`; raise ConfigError if it has none."""
    try:
        return _pack(_sorted(value, depth=0))
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError) as error:
        # Invariant 3: a value that cannot be written whole stops the publish before its record.
        raise ConfigError(f"This value cannot be stored as msgpack: {error}.") from error


def decode(data: Buffer, *, what: str) -> Any:
    """Return the value of canonical bytes; raise FormatError, naming `what`, for anything else."""
    view = bytes(data)
    try:
        value = msgpack.unpackb(view, raw=False, strict_map_key=True, ext_hook=_refuse_ext)
        again = _pack(_sorted(value, depth=0))
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        # Invariant 4: bytes that do not decode are reported, never guessed at.
        raise FormatError(f"{what} is not canonical msgpack: {error or type(error).__name__}.") from error
    if again != view:
        raise FormatError(f"{what} is msgpack, but not in canonical form.")
    return value


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True)
    return packed


def _refuse_ext(code: int, _data: bytes) -> Any:
    raise ValueError(f"ext type {code} is not allowed")


def _sorted(value: Any, *, depth: int) -> Any:
    """Rebuild `value` with sorted maps; raises TypeError or ValueError for what msgpack must not hold."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise TypeError("map keys must be strings")
        keys = sorted(value, key=lambda key: key.encode())
        return {key: _sorted(value[key], depth=depth + 1) for key in keys}
    if kind is list or kind is tuple:
        return [item if type(item) in _SCALARS else _sorted(item, depth=depth + 1) for item in value]
    raise TypeError(f"{kind.__name__} is not a msgpack type")


_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
