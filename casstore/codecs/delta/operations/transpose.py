"""*transpose*: a range of the elements of a tensor whose axes are permuted. The whole tensor goes in; only the range is made."""

from __future__ import annotations

import math
import struct
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from casstore import _build
from casstore.codecs.delta.operations.operation import Operation, in_units, reject
from casstore.codecs.delta.piece import TRANSPOSE, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.operations.operation import Parts

    U8 = NDArray[np.uint8]

_HEAD = struct.Struct("<BBHII")
_MAX_RANK = 8
_WIDTHS = {1, 2, 4, 8}


class _Transpose(NamedTuple):
    width: int
    first: int
    number: int
    shape: tuple[int, ...]
    permutation: tuple[int, ...]


def transpose_step(
    operand: int, *, width: int, shape: Sequence[int], permutation: Sequence[int], first: int, count: int
) -> Step:
    """Return the step that makes elements `first` to `first + count` of a tensor whose axes are permuted.

    The operand is the whole tensor of this `shape`, of elements of `width` bytes. As in numpy, axis k of the result is
    axis `permutation[k]` of the operand. Axes of one element are left out, and axes that stay neighbours are made one.
    """
    shape, permutation = simplified(shape, permutation)
    head = _HEAD.pack(width, len(shape), 0, first, count)
    axes = b"".join(size.to_bytes(4, "little") for size in shape) + bytes(permutation)
    return Step(TRANSPOSE, 1, (operand,), head + axes)


def simplified(shape: Sequence[int], permutation: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a shape and a permutation that move elements in the same way, with as few axes as possible, at least one."""
    kept = [axis for axis in permutation if shape[axis] != 1]
    groups: list[list[int]] = []
    for axis in kept:
        # Axes of one element between two others do not part them.
        if (
            groups
            and all(shape[other] == 1 for other in range(groups[-1][-1] + 1, axis))
            and axis > groups[-1][-1]
        ):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if not groups:
        return (1,), (0,)
    order = sorted(groups)
    sizes = tuple(math.prod(shape[axis] for axis in group) for group in order)
    return sizes, tuple(order.index(group) for group in groups)


def _read(parameters: bytes) -> _Transpose:
    if len(parameters) < _HEAD.size:
        raise reject("transpose", f"{len(parameters)} bytes of parameters")
    width, rank, spare, first, count = _HEAD.unpack_from(parameters)
    if (
        width not in _WIDTHS
        or not 1 <= rank <= _MAX_RANK
        or spare
        or len(parameters) != _HEAD.size + 5 * rank
    ):
        raise reject("transpose", f"width {width}, rank {rank} and {len(parameters)} bytes of parameters")
    shape = struct.unpack_from(f"<{rank}I", parameters, _HEAD.size)
    permutation = tuple(parameters[_HEAD.size + 4 * rank :])
    if sorted(permutation) != list(range(rank)):
        raise reject("transpose", f"permutation {list(permutation)}")
    elements = math.prod(shape)
    if count == 0 or first + count > elements:
        raise reject("transpose", f"elements {first} to {first + count} of {elements}")
    return _Transpose(width, first, count, shape, permutation)


def _size(parameters: bytes, sizes: Sequence[int]) -> int:
    step = _read(parameters)
    if list(sizes) != [math.prod(step.shape) * step.width]:
        raise reject("transpose", f"operands of {list(sizes)} bytes for shape {list(step.shape)}")
    return step.number * step.width


def _apply(parameters: bytes, operands: Sequence[Parts]) -> U8:
    step = _read(parameters)
    parts = in_units(operands[0], step.width)
    out: U8 = np.empty(step.number * step.width, np.uint8)
    if _build.kernels is not None:
        # How far apart in the operand neighbours along each axis are.
        distances = [math.prod(step.shape[axis + 1 :]) for axis in range(len(step.shape))]
        shape = tuple(step.shape[axis] for axis in step.permutation)
        steps = tuple(distances[axis] for axis in step.permutation)
        _build.kernels.transpose(tuple(parts), out, step.width, shape, steps, step.first)
        return out
    if step.permutation == (1, 0) and len(parts) > 1:
        step, parts = _columns(step, parts)
    tensor = _whole(parts, step)
    _copy(tensor.transpose(step.permutation), step.first, out.view(f"<u{step.width}"))
    return out


def _columns(step: _Transpose, parts: Parts) -> tuple[_Transpose, Parts]:
    """Return the same for those columns of a matrix in parts that the range takes: to copy all would cost more than the rest."""
    rows, columns = step.shape
    begin, end = step.first // rows, -(-(step.first + step.number) // rows)
    found = np.empty((rows, end - begin), f"<u{step.width}")
    at = 0
    for part in parts:
        words = part.view(found.dtype)
        # Whole rows, and what there is of the rows before and after them.
        first, last = -(-at // columns), (at + len(words)) // columns
        if first < last:
            whole = words[first * columns - at : last * columns - at].reshape(-1, columns)
            found[first:last] = whole[:, begin:end]
        for row in {at // columns, last} - set(range(first, last)):
            low, high = max(at, row * columns + begin), min(at + len(words), row * columns + end)
            if low < high:
                found[row, low - row * columns - begin : high - row * columns - begin] = words[
                    low - at : high - at
                ]
        at += len(words)
    shape, offset = found.shape, step.first - begin * rows
    return step._replace(shape=shape, first=offset), [found.reshape(-1).view(np.uint8)]


def _whole(parts: Parts, step: _Transpose) -> NDArray[Any]:
    """Return the tensor. Of one in parts, only those rows are copied together that the range takes anything from."""
    rows, row = step.shape[0], math.prod(step.shape[1:]) * step.width
    if len(parts) == 1:
        return parts[0].view(f"<u{step.width}").reshape(step.shape)
    begin, end = 0, rows
    if step.permutation[0] == 0:
        inner = math.prod(step.shape[1:])
        begin, end = step.first // inner, -(-(step.first + step.number) // inner)
    # What is not copied is never touched: it takes no memory.
    whole: U8 = np.empty(rows * row, np.uint8)
    for part, (start, stop) in zip(parts, pairwise([0, *accumulate(map(len, parts))]), strict=True):
        low, high = max(start, begin * row), min(stop, end * row)
        if low < high:
            whole[low:high] = part[low - start : high - start]
    return whole.view(f"<u{step.width}").reshape(step.shape)


def _copy(tensor: NDArray[Any], first: int, out: NDArray[Any]) -> None:
    """Fill `out` with elements of `tensor` in its own order, from number `first` on."""
    if tensor.ndim == 1:
        out[:] = tensor[first : first + len(out)]
        return
    inner = math.prod(tensor.shape[1:])
    row, offset = divmod(first, inner)
    done = 0
    if offset or len(out) < inner:
        done = min(inner - offset, len(out))
        _copy(tensor[row], offset, out[:done])
        row += 1
    rows = (len(out) - done) // inner
    middle = out[done : done + rows * inner].reshape(rows, *tensor.shape[1:])
    middle[...] = tensor[row : row + rows]
    done += rows * inner
    if done < len(out):
        _copy(tensor[row + rows], 0, out[done:])


OPERATION = Operation("transpose", _size, _apply)
