"""Predictions compared with, or added to, what they predict: many in one native call, without memory of their own.

What is here in numpy is the specification of the compiled kernels, and their replacement where there are none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casstore import _build
from casstore.codecs.delta import residual
from casstore.codecs.delta.operations.cast import cast_floats
from casstore.codecs.delta.operations.floats import CODES, Rounding
from casstore.codecs.delta.operations.operation import joined
from casstore.codecs.delta.piece import Order, Residual
from casstore.codecs.delta.residual import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casstore.codecs.delta.operations.operation import Source

    U8 = NDArray[np.uint8]

_HELD = 1 << 20
"""Bytes made for predictions that wait for others: with more, they leave the core's cache."""

_BYTES = Residual(Order.INTEGER, 1)
"""How what must be exact is compared."""


class Task(NamedTuple):
    """Bytes, what predicts them, and the form of what that misses, None where it must be exact.

    `differences` are what it missed, where the bytes are to be made.
    """

    own: U8
    source: Source
    residual: Residual | None
    differences: U8 | None = None


def subtract_each(tasks: Iterable[Task], out: U8) -> list[Outcome]:
    """Write to `out` what predictions missed, one after the other, and nothing for those that are exact; say which are.

    `out` is as long as all that is predicted. Where a prediction must be exact and is not, Outcome is another, and its bytes
    stand in `out` as well. Tasks are asked for as they are worked on.
    """
    outcomes: list[Outcome] = []
    at = 0
    for group in _groups(tasks):
        found = _subtract(group, out[at:])
        outcomes += found
        at += sum(
            len(task.own) for task, outcome in zip(group, found, strict=True) if outcome is not Outcome.EXACT
        )
    return outcomes


def add_each(tasks: Iterable[Task]) -> None:
    """Fill what is predicted: the inverse of `subtract_each`. Tasks are asked for as they are worked on."""
    for group in _groups(tasks):
        if _build.kernels is not None:
            _build.kernels.add_each(tuple(map(_given, group)))
            continue
        for task in group:
            if task.differences is None:
                task.own[:] = _made(task.source)
            else:
                residual.add(task.differences, _made(task.source), task.residual or _BYTES, task.own)


def _subtract(group: Sequence[Task], out: U8) -> list[Outcome]:
    if _build.kernels is not None:
        return list(map(_OUTCOMES.__getitem__, _build.kernels.subtract_each(tuple(map(_given, group)), out)))
    outcomes = []
    at = 0
    for task in group:
        size = len(task.own)
        outcome = residual.subtract(
            task.own, _made(task.source), task.residual or _BYTES, out[at : at + size]
        )
        outcomes.append(outcome)
        at += 0 if outcome is Outcome.EXACT else size
    return outcomes


_OUTCOMES = tuple(Outcome)


def _groups(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Divide tasks so that not much memory is made for those that are worked on at once."""
    group: list[Task] = []
    held = 0
    for task in tasks:
        group.append(task)
        held += task.source.made
        if held >= _HELD:
            yield group
            group, held = [], 0
    if group:
        yield group


def _given(task: Task) -> tuple[object, ...]:
    order, width = task.residual or _BYTES
    parts = tuple(task.source.parts)
    return task.own, parts, task.differences, width, order is Order.FLOAT, task.source.cast


def _made(source: Source) -> U8:
    """Return a prediction in one piece."""
    if source.cast is None:
        return joined(source.parts)
    numbers = source.cast
    one, other = CODES[numbers[0]], CODES[numbers[1]]
    values = joined(source.parts)
    out: U8 = np.empty(len(values) // one.width * other.width, np.uint8)
    cast_floats(values, one, other, rounding=Rounding(numbers[2]), saturate=numbers[3], out=out)
    return out
