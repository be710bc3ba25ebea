"""Compares a ref of one store with the ref of the same name in another. Pure.

Sync carries only a ref's newest value over, under a number and write id of the other store, so two stores
that agree still have different records. A copied record names the write that it comes from, which shows who
has seen what. If two stores got the same values from elsewhere, the values of their records, in order, are compared.
"""

from __future__ import annotations

import enum
from itertools import groupby
from typing import TYPE_CHECKING, Any

from casstore.format import record as record_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casstore.format.record import Record

    Value = tuple[Any, ...]


class RefState(enum.Enum):
    """How the destination treats the source's value."""

    ABSENT = "absent"
    """The destination has no value: it takes the source's."""
    EQUAL = "equal"
    BEHIND = "behind"
    """The source has seen the destination's value and moved on: the destination takes the source's."""
    AHEAD = "ahead"
    """The destination has seen the source's value and moved on: it keeps its own."""
    CONFLICT = "conflict"
    """Each has a value that the other has not seen, or it is unknown which is newer."""


def value(record: Record) -> Value:
    """Return all that a record says, except who wrote it and when.

    Two manifests of one model may differ in how its files are cut and in executable bits: the model is the same.
    """
    return (record.target, record.base, record_format.said(record.metadata))


def same_value(one: Record | None, other: Record | None) -> bool:
    """Say whether two records, of any stores, have the same value."""
    return one is not None and other is not None and value(one) == value(other)


def compare(src: Sequence[Record], dst: Sequence[Record]) -> RefState:
    """Compare the records of one ref, oldest first, in both stores; that of `src` is not deleted.

    The side whose newest write the other one has had is behind. Failing that, it is the one whose
    values, in order, are among the other's, or else whose newest target the other once had. Different
    descriptions of one target are no conflict: the source's is taken.
    """
    newest = src[-1]
    if not dst or dst[-1].target is None:
        return RefState.ABSENT
    if same_value(newest, dst[-1]):
        return RefState.EQUAL
    seen_here = _write(dst[-1]) in {_write(record) for record in src}
    seen_there = _write(newest) in {_write(record) for record in dst}
    if seen_here != seen_there:
        return RefState.BEHIND if seen_here else RefState.AHEAD
    ours, theirs = _values(src), _values(dst)
    if _within(theirs, ours):
        return RefState.BEHIND
    if _within(ours, theirs):
        return RefState.AHEAD
    if newest.target == dst[-1].target:
        return RefState.BEHIND
    seen_here = dst[-1].target in {record.target for record in src}
    seen_there = newest.target in {record.target for record in dst}
    if seen_here == seen_there:
        return RefState.CONFLICT
    return RefState.BEHIND if seen_here else RefState.AHEAD


def _write(record: Record) -> bytes:
    """Return the id of the write that first set this value."""
    return record.origin or record.write_id


def _values(records: Iterable[Record]) -> list[Value]:
    values = (value(record) for record in records if record.target is not None)
    return [one for one, _ in groupby(values)]


def _within(short: Sequence[Value], long: Sequence[Value]) -> bool:
    """Say whether `short` is a subsequence of `long`."""
    left = iter(long)
    return all(any(one == other for other in left) for one in short)
