"""Compares two models: pairs their tensors, and says what became of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.ops.diff.likeness import find_alike
from casstore.ops.diff.measuring import measure
from casstore.ops.diff.pairing import pair
from casstore.ops.diff.reading import TensorReader
from casstore.ops.diff.result import FileDiff, ModelDiff, TensorDiff
from casstore.ops.diff.sides import sides_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsspec import Callback

    from casstore.objects import ObjectStore
    from casstore.ops.diff.measuring import Measured
    from casstore.ops.diff.result import FileChange, TensorChange
    from casstore.ops.diff.sides import Side
    from casstore.store.reading.model import Model

__all__ = ["compare_models", "outline"]

_READ_AT_MOST = 64 << 20


def compare_models(
    a: Model,
    b: Model,
    *,
    objects: tuple[ObjectStore, ObjectStore],
    callback: Callback | None = None,
) -> ModelDiff:
    """Compare two models; `objects` are those that each is read from. `callback` counts the bytes of tensors that are read.

    Only tensors whose bytes are not known to be equal are read. Raises as reading does.
    """
    sides_a, sides_b = list(sides_of(a)), list(sides_of(b))
    readers = TensorReader(objects[0]), TensorReader(objects[1])
    pairing = pair(sides_a, sides_b)
    unknown = {number: side for number, side in enumerate(sides_b) if number not in pairing.known}
    guessed = find_alike(sides_a, pairing.left, unknown, readers) if unknown else {}
    known = pairing.known | guessed
    found: dict[int, tuple[Side, TensorDiff]] = {}
    pairs = []
    for number, one in known.items():
        other = sides_b[number]
        settled = _unread(one, other)
        if settled is not None:
            found[number] = one, settled
        else:
            pairs.append((number, one, other))
    if callback is not None:
        callback.set_size(sum(one.size + other.size for _, one, other in pairs))
    for number, measured in measure(pairs, readers):
        one, other = known[number], sides_b[number]
        # What a name does not say and values do not show is a guess that was wrong.
        if number not in guessed or measured.relation is not None or _is_like(one, other, measured):
            found[number] = one, _diff(one, other, measured)
        if callback is not None:
            callback.relative_update(one.size + other.size)
    return _report(a, b, sides_a, sides_b, found)


def outline(a: Model, b: Model, *, objects: tuple[ObjectStore, ObjectStore]) -> ModelDiff:
    """Compare two models by the chunks of their tensors, and by the bytes of small ones, 64 MiB of them at most.

    That takes little time. It tells what is the same, and which types and shapes differ; not by how much values do. Raises as
    reading does.
    """
    sides_a, sides_b = list(sides_of(a)), list(sides_of(b))
    readers = TensorReader(objects[0]), TensorReader(objects[1])
    pairing = pair(sides_a, sides_b)
    found: dict[int, tuple[Side, TensorDiff]] = {}
    allowed = _READ_AT_MOST
    for number, one in sorted(pairing.known.items()):
        other = sides_b[number]
        settled = _unread(one, other)
        if settled is None:
            change: TensorChange = "changed"
            if _are_alike(one, other) and not (one.chunks().aligned and other.chunks().aligned):
                allowed -= one.size + other.size
                if allowed < 0:
                    change = "not compared"
                elif bytes(readers[0].read(one, 0, one.size)) == bytes(readers[1].read(other, 0, other.size)):
                    change = "same"
            elif one.span.shape != other.span.shape:
                change = "reshaped"
            settled = TensorDiff(change, one.shown(), other.shown(), other.tensor.elements)
        found[number] = one, settled
    return _report(a, b, sides_a, sides_b, found)


def _are_alike(one: Side, other: Side) -> bool:
    return (one.span.dtype, one.span.shape, one.size) == (other.span.dtype, other.span.shape, other.size)


def _unread(one: Side, other: Side) -> TensorDiff | None:
    """Return what is known of a pair without reading it; None if that is not enough."""
    elements = other.tensor.elements
    shown = one.shown(), other.shown()
    if one.tensor.elements != elements:
        return TensorDiff("reshaped", *shown, elements)
    if one.span.dtype == other.span.dtype and one.size == other.size and one.chunks() == other.chunks():
        change: TensorChange = "same" if one.span.shape == other.span.shape else "reshaped"
        return TensorDiff(change, *shown, elements, 0, 0.0, 0.0)
    if not (one.is_sound and other.is_sound):
        return TensorDiff("not compared", *shown, elements)
    return None


def _is_like(one: Side, other: Side, measured: Measured) -> bool:
    """Say whether two tensors that were paired by a few elements have to do with each other, although no rule fits."""
    return measured.same_bytes or one.span.shape in {other.span.shape, other.span.shape[::-1]}


def _diff(one: Side, other: Side, measured: Measured) -> TensorDiff:
    values, relation = measured.values, measured.relation
    change: TensorChange = "changed"
    unexplained = None
    if measured.same_bytes and not (relation is not None and relation.transposed):
        change = "same" if one.span.shape == other.span.shape else "reshaped"
    elif relation is not None:
        unexplained = measured.unexplained
        if relation.quantisation is not None:
            change = "quantised"
        elif relation.transposed:
            change = "transposed"
        elif relation.steps and not measured.unexplained:
            change = "cast"
        else:
            unexplained = None
    return TensorDiff(
        change,
        one.shown(),
        other.shown(),
        other.tensor.elements,
        measured.differing,
        None if values is None else values.largest,
        None if values is None else values.mean,
        0 if values is None else values.not_finite,
        unexplained,
    )


def _report(
    a: Model, b: Model, sides_a: list[Side], sides_b: list[Side], known: dict[int, tuple[Side, TensorDiff]]
) -> ModelDiff:
    """Put everything together; `known` has a tensor of A and the difference for tensors of B, by their numbers."""
    tensors = []
    for number, side in enumerate(sides_b):
        added = TensorDiff("added", None, side.shown(), side.tensor.elements)
        tensors.append(known[number][1] if number in known else added)
    used = {id(side) for side, _ in known.values()}
    tensors += [
        TensorDiff("removed", side.shown(), None, side.tensor.elements)
        for side in sides_a
        if id(side) not in used
    ]
    return ModelDiff(
        a=a.ref,
        b=b.ref,
        model_id_a=a.model_id,
        model_id_b=b.model_id,
        tensors=tuple(tensors),
        files=tuple(_files(a, b)),
        shared_bytes=_shared(a, b),
    )


def _files(a: Model, b: Model) -> Iterator[FileDiff]:
    of_a = {entry.path: entry for entry in a.tree.files}
    of_b = {entry.path: entry for entry in b.tree.files}
    for path in sorted(of_a.keys() | of_b.keys()):
        one, other = of_a.get(path), of_b.get(path)
        change: FileChange
        if one is None or other is None:
            change = "added" if one is None else "removed"
        else:
            change = "same" if one.file_id == other.file_id else "changed"
        yield FileDiff(path, change, one.size if one else None, other.size if other else None)


def _shared(a: Model, b: Model) -> int:
    sizes: dict[bytes, int] = {}
    for layout in a.layouts:
        sizes.update(zip(layout.chunk_ids(), layout.lengths.tolist(), strict=True))
    of_b = {chunk for layout in b.layouts for chunk in layout.chunk_ids()}
    return sum(size for chunk, size in sizes.items() if chunk in of_b)
