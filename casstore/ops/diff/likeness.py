"""Which tensors of A those of B may come from whose names say nothing: by the correlation of a few elements of each."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from casstore.concurrency.workers import TaskGroup
from casstore.ops.diff.relations import opened
from casstore.ops.diff.values import numbers
from casstore.store.adding.bases.tensors.sketch import SIZE, WIDTHS, positions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from casstore.ops.diff.reading import TensorReader
    from casstore.ops.diff.sides import Side
    from casstore.store.adding.bases.tensors.sketch import Words

__all__ = ["find_alike"]

_ALIKE = 0.8
"""The correlation from which tensors are taken for relatives: that of 256 pairs of strangers is hardly ever above 0.3."""

_PREFERRED = 1e-3
"""What it counts that a tensor of A is not another one of B."""

_NEAREST = 4
"""Tensors of A that each of B may be, if the nearest is taken."""

_ROWS = 256
"""Tensors whose correlations with all others are computed at once."""


def find_alike(
    a: Sequence[Side],
    left: Sequence[Side],
    b: Mapping[int, Side],
    readers: tuple[TensorReader, TensorReader],
) -> dict[int, Side]:
    """Return the tensor of A that is most like each of B, by its number, for those of which one is like it at all.

    `left` are those of A that nothing else is paired with; each of these is given to one tensor only. Both have as many
    elements, 256 or more, and a type of whole bytes.
    """
    wanted: dict[int, list[int]] = defaultdict(list)
    for number, side in b.items():
        if _has_sketch(side):
            wanted[side.tensor.elements].append(number)
    free = {id(side) for side in left}
    found: dict[int, Side] = {}
    candidates: dict[int, list[Side]] = defaultdict(list)
    for side in a:
        if side.tensor.elements in wanted and _has_sketch(side):
            candidates[side.tensor.elements].append(side)
    for elements, sides in candidates.items():
        numbers_b = wanted[elements]
        known = _sketches(sides, readers[0], _straight)
        bonus = np.array([_PREFERRED if id(side) in free else 0.0 for side in sides])
        numbered: dict[tuple[int, ...], int] = {}
        shapes = np.array([numbered.setdefault(side.span.shape, len(numbered)) for side in sides])
        likes: list[tuple[float, int, int]] = []
        for begin in range(0, len(numbers_b), _ROWS):
            some = numbers_b[begin : begin + _ROWS]
            targets = [b[number] for number in some]
            score = np.abs(_sketches(targets, readers[1], _straight) @ known.T)
            turned = np.abs(_sketches(targets, readers[1], _turned) @ known.T)
            fits = np.array([numbered.get(side.span.shape[::-1], -1) for side in targets])
            score = np.where(fits[:, None] == shapes, np.maximum(score, turned), score) + bonus
            likes += [
                (float(score[row, column]), number, column)
                for row, number in enumerate(some)
                for column in np.argsort(-score[row])[:_NEAREST].tolist()
            ]
        likes.sort(key=lambda item: -item[0])
        for score_of, number, column in likes:
            side = sides[column]
            if score_of < _ALIKE or number in found:
                continue
            if id(side) in free:
                free.discard(id(side))
            elif bonus[column]:
                continue  # It is another tensor by now.
            found[number] = side
    return found


def _has_sketch(side: Side) -> bool:
    return side.span.dtype in WIDTHS and side.tensor.elements >= SIZE and side.is_sound


def _sketches(
    sides: Sequence[Side], reader: TensorReader, view: Callable[[Side, TensorReader], Words | None]
) -> NDArray[np.float32]:
    """Return the elements of each tensor, in a row, so that products of rows are correlations; 0 where there is no view."""
    made = np.zeros((len(sides), SIZE), np.float32)
    with TaskGroup() as tasks:
        waiting = [tasks.submit(view, side, reader) for side in sides]
        for row, (side, task) in enumerate(zip(sides, waiting, strict=True)):
            words = task.result()
            values = None if words is None else numbers(words.view(np.uint8), side.span.dtype)
            if values is not None:
                made[row] = _unit(values)
    return made


def _unit(values: NDArray[np.generic]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        wide = values.astype(np.float64)
        wide -= wide.mean()
        length = float(np.linalg.norm(wide))
    if not np.isfinite(length) or length == 0:
        return np.zeros(len(wide), np.float32)
    return (wide / length).astype(np.float32)


def _straight(side: Side, reader: TensorReader) -> Words:
    target = opened(side, reader)
    places = positions(target.elements)
    reader.expect(side, places * target.width)
    return np.ascontiguousarray(target.at(places))


def _turned(side: Side, reader: TensorReader) -> Words | None:
    target = opened(side, reader)
    if not target.is_matrix:
        return None
    reader.expect(side, target.transposed_places * target.width)
    return np.ascontiguousarray(target.transpose)
