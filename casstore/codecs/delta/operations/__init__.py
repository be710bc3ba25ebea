"""The operations of which predictions are made; format/README.md specifies each bit for bit.

To add one: give it the next number there and in `piece.py`, write a module with its OPERATION and the function that makes its
step, and list it here. What an operation returns never changes; a better one is a new version beside the old one.
"""

from __future__ import annotations

from casstore.codecs.delta.operations import cast, combine, gguf, lora, quantise, same, transpose
from casstore.codecs.delta.operations.operation import Operation
from casstore.codecs.delta.piece import CAST, COMBINE, GGUF, LORA, QUANTISE, SAME, TRANSPOSE

__all__ = ["OPERATIONS", "Operation"]

OPERATIONS = {
    (SAME, 1): same.OPERATION,
    (CAST, 1): cast.OPERATION,
    (TRANSPOSE, 1): transpose.OPERATION,
    (QUANTISE, 1): quantise.OPERATION,
    (COMBINE, 1): combine.OPERATION,
    (GGUF, 1): gguf.OPERATION,
    (LORA, 1): lora.OPERATION,
}
"""Operations by number and version."""
