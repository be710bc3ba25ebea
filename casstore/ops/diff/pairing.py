"""Which tensor of one model is which of the other: by name, across formats, and by equal bytes. Reads nothing."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, NamedTuple

from casstore.store.adding.bases.tensors.names import plain_name

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from casstore.ops.diff.sides import Side

__all__ = ["Pairing", "pair"]

_QUANTISED = ("_quantized", "_quant", ".quantized")
"""What exporters put behind the name of a tensor that they quantise."""


class Pairing(NamedTuple):
    """The tensor of A for each of B, by its number, as far as one is known, and the tensors of A that are left."""

    known: dict[int, Side]
    left: list[Side]


def pair(a: Sequence[Side], b: Sequence[Side]) -> Pairing:
    """Pair tensors by file and name, by name, and by what formats have in common of names; then those of equal bytes.

    Each tensor of A is paired by name once. One of B that nothing has the name of may equal any.
    """
    known: dict[int, Side] = {}
    left = list(a)
    for key, sized in _TIERS:
        if not left or len(known) == len(b):
            break
        waiting: dict[Hashable, deque[Side]] = defaultdict(deque)
        for side in left:
            waiting[key(side), side.tensor.elements if sized else None].append(side)
        for number, side in enumerate(b):
            if number not in known:
                found = waiting.get((key(side), side.tensor.elements if sized else None))
                if found:
                    known[number] = found.popleft()
        taken = {id(side) for side in known.values()}
        left = [side for side in left if id(side) not in taken]
    if len(known) < len(b):
        by_chunks = {side.chunks(): side for side in (*reversed(a), *reversed(left)) if side.size}
        for number, side in enumerate(b):
            if number not in known and side.size:
                equal = by_chunks.get(side.chunks())
                if equal is not None:
                    known[number] = equal
        taken = {id(side) for side in known.values()}
        left = [side for side in left if id(side) not in taken]
    return Pairing(known, left)


def _place(side: Side) -> Hashable:
    return side.file.path, side.span.name


def _stem(side: Side) -> str:
    name = plain_name(side.span.name)
    for suffix in _QUANTISED:
        name = name.removesuffix(suffix)
    return name


_TIERS: tuple[tuple[Callable[[Side], Hashable], bool], ...] = (
    (_place, False),
    (lambda side: side.span.name, True),
    (lambda side: side.span.name, False),
    (lambda side: plain_name(side.span.name), True),
    (_stem, True),
)
"""What tensors that belong together have in common, and whether they must also have as many elements."""
