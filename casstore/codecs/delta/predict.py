"""The evaluation of a piece's program, and the checks that come before it. `operations/` has the operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.codecs.delta.operations import OPERATIONS
from casstore.codecs.delta.operations.operation import Source, joined
from casstore.codecs.delta.piece import LITERALS, Piece
from casstore.errors import FormatError, UnsupportedVersion

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from casstore.codecs.delta.operations import Operation
    from casstore.codecs.delta.operations.operation import Parts
    from casstore.codecs.delta.piece import Extent, Residual, Step

    U8 = NDArray[np.uint8]

MAX_INPUTS = 256 << 20
"""Limit of the bytes of all inputs of a delta together."""

MAX_RESULTS = 64 << 20
"""Limit of the bytes of all results of a delta together."""


def _operation(step: Step) -> Operation:
    try:
        return OPERATIONS[step.operation, step.version]
    except KeyError:
        raise UnsupportedVersion(
            f"A delta has operation {step.operation} in version {step.version}: a newer casstore wrote it. "
            "Upgrade to read it."
        ) from None


def strides(step: Step) -> tuple[int, ...]:
    """Return the strides of a step's result and of its operands, as far as they are known."""
    found = _operation(step).strides
    return () if found is None else found(step.parameters)


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
    return joined(_values(piece, piece.steps, bases, literals)[-1])


def source_of(piece: Piece, bases: Sequence[U8], literals: U8) -> Source:
    """Return what makes the prediction of a piece that was checked; results of all but its last step are made."""
    *steps, last = piece.steps
    values = _values(piece, steps, bases, literals)
    operands = [values[at] for at in last.operands]
    operation = _operation(last)
    made = sum(len(part) for value in values[len(piece.inputs) :] for part in value)
    if operation.source is None:
        result = operation.apply(last.parameters, operands)
        return Source([result], made=made + len(result))
    source = operation.source(last.parameters, operands)
    return source._replace(made=source.made + made) if made else source


def fills(piece: Piece) -> bool:
    """Say whether the prediction of a piece is best made where it belongs (`predict_to`)."""
    last = _operation(piece.steps[-1])
    return last.source is None and last.fill is not None


def predict_to(piece: Piece, bases: Sequence[U8], literals: U8, out: U8) -> None:
    """Write the prediction of a piece that `fills` to `out`, which has its size and is no part of a base."""
    *steps, last = piece.steps
    values = _values(piece, steps, bases, literals)
    fill = _operation(last).fill
    assert fill is not None
    fill(last.parameters, [values[at] for at in last.operands], out)


def _values(piece: Piece, steps: Sequence[Step], bases: Sequence[U8], literals: U8) -> list[Parts]:
    """Return the inputs of a piece, and the results of its first steps."""
    values: list[Parts] = [_read(extents, bases, literals) for extents in piece.inputs]
    for step in steps:
        values.append([_operation(step).apply(step.parameters, [values[at] for at in step.operands])])
    return values


def _read(extents: Sequence[Extent], bases: Sequence[U8], literals: U8) -> Parts:
    return [(literals if base == LITERALS else bases[base])[begin:end] for base, begin, end in extents]


def piece_of(
    begin: int, inputs: Sequence[Sequence[Extent]], steps: Sequence[Step], residual: Residual | None = None
) -> Piece:
    """Return the piece that predicts what the last step gives, from `begin` on.

    Operands of steps are numbers of values: first the inputs, then the results of steps. Raises FormatError for what no
    reader takes.
    """
    sizes = [sum(extent.end - extent.begin for extent in extents) for extents in inputs]
    for step in steps:
        sizes.append(_operation(step).size(step.parameters, [sizes[at] for at in step.operands]))
    return Piece(
        begin, begin + sizes[-1], tuple(tuple(extents) for extents in inputs), tuple(steps), residual
    )
