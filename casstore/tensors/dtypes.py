"""Element types: names, sizes, and how numpy sees them.

Names follow safetensors (https://github.com/huggingface/safetensors). I4, U4, I2 and U2 continue that pattern for
ONNX's sub-byte integers, C32 for torch's half-precision complex numbers; block-quantised types keep
GGUF's names (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casstore.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = ["DTYPES", "DType", "as_array", "element_width", "labelled"]

_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
"""The types of the package ml_dtypes for what numpy has no type of its own."""


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: `block_elements` elements take `block_bytes` bytes.

    `numpy` is the little-endian numpy type of one element, or None where numpy has none. BF16, C32 and the
    eight-bit floats have the unsigned integer of the same width there: their raw bits.
    `packed` says that elements are smaller than a byte and that the last byte may be partly used.
    """

    name: str
    block_bytes: int
    block_elements: int = 1
    numpy: str | None = None
    packed: bool = False

    def byte_length(self, shape: Sequence[int]) -> int | None:
        """Return the bytes of a tensor of this shape, or None if its rows are not whole blocks."""
        elements = math.prod(shape)
        if self.packed:
            return -(-elements * self.block_bytes // self.block_elements)
        if self.block_elements == 1:
            return elements * self.block_bytes
        if not shape or shape[-1] % self.block_elements:
            return None
        return elements // self.block_elements * self.block_bytes


_PLAIN = (
    DType("F64", 8, numpy="<f8"),
    DType("F32", 4, numpy="<f4"),
    DType("F16", 2, numpy="<f2"),
    DType("BF16", 2, numpy="<u2"),
    DType("F8_E4M3", 1, numpy="|u1"),
    DType("F8_E4M3FNUZ", 1, numpy="|u1"),
    DType("F8_E5M2", 1, numpy="|u1"),
    DType("F8_E5M2FNUZ", 1, numpy="|u1"),
    DType("F8_E8M0", 1, numpy="|u1"),
    DType("I64", 8, numpy="<i8"),
    DType("I32", 4, numpy="<i4"),
    DType("I16", 2, numpy="<i2"),
    DType("I8", 1, numpy="|i1"),
    DType("U64", 8, numpy="<u8"),
    DType("U32", 4, numpy="<u4"),
    DType("U16", 2, numpy="<u2"),
    DType("U8", 1, numpy="|u1"),
    DType("BOOL", 1, numpy="|b1"),
    DType("C128", 16, numpy="<c16"),
    DType("C64", 8, numpy="<c8"),
    DType("C32", 4, numpy="<u4"),
)
_PACKED = (
    DType("F6_E2M3", 3, 4, packed=True),
    DType("F6_E3M2", 3, 4, packed=True),
    DType("F4", 1, 2, packed=True),
    DType("I4", 1, 2, packed=True),
    DType("U4", 1, 2, packed=True),
    DType("I2", 1, 4, packed=True),
    DType("U2", 1, 4, packed=True),
)
_BLOCKS = (
    DType("Q4_0", 18, 32),
    DType("Q4_1", 20, 32),
    DType("Q5_0", 22, 32),
    DType("Q5_1", 24, 32),
    DType("Q8_0", 34, 32),
    DType("Q8_1", 40, 32),
    DType("Q2_K", 84, 256),
    DType("Q3_K", 110, 256),
    DType("Q4_K", 144, 256),
    DType("Q5_K", 176, 256),
    DType("Q6_K", 210, 256),
    DType("Q8_K", 292, 256),
    DType("IQ2_XXS", 66, 256),
    DType("IQ2_XS", 74, 256),
    DType("IQ2_S", 82, 256),
    DType("IQ3_XXS", 98, 256),
    DType("IQ3_S", 110, 256),
    DType("IQ1_S", 50, 256),
    DType("IQ1_M", 56, 256),
    DType("IQ4_NL", 18, 32),
    DType("IQ4_XS", 136, 256),
    DType("TQ1_0", 54, 256),
    DType("TQ2_0", 66, 256),
    DType("MXFP4", 17, 32),
    DType("NVFP4", 36, 64),
    DType("Q1_0", 18, 128),
)

DTYPES = {dtype.name: dtype for dtype in (*_PLAIN, *_PACKED, *_BLOCKS)}


def element_width(dtype: str) -> int:
    """Return the bytes after which the pattern of a tensor's bytes repeats; 1 if the type is unknown.

    That is the size of an element, or the stride of a block where types are quantised or packed in blocks.
    """
    known = DTYPES.get(dtype)
    return known.block_bytes if known else 1


def as_array(data: Buffer, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """Return `data`, the bytes of one tensor span, as an array; copies nothing and keeps `data` alive.

    Byte order is little-endian on every machine. BF16, C32 and eight-bit floats come as raw unsigned integers of
    their width. Types without a numpy form (packed, block-quantised or unknown) come as the flat
    uint8 array of their bytes. Raises FormatError if the bytes do not fill the shape exactly.
    """
    raw: NDArray[Any] = np.frombuffer(memoryview(data), dtype=np.uint8)
    known = DTYPES.get(dtype)
    if known is None:
        return raw
    if min(shape, default=0) < 0 or known.byte_length(shape) != raw.size:
        raise FormatError(
            f"A tensor of type {dtype} and shape {tuple(shape)} does not take {raw.size} bytes: "
            "the layout that describes it is wrong. Add the file again."
        )
    if known.numpy is None:
        return raw
    try:
        return raw.view(known.numpy).reshape(tuple(shape))
    except ValueError as error:
        # An empty tensor may still claim dimensions that no array can have.
        raise FormatError(f"No array can have the shape {tuple(shape)}: {error}.") from error


def labelled(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return an array of raw bf16 or fp8 bits with the dtype of ml_dtypes, if that is installed and has it."""
    name = _ML_DTYPES.get(dtype)
    if name is None:
        return array
    try:
        import ml_dtypes  # noqa: PLC0415 - an optional package
    except ImportError:
        return array  # The caller gets the raw bits, as documented.
    kind = getattr(ml_dtypes, name, None)  # F8_E8M0 came with 0.5
    return array if kind is None else array.view(kind)
