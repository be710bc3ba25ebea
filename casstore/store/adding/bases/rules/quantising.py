"""Integers that are quantised floats, by scales and zero points that the same file holds. Pure, on sketches."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore.codecs.delta import Axis, Piece, cast_step, quantise_step, transpose_step
from casstore.codecs.delta.fit import fit_quantise
from casstore.codecs.delta.operations.quantise import quantise_floats, read_step
from casstore.store.adding.bases.rules.combining import floats
from casstore.store.adding.bases.tensors.sketch import FIRST, FLOATS, WIDTHS, positions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from casstore.codecs.delta import Residual, Rule, Step
    from casstore.store.adding.bases.rules.target import TargetTensor
    from casstore.store.adding.bases.tensors.base_tensors import BaseTensor, FrameBases
    from casstore.store.adding.bases.tensors.sketch import Positions, Words

QUANTISED = {"I8": "|i1", "U8": "|u1"}
"""Types that are looked at, with those of numpy."""

_SUFFIXES = ("_quantized", "_quant", ".quantized", "_q", "")
_SCALES = ("_scale", ".scale", "_scales", ".scales")
_ZEROS = ("_zero_point", ".zero_point", "_zero_points", ".zero_points")
"""How onnxruntime and others name what belongs to a quantised tensor."""

MAX_SCALES = 1 << 20
"""Bytes of scales that are read: of a row each, as embeddings have them."""

_MAX_COLUMNS = 16 << 10
"""Scales of which every chunk of a tensor needs all."""

_NEAR = 2.0
"""Steps between what is predicted by the usual rule and the target, on average, up to which other rules are tried."""


_LARGEST = 64 << 20
"""Bytes of the largest tensor of floats, as 32-bit ones, of which all elements are looked at: eight times as many are in memory then."""

_CORRELATED = 0.5
"""The correlation of integers and floats from which they may be each other's; that of strangers is within 0.3 of zero."""

_TRIED = 4096
_NEAR_ALL = 0.5
"""Steps between integers and what follows from the zero points that were found, on average, if it is this quantisation."""


class Scales(NamedTuple):
    """Scales, F32, and zero points, of the target's type, None if they are not known; one for each channel."""

    scales: bytes
    zeros: bytes | None

    @property
    def channels(self) -> int:
        """The number of scales."""
        return len(self.scales) // 4


def find_scales(name: str, dtype: str, read: Callable[[str, str], bytes | None]) -> Scales | None:
    """Return the scales of a tensor; `read` returns the bytes of a small tensor of a name and type."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            stem = name[: len(name) - len(suffix)]
            scales = next(filter(None, (read(stem + own, "F32") for own in _SCALES)), None)
            if scales is not None and len(scales) <= MAX_SCALES:
                zeros = next(filter(None, (read(stem + own, dtype) for own in _ZEROS)), None)
                return Scales(scales, zeros if zeros and 4 * len(zeros) == len(scales) else None)
    return None


@dataclass(frozen=True, slots=True)
class Quantised:
    """The operation that quantises a tensor of floats, perhaps its transpose; the result has one byte for each element."""

    tensor: BaseTensor
    transposed: bool
    target: str
    scales: Scales
    axis: Axis
    rule: Rule
    limits: tuple[int, int]

    @property
    def inputs(self) -> tuple[BaseTensor, ...]:
        """The tensor of floats."""
        return (self.tensor,)

    def piece(self, begin: int, end: int, at: int, bases: FrameBases, residual: Residual | None) -> Piece:
        """Return the prediction of a part (`Operation.piece`)."""
        dtype = self.tensor.span.dtype
        width = WIDTHS[dtype]
        low, high = (0, self.tensor.size) if self.transposed else (begin * width, end * width)
        known, axis, first = self._part(begin, end)
        inputs = [bases.extents(self.tensor, low, high), (bases.side(known.scales),)]
        if known.zeros is not None:
            inputs.append((bases.side(known.zeros),))
        steps: list[Step] = []
        value, following = 0, len(inputs)
        if self.transposed:
            shape = self.tensor.span.shape
            steps.append(
                transpose_step(
                    value, width=width, shape=shape, permutation=(1, 0), first=begin, count=end - begin
                )
            )
            value, following = following, following + 1
        if dtype != "F32":
            steps.append(cast_step(value, source=dtype, target="F32"))
            value = following
        zeros = None if self.scales.zeros is None else 2
        steps.append(self.step(value, zeros, first, axis))
        return Piece(at, at + end - begin, tuple(inputs), tuple(steps), residual)

    def step(self, value: int, zeros: int | None, first: int, axis: Axis | None = None) -> Step:
        """Return the step that quantises value number `value`, from element `first` of an axis on, by default the tensor's."""
        return quantise_step(
            value,
            1,
            zeros,
            target=self.target,
            axis=axis or self.axis,
            first=first,
            rule=self.rule,
            limits=self.limits,
        )

    def _part(self, begin: int, end: int) -> tuple[Scales, Axis, int]:
        """Return the scales of a range of elements, the axis of these, and the place of the first element on it."""
        inner, channels, _ = self.axis
        if inner == 1 or channels == 1:
            return self.scales, self.axis, begin
        row, stop = begin // inner, -(-end // inner)
        scales, zeros = self.scales
        part = Scales(scales[4 * row : 4 * stop], None if zeros is None else zeros[row:stop])
        return part, Axis(inner, stop - row), begin - row * inner


def quantised(
    target: TargetTensor, tensor: BaseTensor, words: Words, *, whole: int
) -> Iterator[tuple[Quantised, Words, Words]]:
    """Yield what may make integers of a tensor of floats whose sketch is `words`: operation, prediction, actual.

    Tensors of up to `whole` bytes may be transposed.
    """
    dtype = tensor.span.dtype
    scales = target.scales
    if scales is None or dtype not in FLOATS or dtype == "F64":
        return
    values = floats(words, dtype).astype(np.float32)
    places = positions(target.elements)
    views = [(False, target.sketch, places)]
    if tensor.size <= whole and target.is_matrix and tensor.span.shape == target.span.shape[::-1]:
        views.append((True, target.transpose, target.transposed_places))
    for transposed, actual, where in views:
        for axis in _axes(scales.channels, target.span.shape):
            channels = where // axis.inner % axis.channels
            made = _fit(target.span.dtype, values, actual, scales, channels)
            if made is not None:
                known, rule, limits, predicted = made
                yield (
                    Quantised(tensor, transposed, target.span.dtype, known, axis, rule, limits),
                    predicted,
                    actual,
                )


def learned(
    target: TargetTensor,
    tensor: BaseTensor,
    words: Words,
    *,
    read: Callable[[BaseTensor, int, int], bytes],
    whole: int,
) -> Iterator[tuple[Quantised, Words, Words]]:
    """Yield what `quantised` does, with a zero point for each channel that the file does not tell, or not as a tensor.

    All elements of both tensors are looked at, if a few of them are alike; tensors of up to `whole` bytes may be transposed.
    `read` returns bytes of a tensor in the store, none where they cannot be read.
    """
    dtype, shape, scales = tensor.span.dtype, target.span.shape, target.scales
    if (
        scales is None
        or scales.zeros is not None
        or scales.channels not in shape
        or scales.channels == 1
        or len(shape) != 2
        or dtype not in FLOATS
        or dtype == "F64"
        or 4 * target.elements > _LARGEST
    ):
        return
    kind = QUANTISED[target.span.dtype]
    own = np.frombuffer(scales.scales, "<f4")
    few = floats(words, dtype).astype(np.float32)
    views = [(False, target.sketch, positions(target.elements))]
    if tensor.size <= whole and target.is_matrix and tensor.span.shape == shape[::-1]:
        views.append((True, target.transpose, target.transposed_places))
    for transposed, actual, where in views:
        for axis in _axes(scales.channels, shape):
            steps = own[where // axis.inner % axis.channels]
            if not _is_correlated(few, steps, actual.view(kind)):
                continue
            source, made = read(tensor, 0, tensor.size), target.part(0, target.elements)
            if len(source) < tensor.size or len(made) < target.elements:
                return
            matrix = floats(np.frombuffer(source, f"<u{WIDTHS[dtype]}"), dtype).astype(np.float32)
            matrix = matrix.reshape(tensor.span.shape).T if transposed else matrix.reshape(shape)
            integers = np.frombuffer(made, kind).reshape(shape).astype(np.int32)
            across = 0 if axis.inner == 1 else 1
            found = fitted_zeros(
                matrix, integers, own[None, :] if across == 0 else own[:, None], across, target.span.dtype
            )
            if found is None:
                continue
            zeros, rule, limits = found
            known = scales._replace(zeros=zeros.tobytes())
            operation = Quantised(tensor, transposed, target.span.dtype, known, axis, rule, limits)
            step = read_step(
                quantise_step(0, 1, target=target.span.dtype, rule=rule, limits=limits).parameters
            )
            offsets = zeros[where // axis.inner % axis.channels].astype(np.float32)
            yield operation, quantise_floats(few, steps, offsets, step).astype(kind).view("<u1"), actual


def fitted_zeros(
    values: NDArray[np.float32],
    actual: NDArray[np.int32],
    steps: NDArray[np.float32],
    across: int,
    dtype: str,
) -> tuple[NDArray[np.integer], Rule, tuple[int, int]] | None:
    """Return the zero points of the channels of a matrix, with the rule that fits; None if none do.

    A channel has all elements along axis `across`; `steps` are its scales, which broadcast to the matrix.
    """
    with np.errstate(all="ignore"):
        offsets = actual - np.nan_to_num(np.rint(values / steps), posinf=0, neginf=0)
    limits = np.iinfo(QUANTISED[dtype])
    zeros = np.clip(np.rint(np.median(offsets, axis=across, keepdims=True)), limits.min, limits.max)
    if np.abs(offsets - zeros).mean() > _NEAR_ALL:
        return None
    wide = np.broadcast_to(steps, values.shape).ravel()[:_TRIED]
    offset = np.broadcast_to(zeros, values.shape).ravel()[:_TRIED].astype(np.float32)
    fit = fit_quantise(actual.ravel()[:_TRIED], values.ravel()[:_TRIED], wide, offset, target=dtype)
    return zeros.ravel().astype(QUANTISED[dtype]), fit.rule, fit.limits


def _is_correlated(
    values: NDArray[np.float32], steps: NDArray[np.float32], actual: NDArray[np.integer]
) -> bool:
    """Say whether integers go with scaled floats, whatever the zero points are."""
    with np.errstate(all="ignore"):
        found = float(np.corrcoef(np.nan_to_num(values / steps, posinf=0, neginf=0), actual)[0, 1])
    return found > _CORRELATED


def _axes(count: int, shape: tuple[int, ...]) -> Iterator[Axis]:
    """Yield how so many scales may belong to the elements of a tensor."""
    elements = prod(shape)
    if count == 1:
        yield Axis()
        return
    if shape and count == shape[-1] and count <= _MAX_COLUMNS:
        yield Axis(1, count)
    if (
        shape
        and elements > count
        and elements % count == 0
        and (count == shape[0] or shape[-1] % (elements // count) == 0)
    ):
        yield Axis(elements // count, count)


def _fit(
    dtype: str, values: NDArray[np.float32], actual: Words, scales: Scales, channels: Positions
) -> tuple[Scales, Rule, tuple[int, int], Words] | None:
    """Return the rule that fits, with zero points if they were not known, and what it predicts; None if it is far off.

    `channels` are the numbers of the values' scales.
    """
    own = np.frombuffer(scales.scales, "<f4")[channels]
    if not _is_near(values[:FIRST], own[:FIRST], actual[:FIRST].view(QUANTISED[dtype])):
        return None
    found = actual.view(QUANTISED[dtype]).astype(np.int64)
    with np.errstate(all="ignore"):
        plain = np.nan_to_num(np.rint(values / own), posinf=0, neginf=0)
    if scales.zeros is None:
        zero = int(np.clip(np.median(found - plain), *_range(dtype)))
        known = np.full(scales.channels, zero, QUANTISED[dtype])
        scales = scales._replace(zeros=known.tobytes() if zero else None)
    else:
        known = np.frombuffer(scales.zeros, QUANTISED[dtype])
    zeros = known[channels].astype(np.float32)
    low, high = _range(dtype)
    missed = np.abs(np.clip(plain + zeros, low, high) - found)
    if missed.mean() > _NEAR:
        return None
    fit = fit_quantise(found, values, own, zeros, target=dtype)
    step = quantise_step(0, 1, target=dtype, rule=fit.rule, limits=fit.limits)
    made = quantise_floats(values, own, zeros, read_step(step.parameters))
    return scales, fit.rule, fit.limits, made.astype("<u1" if dtype == "U8" else "<i1").view("<u1")


def _is_near(values: NDArray[np.float32], scales: NDArray[np.float32], actual: Words) -> bool:
    """Say whether a few elements differ from the scaled ones by about the same: a zero point, but for what was cut off."""
    with np.errstate(all="ignore"):
        distances = np.sort(actual - values / scales)
        return bool(distances[-3] - distances[2] <= 2 * _NEAR)


def _range(dtype: str) -> tuple[int, int]:
    return (0, 255) if dtype == "U8" else (-128, 127)
