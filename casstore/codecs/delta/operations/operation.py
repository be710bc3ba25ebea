"""What an operation is, and what all of them share: how parameters are read and operands taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from casstore.errors import FormatError

if TYPE_CHECKING:
    import struct
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]
    Parts = Sequence[U8]

__all__ = ["Operation", "Source", "blocks", "in_units", "joined", "read_parameters", "reject"]

_BLOCK = 32 << 10
"""Elements that numpy code works on at once: what they need stays in the core's caches, and small."""


class Source(NamedTuple):
    """A result that is not made yet: the bytes of parts, one after the other, or those cast, if `cast` is given.

    That has the numbers of the formats, and of the rounding, and whether it saturates; the parts are whole elements. `made` are
    the bytes of parts that are memory of their own.
    """

    parts: Parts
    cast: tuple[int, int, int, bool] | None = None
    made: int = 0


class Operation(NamedTuple):
    """A pure function of operands. Its number, its parameters and each bit of its result are in format/README.md."""

    name: str
    size: Callable[[bytes, Sequence[int]], int]
    """Return how many bytes the result has, from the parameters and the operands' sizes; raise FormatError for others than a
    reader takes. All that can be absurd is refused here: nothing was decoded yet."""
    apply: Callable[[bytes, Sequence[Parts]], U8]
    """Return the result for what `size` accepted, perhaps an operand itself. Operands are only read; each is bytes in parts,
    one after the other."""
    strides: Callable[[bytes], tuple[int, ...]] | None = None
    """Return after how many bytes the pattern of the result repeats, and that of each operand; None if nothing is known. It
    decides how well residuals and literals compress, and nothing else."""
    fill: Callable[[bytes, Sequence[Parts], U8], None] | None = None
    """Write what `apply` returns to memory of its size, at any address and apart from the operands; None if that saves nothing."""
    source: Callable[[bytes, Sequence[Parts]], Source] | None = None
    """Return what `apply` would make, unmade; None if there is nothing to be spared."""


def reject(name: str, what: str) -> FormatError:
    """Return the error for a step that no writer makes."""
    return FormatError(f"A delta's operation *{name}* has {what}.")


def read_parameters(name: str, layout: struct.Struct, parameters: bytes) -> tuple[Any, ...]:
    """Return the values of parameters that have one length; raise FormatError for another."""
    if len(parameters) != layout.size:
        raise reject(name, f"{len(parameters)} bytes of parameters instead of {layout.size}")
    return layout.unpack(parameters)


def joined(parts: Parts) -> U8:
    """Return an operand as one array: itself if it has one part, else a copy."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def in_units(parts: Parts, unit: int) -> Parts:
    """Return an operand in parts of whole units of so many bytes: as it is, or as a copy in one part if it has others."""
    return parts if all(len(part) % unit == 0 for part in parts) else [joined(parts)]


def blocks(count: int, size: int = _BLOCK) -> Iterator[slice]:
    """Cut `count` elements into ranges that numpy code takes one by one."""
    return (slice(at, min(at + size, count)) for at in range(0, count, size))
