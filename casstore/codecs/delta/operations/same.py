"""*same*: the operand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casstore.codecs.delta.operations.operation import Operation, Source, joined
from casstore.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.operations.operation import Parts

    U8 = NDArray[np.uint8]


def _size(parameters: bytes, sizes: Sequence[int]) -> int:
    if parameters or len(sizes) != 1:
        raise FormatError("A delta's operation *same* has parameters, or not one operand.")
    return sizes[0]


def _apply(_parameters: bytes, operands: Sequence[Parts]) -> U8:
    return joined(operands[0])


def _fill(_parameters: bytes, operands: Sequence[Parts], out: U8) -> None:
    np.concatenate(operands[0], out=out)


def _source(_parameters: bytes, operands: Sequence[Parts]) -> Source:
    return Source(operands[0])


OPERATION = Operation("same", _size, _apply, fill=_fill, source=_source)
