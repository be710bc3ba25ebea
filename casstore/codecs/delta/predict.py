"""The operations of which predictions are made, and the evaluation of a piece's program.

format/README.md specifies each bit for bit. To add one: give it the next number there and in `piece.py`, write its two
functions, and list them in _OPERATIONS. A change of what an operation returns is a new version beside the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.delta.piece import LITERALS, SAME
from casstore.errors import FormatError, UnsupportedVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.piece import Extent, Piece, Step

    U8 = NDArray[np.uint8]

MAX_INPUTS = 256 << 20
"""Limit of the bytes of all inputs of a delta together."""

MAX_RESULTS = 64 << 20
"""Limit of the bytes of all results of a delta together."""


class _Operation(NamedTuple):
    """`size` says how many bytes the result has, from the parameters and the operands' sizes, or raises FormatError.

    `apply` makes the result, from operands of such sizes; it only reads them, and may return one.
    """

    size: Callable[[bytes, Sequence[int]], int]
    apply: Callable[[bytes, Sequence[U8]], U8]


def _same_size(parameters: bytes, sizes: Sequence[int]) -> int:
    if parameters or len(sizes) != 1:
        raise FormatError("A delta's operation *same* has parameters, or not one operand.")
    return sizes[0]


def _same(_parameters: bytes, operands: Sequence[U8]) -> U8:
    return operands[0]


_OPERATIONS = {(SAME, 1): _Operation(_same_size, _same)}


def _operation(step: Step) -> _Operation:
    try:
        return _OPERATIONS[step.operation, step.version]
    except KeyError:
        raise UnsupportedVersion(
            f"A delta has operation {step.operation} in version {step.version}: a newer casstore wrote it. "
            "Upgrade to read it."
        ) from None


def check_programs(pieces: Sequence[Piece], bases: Sequence[int], literals: int) -> None:
    """Check that the programs of a delta can be evaluated and predict what their pieces need; evaluates nothing.

    `bases` and `literals` are sizes in bytes. Raises FormatError, or UnsupportedVersion for unknown operations.
    """
    inputs = results = 0
    used = set()
    for piece in pieces:
        sizes = []
        for extents in piece.inputs:
            for base, begin, end in extents:
                limit = literals if base == LITERALS else bases[base] if base < len(bases) else -1
                if not begin < end <= limit:
                    raise FormatError(
                        f"A delta reads bytes {begin} to {end} of base {base}, which has {limit}."
                    )
                used.add(base)
            sizes.append(sum(extent.end - extent.begin for extent in extents))
        inputs += sum(sizes)
        for step in piece.steps:
            if not step.operands or max(step.operands) >= len(sizes):
                raise FormatError("A step of a delta uses no value, or one that does not exist yet.")
            sizes.append(_operation(step).size(step.parameters, [sizes[at] for at in step.operands]))
            results += sizes[-1]
            if results > MAX_RESULTS:
                raise FormatError("The operations of a delta make more bytes than are allowed.")
        if not piece.steps or sizes[-1] != piece.end - piece.begin:
            raise FormatError(f"A delta predicts {sizes[-1:]} bytes for {piece.end - piece.begin}.")
    if inputs > MAX_INPUTS:
        raise FormatError("The inputs of a delta have more bytes than are allowed.")
    if len(used - {LITERALS}) != len(bases):
        raise FormatError("A delta names bases that it does not use.")


def predict(piece: Piece, bases: Sequence[U8], literals: U8) -> U8:
    """Return the prediction of a piece that was checked, perhaps as a view of a base."""
    values = [_read(extents, bases, literals) for extents in piece.inputs]
    for step in piece.steps:
        operation = _operation(step)
        values.append(operation.apply(step.parameters, [values[at] for at in step.operands]))
    return values[-1]


def _read(extents: Sequence[Extent], bases: Sequence[U8], literals: U8) -> U8:
    parts = [(literals if base == LITERALS else bases[base])[begin:end] for base, begin, end in extents]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
