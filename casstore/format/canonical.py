"""Canonical msgpack: one value has one byte form, so that its BLAKE3 can be its identity.

Rules on top of https://github.com/msgpack/msgpack/blob/master/spec.md: map keys are strings in the order
of their UTF-8 bytes, integers, strings, binaries, arrays and maps take their shortest form, floats are
64-bit, ext types do not occur, nesting stops at 32, and a value has at most 2^24 items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack

from casstore.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "decode", "encode"]

MAX_DEPTH = 32

MAX_ITEMS = 1 << 24
"""Limit of the elements of all arrays and maps of one value together: a million tensors need ten million. Without a
limit, a few bytes of zstd could expand to megabytes of msgpack, and each byte of those to a Python object."""


def encode(value: Any) -> bytes:
    """Return the canonical bytes of `value`; raise ConfigError if it has none."""
    try:
        return _pack(_sorted(value, _Budget(), depth=0))
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError) as error:
        # Invariant 3: a value that cannot be encoded stops the publish before its record.
        raise ConfigError(f"This value cannot be stored as msgpack: {error}.") from error


def decode(data: Buffer, *, what: str) -> Any:
    """Return the value of canonical bytes; raise FormatError, naming `what`, for anything else."""
    view = bytes(data)
    budget = _Budget()
    try:
        value = msgpack.unpackb(
            view,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_ext,
            list_hook=budget.take,
            object_pairs_hook=budget.take_pairs,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
        _check_depth(value, 0)
        again = _pack(value)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        # Invariant 4: bytes that do not decode are an error, never guessed at.
        raise FormatError(f"{what} is not canonical msgpack: {error or type(error).__name__}.") from error
    if again != view:
        raise FormatError(f"{what} is msgpack, but not in canonical form.")
    return value


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True)
    return packed


def _refuse_ext(code: int, _data: bytes) -> Any:
    raise ValueError(f"ext type {code} is not allowed")


class _Budget:
    """Counts what containers hold, itself and its elements, and refuses more than MAX_ITEMS."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def take(self, container: Any) -> Any:
        """Return `container`; raise ValueError once there were too many items."""
        self._left -= 1 + len(container)
        if self._left < 0:
            raise ValueError(f"more than {MAX_ITEMS} items")
        return container

    def take_pairs(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        """Return a map of `pairs`; raise ValueError unless their keys are strings that ascend."""
        self.take(pairs)
        last = None
        for key, _ in pairs:
            # Strings compare by code points, and so do their UTF-8 bytes.
            if type(key) is not str or (last is not None and key <= last):
                raise ValueError("map keys must be strings that ascend")
            last = key
        return dict(pairs)


def _check_depth(value: Any, depth: int) -> None:
    if type(value) not in _CONTAINERS:
        return
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    for item in value.values() if type(value) is dict else value:
        if type(item) in _CONTAINERS:
            _check_depth(item, depth + 1)


def _sorted(value: Any, budget: _Budget, *, depth: int) -> Any:
    """Rebuild `value` with sorted maps; raises TypeError or ValueError for values that msgpack must not hold."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise TypeError("map keys must be strings")
        keys = sorted(budget.take(value), key=lambda key: key.encode())
        return {key: _sorted(value[key], budget, depth=depth + 1) for key in keys}
    if kind is list or kind is tuple:
        return [
            item if type(item) in _SCALARS else _sorted(item, budget, depth=depth + 1)
            for item in budget.take(value)
        ]
    raise TypeError(f"{kind.__name__} is not a msgpack type")


_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_CONTAINERS = frozenset({dict, list})
